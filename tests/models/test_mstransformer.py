"""The network as a whole: what comes out, which scene's pose, what is trained, what is refused."""

import pytest
import torch
from torch import nn

from mspose.errors import MsposeError
from mspose.models.mstransformer import MSTransformer, PoseOutput
from mspose.models.transformer import Encoder

SMALL = {
    "scenes": ("attic", "barn", "cellar"),
    "backbone": "test_efficientnet",
    "pretrained": False,
    "dim": 16,
    "heads": 4,
    "feedforward": 24,
    "head_hidden": 20,
    "position_encoder_layers": 2,
    "position_decoder_layers": 1,
    "orientation_encoder_layers": 1,
    "orientation_decoder_layers": 2,
}


def build(**changes):
    torch.manual_seed(0)
    return MSTransformer(**{**SMALL, **changes})


def image(batch=2, size=64, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def summed(output):
    gaps = sum(gap.sum() for gap in output.query_key_gap.values())
    return output.position_B3.sum() + output.orientation_B4.sum() + output.scene_log_probability_BS[:, 0].sum() + gaps


def test_output_shapes_and_reading():
    output = build().eval()(image())
    assert isinstance(output, PoseOutput)
    assert output.position_B3.shape == (2, 3)
    assert output.orientation_B4.shape == (2, 4)
    assert output.scene_log_probability_BS.shape == (2, 3)
    torch.testing.assert_close(output.scene_log_probability_BS.exp().sum(1), torch.ones(2))
    assert output.scene_B.tolist() == output.scene_log_probability_BS.argmax(1).tolist()
    assert {branch: tuple(gap.shape) for branch, gap in output.query_key_gap.items()} == {
        "position": (2, 2, 4),
        "orientation": (2, 1, 4),
    }
    assert output["position_B3"] is output.position_B3
    assert output["query_key_gap"] is output.query_key_gap
    with pytest.raises(KeyError, match="position_B3, orientation_B4"):
        output["pose"]


@pytest.mark.parametrize("changes", [
    {"position_encoding": "learned"},
    {"position_encoding": "sine"},
    {"position_encoding": "sine-normalized"},
    {"position_encoder_layers": 0, "orientation_encoder_layers": 0},
    {"backbone": "efficientnet_lite0", "position_encoding": "learned"},
])  # fmt: skip
def test_every_parameter_is_trained(changes):
    model = build(**changes).train()
    summed(model(image(), torch.tensor([0, 2]))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_pose_is_that_of_the_given_else_of_the_most_probable_scene():
    model = build().eval()
    with torch.no_grad():
        free = model(image(3))
        given = [model(image(3), torch.full((3,), scene)) for scene in range(3)]
    for scene, output in enumerate(given):
        assert output.scene_B.tolist() == [scene] * 3
        torch.testing.assert_close(output.scene_log_probability_BS, free.scene_log_probability_BS)
    assert not torch.allclose(given[0].position_B3, given[1].position_B3)
    for index, scene in enumerate(free.scene_B.tolist()):
        torch.testing.assert_close(free.position_B3[index], given[scene].position_B3[index])
        torch.testing.assert_close(free.orientation_B4[index], given[scene].orientation_B4[index])
    with torch.no_grad():
        mixed = model(image(3), torch.tensor([2, 0, 1]))
    for index, scene in enumerate((2, 0, 1)):
        torch.testing.assert_close(mixed.position_B3[index], given[scene].position_B3[index])


def test_scene_logit_and_heads_read_the_two_decoders():
    model = build().eval()
    seen = {}
    for name, branch in (("position", model.position), ("orientation", model.orientation)):
        branch.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output[0]}))
    with torch.no_grad():
        output = model(image(), torch.tensor([1, 2]))
        logit = model.scene(torch.cat((seen["position"], seen["orientation"]), dim=-1))[..., 0]
        torch.testing.assert_close(output.scene_log_probability_BS, logit.log_softmax(-1))
        torch.testing.assert_close(output.position_B3[1], model.position_head(seen["position"][1, 2]))
        torch.testing.assert_close(output.orientation_B4[0], model.orientation_head(seen["orientation"][0, 1]))
    assert isinstance(model.position_head.activation, nn.GELU)


def test_position_reads_the_stride_16_map_and_orientation_the_stride_8_map():
    model = build().eval()
    counts = {}
    model(image(), observer=lambda branch, layer, query, key: counts.update({branch: query.shape[2]}))
    assert counts == {"position": 16, "orientation": 64}


def test_observer_sees_every_encoder_layer():
    model, seen = build().eval(), []
    with torch.no_grad():
        output = model(image(), observer=lambda *shown: seen.append(shown))
        unseen = model(image())
    assert [(branch, layer) for branch, layer, _, _ in seen] == [("position", 0), ("position", 1), ("orientation", 0)]
    for branch, layer, query, key in seen:
        gap = (query.mean(2) - key.mean(2)).norm(dim=-1)
        torch.testing.assert_close(output.query_key_gap[branch][:, layer], gap)
    assert torch.equal(output.position_B3, unseen.position_B3)


def test_architecture_rebuilds_the_network():
    model = build(position_encoding="learned", dropout=0.2).eval()
    again = MSTransformer(**model.architecture, pretrained=False).eval()
    assert again.architecture == model.architecture
    assert again.scenes == model.scenes == ("attic", "barn", "cellar")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(image()).position_B3, model(image()).position_B3)
    assert (model.mean, model.std) == (model.backbone.mean, model.backbone.std)
    assert "pretrained" not in model.architecture


def test_the_learned_tables_serve_both_branches():
    names = [name for name in build(position_encoding="learned").state_dict() if "position_encoding" in name]
    assert names == ["position_encoding.row", "position_encoding.column"]
    assert not [name for name in build().state_dict() if "position_encoding" in name]


def test_defaults_are_the_papers():
    model = MSTransformer(scenes=["a"], pretrained=False)
    assert model.architecture == {
        "scenes": ["a"], "backbone": "efficientnet_b0", "dim": 256, "heads": 8, "feedforward": 256, "dropout": 0.1,
        "attention_dropout": 0.1, "position_encoder_layers": 6, "position_decoder_layers": 6,
        "orientation_encoder_layers": 6, "orientation_decoder_layers": 6, "position_encoding": "sine",
        "head_hidden": 1024,
    }  # fmt: skip
    assert isinstance(model.position.encoder, Encoder)
    assert len(model.position.encoder.layers) == 6
    matrices = [
        p for part in (model.position.decoder, model.orientation_head) for p in part.parameters() if p.dim() > 1
    ]
    for matrix in matrices:
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert 0.9 * bound < matrix.abs().max() <= bound
    assert model.position.scene_query.shape == (1, 256)


def test_without_encoder_layers_there_is_no_gap():
    model = build(position_encoder_layers=0, orientation_encoder_layers=0).eval()
    gaps = model(image()).query_key_gap
    assert {branch: tuple(gap.shape) for branch, gap in gaps.items()} == {
        "position": (2, 0, 4),
        "orientation": (2, 0, 4),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_poses_and_probabilities_in_float32(dtype):
    model = build(dropout=0, attention_dropout=0).train()
    exact = model(image(), torch.tensor([0, 2]))
    with torch.autocast("cpu", dtype=dtype):
        output = model(image(), torch.tensor([0, 2]))
    for name in ("position_B3", "orientation_B4", "scene_log_probability_BS"):
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name], exact[name], rtol=0.1, atol=0.1)
    assert output.query_key_gap["position"].dtype == torch.float32
    summed(output).backward()


def test_the_residual_stream_stays_in_float32_under_autocast():
    model, dtypes = build(), []
    for stack in (model.position.encoder, model.orientation.decoder):
        stack.register_forward_pre_hook(lambda module, inputs: dtypes.extend(tensor.dtype for tensor in inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(image(), torch.tensor([0, 2]))
    assert set(dtypes) == {torch.float32}


def test_double_is_more_exact_than_float():
    model = build().eval()
    single = model(image())
    double = model.double()(image().double())
    assert double.position_B3.dtype == torch.float64
    torch.testing.assert_close(single.position_B3.double(), double.position_B3, rtol=1e-4, atol=1e-4)


def test_the_memory_format_of_the_image_does_not_matter():
    model = build().eval()
    one, other = model(image()), model(image().contiguous(memory_format=torch.channels_last))
    assert torch.equal(one.position_B3, other.position_B3)


@pytest.mark.parametrize(("position_encoding", "scene"), [("sine", None), ("learned", torch.tensor([0, 2]))])
def test_compiles_without_graph_breaks(position_encoding, scene):
    torch._dynamo.reset()
    model = build(position_encoding=position_encoding, dropout=0, attention_dropout=0).train(scene is not None)
    output = torch.compile(model, fullgraph=True, backend="eager")(image(), scene)
    torch.testing.assert_close(output.position_B3, model(image(), scene).position_B3)
    summed(output).backward()
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no distributed package")
def test_trains_under_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(build())
        for _ in range(2):  # the second step fails where the first left a parameter without a gradient
            output = model(image(), torch.tensor([0, 2]))
            summed(output).backward()
        assert isinstance(output, PoseOutput)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            (torch.zeros(2, 4, 64, 64),),
            r"image_B3HW: expected shape \(batch, 3, height, width\), found \(2, 4, 64, 64\)",
        ),
        ((torch.zeros(3, 64, 64),), r"image_B3HW: .*found \(3, 64, 64\)"),
        ((torch.zeros(0, 3, 64, 64),), r"image_B3HW: .*found \(0, 3, 64, 64\)"),
        ((torch.zeros(2, 3, 64, 64, dtype=torch.uint8),), "image_B3HW: expected normalised .* found torch.uint8"),
        ((torch.zeros(2, 3, 31, 64),), "image_B3HW: expected at least 32x32 pixels, found 31x64"),
        (
            (torch.zeros(2, 3, 64, 64), torch.zeros(3, dtype=torch.int64)),
            r"scene_B: expected shape \(2\), found \(3,\)",
        ),
        ((torch.zeros(2, 3, 64, 64), torch.zeros(2)), "scene_B: expected int64 indices, found torch.float32"),
        (
            (torch.zeros(2, 3, 64, 64), torch.tensor([0, 3])),
            r"scene_B: expected indices in 0\.\.2 of 3 scenes, found 3",
        ),
        ((torch.zeros(2, 3, 64, 64), torch.tensor([-1, 0])), r"scene_B: expected indices in 0\.\.2 .*found -1"),
    ],
)
def test_refuses_wrong_input_at_the_door(arguments, words):
    with pytest.raises(ValueError, match=words):
        build().eval()(*arguments)


def test_training_needs_the_scenes():
    model = build()
    with pytest.raises(ValueError, match="scene_B: expected the index of each image's scene in training mode"):
        model(image())
    model.eval()(image())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenes": []}, "scenes: expected at least one"),
        ({"scenes": ["a", "b", "a"]}, "scenes: expected each name once, found a"),
        ({"heads": 5}, r"dim: expected a multiple of heads \(5\)"),
        ({"heads": 0}, "heads: expected at least 1"),
        ({"dim": 6, "heads": 2}, "dim: expected a multiple"),
        ({"position_encoding": "rotary"}, "position_encoding: expected one of learned, sine, sine-normalized"),
        ({"position_encoder_layers": -1}, "position_encoder_layers: expected at least 0, found -1"),
        ({"orientation_decoder_layers": 0}, "orientation_decoder_layers: expected at least 1"),
        ({"dropout": 1.0}, "dropout: expected a probability"),
        ({"attention_dropout": -0.1}, "attention_dropout: expected a probability"),
        ({"head_hidden": 0}, "head_hidden"),
    ],
)
def test_refuses_settings_that_make_no_network(changes, words):
    with pytest.raises(MsposeError, match=words):
        build(**changes)


def held_by_autograd(network, pixels, scene):
    """Outputs, gradients by name, running statistics, and how many numbers autograd held for the backward pass."""
    held = {}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    network.zero_grad()
    torch.manual_seed(4)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        output = network(pixels, scene)
    (output.position_B3.sum() + output.orientation_B4.sum()).backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return output.position_B3.detach(), gradients, statistics, sum(held.values())


@pytest.mark.parametrize("backbone", ["efficientnet_b0", "efficientnet_lite0"])
def test_a_recomputed_backbone_changes_memory_alone(backbone):
    """Dropout of whole blocks (torchvision's B0 has it) falls alike, and running statistics move once."""
    torch.manual_seed(0)
    network = build(backbone=backbone).train()
    pixels, scene = image(), torch.tensor([0, 1])
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    position, gradients, statistics, plain = held_by_autograd(network, pixels, scene)
    network.load_state_dict(start)
    network.recompute_backbone = True
    again_position, again_gradients, again_statistics, less = held_by_autograd(network, pixels, scene)
    torch.testing.assert_close(again_position, position)
    for found, expected in ((again_gradients, gradients), (again_statistics, statistics)):
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], msg=name)
    assert less < 0.5 * plain
