import numpy as np
import pytest
from attention.builders import samples, softmax
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from mspose import plotting
from mspose.attention.query_key_space import MARKED, attended_keys, project, space_figure
from mspose.errors import MsposeError

SIDE, PIXELS = 6, 24


def test_the_marked_keys_are_those_that_most_queries_attend_to():
    """Most queries attend to the keys of tokens 7, 20 and 30, all others to themselves."""
    rng = np.random.default_rng(3)
    key_ND = rng.normal(size=(SIDE**2, SIDE**2)) * 0.01 + np.eye(SIDE**2)
    goal_N = np.arange(SIDE**2)
    goal_N[:12], goal_N[12:20], goal_N[30:] = 7, 20, 30
    query_ND = 20 * key_ND[goal_N]
    weight_NN = softmax(query_ND @ key_ND.T)
    votes = np.bincount(weight_NN.argmax(axis=1), minlength=SIDE**2)
    assert sorted(np.argsort(-votes)[:3]) == [7, 20, 30]
    arrays = samples(sides=(4, SIDE), heads=1, pixels=PIXELS)
    for name, values in (("votes", votes), ("received", weight_NN.mean(axis=0))):
        arrays[f"encoder/orientation/1/{name}"] = np.tile(values.reshape(SIDE, SIDE), (2, 1, 1, 1))
    arrays["space/orientation/1/1/query"], arrays["space/orientation/1/1/key"] = query_ND, key_ND
    figure = space_figure([("neither", arrays)], "orientation", 1, 1, projection="pca")
    plane, picture = figure.axes

    cells = {
        (
            round((patch.get_y() + 0.5) // (PIXELS / SIDE)),
            round((patch.get_x() + 0.5) // (PIXELS / SIDE)),
        )
        for patch in picture.patches
        if isinstance(patch, Rectangle)
        and to_hex(patch.get_edgecolor()) == plotting.ATTENDED.lower()
    }
    assert len(cells) == MARKED
    assert {(1, 1), (3, 2), (5, 0)} <= cells
    marked = {6 * row + column for row, column in cells}
    assert min(votes[list(marked)]) >= max(np.delete(votes, list(marked)))

    place_P2, _ = project(np.concatenate([query_ND, key_ND]), "pca")
    rings = plane.collections[-1]
    assert to_hex(rings.get_edgecolor()[0]) == plotting.ATTENDED.lower()
    np.testing.assert_allclose(
        rings.get_offsets(), place_P2[SIDE**2 + np.array(sorted(marked))], atol=1e-9
    )
    share = votes[list(marked)].sum() / votes.sum()
    assert f"{share:.0%} of queries" in picture.get_xlabel().replace("\n", " ")


def test_queries_and_keys_differ_in_colour_and_shape():
    plane = space_figure([("neither", samples())], "position", 1, 1, projection="pca").axes[0]
    queries, keys = plane.collections[:2]
    assert len(queries.get_offsets()) == len(keys.get_offsets()) == 16
    assert to_hex(queries.get_facecolor()[0]) != to_hex(keys.get_facecolor()[0])
    assert len(queries.get_paths()[0].vertices) != len(keys.get_paths()[0].vertices)


def test_attended_keys_go_by_votes_then_by_attention_received():
    votes_HW = np.array([[0, 3, 1], [1, 0, 2]])
    received_HW = np.array([[0.3, 0.1, 0.1], [0.2, 0.2, 0.1]])
    assert attended_keys(votes_HW, received_HW, 8).tolist() == [1, 5, 3, 2]
    assert attended_keys(votes_HW, received_HW, 2).tolist() == [1, 5]


def test_marked_keys_that_are_not_drawn_are_counted():
    arrays = samples(sides=(4, 4), points=4)
    said = (
        space_figure([("a", arrays)], "position", 1, 1, projection="pca")
        .axes[1]
        .get_xlabel()
        .replace("\n", " ")
    )
    attended = attended_keys(
        arrays["encoder/position/1/votes"][0, 0],
        arrays["encoder/position/1/received"][0, 0],
        MARKED,
    )
    hidden = np.isin(attended, arrays["space/position/tokens"], invert=True).sum()
    assert hidden
    assert f"({hidden} of these keys not among the points drawn)" in said


def test_pca_is_the_best_linear_plane():
    points_PD = np.random.default_rng(0).normal(size=(30, 6)) * [5, 3, 1, 1, 1, 1]
    place_P2, names = project(points_PD, "pca")
    centred_PD = points_PD - points_PD.mean(axis=0)
    value, vector = np.linalg.eigh(centred_PD.T @ centred_PD)
    np.testing.assert_allclose(
        np.abs(place_P2), np.abs(centred_PD @ vector[:, [-1, -2]]), atol=1e-9
    )
    assert names[0] == f"PC 1 ({value[-1] / value.sum():.0%} of variance)"


@pytest.mark.parametrize("spread", [1, 0])
def test_tsne_separates_clusters_and_takes_points_that_are_equal(spread):
    points_PD = spread * np.random.default_rng(0).normal(size=(18, 4))
    points_PD[9:] += 50 * spread
    place_P2, names = project(points_PD, "tsne")
    assert place_P2.shape == (18, 2)
    assert np.isfinite(place_P2).all()
    assert "no unit" in names[0]
    if spread:
        middle = [place_P2[part].mean(axis=0) for part in (slice(9), slice(9, None))]
        radius = max(np.linalg.norm(place_P2[:9] - middle[0], axis=1))
        assert np.linalg.norm(middle[0] - middle[1]) > radius


def test_what_is_not_there_is_said():
    with pytest.raises(MsposeError, match="no run has a head 9 in layer 1 of the position branch"):
        space_figure([("a", samples())], "position", 1, 9)
    with pytest.raises(MsposeError, match="expected tsne or pca, found 'umap'"):
        project(np.eye(4), "umap")
