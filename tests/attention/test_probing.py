import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mspose
from mspose.attention.probing import probe
from mspose.errors import MsposeError
from mspose.verdict import COLLAPSED, SELECTIVE, UNIFORM

DIM, HEADS = 16, 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


def attention(**options) -> nn.MultiheadAttention:
    options = {"batch_first": True, "dtype": torch.float64} | options
    return nn.MultiheadAttention(DIM, HEADS, **options).eval()


def tokens(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64)


def probed(module, *inputs, **options):
    """The probe of one forward pass."""
    with probe(module) as p:
        module(*inputs, **options)
    return p


def entropy_by_hand(weight: torch.Tensor) -> float:
    weight = weight.detach().double()
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
    p = probed(module, x, x, x)
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
    p = probed(module, x, y, y)
    query_C, key_C = module.in_proj_weight.chunk(3)[:2]
    gap_BH = (x @ query_C.T).mean(dim=1).unflatten(-1, (HEADS, -1)) - (y @ key_C.T).mean(
        dim=1
    ).unflatten(-1, (HEADS, -1))
    assert p.table()["query_key_gap"].item() == pytest.approx(
        float(gap_BH.detach().norm(dim=-1).mean())
    )


# masks


LOWEST = torch.finfo(torch.float64).min


@pytest.mark.parametrize("number", ["bool", -torch.inf, LOWEST, -100.0, -1e4, -1e9])
def test_padding_counts_neither_as_query_nor_as_key(number):
    module, x = attention(), tokens(2, 7, DIM)
    mask = hidden = torch.zeros(2, 7, dtype=torch.bool)
    hidden[0, 5:], hidden[1, 2:] = True, True
    if number != "bool":
        mask = torch.zeros(2, 7, dtype=torch.float64).masked_fill(hidden, number)
    padded = probed(module, x, x, x, key_padding_mask=mask)
    with probe(module) as alone:
        for image in (x[:1, :5], x[1:, :2]):
            module(image, image, image)
    columns = ["entropy", "entropy_limit", "similarity", "query_key_gap"]
    np.testing.assert_allclose(padded.table()[columns], alone.table()[columns], rtol=1e-9)
    assert (padded.table()["calls"].item(), alone.table()["calls"].item()) == (1, 2)


def test_values_do_not_count():
    module, x = attention(), tokens(2, 7, DIM)
    hidden = torch.tensor([[False] * 5 + [True] * 2, [False] * 7])
    same, other = (probed(module, x, x, value, key_padding_mask=hidden) for value in (x, x + 1))
    pd.testing.assert_frame_equal(same.table(), other.table())


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
    p = probed(module, x, x, x, attn_mask=torch.ones(9, 9, dtype=torch.bool).triu(1))
    assert p.verdicts == {"": expected}


def test_queries_that_see_nothing_are_left_out():
    module, x, y = attention(), tokens(2, 3, DIM), tokens(2, 4, DIM)
    hidden = torch.zeros(3, 4, dtype=torch.bool)
    hidden[1] = True
    p = probed(module, x, y, y, attn_mask=hidden)
    without = probed(module, x[:, [0, 2]], y, y)
    np.testing.assert_allclose(p.table()["entropy"], without.table()["entropy"])
    everything = torch.ones(2, 4, dtype=torch.bool)
    p = probed(module, x, y, y, key_padding_mask=everything)
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
    [(0.0, 0.0, UNIFORM), (0.0, 30.0, COLLAPSED), (30.0, 0.0, SELECTIVE)],
)
def test_attentions_that_are_built_to_be_something_are_called_that(gain, shared, expected):
    module, x = built(gain, shared)
    p = probed(module, x, x, x)
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
    p = probed(module, x)
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
    exact = probed(module, x, x, x)
    with probe(module) as autocast, torch.autocast("cpu", dtype):
        module(x, x, x)
    half, x = module.to(dtype), x.to(dtype)
    halved = probed(half, x, x, x)
    for p in (autocast, halved):
        assert p.table()["entropy"].item() == pytest.approx(
            exact.table()["entropy"].item(), rel=1e-2
        )
        assert p.table()["entropy"].item() != exact.table()["entropy"].item()


# bad input


def test_nothing_is_said_before_a_forward_pass():
    module = nn.Linear(2, 2)
    for silent in (probe(encoder()), probe(module)):
        with silent as p:
            module(torch.ones(2))
            for ask in (lambda p=p: p.verdicts, p.table):
                with pytest.raises(
                    MsposeError, match=r"(Linear|TransformerEncoder) called neither a torch\.nn\."
                ):
                    ask()


def test_the_probe_is_there_after_import_mspose():
    assert mspose.attention.probe is probe
    program = "import mspose, sys; mspose.attention.probe; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"matplotlib", "sklearn", "pandas", "tensorboard", "torchvision"} & set(loaded)


# scaled_dot_product_attention


class Block(nn.Module):
    """Attention as timm and Hugging Face have it: own projections, then PyTorch's function."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.qkv, self.options = nn.Linear(DIM, 3 * DIM), options

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x_BNC).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y_BHND = F.scaled_dot_product_attention(query, key, value, **self.options)
        return y_BHND.transpose(1, 2).flatten(2)


class Two(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.first, self.second = Block(**options), Block(**options)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x_BNC))


def by_hand(block: Block, x_BNC: torch.Tensor, bias=0.0, scale=None) -> torch.Tensor:
    """weight_BHQK of a block."""
    query, key, _ = block.qkv(x_BNC).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    return (query @ key.mT * (scale or query.shape[-1] ** -0.5) + bias).softmax(dim=-1).detach()


def test_callers_of_the_function_are_named_by_their_module():
    module, x = Two().double(), tokens(2, 6, DIM)
    expected = module(x)
    with probe(module) as p:
        answer = module(x)
    assert torch.equal(answer, expected)
    table = p.table()
    assert table.index.tolist() == ["first", "second"]
    for name, inputs in (("first", x), ("second", module.first(x))):
        weight_BHQK = by_hand(module.get_submodule(name), inputs)
        row = table.loc[name]
        assert row["entropy"] == pytest.approx(entropy_by_hand(weight_BHQK))
        assert row["entropy_limit"] == pytest.approx(np.log(6))
        similarity = [similarity_by_hand(map_QK) for map_QK in weight_BHQK.flatten(0, 1)]
        assert row["similarity"] == pytest.approx(np.mean(similarity))
        assert row["calls"] == 1
        query, key, _ = module.get_submodule(name).qkv(inputs).detach().chunk(3, dim=-1)
        gap_BH = (query - key).mean(dim=1).unflatten(-1, (HEADS, -1)).norm(dim=-1)
        assert row["query_key_gap"] == pytest.approx(float(gap_BH.mean()))


def test_the_function_is_seen_under_a_name_that_was_imported_before():
    from torch.nn.functional import scaled_dot_product_attention

    class Named(Block):
        def forward(self, x_BNC):
            return scaled_dot_product_attention(x_BNC, x_BNC, x_BNC)

    with probe(Named()) as p:
        p._running.clear()
        Named()(tokens(1, 4, DIM))  # another module's
        with pytest.raises(MsposeError, match="Named called neither"):
            p.table()
    module = Named()
    p = probed(module, tokens(1, 4, DIM))
    assert p.table()["calls"].to_dict() == {"": 1}


MASK = (
    torch.tensor([False, True, True, False, True, True]).expand(6, 6).clone().fill_diagonal_(True)
)


@pytest.mark.parametrize("number", ["bool", -torch.inf, -100.0, -1e3, -1e4, -1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_counts_by_its_effect_whatever_the_number(number, dtype):
    mask = MASK if number == "bool" else torch.zeros(6, 6, dtype=dtype).masked_fill(~MASK, number)
    module, x = Block(attn_mask=mask).to(dtype), torch.randn(2, 6, DIM, dtype=dtype)
    hidden = torch.zeros(6, 6, dtype=dtype).masked_fill(~MASK, -torch.inf)
    p = probed(module, x)
    row, weight_BHQK = p.table().loc[""], by_hand(module, x, hidden)
    assert row["entropy"] == pytest.approx(entropy_by_hand(weight_BHQK), rel=1e-4)
    assert row["entropy_limit"] == pytest.approx(np.log(MASK.sum(dim=1)).mean())
    even = similarity_by_hand(MASK.double() / MASK.sum(dim=1, keepdim=True))
    found = [similarity_by_hand(map_QK) / even for map_QK in weight_BHQK.double().flatten(0, 1)]
    assert row["similarity"] == pytest.approx(np.minimum(found, 1).mean(), rel=1e-4)


def test_a_mask_that_is_the_same_for_all_keys_hides_none():
    x = tokens(2, 5, DIM)
    with probe(module := Block(attn_mask=torch.full((5, 5), -1e4).double()).double()) as p:
        module(x)
    assert p.table()["entropy_limit"].item() == pytest.approx(np.log(5))
    assert p.table()["entropy"].item() == pytest.approx(entropy_by_hand(by_hand(module, x)))


@pytest.mark.parametrize(
    ("options", "bias", "scale"),
    [
        ({"is_causal": True}, torch.full((6, 6), -torch.inf).double().triu(1), None),
        ({"scale": 0.03}, 0.0, 0.03),
        ({"attn_mask": 3 * torch.randn(HEADS, 1, 6).double()}, "attn_mask", None),
        ({"attn_mask": 3 * torch.randn(2, 1, 6, 6).double()}, "attn_mask", None),
        ({"attn_mask": 3 * torch.randn(6, 1).double()}, "attn_mask", None),
        ({"dropout_p": 0.5}, 0.0, None),
    ],
)
def test_every_argument_of_the_function(options, bias, scale):
    module, x = Block(**options).double(), tokens(2, 6, DIM)
    p = probed(module, x)
    bias = options["attn_mask"] if isinstance(bias, str) else bias
    expected = entropy_by_hand(by_hand(module, x, bias, scale))
    assert p.table()["entropy"].item() == pytest.approx(expected)


class Function(nn.Module):
    """The function alone."""

    def forward(self, *tensors, **options):
        return F.scaled_dot_product_attention(*tensors, **options)


@pytest.mark.parametrize("shape", [(7, 8), (3, 7, 8), (2, 3, 7, 8), (2, 1, 3, 7, 8)])
def test_images_and_heads_in_any_shape(shape):
    query, key = torch.randn(2, *shape, dtype=torch.float64)
    module = Function()
    p = probed(module, query, key, key)
    weight = (query @ key.mT / 8**0.5).softmax(dim=-1)
    assert p.table()["entropy"].item() == pytest.approx(entropy_by_hand(weight))


def test_keys_that_several_heads_or_images_share():
    query, key = torch.randn(2, 4, 5, 8).double(), torch.randn(2, 2, 6, 8).double()
    module = Function()
    p = probed(module, query, key, key, enable_gqa=True)
    weight = (query @ key.repeat_interleave(2, dim=1).mT / 8**0.5).softmax(dim=-1)
    assert p.table()["entropy"].item() == pytest.approx(entropy_by_hand(weight))
    p = probed(module, query[:, :1], key[:1], key[:1])
    weight = (query[:, :1] @ key[:1].mT / 8**0.5).softmax(dim=-1)
    assert p.table()["entropy"].item() == pytest.approx(entropy_by_hand(weight))


def test_two_calls_in_one_forward_pass_are_two_attentions():
    class Both(nn.Module):
        def forward(self, x, y):
            F.scaled_dot_product_attention(x, x, x)
            F.scaled_dot_product_attention(x[..., :4], y[..., :4], y)

    module = nn.ModuleDict({"block": Both()})
    x, y = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 9, 8)
    with probe(module) as p:
        module["block"](x, y)
        module["block"](x, y)
    limit = p.table()["entropy_limit"].to_dict()
    assert limit == pytest.approx({"block": np.log(5), "block (call 2)": np.log(9)})
    assert p.table()["calls"].tolist() == [2, 2]


# faults that once were


def test_one_query_alone_has_no_similarity_and_no_verdict():
    module, query, x = attention(), tokens(2, 1, DIM), tokens(2, 7, DIM)
    with probe(module) as p:
        _, weight = module(query, x, x, average_attn_weights=False)
    assert p.verdicts == {"": "one query"}
    assert p.table()["entropy"].item() == pytest.approx(entropy_by_hand(weight))
    assert p.table()["similarity"].isna().all()
    with probe(module) as p:  # of two, one of which sees nothing, one remains
        module(x[:, :2], x, x, attn_mask=torch.tensor([[False], [True]]).expand(2, 7))
    assert p.verdicts == {"": "one query"}


@pytest.mark.parametrize("number", ["bool", -torch.inf])
def test_a_head_that_sees_no_key_leaves_the_others_figures_as_they_are(number):
    module, x = attention(), tokens(2, 5, DIM)
    hidden = torch.tensor([False, True, False, False]).repeat(2).view(-1, 1, 1).expand(-1, 5, 5)
    mask = hidden
    if number != "bool":
        mask = torch.zeros(8, 5, 5, dtype=torch.float64).masked_fill(hidden, number)
    p = probed(module, x, x, x, attn_mask=mask, need_weights=False)
    weight_BHQK = module(x, x, x, average_attn_weights=False)[1][:, [0, 2, 3]]
    row = p.table().loc[""]
    assert row["entropy"] == pytest.approx(entropy_by_hand(weight_BHQK))
    assert row["entropy_limit"] == pytest.approx(np.log(5))
    found = [similarity_by_hand(map_QK) for map_QK in weight_BHQK.flatten(0, 1)]
    assert row["similarity"] == pytest.approx(np.mean(found))
    assert p.verdicts[""] in (SELECTIVE, UNIFORM, COLLAPSED)


def test_blocks_in_blocks_and_errors_leave_everything_as_it_was():
    module, x = Two().double(), tokens(2, 4, DIM)
    whole = F.scaled_dot_product_attention
    with probe(module) as outer:
        with probe(module.second) as inner, outer:
            module(x)
        module(x)
    assert inner.table()["calls"].to_dict() == {"": 1}
    assert outer.table()["calls"].to_dict() == {"first": 2, "second": 2}
    with pytest.raises(RuntimeError), probe(module) as p:
        module(x)
        module(x[..., :3])
    module(x)
    assert p.table()["calls"].tolist() == [1, 1]
    assert F.scaled_dot_product_attention is whole
    for part in module.modules():
        assert not (part._forward_hooks or part._forward_pre_hooks)
        assert not part._forward_hooks_always_called


def test_a_forward_pass_that_failed_does_not_lend_its_name_to_the_next():
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x):
            try:
                self.block(x[..., :3])
            except RuntimeError:
                return F.scaled_dot_product_attention(x, x, x)

    module = Careful()
    p = probed(module, torch.randn(1, 2, 5, DIM))
    assert list(p.verdicts) == [""]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224"])
def test_a_vision_transformer_of_timm(name):
    timm = pytest.importorskip("timm")
    module = timm.create_model(name, pretrained=False, img_size=32, depth=2).eval()
    with torch.no_grad(), probe(module) as p:
        module(torch.randn(1, 3, 32, 32))
    assert list(p.verdicts) == ["blocks.0.attn", "blocks.1.attn"]
    assert p.table()["entropy_limit"].tolist() == pytest.approx([np.log(5)] * 2)


def test_our_own_network_is_seen_as_its_observer_sees_it():
    from mspose.attention.measures import AttentionMeasures
    from mspose.models.mstransformer import MSTransformer

    sizes = {"dim": 16, "heads": 2, "feedforward": 16, "head_hidden": 16}
    layers = {f"{branch}_{part}_layers": 1 for branch in ("position", "orientation")
              for part in ("encoder", "decoder")}  # fmt: skip
    module = MSTransformer(
        ["attic", "cellar"], backbone="efficientnet_lite0", pretrained=False, **sizes, **layers
    ).eval()
    image, seen = torch.randn(1, 3, 64, 64), AttentionMeasures()
    with torch.no_grad(), probe(module) as p:
        module(image)
        module(image, observer=seen)
    for (branch, number), layer in seen.layers.items():
        row = p.table().loc[f"{branch}.encoder.layers.{number - 1}.self_attention"]
        assert row[list(layer.mean())].tolist() == pytest.approx(list(layer.mean().values()))
