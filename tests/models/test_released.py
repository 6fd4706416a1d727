"""Released checkpoints: what the released code answered for weights by rule, and checkpoints that
are not quite right.

`released_answers.json` holds measurements: the released code's own float64 outputs, in evaluation
mode, for two images, with every tensor and both images drawn by the rule below from the tensor's
name.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mspose.errors import MsposeError
from mspose.models.mstransformer import MSTransformer
from mspose.models.released import convert_released, read_released

ANSWERS = json.loads((Path(__file__).parent / "released_answers.json").read_text())
SHARED = Path(__file__).parents[3] / "shared/data/released_format"
GAPS = {"position": "query_key_gap_position_BLH", "orientation": "query_key_gap_orientation_BLH"}


def efficientnet_b0_shapes():
    """Names and shapes of EfficientNet-B0's tensors in the EfficientNet-PyTorch package."""
    shapes = {}

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def squeeze(name, out_channels, in_channels):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (
            (out_channels, in_channels, 1, 1),
            (out_channels,),
        )

    shapes["_conv_stem.weight"] = (32, 3, 3, 3)
    norm("_bn0", 32)
    block, channels = 0, 32
    stages = (
        (1, 3, 1, 16),
        (2, 3, 6, 24),
        (2, 5, 6, 40),
        (3, 3, 6, 80),
        (3, 5, 6, 112),
        (4, 5, 6, 192),
        (1, 3, 6, 320),
    )
    for repeats, kernel, expansion, out_channels in stages:
        for _ in range(repeats):
            name, inner = f"_blocks.{block}", channels * expansion
            if expansion > 1:
                shapes[f"{name}._expand_conv.weight"] = (inner, channels, 1, 1)
                norm(f"{name}._bn0", inner)
            shapes[f"{name}._depthwise_conv.weight"] = (inner, 1, kernel, kernel)
            norm(f"{name}._bn1", inner)
            squeeze(f"{name}._se_reduce", channels // 4, inner)
            squeeze(f"{name}._se_expand", inner, channels // 4)
            shapes[f"{name}._project_conv.weight"] = (out_channels, inner, 1, 1)
            norm(f"{name}._bn2", out_channels)
            block, channels = block + 1, out_channels
    shapes["_conv_head.weight"] = (1280, 320, 1, 1)
    norm("_bn1", 1280)
    shapes["_fc.weight"], shapes["_fc.bias"] = (1000, 1280), (1000,)
    return {f"backbone.0.body.{name}": shape for name, shape in shapes.items()}


def released_shapes(
    scenes, learned, orientation_layers, position_layers=6, dim=256, hidden=1024, feedforward=256
):
    """Names and shapes of a released checkpoint's tensors."""
    shapes = efficientnet_b0_shapes()
    if learned:
        shapes["backbone.1.row_embed.weight"] = shapes["backbone.1.col_embed.weight"] = (
            50,
            dim // 2,
        )

    def linear(name, out, inner):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inner), (out,)

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    for branch, layers, channels, values in (
        ("t", position_layers, 112, 3),
        ("rot", orientation_layers, 40, 4),
    ):
        for stack, attentions in (
            ("encoder", ("self_attn",)),
            ("decoder", ("self_attn", "multihead_attn")),
        ):
            for layer in range(layers):
                name = f"transformer_{branch}.{stack}.layers.{layer}"
                for attention in attentions:
                    shapes[f"{name}.{attention}.in_proj_weight"] = (3 * dim, dim)
                    shapes[f"{name}.{attention}.in_proj_bias"] = (3 * dim,)
                    linear(f"{name}.{attention}.out_proj", dim, dim)
                linear(f"{name}.linear1", feedforward, dim)
                linear(f"{name}.linear2", dim, feedforward)
                for number in range(1, len(attentions) + 2):
                    norm(f"{name}.norm{number}")
            norm(f"transformer_{branch}.{stack}.norm")
        shapes[f"input_proj_{branch}.weight"], shapes[f"input_proj_{branch}.bias"] = (
            (dim, channels, 1, 1),
            (dim,),
        )
        shapes[f"query_embed_{branch}.weight"] = (scenes, dim)
        linear(f"regressor_head_{branch}.fc_h", hidden, dim)
        linear(f"regressor_head_{branch}.fc_o", values, hidden)
    linear("scene_embed", 1, 2 * dim)
    return shapes


def drawn(salt, name, shape):
    """Standard normal numbers that belong to a record and a name."""
    return np.random.default_rng(zlib.crc32(f"{salt}:{name}".encode())).standard_normal(shape)


def tensor_by_rule(salt, name, shape):
    """Kinds by name: counters, running statistics, biases, norms' scales, position tables, and
    matrices by fan-in.
    """
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    numbers = drawn(salt, name, shape)
    *_, module, leaf = name.split(".")
    if leaf == "running_var":
        numbers = 1 + 0.1 * abs(numbers)
    elif leaf == "running_mean" or leaf.endswith("bias"):
        numbers = 0.05 * numbers
    elif "norm" in module or module.startswith("_bn"):
        numbers = 1 + 0.1 * numbers
    elif module not in ("row_embed", "col_embed", "query_embed_t", "query_embed_rot"):
        fan_in = np.prod(shape[1:])
        numbers = numbers * np.sqrt((2 if name.startswith("backbone") else 1) / fan_in)
    return torch.from_numpy(np.asarray(numbers))


def images_by_rule(salt):
    """Two normalised images (2, 3, 224, 224) of 16-pixel squares."""
    return torch.from_numpy(
        drawn(salt, "image", (2, 3, 14, 14)).repeat(16, axis=2).repeat(16, axis=3)
    )


@pytest.fixture(scope="module", params=ANSWERS)
def released(request):
    answer = ANSWERS[request.param]
    shapes = released_shapes(answer["scenes"], answer["learned"], answer["orientation_layers"])
    state = {name: tensor_by_rule(request.param, name, shape) for name, shape in shapes.items()}
    return request.param, answer, convert_released(state), images_by_rule(request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_answers_what_the_released_code_answers(released, dtype, tolerance):
    _, answer, converted, images = released
    network = MSTransformer(converted.scenes, converted.settings, pretrained=False).to(dtype).eval()
    network.load_state_dict(converted.state_dict)
    # The scenes' probabilities are close together, so the pose of the released answer's scene is
    # asked for.
    scene = torch.tensor(np.argmax(answer["scene_log_probability"], axis=1))
    with torch.inference_mode():
        output = network(images.to(dtype), scene)

    def compare(found, expected):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            found.numpy() / scale, np.array(expected) / scale, rtol=0, atol=tolerance
        )

    compare(output.position_B3, np.array(answer["pose"])[:, :3])
    compare(output.orientation_B4, np.array(answer["pose"])[:, 3:])
    compare(output.scene_log_probability_BS, answer["scene_log_probability"])
    for branch, name in GAPS.items():
        compare(output.query_key_gap[branch], answer[name])


def test_reads_the_settings_off_the_tensors(released):
    name, answer, converted, _ = released
    settings = converted.settings
    assert settings.position_encoding == ("learned" if answer["learned"] else "sine")
    assert settings.backbone == "tf_efficientnet_b0"
    layers = [
        getattr(settings, f"{branch}_{stack}_layers")
        for branch in GAPS
        for stack in ("encoder", "decoder")
    ]
    assert layers == [6, 6, answer["orientation_layers"], answer["orientation_layers"]]
    assert converted.scenes == (
        ["KingsCollege", "OldHospital", "ShopFacade", "StMarysChurch"]
        if name == "actmst-cambridge"
        else ["chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"]
    )
    assert len(converted.dropped) == 118
    assert {name.removeprefix("backbone.0.body.").split(".")[0] for name in converted.dropped} == {
        "_blocks", "_conv_head", "_bn1", "_fc",
    }  # fmt: skip
    blocks = {int(name.split(".")[4]) for name in converted.dropped if "_blocks" in name}
    assert blocks == {11, 12, 13, 14, 15}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_records_beside_the_project_say_the_same(name):
    if not SHARED.is_dir():
        pytest.skip("released_format of ../shared/data is not there")
    record, answer = json.loads((SHARED / f"{name}.json").read_text()), ANSWERS[name]
    shapes = released_shapes(answer["scenes"], answer["learned"], answer["orientation_layers"])
    assert {key: tuple(shape) for key, shape in record["tensors"].items()} == shapes
    for key in ("pose", "scene_log_probability", *GAPS.values()):
        assert record[key] == answer[key]


@pytest.fixture(scope="module")
def small_weights():
    """A small network's checkpoint in the released format, of 3 scenes."""
    generator = torch.Generator().manual_seed(0)
    shapes = released_shapes(3, True, 1, position_layers=2, dim=16, hidden=12, feedforward=20)
    return {
        name: (
            torch.zeros(shape, dtype=torch.int64)
            if name.endswith("tracked")
            else torch.rand(shape, generator=generator)
        )
        for name, shape in shapes.items()
        if "_fc" not in name
    }


@pytest.fixture
def state(small_weights):
    return dict(small_weights)


ABC = ["attic", "barn", "cellar"]


def test_other_sizes_convert_and_load(state):
    converted = convert_released(state, scenes=ABC)
    assert converted.scenes == ABC
    sizes = {
        name: getattr(converted.settings, name)
        for name in ("dim", "heads", "feedforward", "head_hidden")
    }
    assert sizes == {"dim": 16, "heads": 8, "feedforward": 20, "head_hidden": 12}
    assert converted.settings.position_encoder_layers == 2
    network = MSTransformer(converted.scenes, converted.settings, pretrained=False)
    network.load_state_dict(converted.state_dict)
    assert torch.equal(network.position_encoding.row, state["backbone.1.row_embed.weight"])
    assert torch.equal(network.position_encoding.column, state["backbone.1.col_embed.weight"])
    assert torch.equal(network.orientation.scene_query, state["query_embed_rot.weight"])
    assert len(state) - len(converted.dropped) == len(network.state_dict())


def test_a_checkpoint_without_later_blocks_or_encoder_layers_converts(state):
    for name in convert_released(state, scenes=ABC).dropped:
        del state[name]
    state = {
        name: tensor
        for name, tensor in state.items()
        if "transformer_rot.encoder.layers" not in name
    }
    converted = convert_released(state, scenes=ABC)
    assert converted.dropped == []
    assert converted.settings.orientation_encoder_layers == 0


@pytest.mark.parametrize(
    "name",
    [
        "transformer_t.encoder.layers.0.self_attn.in_proj_weight",
        "transformer_rot.decoder.layers.0.multihead_attn.out_proj.bias",
        "transformer_t.decoder.layers.0.linear1.weight",
        "backbone.0.body._blocks.0._se_reduce.weight",
        "backbone.0.body._blocks.10._bn2.running_var",
        "backbone.1.row_embed.weight",
        "scene_embed.weight",
        "input_proj_rot.weight",
    ],
)
def test_a_missing_or_odd_tensor_is_named(state, name):
    tensor = state.pop(name)
    with pytest.raises(MsposeError, match=f"missing: {name}") as caught:
        convert_released(state, scenes=ABC)
    assert "odd-shaped" not in str(caught.value)
    state[name] = torch.cat((tensor, tensor))
    with pytest.raises(MsposeError, match=f"odd-shaped: .*{name} ") as caught:
        convert_released(state, scenes=ABC)
    assert "missing" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_not_finite_and_integer_tensors_are_named(state):
    state["transformer_t.extra.weight"] = torch.zeros(2)
    state["scene_embed.bias"] = torch.tensor([float("nan")])
    state["input_proj_t.bias"] = torch.zeros(16, dtype=torch.int64)
    with pytest.raises(MsposeError) as caught:
        convert_released(state, scenes=ABC)
    assert "unknown: transformer_t.extra.weight" in str(caught.value)
    assert "not finite: scene_embed.bias" in str(caught.value)
    assert "input_proj_t.bias of torch.int64" in str(caught.value)


def test_a_long_list_is_shortened(state):
    state = {name: tensor for name, tensor in state.items() if "_blocks" not in name}
    with pytest.raises(MsposeError, match=r"missing: backbone\S+(, \S+){5} and \d+ more") as caught:
        convert_released(state, scenes=ABC)
    assert len(str(caught.value)) < 800


def test_a_gap_between_layers_is_missing(state):
    state = {
        name: tensor
        for name, tensor in state.items()
        if "transformer_t.encoder.layers.0" not in name
    }
    with pytest.raises(MsposeError, match=r"missing: transformer_t\.encoder\.layers\.0\."):
        convert_released(state, scenes=ABC)


@pytest.mark.parametrize(
    ("scenes", "words"),
    [
        (None, "has 3 scenes, not 7Scenes' 7 or Cambridge's 4: name them, --scenes"),
        (["a", "b"], "has 3, but 2 are named: a, b"),
        (["a", "b", "a"], "named twice: a, b, a"),
    ],
)
def test_scene_names_must_fit(state, scenes, words):
    with pytest.raises(MsposeError, match=words):
        convert_released(state, scenes=scenes)


@pytest.mark.parametrize("name", ["query_embed_t.weight", "regressor_head_t.fc_h.bias"])
def test_a_missing_tensor_that_sizes_are_read_off_is_named(state, name):
    del state[name]
    with pytest.raises(MsposeError, match=f"it has no usable {name}"):
        convert_released(state, scenes=ABC)


def test_another_model_is_refused():
    with pytest.raises(
        MsposeError, match="not a checkpoint of the released MS-Transformer or ActMST code"
    ):
        convert_released({"conv1.weight": torch.zeros(2)})


FEW = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(2)}


@pytest.mark.parametrize("content", [
    FEW,
    {"state_dict": FEW, "epoch": 3},
    {"model_state_dict": {f"module.{name}": tensor for name, tensor in FEW.items()}, "step": {}},
    {"model": FEW},
    {f"module._orig_mod.{name}": tensor for name, tensor in FEW.items()},
])  # fmt: skip
def test_reads_state_dicts_however_wrapped(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    found = read_released(tmp_path / "weights.pth")
    assert list(found) == list(FEW)
    for name, tensor in FEW.items():
        assert torch.equal(found[name], tensor)


def test_reads_safetensors_and_the_old_format(tmp_path):
    safetensors.torch.save_file(FEW, tmp_path / "weights.safetensors")
    torch.save(FEW, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "weights.pth"):
        assert torch.equal(read_released(tmp_path / name)["a.weight"], FEW["a.weight"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "expected a state dict .* found Tensor"),
        ({}, "expected a state dict"),
        ({"a": torch.zeros(2), "epoch": 3}, "not named tensors: epoch"),
        ([FEW], "found list"),
        ({1: torch.zeros(2)}, "not named tensors: 1"),
    ],
)
def test_refuses_what_is_no_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(MsposeError, match=words):
        read_released(tmp_path / "other.pth")
