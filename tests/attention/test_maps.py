import numpy as np
import pytest
from attention.builders import samples
from matplotlib.colors import to_hex

from mspose import plotting
from mspose.attention.maps import decoder_maps_figure, encoder_maps_figure, first_middle_last
from mspose.errors import MsposeError

PIXELS = 24


def shown(figure):
    """Axes with attention over an image."""
    return [axes for axes in figure.axes if len(axes.images) == 2]


def titles(figure):
    return [axes.get_title().replace("\n", " ") for axes in shown(figure) if axes.get_title()]


def test_first_middle_and_last_layer():
    assert [first_middle_last(range(1, count + 1)) for count in (0, 1, 2, 3, 4, 6)] == [
        [], [1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 3, 6]]  # fmt: skip


def test_encoder_attention_over_the_image_as_multiples_of_uniform():
    arrays = samples(layers=(6, 4))
    figure = encoder_maps_figure(arrays, frame=1)
    assert titles(figure) == [f"position layer {n}" for n in (1, 3, 6)] + [
        f"orientation layer {n}" for n in (1, 2, 4)
    ]
    axes = shown(figure)
    assert len(axes) == 3 * 6
    weight = arrays["encoder/orientation/4/attention"][1].astype(float).mean(axis=0)
    for row, drawn in enumerate(axes[-3:]):
        np.testing.assert_allclose(
            drawn.images[1].get_array(), np.maximum(36 * weight[row], 0.1), rtol=1e-6
        )
        low, high = drawn.images[1].get_extent()[:2]
        assert (low, high) == (-0.5, PIXELS - 0.5)
    bar = next(axes for axes in figure.axes if "multiples of uniform" in axes.get_xlabel())
    assert bar.get_xlim()[0] == pytest.approx(0.1)
    scales = {(drawn.images[1].norm.vmin, drawn.images[1].norm.vmax) for drawn in axes}
    assert len(scales) == 1


def test_one_head_and_one_layer_can_be_chosen():
    arrays = samples(layers=(2, 2))
    figure = encoder_maps_figure(arrays, layer=2, head=2)
    assert titles(figure) == ["position layer 2", "orientation layer 2"]
    weight = arrays["encoder/position/2/attention"][0, 1, 0].astype(float)
    np.testing.assert_allclose(
        shown(figure)[0].images[1].get_array(), np.maximum(16 * weight, 0.1), rtol=1e-6
    )


def test_a_ring_marks_the_querys_own_place():
    arrays = samples()
    for axes, (row, column) in zip(
        shown(encoder_maps_figure(arrays))[:3], arrays["encoder/position/queries"], strict=True
    ):
        ring = axes.lines[-1]
        assert to_hex(ring.get_markeredgecolor()) == plotting.ATTENDED.lower()
        cell = PIXELS / 4
        place = float(ring.get_ydata()[0]) + 0.5, float(ring.get_xdata()[0]) + 0.5
        assert place == ((row + 0.5) * cell, (column + 0.5) * cell)


def test_decoder_attention_of_every_scene_with_the_true_one_framed():
    arrays = samples(scenes=("attic", "cellar", "yard"), frames=4)
    figure = decoder_maps_figure(arrays)
    axes = shown(figure)
    assert len(axes) == 3 * 2 * 3  # frames, branches, scenes
    assert titles(figure) == ["position layer 2", "orientation layer 2"] * 3
    framed = [number for number, drawn in enumerate(axes) if drawn.spines["top"].get_visible()]
    assert framed == [0, 3, 7, 10, 14, 17]  # of each frame, and both branches, its own scene
    weight = arrays["decoder/orientation/2/attention"][1, :, 2].astype(float).mean(axis=0)
    np.testing.assert_allclose(
        axes[11].images[1].get_array(), np.maximum(36 * weight, 0.1), rtol=1e-6
    )
    assert [drawn.get_ylabel() for drawn in axes[:3]] == ["attic", "cellar", "yard"]


def test_the_decoder_of_a_branch_without_encoder_is_shown():
    assert len(shown(decoder_maps_figure(samples(layers=(0, 1)), frames=[0], layer=1))) == 4


def test_what_is_not_there_is_said():
    arrays = samples(layers=(1, 1))
    for make, reason in (
        (lambda: encoder_maps_figure(arrays, layer=2), "no encoder layer"),
        (lambda: encoder_maps_figure(arrays, head=3), "head: expected 1..2, found 3"),
        (lambda: encoder_maps_figure(arrays, frame=2), "frame: the samples have 2"),
        (lambda: decoder_maps_figure(arrays, layer=5), "decoder layer"),
        (lambda: decoder_maps_figure(arrays, frames=[]), "no frame"),
    ):
        with pytest.raises(MsposeError, match=reason):
            make()
