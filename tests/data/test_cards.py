import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mspose.data import cards
from mspose.data.cards import Format, SceneFacts, data_root, load_frames, read_card
from mspose.data.frames import CAMERA_TO_WORLD, COLUMNS, frame_table
from mspose.errors import MsposeError

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
CARDS = sorted(path.stem for path in (REPOSITORY / "datasets").glob("*.yaml"))
CSV_HEADER = "scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def write_scene(root, scene, split="Train", frames=2):
    folder = root / scene / "seq-01"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        (folder / f"frame-{number:06d}.color.png").touch()
        (folder / f"frame-{number:06d}.pose.txt").write_text(
            f"1 0 0 {number} 0 1 0 0 0 0 1 0 0 0 0 1"
        )
    (root / scene / f"{split}Split.txt").write_text("sequence1")


@pytest.mark.parametrize("name", CARDS)
def test_every_card_of_the_repository_is_right(name):
    card = read_card(name)
    assert card.name == name
    assert card.path == REPOSITORY / "datasets" / f"{name}.yaml"
    assert card.root.is_absolute()
    assert all((card.title, card.licence, card.source, card.pose_convention, card.thresholds))
    assert list(card.scenes) == sorted(card.scenes)


def test_the_published_data_sets():
    card = read_card("7scenes")
    assert len(card.known_scenes) == 7
    assert card.ground_truths == ["original", "sfm"]
    assert card.root == REPOSITORY / "datasets/7scenes"
    assert card.focal_px == 585
    assert card.thresholds == [(0.05, 5), (0.1, 5), (0.25, 5), (0.5, 10)]
    for split, count in (("train", 26_000), ("test", 17_000)):
        assert sum(facts.frames[split] for facts in card.scene_facts.values()) == count
    for scene, facts in card.scene_facts.items():
        assert facts.url.endswith(f"/28564B23-0828-408F-8631-23B1EFF1DAC8/{scene}.zip")
    card = read_card("cambridge")
    assert list(card.scenes) == ["KingsCollege", "OldHospital", "ShopFacade", "StMarysChurch"]
    assert list(card.extra_scenes) == ["GreatCourt", "Street"]
    assert card.label_convention == "world-to-camera-position"
    assert math.isnan(card.focal_px)
    assert card.scene_facts["KingsCollege"].url.split("/")[-2] == "251342"


def test_a_card_is_found_here_first_then_in_the_repository(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_card("7scenes").path == REPOSITORY / "datasets/7scenes.yaml"
    (tmp_path / "datasets").mkdir()
    write("format: 7scenes\nscenes: [attic]\nroot: ../frames\n", "datasets/7scenes.yaml")
    card = read_card("7scenes")
    assert card.path == tmp_path / "datasets/7scenes.yaml"
    assert card.root == tmp_path / "frames"
    assert read_card("datasets/7scenes.yaml") == card
    assert read_card(tmp_path / "datasets/7scenes.yaml") == card
    write("format: 7scenes\nscenes: [attic]\n", "datasets/rooms.yaml")
    with pytest.raises(
        MsposeError,
        match=r"no data set 'roms'; there are: 7scenes, cambridge, .*rooms.*file of your own",
    ):
        read_card("roms")
    with pytest.raises(MsposeError, match=r"no such data set: /.*/roms.yaml"):
        read_card("roms.yaml")


def test_defaults_of_a_short_card(write):
    card = read_card(
        write("format: cambridge\nscenes:\n  Tower:\n  Chapel: {url: http://x/y.zip}\n")
    )
    assert card.name == "mine"
    assert card.title == "mine"
    assert card.scenes == {"Chapel": SceneFacts("http://x/y.zip"), "Tower": SceneFacts()}
    assert card.ground_truths == ["sfm"]
    assert card.label_convention == "world-to-camera-position"
    assert card.root == card.path.parent / "mine"
    virtual = read_card(write("format: virtual\nscenes: [a]\nrender: {seed: 3}\n"))
    assert virtual.ground_truths == ["rendered"]
    assert virtual.render == {"seed": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes: [a]\nrooot: x", "'rooot' is not accepted; did you mean root"),
        ("scenes: {a: {uri: x}}", "'uri' is not accepted; did you mean url.*frames, sha256, url"),
        ("scenes: [a]\nformat: colmap", "'format' is there twice"),
        ("title: x", "scenes is missing or empty"),
        ("scenes: [../a]", "scenes: '../a' is not a plain name"),
        ("scenes: [1]", "scenes: 1 is not a plain name"),
        ("name: 7\nscenes: [a]", "name.*str.* 7"),
        ("scenes: [a]\nlabel_convention: c2w", "label_convention is one of .*not 'c2w'"),
        ("scenes: [a]\nfocal_px: -1", "focal_px is a positive number"),
        ("scenes: [a]\nthresholds: [0.05, 5]", "thresholds.*tuple"),
        ("scenes: {a: {sha256: abc}}", "scenes.a.sha256 is 64 hexadecimal digits"),
        ("scenes: {a: {frames: {train: many}}}", "frames.*int.*many"),
        ("scenes: [a]\nground_truths: []", "ground_truths is empty"),
        ("scenes: [a]\nsequences: [seq-01]", "sequences and split belong together"),
        ("scenes: [a]\nsequences: [seq-01]\nsplit: {block: 5}", "split.*block.*blocks"),
        ("scenes: [a]\nrender: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_bad_card_is_named(write, text, message):
    path = write(f"format: 7scenes\n{text}\n")
    with pytest.raises(MsposeError, match=message) as caught:
        read_card(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes: [a]\n", "required: format"),
        ("format: colmap\nscenes: [a]\n", "format.*7scenes.*colmap"),
        ("format: [\n", "is not YAML"),
        ("- a\n", "expected lines `name: value`"),
        ("", "expected lines `name: value`"),
        ("format: label-csv\nlabels: a.csv\n", "label_convention is one of camera-to-world, "),
        ("format: label-csv\nlabel_convention: camera-to-world\n", "labels is missing"),
    ],
)
def test_what_is_no_card_is_named(write, text, message):
    with pytest.raises(MsposeError, match=f"mine.yaml.*{message}"):
        read_card(write(text))


def test_a_new_format_is_a_reader_and_one_entry(write, tmp_path, monkeypatch):
    def read(root, scenes, split, **options):
        lines = [(root / scene / "walk.txt").read_text().split() for scene in scenes]
        return frame_table(
            split=split,
            scene=list(scenes),
            sequence=["walk"] * len(scenes),
            image=[f"{scene}/{line[0]}" for scene, line in zip(scenes, lines, strict=True)],
            position_B3=np.array([line[1:] for line in lines], dtype=float),
            orientation=np.tile([1.0, 0, 0, 0], (len(scenes), 1)),
            convention=CAMERA_TO_WORLD,
            where=str,
            source=str(root),
            **options,
        )

    layout = Format(("gps",), CAMERA_TO_WORLD, {"train": "walk.txt"}, read)
    monkeypatch.setitem(cards.FORMATS, "walks", layout)
    card = read_card(write("format: walks\nscenes: [attic]\nfocal_px: 50\n"))
    with pytest.raises(MsposeError, match="no data of scene attic .*attic/walk.txt"):
        load_frames(card, split="train")
    (tmp_path / "mine" / "attic").mkdir(parents=True)
    (tmp_path / "mine" / "attic" / "walk.txt").write_text("a.png 1 2 3")
    (frame,) = load_frames(card, split="train").to_dict("records")
    assert (frame["image"], frame["tz"], frame["focal_px"]) == ("attic/a.png", 3.0, 50)
    assert (frame["dataset"], frame["ground_truth"]) == ("mine", "gps")
    with pytest.raises(MsposeError, match="no split 'test'; there are: train"):
        load_frames(card, split="test")


def test_frames_of_the_default_root_another_root_and_a_choice_of_scenes(write, tmp_path):
    card = read_card(
        write("format: 7scenes\nscenes: [attic, cellar]\nextra_scenes: [hall]\nfocal_px: 500\n")
    )
    for scene in ("attic", "cellar", "hall"):
        write_scene(tmp_path / "mine", scene)
        write_scene(tmp_path / "elsewhere", scene, frames=3)
    frames = load_frames(card, split="train")
    assert tuple(frames.columns) == COLUMNS
    assert frames["scene"].tolist() == ["attic"] * 2 + ["cellar"] * 2
    assert set(frames["dataset"]) == {"mine"}
    assert set(frames["ground_truth"]) == {"original"}
    assert set(frames["focal_px"]) == {500}
    assert (
        len(
            load_frames(
                card, root=tmp_path / "elsewhere", split="train", scenes=["hall", "cellar", "hall"]
            )
        )
        == 6
    )
    assert data_root(card) == tmp_path / "mine"
    assert data_root(card, tmp_path / "elsewhere") == tmp_path / "elsewhere"
    chosen = load_frames(card, split="train", scenes=["hall", "attic"])
    assert chosen["scene"].unique().tolist() == ["attic", "hall"]


def test_a_relative_root_is_relative_to_the_current_directory(write, tmp_path, monkeypatch):
    card = read_card(write("format: 7scenes\nscenes: [attic]\n"))
    write_scene(tmp_path / "here", "attic")
    monkeypatch.chdir(tmp_path)
    assert data_root(card, "here") == tmp_path / "here"
    assert len(load_frames(card, root="here", split="train")) == 2


def test_virtual_data_goes_through_the_loader_of_7scenes_and_keeps_its_names(write, tmp_path):
    card = read_card(write("format: virtual\nroot: rendered\nscenes: [attic]\nfocal_px: 292.5\n"))
    write_scene(tmp_path / "rendered", "attic", "Test")
    frames = load_frames(card, split="test")
    assert frames.loc[0, ["dataset", "ground_truth", "split"]].tolist() == [
        "mine",
        "rendered",
        "test",
    ]
    assert set(frames["focal_px"]) == {292.5}


def test_skipping_reaches_the_loader(write, tmp_path):
    card = read_card(write("format: 7scenes\nscenes: [attic]\n"))
    write_scene(tmp_path / "mine", "attic")
    (tmp_path / "mine/attic/seq-01/frame-000000.color.png").unlink()
    with pytest.raises(MsposeError, match=r"there is no image beside it"):
        load_frames(card, split="train")
    frames = load_frames(card, split="train", on_bad_frame="skip")
    assert len(frames) == 1
    assert frames.attrs["bad_frames"] == 1


def test_unknown_names_are_refused_with_those_that_exist(write):
    card = read_card(write("format: 7scenes\nscenes: [attic, cellar]\nextra_scenes: [hall]\n"))
    with pytest.raises(
        MsposeError, match=r"mine has no scene 'chess'; its scenes: attic, cellar, hall"
    ):
        load_frames(card, split="train", scenes=["attic", "chess"])
    with pytest.raises(
        MsposeError, match=r"mine has no ground truth 'lidar'; there are: original, sfm"
    ):
        load_frames(card, split="train", ground_truth="lidar")
    with pytest.raises(MsposeError, match=r"no split 'val'; there are: train, test"):
        load_frames(card, split="val")


def test_missing_data_names_what_where_and_the_ways_on(write, tmp_path):
    names = ("attic", "cellar", "hall")
    urls = "".join(f"  {name}: {{url: https://host/{name}.zip}}\n" for name in names)
    card = read_card(write(f"format: 7scenes\nscenes:\n{urls}"))
    write_scene(tmp_path / "mine", "cellar")
    with pytest.raises(MsposeError) as caught:
        load_frames(card, split="train")
    message = str(caught.value)
    assert "no data of scenes attic, hall" in message
    assert f"expected {tmp_path / 'mine' / 'attic' / 'TrainSplit.txt'}" in message
    assert '`make data DATASET=mine SCENE="attic hall"`' in message
    assert "`make demo`" in message
    with pytest.raises(
        MsposeError, match=r"no data of scene hall .*`make data DATASET=mine SCENE=hall`"
    ):
        load_frames(card, split="train", scenes=["hall"])
    card = read_card(write("format: 7scenes\nscenes: [attic]\n"))
    with pytest.raises(
        MsposeError, match=r"put it there, or say with root in .* or with --data.root"
    ):
        load_frames(card, split="train")
    card = read_card(write("format: cambridge\nscenes: [Tower]\nhow_to_get: ask the sexton\n"))
    with pytest.raises(
        MsposeError, match=r"expected .*mine/Tower/dataset_test.txt\); ask the sexton$"
    ):
        load_frames(card, split="test")


OWN_CARD = """
name: my-flat
format: label-csv
labels: [labels/kitchen.csv, labels/bath.csv]
label_convention: world-to-camera
focal_px: 610.5
"""


@pytest.fixture
def own(write, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/kitchen.csv").write_text(
        f"{CSV_HEADER}kitchen,train,1,img/1.jpg,1,2,3,1,0,0,0\nkitchen,dev,1,img/2.jpg,1,2,3,1,0,0,0\n"
    )
    (tmp_path / "labels/bath.csv").write_text(f"{CSV_HEADER}bath,train,x,img/3.jpg,1,2,3,1,0,0,0\n")
    return write


def test_a_card_for_data_of_ones_own(own, tmp_path):
    card = read_card(own(OWN_CARD))
    frames = load_frames(card, split="train")
    assert frames["image"].tolist() == ["img/3.jpg", "img/1.jpg"]
    assert frames.loc[0, ["dataset", "ground_truth", "scene"]].tolist() == [
        "my-flat",
        "labels",
        "bath",
    ]
    np.testing.assert_array_equal(frames[["tx", "ty", "tz"]], -np.array([[1, 2, 3]] * 2))
    assert set(frames["focal_px"]) == {610.5}
    assert data_root(card) == tmp_path
    assert len(load_frames(card, split="dev")) == 1
    with pytest.raises(MsposeError, match=r"no frames of split 'test' .*splits there: dev, train"):
        load_frames(card, split="test")
    with pytest.raises(MsposeError, match=r"scene attic has no train frames"):
        load_frames(card, split="train", scenes=["attic"])
    card = read_card(own(OWN_CARD + "scenes: [bath]\n"))
    assert load_frames(card, split="train")["scene"].tolist() == ["bath"]
    with pytest.raises(MsposeError, match=r"no scene 'kitchen'; its scenes: bath"):
        load_frames(card, split="train", scenes=["kitchen"])
    card = read_card(own(OWN_CARD + "scenes: [bath, kitchen]\n"))
    with pytest.raises(MsposeError, match=r"scene bath has no dev frames"):
        load_frames(card, split="dev")


def test_labels_that_are_not_there(own, tmp_path):
    (tmp_path / "labels/bath.csv").unlink()
    with pytest.raises(
        MsposeError, match=f"^my-flat: no such label file: {tmp_path}/labels/bath.csv$"
    ):
        load_frames(read_card(own(OWN_CARD)), split="train")
    with pytest.raises(MsposeError, match=r"labels/bath.csv; ask me$"):
        load_frames(read_card(own(OWN_CARD + "how_to_get: ask me\n")), split="train")
    with pytest.raises(MsposeError, match=r"^my-flat: no such label file: /.*/other.csv$"):
        load_frames(
            read_card(own(OWN_CARD + "how_to_get: ask me\n")), split="train", labels=["other.csv"]
        )


def test_label_files_in_place_of_folders(write, tmp_path):
    card = read_card(write("format: 7scenes\nscenes: [attic, cellar]\n"))
    (tmp_path / "one.csv").write_text(f"{CSV_HEADER}attic,train,1,attic/1.png,1,2,3,1,0,0,0\n")
    frames = load_frames(card, split="train", labels=[tmp_path / "one.csv"])
    assert frames.loc[0, ["dataset", "ground_truth", "scene"]].tolist() == [
        "mine",
        "original",
        "attic",
    ]
    with pytest.raises(MsposeError, match=r"scene cellar has no train frames"):
        load_frames(card, split="train", scenes=["attic", "cellar"], labels=[tmp_path / "one.csv"])
    (tmp_path / "other.csv").write_text(f"{CSV_HEADER}chess,train,1,chess/1.png,1,2,3,1,0,0,0\n")
    with pytest.raises(
        MsposeError,
        match=r"other.csv, line 2: chess is not a scene of mine; its scenes: attic, cellar",
    ):
        load_frames(card, split="train", labels=[tmp_path / "other.csv"])
    with pytest.raises(
        MsposeError, match=r"label CSVs of mine|not named like a text file of sfm poses"
    ):
        load_frames(card, split="train", labels=[tmp_path / "one.csv"], ground_truth="sfm")


def test_the_second_ground_truth(write, tmp_path):
    card = read_card(write("format: 7scenes\nroot: frames\nscenes: [attic, cellar]\n"))
    with pytest.raises(
        MsposeError,
        match=rf"no sfm poses of attic, cellar \(expected {tmp_path}/frames/sfm/attic_tra",
    ):
        load_frames(card, split="train", ground_truth="sfm")
    places = {"default": tmp_path / "frames/sfm", "given": tmp_path / "given"}
    for place in places.values():
        place.mkdir(parents=True)
        for scene in ("attic", "cellar"):
            (place / f"{scene}_train.txt").write_text(
                "seq-01/frame-000000.color.png 1 0 0 0 1 2 3 525.5\n"
            )
    choices = {
        "default": ((), ["attic", "cellar"]),
        "folder": ([places["given"]], ["attic", "cellar"]),
        "files": (
            [places["given"] / "cellar_train.txt", places["given"] / "attic_train.txt"],
            ["attic", "cellar"],
        ),
        "one file": ([places["given"] / "cellar_train.txt"], ["cellar"]),
    }
    for labels, scenes in choices.values():
        frames = load_frames(card, split="train", ground_truth="sfm", labels=labels)
        assert frames["scene"].tolist() == scenes
        assert set(frames["ground_truth"]) == {"sfm"}
        assert frames.loc[0, ["tx", "ty", "tz", "focal_px"]].tolist() == [-1, -2, -3, 525.5]
    with pytest.raises(MsposeError, match=r"no sfm poses of attic"):
        load_frames(
            card,
            split="train",
            scenes=["attic"],
            ground_truth="sfm",
            labels=[places["given"] / "cellar_train.txt"],
        )
    with pytest.raises(MsposeError, match=r"no sfm poses of attic, cellar"):
        load_frames(card, split="test", ground_truth="sfm", labels=[places["given"]])
    with pytest.raises(MsposeError, match=r"no such label file"):
        load_frames(card, split="test", ground_truth="sfm", labels=[tmp_path / "attic_test.txt"])
    with pytest.raises(
        MsposeError,
        match=r"holds sfm poses, not the ground truth original: say --data.ground_truth sfm",
    ):
        load_frames(card, split="train", labels=[places["given"] / "cellar_train.txt"])


def test_single_sequences_are_split_by_blocks_or_at_their_end(write, tmp_path):
    for ending in ("png", "jpg"):
        write_scene(tmp_path / ending, "attic", frames=20)
        for path in (tmp_path / ending / "attic/seq-01").glob("*.png"):
            path.rename(path.with_suffix(f".{ending}"))
        (tmp_path / ending / "attic/TrainSplit.txt").unlink()
    card = "format: 7scenes\nscenes: [attic]\nsequences: seq-01\nsplit: "
    for rule, test in (
        ("{blocks: 4, every: 2}", [4, 5, 6, 7, 12, 13, 14, 15]),
        ("{last: 2}", [18, 19]),
    ):
        read = read_card(write(card + rule + "\n"))
        for ending in ("png", "jpg"):
            frames = {
                split: load_frames(read, root=tmp_path / ending, split=split)
                for split in ("train", "test")
            }
            assert frames["test"]["image"].tolist() == [
                f"attic/seq-01/frame-{number:06d}.color.{ending}" for number in test
            ]
            assert set(frames["test"]["split"]) == {"test"}
            assert sorted({*frames["train"]["tx"], *test}) == list(range(20))
    (tmp_path / "png/attic/seq-01/frame-000000.color.png").unlink()
    skipped = load_frames(read, root=tmp_path / "png", split="test", on_bad_frame="skip")
    assert skipped["tx"].tolist() == [18, 19]
    with pytest.raises(MsposeError, match=r"no data of scene attic \(expected .*seq-01\)"):
        load_frames(read, split="train")


@needs_shared
@pytest.mark.parametrize("name", ["blocks", "tail"])
def test_the_parts_of_redkitchen_are_those_of_their_label_files(name):
    card = read_card(f"redkitchen-{name}")
    rows = pd.read_csv(SHARED / f"redkitchen_{name}.csv")
    root = SHARED / "7scenes"
    for split, count in (("train", 800), ("test", 200)):
        frames = load_frames(card, root=root, split=split)
        wanted = rows[rows["split"] == split]
        assert len(frames) == count == card.scene_facts["redkitchen"].frames[split]
        assert frames["image"].tolist() == wanted["img_path"].tolist()
        np.testing.assert_allclose(
            frames[["tx", "ty", "tz"]], wanted[["t1", "t2", "t3"]], atol=1e-6
        )
        quaternions = frames[["qw", "qx", "qy", "qz"]], wanted[["q1", "q2", "q3", "q4"]]
        np.testing.assert_allclose(*quaternions, atol=1e-4)


def test_a_missing_part_of_redkitchen_says_what_to_download(tmp_path):
    with pytest.raises(MsposeError, match=r"make data SCENE=redkitchen.*--data.root"):
        load_frames(read_card("redkitchen-blocks"), root=tmp_path, split="train")


@needs_shared
def test_published_label_folders():
    card = read_card("7scenes")
    for ground_truth, folder in (("original", "7Scenes"), ("sfm", "7Scenes-sfm")):
        frames = load_frames(
            card, split="test", ground_truth=ground_truth, labels=[SHARED / "labels" / folder]
        )
        assert len(frames) == 17_000
        assert set(frames["ground_truth"]) == {ground_truth}
        assert frames["scene"].value_counts().to_dict() == {
            scene: facts.frames["test"] for scene, facts in card.scene_facts.items()
        }
    card = read_card("cambridge")
    labels = SHARED / "labels/CambridgeLandmarks"
    assert len(load_frames(card, split="train", labels=[labels])) == 3833
    assert len(load_frames(card, split="train", labels=[labels / "all_scenes.csv"])) == 3833
    assert len(load_frames(card, split="test", labels=[labels], scenes=["Street"])) == 2923
    with pytest.raises(MsposeError, match=r"KingsCollege is not a scene of 7scenes"):
        load_frames(read_card("7scenes"), split="train", labels=[labels / "KingsCollege_train.csv"])
