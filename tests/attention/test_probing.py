import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mspose
from mspose.attention.probing import probe
from mspose.errors import MsposeError
from mspose.models.attention_map import COLLAPSED, HEALTHY, UNIFORM

DIM, HEADS = 16, 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


def attention(**options) -> nn.MultiheadAttention:
    options = {"batch_first": True, "dtype": torch.float64} | options
    return nn.MultiheadAttention(DIM, HEADS, **options).eval()


def tokens(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64)


def entropy_by_hand(weight: torch.Tensor) -> float:
    weight = weight.detach()
    return float(-(weight * weight.clamp(min=1e-300).log()).sum(dim=-1).mean())


def similarity_by_hand(weight_QK: torch.Tensor) -> float:
    """Mean cosine over pairs of different rows, one pair after the other."""
    rows = [row / row.norm() for row in weight_QK.detach()]
    pairs = [
        float(one @ other) for i, one in enumerate(rows) for j, other in enumerate(rows) if i != j
    ]
    return float(np.mean(pairs))


def check_against_own_weights(
    module: nn.MultiheadAttention, *inputs: torch.Tensor, **options
) -> None:
    """Entropy, similarity and limit are those of the weights that the module itself hands out."""
    with probe(module) as p:
        _, weight = module(*inputs, **options, need_weights=True, average_attn_weights=False)
    weight_BHQK = weight if weight.dim() == 4 else weight[None]
    row = p.table().loc[""]
    assert row["entropy"] == pytest.approx(entropy_by_hand(weight_BHQK), rel=1e-9)
    assert row["entropy_limit"] == pytest.approx(np.log(weight_BHQK.shape[-1]))
    by_hand = np.mean(
        [similarity_by_hand(weight_QK) for weight_HQK in weight_BHQK for weight_QK in weight_HQK]
    )
    assert row["similarity"] == pytest.approx(by_hand, rel=1e-9)
    assert row["calls"] == 1


# exact agreement with the module's own weights


@pytest.mark.parametrize("options", [
    {}, {"bias": False}, {"batch_first": False},
    {"add_bias_kv": True}, {"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True},
])  # fmt: skip
def test_self_attention(options):
    x = tokens(2, 7, DIM)
    check_against_own_weights(attention(**options), x, x, x)


@pytest.mark.parametrize("batch_first", [True, False])
def test_cross_attention_of_other_widths(batch_first):
    module = attention(kdim=6, vdim=5, batch_first=batch_first)
    shape = (2, 9) if batch_first else (9, 2)
    query = tokens(2, 4, DIM) if batch_first else tokens(4, 2, DIM)
    check_against_own_weights(module, query, tokens(*shape, 6), tokens(*shape, 5))


def test_inputs_without_a_batch():
    check_against_own_weights(attention(), tokens(5, DIM), tokens(8, DIM), tokens(8, DIM))


def test_what_is_not_finite_has_no_verdict():
    module, x = attention(), tokens(2, 4, DIM)
    x[1, 2, 3] = torch.nan
    with probe(module) as p:
        module(x, x, x)
    assert p.verdicts == {"": "not finite"}


def test_many_queries_are_measured_in_chunks(monkeypatch):
    monkeypatch.setattr("mspose.attention.probing.WEIGHTS_AT_ONCE", 1)
    x = tokens(3, 13, DIM)
    check_against_own_weights(attention(), x, x, x)


def test_numbers_in_a_mask_are_added_to_the_scores():
    x = tokens(2, 6, DIM)
    check_against_own_weights(attention(), x, x, x, attn_mask=tokens(6, 6))
    check_against_own_weights(attention(), x, x, x, attn_mask=tokens(2 * HEADS, 6, 6))
    check_against_own_weights(
        attention(), x, x, x, attn_mask=tokens(6, 6), key_padding_mask=tokens(2, 6)
    )


def test_the_gap_is_the_distance_of_mean_query_and_mean_key():
    module, x, y = attention(), tokens(2, 5, DIM), tokens(2, 8, DIM)
    with probe(module) as p:
        module(x, y, y)
    query_C, key_C = module.in_proj_weight.chunk(3)[:2]
    gap_BH = (x @ query_C.T).mean(dim=1).unflatten(-1, (HEADS, -1)) - (y @ key_C.T).mean(
        dim=1
    ).unflatten(-1, (HEADS, -1))
    assert p.table()["query_key_gap"].item() == pytest.approx(
        float(gap_BH.detach().norm(dim=-1).mean())
    )


# masks


@pytest.mark.parametrize("kind", [torch.bool, torch.float64, "lowest"])
def test_padding_counts_neither_as_query_nor_as_key(kind):
    module, x = attention(), tokens(2, 7, DIM)
    hidden = torch.zeros(2, 7, dtype=torch.bool)
    hidden[0, 5:], hidden[1, 2:] = True, True
    low = torch.finfo(torch.float64).min if kind == "lowest" else -torch.inf
    mask = (
        hidden
        if kind == torch.bool
        else torch.zeros(2, 7, dtype=torch.float64).masked_fill(hidden, low)
    )
    with probe(module) as padded:
        module(x, x, x, key_padding_mask=mask)
    with probe(module) as alone:
        for image in (x[:1, :5], x[1:, :2]):
            module(image, image, image)
    columns = ["entropy", "entropy_limit", "similarity", "query_key_gap"]
    np.testing.assert_allclose(padded.table()[columns], alone.table()[columns], rtol=1e-9)
    assert (padded.table()["calls"].item(), alone.table()["calls"].item()) == (1, 2)


def test_queries_of_cross_attention_all_count_whatever_keys_are_padded():
    module, x, y = attention(), tokens(1, 4, DIM), tokens(1, 4, DIM)
    hidden = torch.tensor([[False, False, True, True]])
    with probe(module) as p:
        _, weight = module(x, y, y, key_padding_mask=hidden, average_attn_weights=False)
    assert p.table()["entropy"].item() == pytest.approx(entropy_by_hand(weight))
    assert p.table()["entropy_limit"].item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("per_head", [False, True])
def test_a_causal_mask_is_allowed_for_in_limit_and_similarity(per_head):
    module, x = attention(), tokens(2, 6, DIM)
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    with probe(module) as p:
        mask = causal.expand(2 * HEADS, 6, 6) if per_head else causal
        _, weight_BHQK = module(x, x, x, attn_mask=mask, average_attn_weights=False)
    row = p.table().loc[""]
    assert row["entropy"] == pytest.approx(entropy_by_hand(weight_BHQK))
    assert row["entropy_limit"] == pytest.approx(np.log([1, 2, 3, 4, 5, 6]).mean())
    even = similarity_by_hand((~causal).double() / (~causal).sum(dim=1, keepdim=True))
    by_hand = [
        min(similarity_by_hand(weight) / even, 1) for weights in weight_BHQK for weight in weights
    ]
    assert row["similarity"] == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize(("keys_weight", "expected"), [(0.0, UNIFORM), (1.0, COLLAPSED)])
def test_verdicts_under_a_causal_mask(keys_weight, expected):
    """Queries are all alike; keys too, or the first outshines the rest."""
    module = attention()
    with torch.no_grad():
        module.in_proj_weight.zero_()
        module.in_proj_bias.zero_()[:DIM] = 100.0
        module.in_proj_weight[DIM : 2 * DIM, 0] = keys_weight
    x = torch.zeros(1, 9, DIM, dtype=torch.float64)
    x[:, 0, 0] = 1
    with probe(module) as p:
        module(x, x, x, attn_mask=torch.ones(9, 9, dtype=torch.bool).triu(1))
    assert p.verdicts == {"": expected}


def test_queries_that_see_nothing_are_left_out():
    module, x, y = attention(), tokens(2, 3, DIM), tokens(2, 4, DIM)
    hidden = torch.zeros(3, 4, dtype=torch.bool)
    hidden[1] = True
    with probe(module) as p:
        module(x, y, y, attn_mask=hidden)
    with probe(module) as without:
        module(x[:, [0, 2]], y, y)
    np.testing.assert_allclose(p.table()["entropy"], without.table()["entropy"])
    everything = torch.ones(2, 4, dtype=torch.bool)
    with probe(module) as p:
        module(x, y, y, key_padding_mask=everything)
    assert p.verdicts == {"": "no queries"}


# verdicts


def built(query_gain: float, shared_key: float) -> tuple[nn.MultiheadAttention, torch.Tensor]:
    """A self-attention with one-hot tokens as heads of one channel would have them: each token's
    query agrees with its own key by `query_gain`, and every query with the first key by
    `shared_key`."""
    module = nn.MultiheadAttention(8, 1, bias=False, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight.zero_()
        module.in_proj_weight[:8] = torch.eye(8)
        module.in_proj_weight[8:16] = query_gain * torch.eye(8)
        module.in_proj_weight[8:16, 0] += shared_key
    return module.eval(), torch.eye(8)[None]


@pytest.mark.parametrize(
    ("gain", "shared", "expected"),
    [(0.0, 0.0, UNIFORM), (0.0, 30.0, COLLAPSED), (30.0, 0.0, HEALTHY)],
)
def test_attentions_that_are_built_to_be_something_are_called_that(gain, shared, expected):
    module, x = built(gain, shared)
    with probe(module) as p:
        module(x, x, x)
    assert p.verdicts == {"": expected}
    assert p.table()["verdict"].tolist() == [expected]


# whole models


def encoder(layers: int = 2, **options) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, layers).eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_transformer_encoder_is_seen_in_every_mode_and_answers_as_without(training, gradients):
    module, x = encoder(dropout=0.0).train(training), torch.randn(2, 6, DIM)
    with torch.set_grad_enabled(gradients):
        expected = module(x)
        with probe(module) as p:
            answer = module(x)
    torch.testing.assert_close(answer, expected)
    assert answer.requires_grad == gradients
    assert list(p.verdicts) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert list(p.table().columns) == [
        "entropy",
        "entropy_limit",
        "similarity",
        "query_key_gap",
        "calls",
        "verdict",
    ]
    assert p.table()["calls"].tolist() == [1, 1]
    assert p.table().notna().all(axis=None)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_padded_batch_of_an_encoder_that_would_be_nested():
    module, x = encoder(), torch.randn(2, 6, DIM)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[1, 3:] = True
    with torch.no_grad():
        expected = module(x, src_key_padding_mask=hidden)
        with probe(module) as p:
            answer = module(x, src_key_padding_mask=hidden)
    torch.testing.assert_close(answer[~hidden], expected[~hidden])
    assert p.table()["entropy_limit"].tolist() == pytest.approx([(np.log(6) + np.log(3)) / 2] * 2)


def test_encoder_and_decoder_with_a_causal_mask():
    module = nn.Transformer(DIM, HEADS, 1, 1, 32, batch_first=True).eval()
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    with torch.no_grad(), probe(module) as p:
        module(torch.randn(2, 6, DIM), torch.randn(2, 4, DIM), tgt_mask=causal, tgt_is_causal=True)
    limit = p.table()["entropy_limit"]
    assert limit["encoder.layers.0.self_attn"] == pytest.approx(np.log(6))
    assert limit["decoder.layers.0.self_attn"] == pytest.approx(np.log([1, 2, 3, 4]).mean())
    assert limit["decoder.layers.0.multihead_attn"] == pytest.approx(np.log(6))


class Several(nn.Module):
    """One attention called with and without weights, under two names, and one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = self.again = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.idle = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        first, _ = self.shared(x_BNC, x_BNC, x_BNC, need_weights=True)
        return self.again(query=first, key=x_BNC, value=x_BNC, need_weights=False)[0]


def test_calls_add_up_and_what_was_not_called_is_named():
    module, x = Several().eval(), torch.randn(2, 5, DIM)
    with probe(module) as p:
        module(x)
    assert p.verdicts["idle"] == "not called"
    assert p.table()["calls"].to_dict() == {"shared": 2, "idle": 0}
    assert p.table().loc["idle", ["entropy", "similarity", "query_key_gap"]].isna().all()
    with torch.no_grad():
        first = module.shared(x, x, x)[0]
    rows = []
    for query in (x, first):
        with probe(module.shared) as one:
            module.shared(query, x, x)
        rows.append(one.table()["entropy"].item())
    assert p.table().loc["shared", "entropy"] == pytest.approx(np.mean(rows))


# the model is left as it was


def test_hooks_and_the_fast_path_are_put_back_even_after_an_error():
    module = encoder()
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            with pytest.raises(RuntimeError, match="own"), probe(module):
                assert not torch.backends.mha.get_fastpath_enabled()
                raise RuntimeError("own")
            assert torch.backends.mha.get_fastpath_enabled() == enabled
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    module, x = attention(dtype=torch.float32), torch.randn(2, 6, DIM)
    with probe(module) as exact:
        module(x, x, x)
    with probe(module) as autocast, torch.autocast("cpu", dtype):
        module(x, x, x)
    half, x = module.to(dtype), x.to(dtype)
    with probe(half) as halved:
        half(x, x, x)
    for p in (autocast, halved):
        assert p.table()["entropy"].item() == pytest.approx(
            exact.table()["entropy"].item(), rel=1e-2
        )
        assert p.table()["entropy"].item() != exact.table()["entropy"].item()


# bad input


def test_a_module_without_attention_is_refused():
    with pytest.raises(MsposeError, match=r"Linear holds no torch.nn.MultiheadAttention"):
        probe(nn.Linear(2, 2))


def test_nothing_is_said_before_a_forward_pass():
    with probe(encoder()) as p:
        for ask in (lambda: p.verdicts, p.table):
            with pytest.raises(
                MsposeError, match="none of the 2 attentions was called: run the module, not"
            ):
                ask()


def test_the_probe_is_there_after_import_mspose():
    assert mspose.attention.probe is probe
    program = "import mspose, sys; mspose.attention.probe; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"matplotlib", "sklearn", "pandas", "tensorboard", "torchvision"} & set(loaded)
