import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from mspose.data.cards import load_frames, read_card
from mspose.data.images import read_image
from mspose.data.preparation import cache_data, get_data, list_data, render_if_virtual
from mspose.errors import MsposeError

FRAMES = {"train": 2, "test": 1}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """A process for so few frames takes longer to start than to render."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)


def write_card(folder: Path, **changes) -> str:
    card = {
        "name": "rooms",
        "format": "virtual",
        "root": "rooms",
        "scenes": {"atelier": {"frames": FRAMES}},
        "extra_scenes": {"library": {"frames": FRAMES}},
        "render": {
            "width": 48,
            "height": 36,
            "focal_px": 40,
            "image_format": "png",
            "frames_per_sequence": 2,
        },
    } | changes
    folder.mkdir(exist_ok=True)
    (folder / "rooms.yaml").write_text(yaml.safe_dump(card))
    return str(folder / "rooms.yaml")


def files_below(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def test_a_virtual_data_set_is_rendered_as_its_card_says(tmp_path):
    card = write_card(tmp_path)
    get_data(dataset=card, progress=False)
    assert sorted(path.name for path in (tmp_path / "rooms").glob("[!.]*")) == ["atelier"]
    for split, count in FRAMES.items():
        frames = load_frames(read_card(card), split=split)
        assert len(frames) == count
        assert set(frames["focal_px"]) == {40.0}
        for image in frames["image"]:
            assert image.endswith(".color.png")
            assert read_image(tmp_path / "rooms" / image).shape == (36, 48, 3)
            assert np.ptp(read_image(tmp_path / "rooms" / image)) > 50


def test_what_is_rendered_stays_and_only_what_is_asked_for_is_added(tmp_path):
    card = write_card(tmp_path)
    render_if_virtual(card, None, progress=False)
    before = files_below(tmp_path / "rooms")
    render_if_virtual(card, None, progress=False)
    get_data(dataset=card, progress=False)
    assert files_below(tmp_path / "rooms") == before
    render_if_virtual(card, None, ["library"], progress=False)
    after = files_below(tmp_path / "rooms")
    assert before.items() <= after.items()
    assert {
        path.relative_to(tmp_path / "rooms").parts[0] for path in after.keys() - before.keys()
    } == {"library"}
    assert len(load_frames(read_card(card), split="train", scenes=["library"])) == 2


def test_scenes_go_to_the_folder_that_is_named(tmp_path):
    card = write_card(tmp_path)
    get_data(dataset=card, scenes=["library"], root=str(tmp_path / "elsewhere"), progress=False)
    assert not (tmp_path / "rooms").exists()
    assert (
        len(
            load_frames(
                read_card(card), root=tmp_path / "elsewhere", split="test", scenes=["library"]
            )
        )
        == 1
    )


def test_other_data_sets_are_not_rendered(own_data, tmp_path):
    before = files_below(tmp_path)
    render_if_virtual(str(own_data), None, progress=False)
    render_if_virtual("7scenes", str(tmp_path / "7scenes"), ["chess"], progress=False)
    assert files_below(tmp_path) == before
    assert not (tmp_path / "7scenes").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenes": ["atelier"]}, r"rooms.yaml: scenes.atelier.frames names the frames to render"),
        (
            {"scenes": {"atelier": {"frames": {"train": 2}}}},
            r"scenes.atelier.frames names the frames",
        ),
        (
            {"scenes": {"attic": {"frames": FRAMES}}},
            "no virtual scene is called attic; there are: .*atelier",
        ),
        ({"render": {"widht": 3}}, "rooms.yaml: unknown key render.widht; there are: .*width"),
        ({"render": {"workers": 3}}, "unknown key render.workers"),
        ({"render": {"width": [48]}}, r"render.width is a number or a word, not \[48\]"),
        ({"render": {"width": "wide"}}, "width.*'wide'"),
        ({"render": {"width": 0}}, "width.*not 0"),
        ({"render": {"seed": -1}}, "seed.*not -1"),
        ({"render": {"focal_px": "long"}}, "focal_px.*'long'"),
        ({"render": {"image_format": "gif"}}, "image_format is one of png, jpg, not 'gif'"),
        ({"render": "large"}, "render.*dict.*large"),
    ],
)
def test_cards_that_cannot_be_rendered_are_one_line(tmp_path, changes, message):
    card = write_card(tmp_path, **changes)
    with pytest.raises(MsposeError, match=message) as caught:
        get_data(dataset=card, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "rooms").exists()


def test_what_cannot_be_got_is_one_line(own_data, tmp_path):
    card = write_card(tmp_path)
    with pytest.raises(
        MsposeError, match="rooms has no scene 'attic'; its scenes: atelier, library"
    ):
        get_data(dataset=card, scenes=["attic"], progress=False)
    with pytest.raises(MsposeError, match="rooms is rendered, not unpacked: leave out --archive"):
        get_data(dataset=card, archive="rooms.zip", progress=False)
    with pytest.raises(MsposeError, match="small is not a data set to download"):
        get_data(dataset=str(own_data), progress=False)
    with pytest.raises(MsposeError, match="no data set 'attic'; there are: .*7scenes, cambridge"):
        get_data(dataset="attic", progress=False)


def test_a_published_data_set_is_unpacked(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "chess.zip", "w") as archive:
        for split, sequence in (("Train", 1), ("Test", 2)):
            archive.writestr(f"chess/{split}Split.txt", f"sequence{sequence}\n")
            archive.writestr(f"chess/seq-0{sequence}/frame-000000.color.png", b"an image")
            archive.writestr(
                f"chess/seq-0{sequence}/frame-000000.pose.txt", "1 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1"
            )
    get_data(
        dataset="7scenes",
        scenes=["chess"],
        root=str(tmp_path / "data"),
        archive=str(tmp_path / "chess.zip"),
        progress=False,
    )
    assert "1 train, 1 test frames" in capsys.readouterr().out
    frames = load_frames(
        read_card("7scenes"), root=tmp_path / "data", split="test", scenes=["chess"]
    )
    assert frames["image"].tolist() == ["chess/seq-02/frame-000000.color.png"]


def test_the_list_of_data_sets_says_what_is_on_disk(tmp_path, monkeypatch):
    card = write_card(tmp_path / "datasets")
    (tmp_path / "datasets" / "rooms" / "library").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in list_data().splitlines()
    ]
    assert lines[0] == ["data set", "title", "scenes", "on disk", "ground truth", "folder"]
    rows = {row[0]: row for row in lines[2:]}
    assert {"rooms", "7scenes", "cambridge", "virtual"} <= rows.keys()
    assert rows["rooms"][2:] == [
        "atelier library",
        "library",
        "rendered",
        str(Path(card).parent / "rooms"),
    ]
    assert "chess fire heads" in rows["7scenes"][2]

    (tmp_path / "datasets" / "rooms.yaml").rename(tmp_path / "datasets" / "cambridge.yaml")
    assert "| rooms " in list_data()
    assert (
        "KingsCollege" not in list_data()
    )  # the card here goes before the repository's, as everywhere


def test_caches_of_a_virtual_data_set_are_built_once_for_every_split_and_size(
    tmp_path, monkeypatch
):
    card, folder = write_card(tmp_path), tmp_path / "cache"
    words = {"dataset": card, "cache": str(folder), "progress": False}
    table = cache_data(resize=24, **words)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    assert [row[:4] for row in cells] == [["train", "2", "0", "0.000"], ["test", "1", "0", "0.000"]]
    built = files_below(folder)
    for row, frames in zip(cells, (2, 1), strict=True):
        assert (Path(row[4]) / "frames.u8").stat().st_size == frames * 24 * 32 * 3
    monkeypatch.setattr(
        "mspose.data.cache.read_image", lambda path: pytest.fail("it is there already")
    )
    assert cache_data(resize=24, **words) == table
    assert files_below(folder) == {
        **built,
        **{path: files_below(folder)[path] for path in built if path.name == "lock"},
    }
    monkeypatch.undo()
    cache_data(resize=30, split="test", **words)
    assert len(list(folder.iterdir())) == 3
