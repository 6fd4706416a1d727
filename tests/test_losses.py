"""Loss terms against formulas written out in numpy, and a training step of network and loss."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch._dynamo
from conftest import SMALL_NETWORK
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mspose.data.batches import Batch
from mspose.errors import MsposeError
from mspose.losses import (
    EncoderAttention,
    Objective,
    PoseLoss,
    diversity_regulariser,
    entropy_regulariser,
    orientation_loss,
    position_loss,
    query_key_alignment,
    scene_loss,
)
from mspose.models.attention_map import AttentionMap, query_key_gap
from mspose.models.kinds import make_network
from mspose.models.network import Observer, PoseOutput


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_output(batch=3, layers=(2, 4), scenes=5):
    return PoseOutput(
        position_B3=random(batch, 3, seed=1).requires_grad_(),
        orientation_B4=random(batch, 4, seed=2).requires_grad_(),
        scene_log_probability_BS=random(batch, scenes, seed=3).log_softmax(-1).requires_grad_(),
        scene_B=torch.zeros(batch, dtype=torch.int64),
        query_key_gap={
            "position": random(batch, layers[0], 8, seed=4).abs().requires_grad_(),
            "orientation": random(batch, layers[1], 8, seed=5).abs().requires_grad_(),
        },
    )


LABELS = (random(3, 3, seed=6), random(3, 4, seed=7), torch.tensor([4, 0, 2]))


def oracle(output, position, orientation, scene):
    """Unweighted terms in numpy."""
    found = {
        name: output[name].detach().numpy()
        for name in ("position_B3", "orientation_B4", "scene_log_probability_BS")
    }
    unit = [
        q / np.sqrt((q**2).sum(1, keepdims=True))
        for q in (found["orientation_B4"], orientation.numpy())
    ]
    log_probability = found["scene_log_probability_BS"][np.arange(len(scene)), scene.numpy()]
    return {
        "error/position": np.sqrt(((found["position_B3"] - position.numpy()) ** 2).sum(1)).mean(),
        "error/orientation": np.sqrt(((unit[0] - unit[1]) ** 2).sum(1)).mean(),
        "error/scene": -log_probability.mean(),
        **{
            f"query_key_gap/{name}": gap.detach().numpy().mean()
            for name, gap in output.query_key_gap.items()
        },
    }


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def test_learned_terms_agree_with_numpy():
    output = make_output()
    loss = PoseLoss(s_position=-0.5, s_orientation=-2.0, scene_weight=0.7, qka_weight=0.1).double()
    raw = oracle(output, *LABELS)
    assert values(loss.unweighted(output, *LABELS)) == pytest.approx(raw, rel=1e-12)
    terms = loss(output, *LABELS)
    assert values(terms) == pytest.approx(
        {
            "position": raw["error/position"] * math.exp(0.5) - 0.5,
            "orientation": raw["error/orientation"] * math.exp(2.0) - 2.0,
            "scene": 0.7 * raw["error/scene"],
            "qka": 0.1 * (raw["query_key_gap/position"] + raw["query_key_gap/orientation"]),
        },
        rel=1e-12,
    )
    assert values(loss.log_variances()) == {"position": -0.5, "orientation": -2.0}
    sum(terms.values()).backward()
    assert loss.s_position.grad.item() == pytest.approx(1 - raw["error/position"] * math.exp(0.5))
    assert loss.s_orientation.grad.item() == pytest.approx(
        1 - raw["error/orientation"] * math.exp(2.0)
    )
    for tensor in (
        output.position_B3,
        output.orientation_B4,
        output.scene_log_probability_BS,
        *output.query_key_gap.values(),
    ):
        assert tensor.grad.abs().sum() > 0


def test_fixed_terms_agree_with_numpy():
    output = make_output()
    loss = PoseLoss(weighting="fixed", position_weight=2.0, orientation_weight=30.0, qka_weight=0.0)
    raw = oracle(output, *LABELS)
    expected = {
        "position": 2 * raw["error/position"],
        "orientation": 30 * raw["error/orientation"],
        "scene": raw["error/scene"],
    }
    assert values(loss(output, *LABELS)) == pytest.approx(expected, rel=1e-12)
    assert list(loss.parameters()) == []
    assert loss.log_variances() == {}
    with pytest.raises(MsposeError, match="expected one above 0"):
        PoseLoss(weighting="fixed", position_weight=0, orientation_weight=0, scene_weight=0)


def test_query_key_alignment_is_the_mean_distance_of_mean_query_and_mean_key():
    query, key = random(2, 3, 5, 4, seed=8), random(2, 3, 5, 4, seed=9)
    layers = [(query, key), (key + 1, query)]
    gap_BLH = torch.stack([query_key_gap(*layer) for layer in layers], dim=1)
    by_hand = [
        np.linalg.norm(q[image, head].numpy().mean(0) - k[image, head].numpy().mean(0))
        for q, k in layers
        for image in range(2)
        for head in range(3)
    ]
    assert query_key_alignment(gap_BLH).item() == pytest.approx(np.mean(by_hand), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "layers", "names"),
    [
        ({}, (2, 4), {"position", "orientation", "scene", "qka"}),
        ({"qka_weight": 0}, (2, 4), {"position", "orientation", "scene"}),
        ({"scene_weight": 0}, (2, 4), {"position", "orientation", "qka"}),
        ({}, (0, 0), {"position", "orientation", "scene"}),
        ({}, (0, 4), {"position", "orientation", "scene", "qka"}),
        (
            {"weighting": "fixed", "orientation_weight": 0.0, "scene_weight": 0.0, "qka_weight": 0},
            (2, 4),
            {"position"},
        ),
    ],
)
def test_a_term_of_weight_zero_or_without_layers_is_not_there(settings, layers, names):
    loss, output = PoseLoss(**settings).double(), make_output(layers=layers)
    terms, unweighted = loss(output, *LABELS), loss.unweighted(output, *LABELS)
    assert set(terms) == names
    assert {"error/position", "error/orientation", "error/scene"} <= set(unweighted)
    assert ("query_key_gap/position" in unweighted) == (layers[0] > 0)


def test_a_perfect_estimate_has_zero_error_and_finite_gradients():
    output = make_output()
    loss = PoseLoss(weighting="fixed").double()
    truth = (output.position_B3.detach(), 2 * output.orientation_B4.detach(), LABELS[2])
    unweighted = loss.unweighted(output, *truth)
    assert unweighted["error/position"].item() == 0
    assert unweighted["error/orientation"].item() == pytest.approx(0, abs=1e-15)
    sum(loss.weighted(unweighted).values()).backward()
    assert output.position_B3.grad.isfinite().all()
    assert output.orientation_B4.grad.isfinite().all()


def test_orientation_is_sensitive_to_sign_and_not_to_length_and_finite_at_zero():
    truth = random(1, 4, seed=0)
    assert orientation_loss(-truth, truth).item() == pytest.approx(2)
    assert orientation_loss(5 * truth, 0.1 * truth).item() == pytest.approx(0, abs=1e-12)
    estimate = torch.zeros(1, 4, requires_grad=True)
    loss = orientation_loss(estimate, torch.tensor([[1.0, 0, 0, 0]]))
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert estimate.grad.isfinite().all()


def test_the_terms_of_the_pose_have_exact_gradients():
    output = make_output()
    assert torch.autograd.gradcheck(
        lambda x, q, p: (
            position_loss(x, LABELS[0]) + orientation_loss(q, LABELS[1]) + scene_loss(p, LABELS[2])
        ),
        (output.position_B3, output.orientation_B4, output.scene_log_probability_BS),
    )


def test_labels_in_another_precision_are_taken():
    output, loss = make_output(), PoseLoss().double()
    single = loss(output, LABELS[0].float(), LABELS[1].float(), LABELS[2])
    assert {term.dtype for term in single.values()} == {torch.float64}
    assert values(single) == pytest.approx(values(loss(output, *LABELS)), rel=1e-5)


@pytest.mark.parametrize(
    ("index", "shape", "words"),
    [
        (0, (1, 3), r"position_B3: expected shape \(3, 3\), found \(1, 3\)"),  # would be broadcast
        (1, (3, 3), r"orientation_B4: expected shape \(3, 4\), found \(3, 3\)"),
        (2, (3, 1), r"scene_B: expected shape \(3\), found \(3, 1\)"),
    ],
)
def test_refuses_labels_of_another_shape(index, shape, words):
    labels = list(LABELS)
    labels[index] = torch.zeros(shape, dtype=labels[index].dtype)
    with pytest.raises(ValueError, match=words):
        PoseLoss()(make_output(), *labels)


# regularisers of the attention


def make_attention(layers=(1, 2), tokens=(4, 6), dtype=torch.float64):
    """Maps of 3 images, 2 heads, and as many layers and tokens as the two branches have."""
    seen = EncoderAttention()
    for branch, count, length, seed in zip(
        ("position", "orientation"), layers, tokens, (20, 40), strict=True
    ):
        for layer in range(count):
            query, key = (
                random(3, 2, length, 5, seed=seed + 2 * layer + one).to(dtype) for one in (0, 1)
            )
            seen.encoder(
                branch,
                layer,
                AttentionMap((2 * query).requires_grad_(), key.requires_grad_(), 5**-0.5),
            )
    return seen.maps


def attention_oracle(attention):
    """Mean entropy as a share of its limit, and mean cosine of two rows, pair by pair; of one
    layer.
    """
    query, key = (tensor.detach().double().numpy() for tensor in attention[:2])
    weight = np.exp(attention.scale * np.einsum("bhqd,bhkd->bhqk", query, key))
    weight /= weight.sum(axis=-1, keepdims=True)
    entropy = -(weight * np.log(weight)).sum(axis=-1).mean() / np.log(weight.shape[-1])
    unit = weight / np.linalg.norm(weight, axis=-1, keepdims=True)
    cosine = (unit @ unit.swapaxes(-1, -2))[..., ~np.eye(weight.shape[-1], dtype=bool)]
    return np.array([entropy, cosine.mean()])


@pytest.mark.parametrize("weights", [(0.3, 0.7), (-0.2, 0.0), (0.0, 0.5)])
def test_regularisers_agree_with_numpy(weights):
    attention = make_attention()
    loss = PoseLoss(entropy_weight=weights[0], diversity_weight=weights[1]).double()
    raw = values(PoseLoss().double().unweighted(make_output(), *LABELS))
    terms = values(PoseLoss().double()(make_output(), *LABELS))
    branches = {
        branch: np.mean([attention_oracle(one) for one in layers.values()], axis=0)
        for branch, layers in attention.items()
    }
    for index, (name, weight) in enumerate(zip(("entropy", "diversity"), weights, strict=True)):
        if weight:
            raw |= {f"regulariser/{name}_{key}": found[index] for key, found in branches.items()}
            terms[name] = weight * np.mean([found[index] for found in branches.values()])
    assert values(loss.unweighted(make_output(), *LABELS, attention)) == pytest.approx(raw)
    assert values(loss(make_output(), *LABELS, attention)) == pytest.approx(terms)


@pytest.mark.parametrize("measure", [entropy_regulariser, diversity_regulariser])
def test_regularisers_have_exact_gradients(measure):
    attention = make_attention(layers=(1, 0))["position"][0]
    assert torch.autograd.gradcheck(
        lambda q, k: measure(attention._replace(query_BHQD=q, key_BHKD=k)), attention[:2]
    )


def test_regularisers_of_collapsed_uniform_and_different_attention():
    collapsed = AttentionMap(
        torch.ones(1, 1, 6, 4), torch.arange(24.0).view(1, 1, 6, 4), 1.0
    )  # all on the last key
    uniform = collapsed._replace(key_BHKD=torch.ones(1, 1, 6, 4))
    different = AttentionMap(50 * torch.eye(6)[None, None], torch.eye(6)[None, None], 1.0)
    maps = (collapsed, uniform, different)
    assert [float(entropy_regulariser(one)) for one in maps] == pytest.approx([0, 1, 0], abs=1e-5)
    assert [float(diversity_regulariser(one)) for one in maps] == pytest.approx([1, 1, 0], abs=1e-6)


def test_attention_that_a_regulariser_needs():
    loss = PoseLoss(diversity_weight=1.0, entropy_weight=0.1).double()
    with pytest.raises(ValueError, match="terms of the encoders' attention, found none"):
        loss(make_output(), *LABELS)
    assert "diversity" not in loss(make_output(), *LABELS, {})  # a network without encoders
    one = make_attention(layers=(0, 2))
    expected = np.mean([attention_oracle(layer)[1] for layer in one["orientation"].values()])
    assert loss(make_output(), *LABELS, one)["diversity"].item() == pytest.approx(expected)


def test_a_forward_pass_that_is_begun_again_is_kept_once():
    """A compiled forward pass that fails late is begun again without being compiled."""
    seen = EncoderAttention()
    first, again = make_attention(layers=(2, 0))["position"].values()
    for attention in (first, again):
        seen.encoder("position", 0, attention)
    assert {branch: list(layers) for branch, layers in seen.maps.items()} == {"position": [0]}
    assert seen.maps["position"][0] is again


def test_no_attention_map_is_held_for_the_backward_pass():
    """What autograd holds of 600 tokens is a share of one map, though there are two layers and two
    terms.
    """
    attention = make_attention(layers=(2, 0), tokens=(600, 1), dtype=torch.float32)
    loss = PoseLoss(entropy_weight=0.1, diversity_weight=0.1)
    held = {}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss(make_output(), LABELS[0].float(), LABELS[1].float(), LABELS[2], attention)
    assert sum(held.values()) < 0.1 * 3 * 2 * 600 * 600 * 4


# network and loss as one module

TERMS = {"entropy_weight": -0.1, "diversity_weight": 0.2}


def build(kind="ms-transformer", *, precision="float32", dropout=0.0, encoders=(1, 2), **weights):
    torch.manual_seed(0)
    layers = {"position_encoder_layers": encoders[0], "orientation_encoder_layers": encoders[1]}
    settings = {**SMALL_NETWORK, "backbone": "test_resnet", **layers}
    settings |= {"kind": kind, "dropout": dropout, "attention_dropout": dropout}
    network = make_network(["attic", "cellar"], **settings)
    return Objective(network, PoseLoss(**weights), precision, compile=False)


def step(objective: nn.Module, size: int = 4):
    """The logs of a batch, and the gradient of every weight."""
    generator = torch.Generator().manual_seed(size)
    image, position, orientation = (
        torch.randn(shape, generator=generator)
        for shape in ((size, 3, 64, 64), (size, 3), (size, 4))
    )
    batch = Batch(image, position, orientation, torch.arange(size) % 2, np.arange(size), size)
    objective.zero_grad()
    torch.manual_seed(5)
    loss, logs = objective.train()(batch)
    loss.backward()
    assert not any(value.requires_grad for value in logs.values())
    assert float(loss.detach()) == pytest.approx(float(logs["loss/total"]))
    return values(logs), {
        name: weight.grad
        for name, weight in objective.named_parameters()
        if weight.grad is not None
    }


def assert_same_gradients(found, expected):
    """Up to the rounding of float32 sums taken in another order."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_a_step_with_regularisers_and_without(monkeypatch):
    objective = build(dropout=0.3)
    observers = []
    objective.estimate = lambda *arguments, observer: (
        observers.append(observer) or objective.network(*arguments, observer=observer)
    )
    plain, plain_gradients = step(objective)
    assert observers == [None]
    found, gradients = step(build(dropout=0.3, **TERMS))
    branches = ("position", "orientation")
    extra = {f"regulariser/{name}_{key}" for name in ("entropy", "diversity") for key in branches}
    assert found.keys() - plain.keys() == extra | {"loss/entropy", "loss/diversity"}
    for name, weight in (("entropy", -0.1), ("diversity", 0.2)):
        raw = [found[f"regulariser/{name}_{branch}"] for branch in branches]
        assert all(0 < value <= 1 for value in raw)
        assert found[f"loss/{name}"] == pytest.approx(weight * np.mean(raw), rel=1e-5)
    # dropout draws the same random numbers in both
    added = found["loss/entropy"] + found["loss/diversity"]
    assert found["loss/total"] == pytest.approx(plain["loss/total"] + added, rel=1e-5)
    for branch in branches:
        name = f"network.{branch}.encoder.layers.0.self_attention.in_proj_weight"
        assert not torch.allclose(gradients[name], plain_gradients[name], rtol=1e-3)


@pytest.mark.parametrize("kind", ["ms-transformer", "mspn"])
def test_a_network_without_encoders_has_no_regularisers(kind):
    logs, _ = step(build(kind, encoders=(0, 0), **TERMS))
    names = {"loss/position", "loss/orientation", "loss/scene", "loss/total"}
    assert {name for name in logs if name.startswith("loss/")} == names


def test_a_step_in_bfloat16_measures_attention_in_float32():
    exact, _ = step(build(**TERMS))
    logs, gradients = step(build(precision="bfloat16", **TERMS))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for name in ("loss/entropy", "loss/diversity"):
        assert logs[name] == pytest.approx(exact[name], rel=0.02)


@pytest.mark.parametrize(("kind", "weights"), [("ms-transformer", TERMS), ("mspn", {})])
def test_a_compiled_step_is_the_step_and_is_compiled_once(kind, weights, monkeypatch, caplog):
    """Everything but the making of machine code, which takes minutes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = build(kind, encoders=(1, 1), **weights)
    compiled = Objective(plain.network, plain.loss, "float32", compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for size in (4, 3, 4):  # what it remembers must not make the compiler start again
        (logs, gradients), (found, our_gradients) = step(plain, size), step(compiled, size)
        assert found == pytest.approx(logs, rel=1e-4, abs=1e-5)
        assert_same_gradients(our_gradients, gradients)
    with torch.no_grad():  # as an evaluation does
        compiled.network.eval()(torch.zeros(2, 3, 64, 64), observer=Observer())
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not [record.message for record in caplog.records if record.name == "mspose"]
    torch._dynamo.reset()


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no distributed package"
)
@pytest.mark.parametrize(
    ("kind", "weights"), [("ms-transformer", TERMS), ("mspn", {"scene_weight": 0.0})]
)
def test_it_trains_under_distributed_data_parallel_with_a_static_graph(kind, weights, tmp_path):
    plain, expected = step(build(kind, **weights))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        with warnings.catch_warnings(action="ignore"):
            objective = DistributedDataParallel(
                build(kind, **weights), broadcast_buffers=False, static_graph=True
            )
        for _ in range(2):  # the second step uses what the first one found out
            logs, gradients = step(objective)
    finally:
        torch.distributed.destroy_process_group()
    assert logs["loss/position"] == pytest.approx(plain["loss/position"], rel=1e-4)
    assert_same_gradients(
        {name.removeprefix("module."): value for name, value in gradients.items()}, expected
    )
