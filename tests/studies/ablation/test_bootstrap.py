"""The bootstrap over frames and seeds against plain loops, and how often its intervals hold the
truth.
"""

import math

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import norm, t

from mspose.studies.ablation import bootstrap
from mspose.studies.ablation.bootstrap import (
    LEVEL,
    SEED,
    Difference,
    block_length,
    bootstrap_medians,
    in_sequences,
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
                    whole = np.median(error_RF[run])
                    widened = whole + small_sample_factor(frames) * (middle - whole)
                    assert median_BR[start + row, run] == pytest.approx(widened, abs=1e-14)


def test_blocks_are_neighbours_within_a_sequence_whose_ends_are_joined() -> None:
    """Against a plain loop; the last block of a resample is cut off."""
    sequence_F = np.repeat([0, 1, 2], [4, 1, 6])
    error_RF = np.random.default_rng(2).gamma(2, 1, (2, 11))
    median_BR = bootstrap_medians(
        error_RF, np.random.default_rng(1), resamples=20, sequence_F=sequence_F, block=3
    )
    begin_BN = np.random.default_rng(1).integers(11, size=(20, 4)).tolist()
    of_sequence = [list(range(4)), [4], list(range(5, 11))]
    for row, begins in enumerate(begin_BN):
        drawn: list[int] = []
        for begin in begins:
            frames = next(frames for frames in of_sequence if begin in frames)
            start = frames.index(begin)
            drawn += [frames[(start + offset) % len(frames)] for offset in range(3)]
        for run in range(2):
            middle, whole = np.median(error_RF[run, drawn[:11]]), np.median(error_RF[run])
            expected = whole + small_sample_factor(11 / 3) * (middle - whole)
            assert median_BR[row, run] == pytest.approx(expected, abs=1e-12)


def test_frames_are_in_order_of_folders_and_of_the_numbers_in_their_names() -> None:
    images = ["a/seq-10/1.png", "a/seq-2/f-10.png", "a/seq-2/f-9.png", "a/seq-10/0.png"]
    order, sequence_F = in_sequences(images)
    assert [images[row] for row in order] == [
        "a/seq-2/f-9.png",
        "a/seq-2/f-10.png",
        "a/seq-10/0.png",
        "a/seq-10/1.png",
    ]
    assert sequence_F[0] == sequence_F[1] != sequence_F[2] == sequence_F[3]


def correlated(rng: np.random.Generator, rows: int, frames: int, correlation: float) -> np.ndarray:
    """AR(1) of unit variance, (rows, frames)."""
    noise = rng.normal(0, np.sqrt(1 - correlation**2), (rows, frames + 200))
    return lfilter([1], [1, -correlation], noise, axis=1)[:, 200:]


def rule_of_politis_and_white(x: np.ndarray) -> float:
    """Their section 3 for the circular bootstrap, with the corrected constant, in plain loops."""
    n = len(x)
    mean = x.mean()

    def covariance(lag: int) -> float:
        return sum((x[i] - mean) * (x[i + lag] - mean) for i in range(n - lag)) / n

    limit, in_a_row = 2 * math.sqrt(math.log10(n) / n), max(5, math.sqrt(math.log10(n)))
    m = 0
    while any(abs(covariance(m + k)) / covariance(0) >= limit for k in range(1, int(in_a_row) + 1)):
        m += 1
    window = min(2 * max(m, 1), math.ceil(math.sqrt(n)) + 5)
    g_hat = zero = 0.0
    for k in range(-window, window + 1):
        weight = 1 if abs(k) / window <= 0.5 else 2 * (1 - abs(k) / window)
        g_hat += weight * abs(k) * covariance(abs(k))
        zero += weight * covariance(abs(k))
    return float((2 * g_hat**2 / (4 / 3 * zero**2)) ** (1 / 3) * n ** (1 / 3))


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_the_length_of_blocks_is_that_of_politis_and_white(correlation: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        error_RF = np.exp(correlated(rng, 1, 600, correlation))
        found = block_length(error_RF, np.zeros(600, int))
        above = (error_RF[0] > np.median(error_RF)).astype(float)
        expected = rule_of_politis_and_white(above)
        assert found == min(max(round(expected), 1), 74)
        assert found <= 3 if correlation == 0 else found > 3
        # rounding of the errors changes nothing, nor do their size and outliers
        assert block_length(error_RF**3 * (1 + 1e-15), np.zeros(600, int)) == found


def test_blocks_are_no_longer_than_sequences_and_constant_errors_have_none() -> None:
    error_RF = np.exp(correlated(np.random.default_rng(0), 2, 400, 0.95))
    assert block_length(error_RF, np.repeat(range(100), 4)) <= 4
    assert block_length(np.ones((2, 30)), np.zeros(30, int)) == 1
    for frames in (1, 2, 3, 7):
        assert 1 <= block_length(error_RF[:, :frames], np.zeros(frames, int)) <= 3


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
    # one seed says nothing about others
    assert Difference(-1, -2, -0.5, 1).finding == "not established"


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


def coverage(correlation: float, block: int | None, times: int) -> float:
    """Share of intervals that hold the truth: four sequences of 50 frames, one seed, AR(1) errors
    of a difficulty that the two variants share and one that is their own.
    """
    rng = np.random.default_rng(17)
    sequence_F = np.repeat(range(4), 50)
    held = 0
    for _ in range(times):
        shared, own = (
            correlated(rng, 4 * rows, 50, correlation).reshape(rows, 200) for rows in (1, 2)
        )
        error_RF = np.exp(0.4 * (shared + own))
        median_BR = bootstrap_medians(
            error_RF, rng, resamples=300, sequence_F=sequence_F, block=block
        )
        found = paired_difference(
            np.median(error_RF[:1], axis=1) - np.median(error_RF[1:], axis=1),
            median_BR[:, :1] - median_BR[:, 1:],
        )
        held += found.low <= 0 <= found.high
    return held / times


def test_intervals_of_correlated_frames_hold_the_truth() -> None:
    """At a correlation of 0.9 between neighbours; taken as independent, the frames mislead."""
    assert coverage(0.9, block=1, times=150) < 0.7
    assert coverage(0.9, block=None, times=150) > 0.85
