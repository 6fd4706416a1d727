"""Known oddities of the published labels, and none where there are none."""

import math
from pathlib import Path

import pandas as pd
import pytest

from mspose.data.frames import CAMERA_TO_WORLD, WORLD_TO_CAMERA_POSITION
from mspose.data.label_csv import read_label_csv
from mspose.tools.checking import splits, trajectories
from mspose.tools.checking.conventions import axes_meet_behind

LABELS = Path(__file__).parents[4] / "shared" / "data" / "labels"
pytestmark = pytest.mark.skipif(not LABELS.is_dir(), reason=f"no published labels in {LABELS}")


def frames_of(scene: str) -> pd.DataFrame:
    folder, convention = LABELS / "7Scenes", CAMERA_TO_WORLD
    if not (folder / f"{scene}_train.csv").is_file():
        folder, convention = LABELS / "CambridgeLandmarks", WORLD_TO_CAMERA_POSITION
    options = {"dataset": "published", "ground_truth": "labels", "convention": convention}
    tables = [
        read_label_csv([folder / f"{scene}_{split}.csv"], split, **options)
        for split in ("train", "test")
    ]
    return trajectories.in_order(pd.concat(tables)).reset_index(drop=True)


def test_chess_repeats_poses_and_jumps_after_them():
    ordered = frames_of("chess")
    (repeated,) = trajectories.repeated_poses(ordered)
    assert repeated.text.startswith("the same pose for different images: 17 of 6000")
    (jump,) = trajectories.jump_findings(ordered, trajectories.steps(ordered))
    assert len(jump.examples) == 2
    assert all("chess/seq-04" in example for example in jump.examples)


def test_shop_facade_has_a_frame_elsewhere():
    ordered = frames_of("ShopFacade")
    (jump,) = trajectories.jump_findings(ordered, trajectories.steps(ordered))
    assert "seq2/frame00036.png" in jump.examples[0]
    assert "seq2/frame00036.png" in jump.examples[1]


@pytest.mark.parametrize("scene", ["heads", "stairs", "fire", "KingsCollege", "OldHospital"])
def test_published_splits_and_conventions_are_not_suspected(scene):
    ordered = frames_of(scene)
    step = trajectories.steps(ordered)
    assert splits.split_findings(splits.nearness(ordered, step)) == []
    assert axes_meet_behind(ordered) is None
    for findings in (
        trajectories.unit_findings(ordered, math.nan),
        trajectories.jump_findings(ordered, step),
    ):
        assert findings == []
