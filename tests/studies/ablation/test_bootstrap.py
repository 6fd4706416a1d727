"""The bootstrap over frames and seeds against plain loops, and how often its intervals hold the
truth.
"""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from mspose.studies.ablation import bootstrap
from mspose.studies.ablation.bootstrap import (
    LEVEL,
    SEED,
    Difference,
    bootstrap_medians,
    paired_difference,
    small_sample_factor,
)


def test_medians_of_resampled_frames_are_those_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Odd and even numbers of frames, in stretches that do not divide the resamples."""
    for frames in (7, 10):
        error_RF = np.random.default_rng(frames).gamma(2, 1, (3, frames))
        monkeypatch.setattr(bootstrap, "ELEMENTS_AT_ONCE", 4 * frames)
        median_BR = bootstrap_medians(error_RF, np.random.default_rng(1), resamples=9)
        generator = np.random.default_rng(1)
        for start in (0, 4, 8):
            drawn_BF = generator.integers(frames, size=(min(4, 9 - start), frames))
            for row, drawn in enumerate(drawn_BF.tolist()):
                for run in range(3):
                    ordered = sorted(error_RF[run, frame] for frame in drawn)
                    middle = (ordered[(frames - 1) // 2] + ordered[frames // 2]) / 2
                    assert median_BR[start + row, run] == pytest.approx(middle, abs=1e-15)


def test_all_runs_of_a_resample_have_the_same_frames() -> None:
    error_F = np.random.default_rng(0).gamma(2, 1, 50)
    median_BR = bootstrap_medians(
        np.stack([error_F, error_F + 0.25]), np.random.default_rng(0), resamples=200
    )
    assert np.allclose(median_BR[:, 1] - median_BR[:, 0], 0.25, atol=1e-14)
    assert median_BR[:, 0].std() > 0.05


@pytest.mark.parametrize("seeds", [2, 3, 5, 400])
def test_the_factor_is_that_of_students_t_and_of_the_unbiased_deviation(seeds: int) -> None:
    quantiles = t.ppf(0.975, seeds - 1) / norm.ppf(0.975)
    assert small_sample_factor(seeds) == pytest.approx(
        quantiles * math.sqrt(seeds / (seeds - 1)), rel=1e-9
    )
    assert seeds < 400 or small_sample_factor(seeds) == pytest.approx(1, abs=0.01)


def test_the_interval_adds_resampled_frames_and_widened_seeds() -> None:
    rng = np.random.default_rng(3)
    difference_S, difference_BS = np.array([-0.3, -0.1, 0.2]), rng.normal(-0.1, 0.05, (500, 3))
    found = paired_difference(difference_S, difference_BS)
    drawn_BS = np.random.default_rng(SEED).integers(3, size=(500, 3)).tolist()
    centre = sum(difference_S.tolist()) / 3
    means = sorted(
        sum(frames) / 3
        + small_sample_factor(3) * (sum(difference_S[i] for i in drawn) / 3 - centre)
        for frames, drawn in zip(difference_BS.tolist(), drawn_BS, strict=True)
    )

    def quantile(share: float) -> float:
        place = share * (len(means) - 1)
        below = int(place)
        return means[below] + (place - below) * (means[below + 1] - means[below])

    assert found.mean == pytest.approx(centre, abs=1e-15) and found.seeds == 3
    assert found.low == pytest.approx(quantile(0.025), abs=1e-12)
    assert found.high == pytest.approx(quantile(0.975), abs=1e-12)


def test_one_seed_leaves_the_frames_alone() -> None:
    difference_B1 = np.random.default_rng(0).normal(0, 1, (1000, 1))
    found = paired_difference(np.array([0.1]), difference_B1)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(difference_B1, [0.025, 0.975]))
    )
    assert (found.mean, found.seeds) == (0.1, 1)


def test_what_is_established() -> None:
    findings = [
        Difference(0, low, high, 3).finding
        for low, high in ((-2, -1), (1, 2), (-1, 1), (-1, 0), (0, 1))
    ]
    assert findings == [
        "improvement",
        "worsening",
        "not established",
        "not established",
        "not established",
    ]
    assert (
        Difference(-1, -2, -0.5, 1).finding == "not established"
    )  # of one seed: it says nothing about others


def simulated(
    seeds: int, seed_spread: float, frame_spread: float, rng: np.random.Generator
) -> Difference:
    """Two variants without a true difference on two scenes of 40 frames, some of which are hard for
    both.
    """
    difference_S, difference_BS = np.zeros(seeds), np.zeros((200, seeds))
    for _ in range(2):
        hard_F = rng.normal(5, frame_spread, 40)
        own_RF = rng.normal(0, 0.5 * frame_spread, (2 * seeds, 40)) + rng.normal(
            0, seed_spread, (2 * seeds, 1)
        )
        error_RF = hard_F + own_RF
        median_BR = bootstrap_medians(error_RF, rng, resamples=200)
        difference_S += (
            np.median(error_RF[:seeds], axis=1) - np.median(error_RF[seeds:], axis=1)
        ) / 2
        difference_BS += (median_BR[:, :seeds] - median_BR[:, seeds:]) / 2
    return paired_difference(difference_S, difference_BS)


@pytest.mark.parametrize(("seeds", "seed_spread", "frame_spread"), [(2, 0.3, 0.1), (3, 0.2, 0.8)])
def test_intervals_hold_the_truth_as_often_as_they_say(
    seeds: int, seed_spread: float, frame_spread: float
) -> None:
    rng = np.random.default_rng(11)
    found = [simulated(seeds, seed_spread, frame_spread, rng) for _ in range(150)]
    share = np.mean([difference.low <= 0 <= difference.high for difference in found])
    assert share >= LEVEL - 0.05


def test_intervals_shrink_with_the_number_of_seeds() -> None:
    rng = np.random.default_rng(5)
    few, many = (
        paired_difference(rng.normal(0, 1, seeds), np.zeros((2000, seeds))) for seeds in (4, 64)
    )
    assert few.high - few.low > 3 * (many.high - many.low)
    assert many.high - many.low == pytest.approx(
        2 * 1.998 / 8, rel=0.2
    )  # Student's interval of 64 standard normals
