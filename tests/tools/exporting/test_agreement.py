from dataclasses import replace

import numpy as np
import pytest
import torch

import mspose
from mspose.tools.exporting.agreement import TOLERANCE, deviation


@pytest.fixture(scope="module")
def estimator(small_run):
    return mspose.load(small_run, "cpu")


def answers_of(estimator, change=lambda found: found):
    """What a file of the estimator would answer, after `change`."""

    def answer(image_BHW3):
        estimates = estimator.estimates(list(image_BHW3))
        found = {
            "position": np.array([estimate.position for estimate in estimates]),
            "orientation": np.array([estimate.orientation for estimate in estimates]),
            "scene_probabilities": np.array(
                [list(estimate.scene_probabilities.values()) for estimate in estimates]
            ),
            "scene": np.array([estimator.scenes.index(estimate.scene) for estimate in estimates]),
        }
        change(found)
        return found

    return answer


def add(name, amount):
    def change(found):
        found[name] = found[name] + amount

    return change


def test_the_same_answers_agree(estimator):
    found = deviation(answers_of(estimator), estimator)
    assert found.tolerable
    assert max(found.position, found.orientation, found.probability) < 1e-5
    assert found.images == 14


@pytest.mark.parametrize("name", ["position", "orientation", "scene_probabilities"])
def test_a_difference_is_measured(estimator, name):
    measure = {"scene_probabilities": "probability"}.get(name, name)
    for amount, tolerable in ((0.5 * TOLERANCE, True), (2 * TOLERANCE, False)):
        found = deviation(answers_of(estimator, add(name, amount)), estimator)
        assert getattr(found, measure) == pytest.approx(amount, abs=1e-5)
        assert found.tolerable is tolerable


@pytest.mark.parametrize(
    "change",
    [
        add("position", np.nan),
        lambda found: found.update(orientation=-found["orientation"]),
        lambda found: found.update(orientation=found["orientation"][:, :3]),
        lambda found: found.update(scene=1 - found["scene"]),
    ],
    ids=["not a number", "other sign", "three numbers", "other scene"],
)
def test_answers_of_another_form_do_not_agree(estimator, change):
    assert not deviation(answers_of(estimator, change), estimator).tolerable


def test_positions_far_from_the_origin_have_no_more_digits(small_run):
    estimator = mspose.load(small_run, "cpu")
    with torch.no_grad():
        estimator.network.position_head.out.bias += 1000.0
    for amount, tolerable in ((5e-4, True), (2e-3, False)):
        assert (
            deviation(answers_of(estimator, add("position", [0, amount, 0])), estimator).tolerable
            is tolerable
        )


def test_the_deviation_as_text(estimator):
    sizes = {"position": 1e-6, "orientation": 2e-6, "probability": 3e-6}
    found = replace(deviation(answers_of(estimator), estimator), **sizes)
    expected = "position 1.0e-06 m, quaternion 2.0e-06, scene probability 3.0e-06 over 14 images"
    assert str(found) == expected
