"""`mspose data import` as a user types it, and the other commands on what it made."""

import re
import shlex

import pandas as pd
import pytest
from tools.importing.builders import write_colmap, write_nerfstudio

from mspose import cli
from mspose.config import write_settings
from mspose.data.cards import read_card
from mspose.models.backbone import make_backbone


def test_every_other_command_takes_an_imported_data_set(call, room, small_settings, tmp_path):
    for name in ("hall", "attic"):
        write_colmap(tmp_path / name, room)
    own = tmp_path / "rooms"
    words = ("--out", own, "--block=4", "--margin=1")
    status, out, lines = call(
        "data", "import", "colmap", tmp_path / "hall", tmp_path / "attic", *words
    )
    assert (status, lines) == (0, [])
    assert f"mspose data check {own}" in out
    labels = pd.read_csv(own / "labels.csv")
    for _, splits in labels.groupby("scene")["split"]:
        assert splits.value_counts().to_dict() == {"train": 18, "test": 8}

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
        ("nerfstudio {}/room --out {}/own --scale 1.7e308", "frame [0-9]+ .*NaN or infinity"),
        ("nerfstudio {}/room --out {}/own --focal-px inf", "focal length of inf pixels"),
        ("nerfstudio {}/room --out {}/own --split every-nth", "blocks.*sequence.*list.*every-nth"),
        ("nerfstudio {}/room --out {}/own --test-every 1", "test_every.*1"),
        ("nerfstudio {}/room --out {}/own --split list --test-list no.txt", "cannot read no.txt"),
        ("nerfstudio {}/room --out {}/own --tolerance 0.1", "--tolerance belongs to tum: with"),
        ("colmap {}/room --out {}/own", "transforms.json is there: try mspose data import nerf"),
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


def test_the_commands_at_the_end_of_an_import_work_in_any_folder(call, room, tmp_path, monkeypatch):
    parent = tmp_path / "my data; x"
    write_nerfstudio(parent / "room", room)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, out, _ = call("data", "import", "nerfstudio", parent / "room", "--out", parent / "own")
    printed = [line.partition(" with: mspose ")[2] for line in out.splitlines()]
    check, train = (shlex.split(line) for line in printed if line)
    assert check == ["data", "check", str(parent / "own")]
    offline = re.search(r"without a network add (--model.backbone \w+)", out)
    arguments = cli.parse(train[0], [*train[1:], *offline[1].split()])
    settings = arguments["settings"]
    assert read_card(settings.data.dataset).name == "own"
    make_backbone(settings.model.backbone, pretrained=True)


def test_a_name_with_a_line_end_does_not_break_the_line(call, tmp_path):
    status, _, lines = call(
        "data", "import", "colmap", tmp_path / "new\nline", "--out", tmp_path / "own"
    )
    assert (status, lines) == (2, [f"mspose: error: there is no folder {tmp_path}/new line"])


def test_dashes_do_for_underscores(call, room, tmp_path):
    write_nerfstudio(tmp_path / "room", room)
    folders = (tmp_path / "room", "--out", tmp_path / "own")
    words = ("--split=sequence", "--test-sequences", "walk 2", "--focal-px=41", "--copy", "--quiet")
    status, out, lines = call("data", "import", "nerfstudio", *folders, *words)
    assert (status, lines) == (0, [])
    labels = pd.read_csv(tmp_path / "own" / "labels.csv")
    assert labels.groupby("split")["seq"].unique().map(list).to_dict() == {
        "test": ["walk 2"],
        "train": ["walk 1"],
    }
    assert set(labels["focal_px"]) == {41}
    assert "split: by sequence; for testing: walk 2" in out
