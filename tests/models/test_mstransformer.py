"""The MS-Transformer as a whole: outputs, choice of scene, observers, alternatives of attention."""

import copy

import pytest
import torch
from conftest import SMALL_NETWORK
from torch import nn

from mspose.errors import MsposeError
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import Observer, PoseOutput
from mspose.models.token_positions import SineEncoding

SMALL = {
    "scenes": ("attic", "barn", "cellar"),
    **SMALL_NETWORK,
    "position_encoder_layers": 2,
    "orientation_decoder_layers": 2,
}


ALTERNATIVES = {
    "rotary": {"position_encoding": "rotary"},
    "relative-bias": {"position_encoding": "relative-bias"},
    "none": {"position_encoding": "none"},
    "spectral-norm": {"query_key_weights": "spectral-norm"},
    "sigma-reparam": {"query_key_weights": "sigma-reparam", "position_encoding": "learned"},
    "tokens": {"attention_scale": "tokens"},
    "orthogonal": {"query_initialisation": "orthogonal"},
}
each_alternative = pytest.mark.parametrize("changes", ALTERNATIVES.values(), ids=ALTERNATIVES)


def build(**changes):
    torch.manual_seed(0)
    return MSTransformer(**{**SMALL, **changes})


def image(batch=2, size=64, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def summed(output):
    gaps = sum(gap.sum() for gap in output.query_key_gap.values())
    return (
        output.position_B3.sum()
        + output.orientation_B4.sum()
        + output.scene_log_probability_BS[:, 0].sum()
        + gaps
    )


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
    {"position_encoder_layers": 0, "position_encoding": "relative-bias"},
    {"backbone": "efficientnet_lite0", "position_encoding": "learned"},
    *ALTERNATIVES.values(),
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
        branch.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output[0]})
        )
    with torch.no_grad():
        output = model(image(), torch.tensor([1, 2]))
        logit = model.scene(torch.cat((seen["position"], seen["orientation"]), dim=-1))[..., 0]
        torch.testing.assert_close(output.scene_log_probability_BS, logit.log_softmax(-1))
        torch.testing.assert_close(
            output.position_B3[1], model.position_head(seen["position"][1, 2])
        )
        torch.testing.assert_close(
            output.orientation_B4[0], model.orientation_head(seen["orientation"][0, 1])
        )
    assert isinstance(model.position_head.activation, nn.GELU)


class Watch(Observer):
    """Keeps what it is shown."""

    def __init__(self):
        self.encoders, self.decoders = {}, {}

    def encoder(self, branch, layer, attention):
        self.encoders[branch, layer] = attention

    def decoder(self, branch, layer, weight_BHSN):
        self.decoders[branch, layer] = weight_BHSN


def test_position_reads_the_stride_16_map_and_orientation_the_stride_8_map():
    watch = Watch()
    build().eval()(image(), observer=watch)
    counts = {
        branch: attention.query_BHQD.shape[2] for (branch, _), attention in watch.encoders.items()
    }
    assert counts == {"position": 16, "orientation": 64}


def test_observer_sees_every_layer_and_changes_nothing():
    model, watch = build().eval(), Watch()
    with torch.no_grad():
        output = model(image(), observer=watch)
        unseen = model(image(), observer=Observer())
    assert list(watch.encoders) == [("position", 0), ("position", 1), ("orientation", 0)]
    assert list(watch.decoders) == [("position", 0), ("orientation", 0), ("orientation", 1)]
    for (branch, layer), attention in watch.encoders.items():
        gap = (attention.query_BHQD.mean(2) - attention.key_BHKD.mean(2)).norm(dim=-1)
        torch.testing.assert_close(output.query_key_gap[branch][:, layer], gap)
        assert attention.scale == 4**-0.5
        assert attention.bias is None
    for (branch, _), weight in watch.decoders.items():
        assert weight.shape == (2, 4, 3, 16 if branch == "position" else 64)
        torch.testing.assert_close(weight.sum(-1), torch.ones(2, 4, 3))
    assert torch.equal(output.position_B3, unseen.position_B3)
    with torch.no_grad():
        assert torch.equal(output.position_B3, model(image()).position_B3)


def test_the_residual_stream_stays_in_float32_under_autocast():
    model, dtypes = build(), []
    for stack in (model.position.encoder, model.orientation.decoder):
        stack.register_forward_pre_hook(lambda module, inputs: dtypes.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(image(), torch.tensor([0, 2]))
    assert set(dtypes) == {torch.float32}


def test_double_is_more_exact_than_float():
    model = build().eval()
    single = model(image())
    double = model.double()(image().double())
    assert double.position_B3.dtype == torch.float64
    torch.testing.assert_close(
        single.position_B3.double(), double.position_B3, rtol=1e-4, atol=1e-4
    )


def test_the_memory_format_of_the_image_does_not_matter():
    model = build().eval()
    one, other = model(image()), model(image().contiguous(memory_format=torch.channels_last))
    assert torch.equal(one.position_B3, other.position_B3)


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no distributed package"
)
@pytest.mark.parametrize(
    "changes", [{}, ALTERNATIVES["relative-bias"], ALTERNATIVES["sigma-reparam"]]
)
def test_trains_under_distributed_data_parallel(tmp_path, changes):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(build(**changes))
        for _ in range(
            2
        ):  # the second step fails where the first left a parameter without a gradient
            output = model(image(), torch.tensor([0, 2]))
            summed(output).backward()
        assert isinstance(output, PoseOutput)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, r"dim: expected a multiple of heads \(5\)"),
        ({"heads": 0}, "heads: "),
        ({"dim": 6, "heads": 2}, "dim: expected a multiple"),
        (
            {"position_encoding": "cosine"},
            "position_encoding: expected one of learned, .*none, found 'cosine'",
        ),
        (
            {"query_key_weights": "weight-norm"},
            "query_key_weights: expected one of plain, spectral-norm, sigma-reparam",
        ),
        (
            {"attention_scale": "layers"},
            "attention_scale: expected one of head-dim, tokens, found 'layers'",
        ),
        (
            {"query_initialisation": None},
            "query_initialisation: expected one of normal, orthogonal, found None",
        ),
        (
            {"position_encoding": "rotary", "heads": 8},
            r"rotary: expected a multiple of 4 channels per head, found 2 \(dim 16, heads 8\)",
        ),
        (
            {
                "query_initialisation": "orthogonal",
                "scenes": [f"room {number}" for number in range(17)],
            },
            r"orthogonal: expected no more scenes than channels \(dim 16\), found 17 scenes",
        ),
        ({"position_encoder_layers": -1}, "position_encoder_layers: .*-1"),
        ({"orientation_decoder_layers": 0}, "orientation_decoder_layers: .*0"),
        ({"attention_dropout": -0.1}, "attention_dropout: .*-0.1"),
    ],
)
def test_refuses_settings_that_make_no_network(changes, words):
    with pytest.raises(MsposeError, match=words):
        build(**changes)


def shown_by(model, pixels):
    watch = Watch()
    model(pixels, observer=watch)
    return watch


@each_alternative
def test_an_alternative_changes_its_own_part_of_the_start_alone(changes):
    plain, other = build(), build(**changes)
    ours, theirs = plain.state_dict(), other.state_dict()
    if changes.get("position_encoding") == "learned":  # which draws its tables first
        ours = build(position_encoding="learned").state_dict()
    added = {name.rpartition(".")[2] for name in theirs.keys() - ours.keys()}
    assert ours.keys() <= theirs.keys()
    assert added == {
        "relative-bias": {"row", "column"}, "spectral-norm": {"u_MC", "v_MC", "norm_M"},
        "sigma-reparam": {"u_MC", "v_MC", "norm_M"},
    }.get(changes.get("query_key_weights", changes.get("position_encoding")), set())  # fmt: skip
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    queries = {"position.scene_query", "orientation.scene_query"}
    assert changed == (queries if "query_initialisation" in changes else set())


@each_alternative
def test_an_alternative_trains_under_autocast(changes):
    model = build(**changes, dropout=0, attention_dropout=0)
    exact = model(image(), torch.tensor([0, 2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(image(), torch.tensor([0, 2]))
    torch.testing.assert_close(output.position_B3, exact.position_B3, rtol=0.1, atol=0.1)
    summed(output).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("names", "training"),
    [(("rotary", "sigma-reparam", "tokens"), True), (("relative-bias", "spectral-norm"), True),
     (("rotary", "spectral-norm"), False)],
)  # fmt: skip
def test_alternatives_compile_without_graph_breaks(names, training):
    torch._dynamo.reset()
    changes = {key: value for name in names[::-1] for key, value in ALTERNATIVES[name].items()}
    model = build(**changes, dropout=0, attention_dropout=0).train(training)
    again, scene = copy.deepcopy(model), torch.tensor([0, 2])
    output = torch.compile(model, fullgraph=True, backend="eager")(image(), scene)
    torch.testing.assert_close(output.position_B3, again(image(), scene).position_B3)
    for name, buffer in model.position.named_buffers():  # singular vectors, which training moves
        torch.testing.assert_close(buffer, again.position.get_buffer(name), msg=name)
    summed(output).backward()
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["rotary", "relative-bias", "none"])
def test_encodings_of_the_encoders_alone_leave_the_fixed_one_to_the_decoders_keys(name):
    model, seen = build(position_encoding=name).eval(), []
    layer = model.position.decoder.layers[0].cross_attention
    layer.register_forward_hook(lambda module, inputs, _: seen.append(inputs))
    shown = shown_by(model, image()).encoders
    expected = SineEncoding(16)(4, 4, torch.float32, torch.device("cpu")).added_NC
    torch.testing.assert_close(
        seen[0][1] - seen[0][2], expected.expand(2, -1, -1), rtol=0, atol=1e-5
    )
    model.position_encoding = build(position_encoding="learned").position_encoding
    again = shown_by(model, image()).encoders  # the encoders do not see it
    for place, attention in shown.items():
        assert torch.equal(again[place].query_BHQD, attention.query_BHQD)
        assert (attention.bias is not None) == (name == "relative-bias")


def test_a_bias_is_one_for_all_layers_of_a_branch_and_its_own_in_each():
    shown = shown_by(build(position_encoding="relative-bias").eval(), image()).encoders
    assert shown["position", 0].bias is shown["position", 1].bias
    assert shown["position", 0].bias.shape == (4, 16, 16)
    assert shown["orientation", 0].bias.shape == (4, 64, 64)


def test_normalised_weights_concern_the_encoders_queries_and_keys():
    model = build(query_key_weights="sigma-reparam")
    found = {
        name.rpartition(".query_key_weights")[0]
        for name, _ in model.named_parameters()
        if "norm_M" in name
    }
    layers = (
        "position.encoder.layers.0",
        "position.encoder.layers.1",
        "orientation.encoder.layers.0",
    )
    assert found == {f"{layer}.self_attention" for layer in layers}
    for layer in model.position.encoder.layers:
        query_CC, key_CC, value_CC = layer.self_attention._weights()
        for used_CC in (query_CC, key_CC):
            assert torch.linalg.matrix_norm(used_CC, 2).item() == pytest.approx(1, rel=1e-5)
        assert torch.equal(value_CC, layer.self_attention.in_proj_weight[32:])


def test_the_scale_of_tokens_is_that_of_each_map():
    shown = shown_by(build(attention_scale="tokens").eval(), image()).encoders
    assert {place: attention.scale for place, attention in shown.items()} == {
        ("position", 0): 1 / 4, ("position", 1): 1 / 4, ("orientation", 0): 1 / 8,
    }  # fmt: skip


@pytest.mark.parametrize("dim", [16, 256])
def test_orthogonal_queries_have_the_mean_length_of_normal_ones(dim):
    model = build(query_initialisation="orthogonal", dim=dim)
    length = torch.randn(20_000, dim, generator=torch.Generator().manual_seed(0)).norm(dim=1).mean()
    for branch in (model.position, model.orientation):
        product = branch.scene_query @ branch.scene_query.T / length**2
        torch.testing.assert_close(product, torch.eye(3), rtol=0, atol=5e-3)
    assert not torch.allclose(model.position.scene_query, model.orientation.scene_query)


def test_a_recomputed_backbone_moves_singular_vectors_once():
    plain, recomputed = (build(query_key_weights="spectral-norm") for _ in range(2))
    recomputed.recompute_backbone = True
    for model in (plain, recomputed):
        with torch.no_grad():
            model.position.encoder.layers[0].self_attention.in_proj_weight[:16] += 0.2
        summed(model(image(), torch.tensor([0, 2]))).backward()
    for name, buffer in plain.position.encoder.named_buffers():
        torch.testing.assert_close(recomputed.position.encoder.get_buffer(name), buffer)
