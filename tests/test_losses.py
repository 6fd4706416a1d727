"""The loss terms against formulas written out in numpy."""

import math

import numpy as np
import pytest
import torch

from mspose.errors import MsposeError
from mspose.losses import (
    EncoderAttention,
    PoseLoss,
    diversity_loss,
    entropy_share,
    orientation_loss,
    position_loss,
)
from mspose.models.attention_map import AttentionMap
from mspose.models.network import PoseOutput


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
    arrays = {
        name: output[name].detach().numpy()
        for name in ("position_B3", "orientation_B4", "scene_log_probability_BS")
    }
    position_error = np.sqrt(((arrays["position_B3"] - position.numpy()) ** 2).sum(1)).mean()
    unit = [
        q / np.sqrt((q**2).sum(1, keepdims=True))
        for q in (arrays["orientation_B4"], orientation.numpy())
    ]
    orientation_error = np.sqrt(((unit[0] - unit[1]) ** 2).sum(1)).mean()
    nll = -np.mean(
        [
            arrays["scene_log_probability_BS"][image, index]
            for image, index in enumerate(scene.tolist())
        ]
    )
    gaps = {
        f"qka_{name}": gap.detach().numpy().mean() for name, gap in output.query_key_gap.items()
    }
    return {"position": position_error, "orientation": orientation_error, "scene": nll, **gaps}


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def test_learned_terms_agree_with_numpy():
    output = make_output()
    loss = PoseLoss(s_position=-0.5, s_orientation=-2.0, scene_weight=0.7, qka_weight=0.1).double()
    found, raw = loss(output, *LABELS), oracle(output, *LABELS)
    expected = {
        "position": raw["position"] * math.exp(0.5) - 0.5,
        "orientation": raw["orientation"] * math.exp(2.0) - 2.0,
        "scene": 0.7 * raw["scene"],
        "qka": 0.1 * (raw["qka_position"] + raw["qka_orientation"]),
    }
    assert values(found.terms) == pytest.approx(expected, rel=1e-12)
    assert values(found.raw) == pytest.approx(raw, rel=1e-12)
    assert found.total.item() == pytest.approx(sum(expected.values()), rel=1e-12)
    assert loss.weights() == {"s_x": -0.5, "s_q": -2.0}


def test_fixed_terms_agree_with_numpy():
    output = make_output()
    loss = PoseLoss(weighting="fixed", position_weight=2.0, orientation_weight=30.0, qka_weight=0.0)
    found, raw = loss(output, *LABELS), oracle(output, *LABELS)
    expected = {
        "position": 2 * raw["position"],
        "orientation": 30 * raw["orientation"],
        "scene": raw["scene"],
    }
    assert values(found.terms) == pytest.approx(expected, rel=1e-12)
    assert list(loss.parameters()) == []
    assert loss.weights() == {}


def test_defaults_are_those_of_7scenes():
    loss = PoseLoss()
    assert loss.weights() == {"s_x": 0.0, "s_q": -3.0}
    assert (loss.scene_weight, loss.qka_weight) == (1.0, 0.1)


def test_the_learned_weights_have_the_gradient_of_the_formula():
    output = make_output()
    loss = PoseLoss(s_position=0.3, s_orientation=-1.0).double()
    loss(output, *LABELS).total.backward()
    raw = oracle(output, *LABELS)
    assert loss.s_position.grad.item() == pytest.approx(1 - raw["position"] * math.exp(-0.3))
    assert loss.s_orientation.grad.item() == pytest.approx(1 - raw["orientation"] * math.exp(1.0))


def test_gradients_reach_every_output_and_the_raw_values_carry_none():
    output = make_output()
    found = PoseLoss().double()(output, *LABELS)
    found.total.backward()
    for tensor in (
        output.position_B3,
        output.orientation_B4,
        output.scene_log_probability_BS,
        *output.query_key_gap.values(),
    ):
        assert tensor.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in found.raw.values())
    assert torch.autograd.gradcheck(lambda x, q: position_loss(x, LABELS[0]) + orientation_loss(q, LABELS[1]), (
        output.position_B3, output.orientation_B4,
    ))  # fmt: skip


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
    found = PoseLoss(**settings).double()(make_output(layers=layers), *LABELS)
    assert set(found.terms) == names
    assert {"position", "orientation", "scene"} <= set(found.raw)
    assert ("qka_position" in found.raw) == (layers[0] > 0)
    assert found.total.isfinite()


def test_one_branch_without_layers_leaves_the_other():
    output = make_output(layers=(0, 4))
    found = PoseLoss(qka_weight=1.0).double()(output, *LABELS)
    assert found.terms["qka"].item() == pytest.approx(
        output.query_key_gap["orientation"].mean().item()
    )


def test_a_perfect_estimate_has_zero_error_and_finite_gradients():
    output = make_output()
    found = PoseLoss(weighting="fixed").double()(
        output, output.position_B3.detach(), 2 * output.orientation_B4.detach(), LABELS[2]
    )
    assert found.raw["position"].item() == 0
    assert found.raw["orientation"].item() == pytest.approx(0, abs=1e-15)
    found.total.backward()
    assert output.position_B3.grad.isfinite().all()
    assert output.orientation_B4.grad.isfinite().all()


def test_a_zero_quaternion_gives_a_finite_loss():
    estimate = torch.zeros(1, 4, requires_grad=True)
    loss = orientation_loss(estimate, torch.tensor([[1.0, 0, 0, 0]]))
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert estimate.grad.isfinite().all()


def test_orientation_is_sensitive_to_sign_and_not_to_length():
    truth = random(1, 4, seed=0)
    assert orientation_loss(-truth, truth).item() == pytest.approx(2)
    assert orientation_loss(5 * truth, 0.1 * truth).item() == pytest.approx(0, abs=1e-12)


def test_labels_in_another_precision_are_taken():
    output = make_output()
    double = PoseLoss().double()(output, *LABELS).total
    single = PoseLoss().double()(output, LABELS[0].float(), LABELS[1].float(), LABELS[2]).total
    assert single.dtype == torch.float64
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("place", "shape", "words"),
    [
        (0, (3, 4), r"position_B3: expected shape \(3, 3\), found \(3, 4\)"),
        (0, (1, 3), r"position_B3: expected shape \(3, 3\), found \(1, 3\)"),  # would be broadcast
        (1, (3, 3), r"orientation_B4: expected shape \(3, 4\), found \(3, 3\)"),
        (2, (3, 1), r"scene_B: expected shape \(3\), found \(3, 1\)"),
    ],
)
def test_refuses_labels_of_another_shape(place, shape, words):
    labels = list(LABELS)
    labels[place] = torch.zeros(shape, dtype=labels[place].dtype)
    with pytest.raises(ValueError, match=words):
        PoseLoss()(make_output(), *labels)


def test_refuses_outputs_of_another_shape():
    output = make_output()
    output.orientation_B4 = output.orientation_B4[:2]
    with pytest.raises(
        ValueError, match=r"output.orientation_B4: expected shape \(3, 4\), found \(2, 4\)"
    ):
        PoseLoss()(output, *LABELS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weighting": "adaptive"}, "weighting: expected learned or fixed, found 'adaptive'"),
        ({"qka_weight": -0.1}, "qka_weight: expected a weight of at least 0, found -0.1"),
        ({"position_weight": math.nan}, "position_weight: .*found nan"),
        (
            {"diversity_weight": -0.1},
            "diversity_weight: expected a weight of at least 0, found -0.1",
        ),
        ({"entropy_weight": -math.inf}, "entropy_weight: expected a finite weight, found -inf"),
        (
            {
                "weighting": "fixed",
                "position_weight": 0,
                "orientation_weight": 0,
                "scene_weight": 0,
            },
            "expected one above 0",
        ),
    ],
)
def test_refuses_settings_in_words(settings, words):
    with pytest.raises(MsposeError, match=words):
        PoseLoss(**settings)


# of the attention


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
    cosines = []
    for rows in weight.reshape(-1, *weight.shape[2:]):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines.append(
            [unit[i] @ unit[j] for i in range(len(unit)) for j in range(len(unit)) if i != j]
        )
    return np.array([entropy, np.mean(cosines)])


@pytest.mark.parametrize("weights", [(0.3, 0.7), (-0.2, 0.0), (0.0, 0.5)])
def test_terms_of_the_attention_agree_with_numpy(weights):
    entropy_weight, diversity_weight = weights
    attention = make_attention()
    loss = PoseLoss(entropy_weight=entropy_weight, diversity_weight=diversity_weight).double()
    assert loss.needs_attention
    found = loss(make_output(), *LABELS, attention)
    plain = PoseLoss().double()(make_output(), *LABELS)
    branches = {
        branch: np.mean([attention_oracle(one) for one in layers.values()], axis=0)
        for branch, layers in attention.items()
    }
    raw = values(plain.raw)
    terms = values(plain.terms)
    for place, (name, weight) in enumerate(zip(("entropy", "diversity"), weights, strict=True)):
        if weight:
            raw |= {f"{name}_{branch}": figures[place] for branch, figures in branches.items()}
            terms[name] = weight * np.mean([figures[place] for figures in branches.values()])
    assert values(found.raw) == pytest.approx(raw, rel=1e-12)
    assert values(found.terms) == pytest.approx(terms, rel=1e-12)
    assert found.total.item() == pytest.approx(sum(terms.values()), rel=1e-12)


@pytest.mark.parametrize("measure", [entropy_share, diversity_loss])
def test_the_terms_of_the_attention_have_exact_gradients(measure):
    attention = make_attention(layers=(1, 0))["position"][0]
    for learned in (attention.query_BHQD, attention.key_BHKD):
        learned.grad = None
    assert torch.autograd.gradcheck(
        lambda q, k: measure(attention._replace(query_BHQD=q, key_BHKD=k)), attention[:2]
    )


def test_spread_and_different_attention_lower_their_terms():
    """The entropy is 1 at most, of attention spread over everything; the similarity 1 where all
    attend alike.
    """
    alike = AttentionMap(
        torch.ones(1, 1, 6, 4), torch.arange(24.0).view(1, 1, 6, 4), 1.0
    )  # all on the last key
    spread = alike._replace(key_BHKD=torch.ones(1, 1, 6, 4))
    apart = AttentionMap(50 * torch.eye(6)[None, None], torch.eye(6)[None, None], 1.0)
    entropies = [float(entropy_share(one)) for one in (alike, spread, apart)]
    assert entropies == pytest.approx([0, 1, 0], abs=1e-5)
    assert [float(diversity_loss(one)) for one in (alike, spread, apart)] == pytest.approx(
        [1, 1, 0], abs=1e-6
    )


def test_networks_without_encoders_have_no_term_of_attention():
    found = PoseLoss(entropy_weight=0.1, diversity_weight=0.1).double()(make_output(), *LABELS, {})
    assert set(found.terms) == {"position", "orientation", "scene", "qka"}
    one = make_attention(layers=(0, 2))
    found = PoseLoss(diversity_weight=1.0).double()(make_output(), *LABELS, one)
    expected = np.mean([attention_oracle(layer)[1] for layer in one["orientation"].values()])
    assert found.terms["diversity"].item() == pytest.approx(expected)


def test_attention_that_is_needed_and_not_given_is_an_error():
    assert not PoseLoss().needs_attention
    with pytest.raises(
        ValueError,
        match="attention: expected the encoders' attention maps, of which diversity is a",
    ):
        PoseLoss(diversity_weight=0.1)(make_output(), *LABELS)


def test_a_forward_pass_that_is_begun_anew_is_seen_once():
    """As one whose compiled form fails late is."""
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
        loss(
            make_output(),
            *(label.float() if label.is_floating_point() else label for label in LABELS),
            attention,
        )
    assert sum(held.values()) < 0.1 * 3 * 2 * 600 * 600 * 4
