"""`mspose data import` as a user types it, and the other commands on what it made."""


import pandas as pd
import pytest
from tools.importing.builders import write_colmap, write_nerfstudio

from mspose.config import write_settings


def test_every_other_command_takes_an_imported_data_set(call, room, small_settings, tmp_path):
    for name in ("hall", "attic"):
        write_colmap(tmp_path / name, room)
    own = tmp_path / "rooms"
    words = (
        "colmap",
        tmp_path / "hall",
        tmp_path / "attic",
        "--out",
        own,
        "--block=4",
        "--margin=1",
    )
    status, out, lines = call("data", "import", *words)
    assert (status, lines) == (0, [])
    assert f"mspose data check {own}" in out
    labels = pd.read_csv(own / "labels.csv")
    counts = labels.groupby(["scene", "split"]).size().to_dict()
    assert counts == {
        (scene, split): n
        for scene in ("attic", "hall")
        for split, n in (("test", 8), ("train", 18))
    }

    write_settings(tmp_path / "experiment.yaml", small_settings)
    card = own / "rooms.yaml"
    config = ("--config", tmp_path / "experiment.yaml", "--quiet")
    assert call("data", "cache", "--dataset", card, *config)[0] == 0
    run = ("--data.dataset", card, "--training.epochs=1", "--experiment=rooms")
    assert call("train", *config, *run)[0] == 0
    folder = tmp_path / "runs" / "rooms" / "all" / "seed-0"
    status, out, _ = call("evaluate", folder, "--quiet")
    assert status == 0
    assert "attic" in out
    assert "hall" in out
    predictions = pd.read_csv(folder / "predictions" / "test.csv")
    assert sorted(predictions["image"]) == sorted(labels.loc[labels["split"] == "test", "img_path"])
    status, out, _ = call("table", tmp_path / "runs", "--dataset", "rooms")
    assert status == 0
    assert "rooms" in out


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ("meshroom {} --out {}/own", "invalid choice|meshroom"),
        ("colmap --out {}/own", "paths"),
        ("nerfstudio {}/room", "out"),
        ("nerfstudio {}/room --out {}/own --scale 0", "scale"),
        ("nerfstudio {}/room --out {}/own --scale inf", "--scale is a number of metres, not inf"),
        (
            "nerfstudio {}/room --out {}/own --scale 1.7e308",
            "frame [0-9]+ .*the pose holds NaN or infinity",
        ),
        (
            "nerfstudio {}/room --out {}/own --focal-px inf",
            "a focal length of inf pixels is impossible",
        ),
        ("nerfstudio {}/room --out {}/own --split every-nth", "blocks.*sequence.*list.*every-nth"),
        ("nerfstudio {}/room --out {}/own --test-every 1", "test_every.*1"),
        (
            "nerfstudio {}/room --out {}/own --split list --test-list {}/nowhere.txt",
            "cannot read .*nowhere.txt",
        ),
        ("nerfstudio {}/room --out {}/own --tolerance 0.1", "--tolerance belongs to tum"),
        (
            "colmap {}/room --out {}/own",
            "transforms.json is there: try mspose data import nerfstudio",
        ),
    ],
)
def test_bad_words_are_one_line(words, pattern, call, room, tmp_path):
    write_nerfstudio(tmp_path / "room", room)
    status, out, lines = call("data", "import", *words.format(*[tmp_path] * 3).split())
    assert (status, out) == (2, "")
    (line,) = lines
    assert line.startswith("mspose: error: ")
    assert pd.Series([line]).str.contains(pattern).all()
    assert not (tmp_path / "own").exists()


def test_a_name_with_a_line_end_does_not_break_the_line(call, tmp_path):
    status, _, lines = call(
        "data", "import", "colmap", tmp_path / "new\nline", "--out", tmp_path / "own"
    )
    assert (status, lines) == (2, [f"mspose: error: there is no folder {tmp_path}/new line"])


def test_dashes_do_for_underscores(call, room, tmp_path):
    write_nerfstudio(tmp_path / "room", room)
    words = (
        "--split",
        "sequence",
        "--test-sequences",
        "walk 2",
        "--focal-px",
        "41",
        "--copy",
        "--quiet",
    )
    status, out, lines = call(
        "data", "import", "nerfstudio", tmp_path / "room", "--out", tmp_path / "own", *words
    )
    assert (status, lines) == (0, [])
    labels = pd.read_csv(tmp_path / "own" / "labels.csv")
    assert labels.groupby("split")["seq"].unique().map(list).to_dict() == {
        "test": ["walk 2"],
        "train": ["walk 1"],
    }
    assert set(labels["focal_px"]) == {41}
    assert "split: by sequence; for testing: walk 2" in out
