"""Layers against PyTorch's own, and where encodings of token positions are added."""

from functools import partial

import pytest
import torch
from torch import nn

from mspose.models.attention_map import Observer, query_key_gap
from mspose.models.token_positions import TokenPositions
from mspose.models.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer

DIM, HEADS, HIDDEN = 16, 4, 24
NOWHERE = TokenPositions()


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def jumbled(module):
    """The module in float64 with random norms and biases, so that none can be swapped unseen."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5)
    return module.double().eval()


def encoder_of(layers, **options):
    return Encoder((EncoderLayer(DIM, HEADS, HIDDEN, **options) for _ in range(layers)), DIM)


def decoder_of(layers, **options):
    return Decoder((DecoderLayer(DIM, HEADS, HIDDEN, **options) for _ in range(layers)), DIM)


def judge_weights(layer):
    """The layer's weights under PyTorch's names."""
    renames = (
        ("self_attention", "self_attn"),
        ("cross_attention", "multihead_attn"),
        ("feedforward.", ""),
    )
    state = {}
    for name, tensor in layer.state_dict().items():
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        state[name] = tensor
    return state


def multihead(attention, query, key, value):
    judge = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    judge.load_state_dict(attention.state_dict())
    return judge(query, key, value)[0]


PYTORCHS = {"activation": "gelu", "batch_first": True, "norm_first": True}


def test_layers_agree_with_pytorchs_without_positions():
    scene, memory = random(2, 3, DIM), random(2, 7, DIM, seed=1)
    encoder, decoder = (
        jumbled(layer(DIM, HEADS, HIDDEN)) for layer in (EncoderLayer, DecoderLayer)
    )
    encoder_judge = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, **PYTORCHS).double().eval()
    decoder_judge = nn.TransformerDecoderLayer(DIM, HEADS, HIDDEN, **PYTORCHS).double().eval()
    encoder_judge.load_state_dict(judge_weights(encoder))
    decoder_judge.load_state_dict(judge_weights(decoder))
    torch.testing.assert_close(encoder(memory, NOWHERE)[0], encoder_judge(memory))
    found = decoder(scene, torch.zeros(3, DIM), memory, memory)[0]
    torch.testing.assert_close(found, decoder_judge(scene, memory))


def test_encoder_layer_adds_encodings_to_queries_and_keys_after_the_norm_never_to_values():
    layer = jumbled(EncoderLayer(DIM, HEADS, HIDDEN))
    tokens, added = random(2, 7, DIM), random(7, DIM, seed=1)
    value = layer.norm1(tokens)
    expected = tokens + multihead(layer.self_attention, value + added, value + added, value)
    expected = expected + layer.feedforward(layer.norm2(expected))
    torch.testing.assert_close(layer(tokens, TokenPositions(added))[0], expected)


def test_decoder_layer_adds_scene_queries_and_encodings_to_queries_and_keys_alone():
    layer = jumbled(DecoderLayer(DIM, HEADS, HIDDEN))
    scene, query = random(2, 3, DIM), random(3, DIM, seed=1)
    memory, key = random(2, 7, DIM, seed=2), random(2, 7, DIM, seed=3)
    value = layer.norm1(scene)
    expected = scene + multihead(layer.self_attention, value + query, value + query, value)
    crossing = layer.norm2(expected) + query
    expected = expected + multihead(layer.cross_attention, crossing, key, memory)
    expected = expected + layer.feedforward(layer.norm3(expected))
    torch.testing.assert_close(layer(scene, query, memory, key)[0], expected)


def test_decoder_starts_from_zeros_shows_its_attention_and_ends_with_a_norm():
    decoder, seen = jumbled(decoder_of(2)), []
    query, memory, added = random(3, DIM), random(2, 7, DIM, seed=1), random(7, DIM, seed=2)
    observer = Observer()
    observer.decoder = lambda *shown: seen.append(shown)
    output = decoder(query, memory, added, branch="position", observer=observer)
    expected = torch.zeros(2, 3, DIM, dtype=torch.float64)
    for index, layer in enumerate(decoder.layers):
        expected, attention = layer(expected, query, memory, memory + added)
        branch, number, weight_BHSN = seen[index]
        assert (branch, number) == ("position", index)
        assert weight_BHSN.shape == (2, HEADS, 3, 7)
        torch.testing.assert_close(weight_BHSN, attention.log_weight().exp())
    torch.testing.assert_close(output, decoder.norm(expected))
    assert torch.equal(decoder(query, memory, added), output)


def test_encoder_returns_gaps_and_shows_its_attention_in_order():
    encoder, seen, tokens_seen = jumbled(encoder_of(3)), [], []
    tokens, positions = random(2, 7, DIM), TokenPositions(random(7, DIM, seed=1))
    observer = Observer()
    observer.encoder = lambda *shown: seen.append(shown)
    observer.tokens = lambda *shown: tokens_seen.append(shown)
    output, gap = encoder(tokens, positions, branch="position", observer=observer)
    assert [shown[:2] for shown in seen] == [("position", number) for number in range(3)]
    assert [shown[:2] for shown in tokens_seen] == [shown[:2] for shown in seen]
    gaps = [query_key_gap(attention.query_BHQD, attention.key_BHKD) for *_, attention in seen]
    torch.testing.assert_close(gap, torch.stack(gaps, dim=1))
    expected = tokens
    for layer, (*_, before, after) in zip(encoder.layers, tokens_seen, strict=True):
        torch.testing.assert_close(before, expected)
        expected, _ = layer(expected, positions)
        torch.testing.assert_close(after, expected)
    torch.testing.assert_close(output, encoder.norm(expected))


def test_encoder_without_layers_is_its_norm():
    encoder, tokens = jumbled(encoder_of(0)), random(2, 7, DIM)
    output, gap = encoder(tokens, NOWHERE)
    assert torch.equal(output, encoder.norm(tokens))
    assert gap.numel() == 0


def test_gap_gradients_reach_query_and_key_projections():
    encoder = encoder_of(2).double()
    encoder(random(2, 7, DIM), NOWHERE)[1].mean().backward()
    for layer in encoder.layers:
        gradient = layer.self_attention.in_proj_weight.grad
        assert gradient[:DIM].abs().max() > 0
        assert gradient[DIM : 2 * DIM].abs().max() > 0
    assert encoder.layers[-1].self_attention.in_proj_weight.grad[2 * DIM :].abs().max() == 0


@pytest.mark.parametrize(("dropouts", "random_in_training"), [
    ({}, False), ({"dropout": 0.3}, True), ({"attention_dropout": 0.3}, True),
])  # fmt: skip
def test_each_dropout_acts_in_training_alone(dropouts, random_in_training):
    torch.manual_seed(0)
    encoder, decoder = encoder_of(1, **dropouts).double(), decoder_of(1, **dropouts).double()
    memory, query, added = random(2, 7, DIM), random(3, DIM), random(7, DIM)
    for stack, run in (
        (encoder, partial(encoder, memory, NOWHERE)),
        (decoder, lambda: (decoder(query, memory, added),)),
    ):
        assert torch.equal(run()[0], run()[0]) != random_in_training
        stack.eval()
        assert torch.equal(run()[0], run()[0])
