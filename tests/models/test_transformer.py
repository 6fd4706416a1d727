"""Layers against PyTorch's own, and the rules of where positions are added."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mspose.models.attention_map import query_key_gap
from mspose.models.relative_position import TokenPositions
from mspose.models.transformer import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    initialize_matrices,
)

DIM, HEADS, HIDDEN = 16, 4, 24


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def jumbled(module):
    """The module in float64 with random norms and biases, so that none can be swapped unseen."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5)
    return module.double().eval()


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


def test_encoder_layer_agrees_with_pytorch_without_positions():
    layer = jumbled(EncoderLayer(DIM, HEADS, HIDDEN))
    judge = nn.TransformerEncoderLayer(
        DIM, HEADS, HIDDEN, activation="gelu", batch_first=True, norm_first=True
    ).double()
    judge.load_state_dict(judge_weights(layer))
    tokens = random(2, 7, DIM)
    torch.testing.assert_close(
        layer(tokens, TokenPositions(torch.zeros(7, DIM)))[0], judge.eval()(tokens)
    )


def test_encoder_layer_adds_positions_to_queries_and_keys_after_the_norm_never_to_values():
    layer = jumbled(EncoderLayer(DIM, HEADS, HIDDEN))
    tokens, position = random(2, 7, DIM), random(7, DIM, seed=1)
    normed = layer.norm1(tokens)
    expected = tokens + multihead(
        layer.self_attention, normed + position, normed + position, normed
    )
    expected = expected + layer.feedforward(layer.norm2(expected))
    output, attention = layer(tokens, TokenPositions(position))
    torch.testing.assert_close(output, expected)

    weight, bias = layer.self_attention.in_proj_weight, layer.self_attention.in_proj_bias
    for index, found in enumerate((attention.query_BHQD, attention.key_BHKD)):
        rows = slice(index * DIM, (index + 1) * DIM)
        projected = F.linear(normed + position, weight[rows], bias[rows])
        torch.testing.assert_close(found, projected.view(2, 7, HEADS, -1).transpose(1, 2))


def test_decoder_layer_agrees_with_pytorch_without_positions():
    layer = jumbled(DecoderLayer(DIM, HEADS, HIDDEN))
    judge = nn.TransformerDecoderLayer(
        DIM, HEADS, HIDDEN, activation="gelu", batch_first=True, norm_first=True
    ).double()
    judge.load_state_dict(judge_weights(layer))
    scene, memory = random(2, 3, DIM), random(2, 7, DIM, seed=1)
    output, _ = layer(scene, torch.zeros(3, DIM), memory, memory)
    torch.testing.assert_close(output, judge.eval()(scene, memory))


def test_decoder_layer_adds_scene_queries_and_positions_where_they_belong():
    layer = jumbled(DecoderLayer(DIM, HEADS, HIDDEN))
    scene, query, memory, position = (
        random(2, 3, DIM),
        random(3, DIM, seed=1),
        random(2, 7, DIM, seed=2),
        random(7, DIM),
    )
    normed = layer.norm1(scene)
    expected = scene + multihead(layer.self_attention, normed + query, normed + query, normed)
    crossing = layer.norm2(expected) + query
    expected = expected + multihead(layer.cross_attention, crossing, memory + position, memory)
    expected = expected + layer.feedforward(layer.norm3(expected))
    output, weight = layer(scene, query, memory, memory + position)
    torch.testing.assert_close(output, expected)
    assert weight.shape == (2, HEADS, 3, 7)
    torch.testing.assert_close(
        weight, layer.cross_attention(crossing, memory + position, memory)[1]
    )


def test_decoder_starts_from_zeros_shows_its_attention_and_ends_with_a_norm():
    decoder = jumbled(Decoder(2, DIM, HEADS, HIDDEN))
    query, memory, position, seen = (
        random(3, DIM),
        random(2, 7, DIM, seed=1),
        random(7, DIM, seed=2),
        [],
    )
    output = decoder(query, memory, position, observer=lambda *shown: seen.append(shown))
    expected = torch.zeros(2, 3, DIM, dtype=torch.float64)
    for index, layer in enumerate(decoder.layers):
        expected, weight = layer(expected, query, memory, memory + position)
        assert seen[index][0] == index
        torch.testing.assert_close(seen[index][1], weight)
    torch.testing.assert_close(output, decoder.norm(expected))
    assert torch.equal(decoder(query, memory, position), output)


def test_encoder_hands_out_gaps_and_shows_its_attention_in_order():
    encoder = jumbled(Encoder(3, DIM, HEADS, HIDDEN))
    tokens, position, seen = random(2, 7, DIM), TokenPositions(random(7, DIM, seed=1)), []
    output, gap = encoder(tokens, position, observer=lambda *shown: seen.append(shown))
    assert [layer for layer, _ in seen] == [0, 1, 2]
    assert gap.shape == (2, 3, HEADS)
    gaps = [query_key_gap(attention.query_BHQD, attention.key_BHKD) for _, attention in seen]
    torch.testing.assert_close(gap, torch.stack(gaps, dim=1))
    expected = tokens
    for layer, (_, attention) in zip(encoder.layers, seen, strict=True):
        expected, found = layer(expected, position)
        assert torch.equal(found.query_BHQD, attention.query_BHQD)
        assert torch.equal(found.key_BHKD, attention.key_BHKD)
    torch.testing.assert_close(output, encoder.norm(expected))
    assert torch.equal(encoder(tokens, position)[0], output)


def test_encoder_without_layers_is_its_norm():
    encoder = jumbled(Encoder(0, DIM, HEADS, HIDDEN))
    tokens = random(2, 7, DIM)
    output, gap = encoder(tokens, TokenPositions(random(7, DIM)))
    torch.testing.assert_close(
        output, F.layer_norm(tokens, (DIM,), encoder.norm.weight, encoder.norm.bias)
    )
    assert gap.shape == (2, 0, HEADS)
    assert gap.dtype == tokens.dtype


def test_gap_gradients_reach_query_and_key_projections():
    encoder = Encoder(2, DIM, HEADS, HIDDEN).double()
    _, gap = encoder(random(2, 7, DIM), TokenPositions(random(7, DIM, seed=1)))
    gap.mean().backward()
    for layer in encoder.layers:
        gradient = layer.self_attention.in_proj_weight.grad
        assert gradient[:DIM].abs().max() > 0
        assert gradient[DIM : 2 * DIM].abs().max() > 0
    assert encoder.layers[-1].self_attention.in_proj_weight.grad[2 * DIM :].abs().max() == 0


@pytest.mark.parametrize(("dropouts", "random_in_training"), [
    ({}, False), ({"dropout": 0.3}, True), ({"attention_dropout": 0.3}, True),
])  # fmt: skip
def test_dropouts_are_apart_and_act_in_training_alone(dropouts, random_in_training):
    torch.manual_seed(0)
    encoder = Encoder(1, DIM, HEADS, HIDDEN, **dropouts).double()
    decoder = Decoder(1, DIM, HEADS, HIDDEN, **dropouts).double()
    tokens, position, query = random(2, 7, DIM), random(7, DIM), random(3, DIM)
    for stack in (
        lambda: encoder(tokens, TokenPositions(position))[0],
        lambda: decoder(query, tokens, position),
    ):
        assert torch.equal(stack(), stack()) != random_in_training
    encoder.eval(), decoder.eval()
    for stack in (
        lambda: encoder(tokens, TokenPositions(position))[0],
        lambda: decoder(query, tokens, position),
    ):
        assert torch.equal(stack(), stack())


def test_matrices_start_xavier_uniform_and_vectors_stay():
    torch.manual_seed(0)
    layer = EncoderLayer(64, HEADS, 128)
    vectors = {
        name: tensor.clone() for name, tensor in layer.named_parameters() if tensor.dim() == 1
    }
    initialize_matrices(layer)
    for name, parameter in layer.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, vectors[name])
        else:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.98 * bound < parameter.abs().max() <= bound, name
