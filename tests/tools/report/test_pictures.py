"""The frames and pictures that a report shows."""

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tools.report.builders import predictions, write_run

from mspose.config import DataSettings, Settings, write_settings
from mspose.metrics import ESTIMATED_POSITION, TRUE_POSITION
from mspose.run import Run
from mspose.tools.report.evaluations import evaluated_runs
from mspose.tools.report.page import make_report
from mspose.tools.report.pictures import Budget, attention_pictures, image_root, telling_frames


def opened(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@pytest.fixture
def images(tmp_path, small_data):
    """A run on the small data set's attic whose frames have images, and one that has none."""
    table = predictions({"attic": 5})
    table["image"] = [f"attic/test-01/frame-{number:03d}.png" for number in range(5)]
    settings = Settings(data=DataSettings(dataset=str(small_data)))
    write_run(tmp_path / "run", table, settings=settings, dataset="small")
    return evaluated_runs([tmp_path / "run"])[0]


def test_the_worst_frame_has_the_largest_errors_and_the_best_the_smallest(tmp_path):
    table = predictions({"attic": 40, "cellar": 20})
    for row, metres in ((7, 0.0), (11, 50.0)):
        table.loc[row, ESTIMATED_POSITION] = table.loc[row, TRUE_POSITION].to_numpy() + np.array(
            [metres, 0, 0]
        )
        table.loc[row, ["qw_est", "qx_est", "qy_est", "qz_est"]] = table.loc[
            row, ["qw", "qx", "qy", "qz"]
        ].to_numpy()
    write_run(tmp_path / "run", table)
    frames = telling_frames(evaluated_runs([tmp_path / "run"])[0], None, Budget())
    assert [frame.rank for frame in frames["cellar"]] == ["best", "median", "worst"]
    best, _, worst = frames["attic"]
    assert (best.image, worst.image) == (table["image"][7], table["image"][11])
    assert (best.position_m, worst.position_m) == (0, 50)
    assert worst.picture is None
    alone = evaluated_runs([write_run(tmp_path / "alone", predictions({"attic": 2}))])[0]
    assert [frame.rank for frame in telling_frames(alone, None, Budget())["attic"]][::2] == [
        "best",
        "median",
        "worst",
    ]


def test_images_are_those_of_the_run_s_data(images, small_data):
    root, reason = image_root(images)
    assert (root, reason) == (small_data.parent, "")
    frames = telling_frames(images, root, Budget())["attic"]
    for frame in frames:
        picture = opened(frame.picture)
        assert (picture.format, picture.size) == ("JPEG", (80, 60))
        original = np.asarray(Image.open(small_data.parent / frame.image)).astype(float)
        assert abs(np.asarray(picture).mean() - original.mean()) < 3


def test_an_image_that_is_broken_or_gone_is_told_from_one_that_there_is_no_room_for(
    images, own_data
):
    (own_data.parent / "attic/test-01/frame-000.png").write_bytes(b"no picture")
    (own_data.parent / "attic/test-01/frame-001.png").unlink()
    frames = {
        frame.image[-7:]: frame
        for frame in telling_frames(images, own_data.parent, Budget())["attic"]
    }
    assert {name: frame.unreadable for name, frame in frames.items()} == {
        f"{number:03d}.png": number < 2 for number in range(5)
    }
    no_room = telling_frames(images, own_data.parent, Budget(left=0))["attic"]
    assert sum(frame.unreadable for frame in no_room) == sum(
        int(frame.image[-5]) < 2 for frame in no_room
    )
    page = make_report([images.folder]).read_text(encoding="utf-8")
    assert "image missing or broken" not in page
    (images.folder / "config.yaml").unlink()
    write_settings(
        images.folder / "config.yaml", Settings(data=DataSettings(dataset=str(own_data)))
    )
    assert "image missing or broken" in make_report([images.folder]).read_text(encoding="utf-8")


def test_large_images_become_small(images, tmp_path):
    for name in images.frames["image"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1920, 1080), "teal").save(tmp_path / name)
    assert opened(telling_frames(images, tmp_path, Budget())["attic"][0].picture).size == (320, 180)


def test_without_images_frames_are_named_all_the_same(images, tmp_path):
    frames = telling_frames(images, tmp_path, Budget())["attic"]
    assert [frame.picture for frame in frames] == [None] * len(frames)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no config.yaml"),
        ("data: {dataset: nowhere}", "there is no data set 'nowhere'"),
        ("data: {dataset: virtual, root: /nowhere/else}", "no folder /nowhere/else"),
    ],
)
def test_why_there_are_no_images(tmp_path, text, words):
    folder = write_run(tmp_path / "run", predictions({"attic": 3}), dataset="virtual")
    if text is not None:
        (folder / "config.yaml").write_text(text)
    root, reason = image_root(Run(folder))
    assert root is None
    assert words in reason


def test_pictures_beyond_the_budget_are_counted_and_left_out(images, small_data):
    budget = Budget(left=0)
    frames = telling_frames(images, small_data.parent, budget)["attic"]
    assert [frame.picture for frame in frames] == [None] * len(frames)
    assert budget.left_out == len(frames)


def test_pictures_of_attention_are_scaled_down_and_broken_ones_left_out(tmp_path):
    folder = tmp_path / "attention"
    folder.mkdir()
    Image.new("RGB", (3300, 1200), "white").save(folder / "entropy.png")
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "encoder-attention-1.png")
    (folder / "purity.png").write_bytes(b"no picture")
    pictures = attention_pictures(Run(tmp_path), Budget())
    assert [picture.title for picture in pictures] == ["entropy", "encoder attention 1"]
    assert opened(pictures[0].uri).size == (1100, 400)
    assert [opened(picture.uri).format for picture in pictures] == ["PNG", "JPEG"]
    assert attention_pictures(Run(tmp_path / "elsewhere"), Budget()) == []
