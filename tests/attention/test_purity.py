import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mspose.attention.purity import query_purity
from mspose.errors import MsposeError


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def purity_by_hand(query_ND: np.ndarray, key_ND: np.ndarray, neighbours: int) -> list[float]:
    """One query after the other, all distances written out."""
    pool = [(point, True) for point in query_ND] + [(point, False) for point in key_ND]
    shares = []
    for number, query in enumerate(query_ND):
        others = [(np.sqrt(((query - point) ** 2).sum()), is_query) for point, is_query in
                  (pool[place] for place in range(len(pool)) if place != number)]  # fmt: skip
        nearest = sorted(others, key=lambda pair: pair[0])[:neighbours]
        shares.append(sum(is_query for _, is_query in nearest) / neighbours)
    return shares


@pytest.mark.parametrize("neighbours", [1, 4, 18])
@pytest.mark.parametrize("chunk", [3, 256])
def test_every_query_has_the_share_that_brute_force_finds(neighbours, chunk):
    query, key = cloud(2, 3, 11, 4), cloud(2, 3, 8, 4, seed=1) + 0.5
    purity = query_purity(query, key, neighbours, chunk=chunk)
    for image in range(2):
        for head in range(3):
            by_hand = purity_by_hand(
                query[image, head].numpy(), key[image, head].numpy(), neighbours
            )
            np.testing.assert_allclose(purity[image, head], by_hand, atol=1e-6)


@given(
    seed=st.integers(0, 2**32),
    neighbours=st.integers(1, 9),
    far=st.floats(30, 1e6),
    size=st.floats(1e-3, 1e3),
)
@settings(max_examples=25, deadline=None)
def test_clouds_that_lie_apart_are_pure(seed, neighbours, far, size):
    query, key = cloud(1, 2, 10, 3, seed=seed), cloud(1, 2, 10, 3, seed=seed + 1) + far
    assert query_purity(size * query.float(), size * key.float(), neighbours).eq(1).all()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_mixed_clouds_have_the_expected_share_of_about_a_half(seed):
    pool = cloud(1, 4, 400, 3, seed=seed)
    expected = 199 / 399
    assert query_purity(pool[:, :, :200], pool[:, :, 200:], 10).mean().item() == pytest.approx(
        expected, abs=0.06
    )


@pytest.mark.parametrize("place", [0.0, 0.1, 1e4])
def test_points_that_are_equally_far_count_in_part(place):
    """All at one place: the expectation of mixed points, in whatever order they are stored."""
    same = torch.full((1, 2, 6, 3), place)
    np.testing.assert_allclose(query_purity(same, same, 4), 5 / 11, rtol=1e-6)
    two_places = torch.cat([same, same + 1], dim=2)
    np.testing.assert_allclose(query_purity(two_places, same, 11)[:, :, :6], 5 / 11, rtol=1e-6)


def test_queries_far_from_zero_keep_their_neighbours():
    query, key = cloud(1, 1, 12, 4), cloud(1, 1, 12, 4, seed=1)
    near = query_purity(query, key, 3)
    assert torch.equal(query_purity(query + 1e6, key + 1e6, 3), near)


@pytest.mark.parametrize("neighbours", [0, 9, 100])
def test_neighbours_that_are_not_there_are_refused(neighbours):
    with pytest.raises(
        MsposeError,
        match=rf"neighbours: expected 1 to 8, fewer than the 5 queries .* {neighbours}$",
    ):
        query_purity(cloud(1, 2, 5, 3), cloud(1, 2, 4, 3), neighbours)
