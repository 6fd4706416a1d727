"""What holds for every format: a round trip gives the same poses; bad input is one line, and
nothing is written.
"""

import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tools.importing.builders import (
    FOCAL,
    Room,
    write_colmap,
    write_kapture,
    write_nerfstudio,
    write_tum,
)

from mspose.data.cards import load_frames, read_card
from mspose.errors import MsposeError
from mspose.tools.importing.importer import KINDS, import_data
from mspose.tools.importing.splits import SplitBy

WRITE = {
    "colmap": write_colmap,
    "nerfstudio": write_nerfstudio,
    "tum": write_tum,
    "kapture": write_kapture,
}
ALL_BUT_MARGIN = SplitBy(block=3, margin=0)


@pytest.fixture(scope="module")
def sources(room, tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind with the same frames; not to be changed."""
    folders = {kind: tmp_path_factory.mktemp(kind) / "studio" for kind in KINDS}
    for kind, folder in folders.items():
        folder.mkdir()
        WRITE[kind](folder, room)
    return folders


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path):
    """`refused(pattern, kind, path...)`: one line, and nothing written."""

    def check(pattern: str, kind: str, *paths: object, **options) -> None:
        before = below(tmp_path)
        out = options.pop("out", tmp_path / "out")
        with pytest.raises(MsposeError, match=pattern) as caught:
            import_data(kind, [str(path) for path in paths], str(out), **options)
        assert "\n" not in str(caught.value)
        assert below(tmp_path) == before

    return check


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_gives_the_same_poses_and_names(
    kind, sources, room, tmp_path, frames_of, matrices
):
    focal = {"focal_px": FOCAL} if kind == "tum" else {}
    text = import_data(
        kind, [str(sources[kind])], str(tmp_path / "own"), split=ALL_BUT_MARGIN, **focal
    )
    frames = frames_of(tmp_path / "own").set_index("image")
    assert set(frames.index) == set(room.names)
    np.testing.assert_allclose(matrices(frames.loc[room.names]), room.pose_B44, atol=1e-6)
    assert set(frames["scene"]) == {"studio"}
    assert set(frames["sequence"]) == {"walk 1", "walk 2"}
    np.testing.assert_allclose(frames["focal_px"], FOCAL)
    card = read_card(tmp_path / "own" / "own.yaml")
    assert (card.name, card.format, card.ground_truths) == ("own", "label-csv", (kind,))
    assert card.label_convention == "camera-to-world"
    assert card.focal_px == FOCAL
    assert card.scene_facts["studio"].frames == {"train": 24, "test": 6}
    for image in frames.index:
        assert (card.root / image).is_file()
    for said in (
        "studio",
        "24",
        "1 metres per unit",
        "mspose data check",
        "mspose train",
        str(card.path),
    ):
        assert said in text


def test_the_order_in_the_labels_is_that_of_the_sequence(sources, tmp_path):
    for kind in KINDS:
        import_data(kind, [str(sources[kind])], str(tmp_path / kind), split=ALL_BUT_MARGIN)
        labels = pd.read_csv(tmp_path / kind / "labels.csv")
        expected = [f"walk {walk}/frame-{number}.jpg" for walk in (1, 2) for number in range(15)]
        assert labels["img_path"].tolist() == expected, kind


def test_scale_is_metres_per_unit(sources, room, tmp_path, frames_of):
    text = import_data(
        "colmap", [str(sources["colmap"])], str(tmp_path / "own"), split=ALL_BUT_MARGIN, scale=2.5
    )
    frames = frames_of(tmp_path / "own").set_index("image").loc[room.names]
    np.testing.assert_allclose(frames[["tx", "ty", "tz"]], 2.5 * room.pose_B44[:, :3, 3], atol=1e-9)
    assert "scale: 2.5 metres per unit" in text
    plain = import_data("colmap", [str(sources["colmap"])], str(tmp_path / "plain"))
    assert "no metres of its own: give --scale" in plain
    assert "no metres of its own" not in import_data(
        "tum", [str(sources["tum"])], str(tmp_path / "metric")
    )


def test_several_folders_become_scenes_of_one_data_set(sources, room, tmp_path, frames_of):
    other = tmp_path / "Küche №2" / "sparse"
    write_colmap(
        other.parent,
        replace(room, files=room.files[:15], names=room.names[:15], pose_B44=room.pose_B44[:15]),
    )
    import_data(
        "colmap",
        [str(sources["colmap"]), str(other / "0")],
        str(tmp_path / "own"),
        split=ALL_BUT_MARGIN,
    )
    frames = frames_of(tmp_path / "own")
    assert frames["scene"].value_counts().to_dict() == {"studio": 30, "Kuche-No2": 15}
    card = read_card(tmp_path / "own" / "own.yaml")
    assert card.scenes == ("Kuche-No2", "studio")
    for image in frames["image"]:
        assert (card.root / image).is_file()
    numbered = tmp_path / "01"
    write_nerfstudio(numbered, room)
    assert "| 01 " in import_data(
        "nerfstudio", [str(numbered / "..") + "/01/"], str(tmp_path / "numbers")
    )
    import_data(
        "colmap", [str(sources["colmap"]), str(other)], str(tmp_path / "named"), scenes=["a", "b.2"]
    )
    assert set(frames_of(tmp_path / "named")["scene"]) == {"a", "b.2"}
    dense = other.parent / "dense" / "0" / "sparse"
    shutil.copytree(other / "0", dense)
    assert "| Kuche-No2 " in import_data("colmap", [str(dense)], str(tmp_path / "dense"))


def test_copied_images_make_a_folder_that_can_travel(room, tmp_path, frames_of):
    for number, name in enumerate(("a", "b")):
        write_nerfstudio(
            tmp_path / "raw" / name, replace(room, pose_B44=np.roll(room.pose_B44, number, axis=0))
        )
    import_data(
        "nerfstudio",
        [str(tmp_path / "raw" / name) for name in "ab"],
        str(tmp_path / "own"),
        copy=True,
        split=ALL_BUT_MARGIN,
    )
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "own").rename(tmp_path / "own-moved")
    frames = frames_of(tmp_path / "own-moved")
    card = read_card(tmp_path / "own-moved" / "own.yaml")
    assert set(frames["image"]) == {f"{scene}/{name}" for scene in "ab" for name in room.names}
    for scene in "ab":
        for file, name in zip(room.files, room.names, strict=True):
            assert (card.root / scene / name).read_bytes() == file.read_bytes()
    assert (tmp_path / "own-moved").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_not_on_disk(kind, room, tmp_path, refused, frames_of):
    WRITE[kind](tmp_path / "studio", room)
    gone = [path for path in (tmp_path / "studio").rglob("frame-[37].jpg") if "walk 2" in str(path)]
    for path in gone:
        path.unlink()
    if (
        kind != "nerfstudio"
    ):  # whose entries without image are often what a user threw away on purpose
        refused(
            r"2 of its 30 images are not on disk \(searched walk 2/frame-3.jpg in .*--missing"
            r" skip",
            kind,
            tmp_path / "studio",
        )
    options = {} if kind == "nerfstudio" else {"missing": "skip"}
    text = import_data(
        kind, [str(tmp_path / "studio")], str(tmp_path / "own"), split=ALL_BUT_MARGIN, **options
    )
    assert "left out, no such image: 2: walk 2/frame-3.jpg, walk 2/frame-7.jpg" in text
    assert len(frames_of(tmp_path / "own")) == 28
    left_out = pd.read_csv(tmp_path / "own" / "left_out.csv")
    assert left_out.values.tolist() == [
        ["studio", f"walk 2/frame-{n}.jpg", "no such image"] for n in (3, 7)
    ]
    refused(
        "2 of its 30 images are not on disk",
        kind,
        tmp_path / "studio",
        missing="stop",
        out=tmp_path / "no",
    )
    for path in (tmp_path / "studio").rglob("*.jpg"):
        path.unlink()
    refused(
        "none of its 30 images is on disk.*--images FOLDER",
        kind,
        tmp_path / "studio",
        missing="skip",
        out=tmp_path / "no",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_images_may_lie_elsewhere(kind, room, tmp_path, frames_of, refused):
    WRITE[kind](tmp_path / "studio", room)
    for path in (tmp_path / "studio").rglob("*.jpg"):
        path.unlink()
    room.copy_images(tmp_path / "elsewhere")
    images = [str(tmp_path / "elsewhere")]
    import_data(kind, [str(tmp_path / "studio")], str(tmp_path / "own"), images=images)
    assert set(frames_of(tmp_path / "own")["image"]) <= set(room.names)
    assert read_card(tmp_path / "own" / "own.yaml").root == tmp_path / "elsewhere"
    refused(
        "there is no folder .*nowhere",
        kind,
        tmp_path / "studio",
        images=["nowhere"],
        out=tmp_path / "no",
    )
    refused(
        "--images: 2 given for 1 paths",
        kind,
        tmp_path / "studio",
        images=images * 2,
        out=tmp_path / "no",
    )


def test_focal_lengths_belong_to_the_images_that_are_there(room, tmp_path, frames_of):
    """A model of large images whose small copies are used."""
    write_colmap(
        tmp_path / "studio", room, camera=f"PINHOLE 192 144 {4 * FOCAL} {4 * FOCAL + 8} 96 72"
    )
    text = import_data("colmap", [str(tmp_path / "studio")], str(tmp_path / "own"))
    assert set(frames_of(tmp_path / "own")["focal_px"]) == {FOCAL + 1}
    assert (
        "images are 48x36 pixels, their camera model is of 192x144: focal lengths are scaled by"
        " 0.25" in text
    )
    import_data("colmap", [str(tmp_path / "studio")], str(tmp_path / "said"), focal_px=99.0)
    assert set(frames_of(tmp_path / "said")["focal_px"]) == {99}
    write_colmap(tmp_path / "turned", room, camera="SIMPLE_PINHOLE 36 48 40 24 18")
    text = import_data("colmap", [str(tmp_path / "turned")], str(tmp_path / "as-they-are"))
    assert set(frames_of(tmp_path / "as-they-are")["focal_px"]) == {40}
    assert (
        "their camera model is of 36x48, cropped or turned: focal lengths are left as they are"
        in text
    )


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_are_not_what_they_should_be(kind, sources, refused, tmp_path):
    refused("there is no folder .*nowhere", kind, tmp_path / "nowhere")
    (tmp_path / "studio.zip").write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / "studio", "w") as archive:
        archive.writestr("transforms.json", "{}")
    for name in ("studio.zip", "studio"):
        refused(f"{name} is an archive: unpack it first", kind, tmp_path / name)
    (tmp_path / "notes.txt").write_text("a file")
    refused("notes.txt is a file: give the folder", kind, tmp_path / "notes.txt")
    refused("/dev/null is a file: give the folder", kind, "/dev/null")
    (tmp_path / "empty").mkdir()
    refused("empty", kind, tmp_path / "empty")
    for other in KINDS:
        if other != kind:
            refused(f"try mspose data import {other} ", kind, sources[other])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.JPG").write_bytes(b"")
    refused("there are images without poses: reconstruct them first", kind, tmp_path / "photos")
    (tmp_path / "empty" / "data.tar.gz").write_bytes(b"")
    refused("data.tar.gz is there: unpack it first", kind, tmp_path / "empty")


def test_folders_to_write_that_are_not_free(sources, refused, tmp_path, room):
    source = sources["colmap"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    refused("--out: .*full is not empty", "colmap", source, out=tmp_path / "full")
    (tmp_path / "file").write_text("")
    refused("--out: .*file is a file", "colmap", source, out=tmp_path / "file")
    refused("cannot write .*file/own", "colmap", source, out=tmp_path / "file" / "own")
    refused(
        "the folder's name is the data set's, and 'my rooms' is not plain",
        "colmap",
        source,
        out=tmp_path / "my rooms",
    )
    refused("there is a data set 7scenes already", "colmap", source, out=tmp_path / "7scenes")
    import_data("colmap", [str(source)], str(tmp_path / "own"))
    refused("own is not empty", "colmap", source, out=tmp_path / "own")
    (tmp_path / "free").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "free")
    import_data("colmap", [str(source)], str(tmp_path / "link"))
    assert (tmp_path / "free" / "free.yaml").is_file()


def test_names_of_scenes_that_do_not_do(sources, refused, room, tmp_path):
    source = sources["colmap"]
    refused("would both be scene studio; name the scenes with --scenes", "colmap", source, source)
    refused("would both be scene a", "colmap", source, source, scenes=["a", "a"])
    refused("--scenes: 'a b' is not a plain name", "colmap", source, scenes=["a b"])
    refused("--scenes: 1 given for 2 paths", "colmap", source, source, scenes=["a"])
    refused("image .*frame-0.jpg is there twice", "colmap", source, source, scenes=["a", "b"])
    write_colmap(tmp_path / "居間", room)
    refused("居間 does not end in a plain name .*--scenes", "colmap", tmp_path / "居間")


@pytest.mark.parametrize("option", ["trajectory", "image_list", "tolerance"])
def test_options_of_tum_are_refused_elsewhere(option, sources, refused):
    value = 0.1 if option == "tolerance" else ["x"]
    refused(
        f"--{option} belongs to tum: with colmap it is without effect",
        "colmap",
        sources["colmap"],
        **{option: value},
    )


def test_names_that_a_label_file_cannot_hold(room, tmp_path, refused):
    few = Room(room.files[:6], [f"{number}.jpg" for number in range(6)], room.pose_B44[:6])
    file = write_nerfstudio(tmp_path / "studio", few)
    for name in (b" 3.jpg", b"3\xff.jpg"):
        content = json.loads(file.read_text())
        content["frames"][3]["file_path"] = os.fsdecode(name)
        shutil.copy(tmp_path / "studio" / "3.jpg", tmp_path / "studio" / os.fsdecode(name))
        file.write_text(json.dumps(content))
        refused(
            "cannot stand in a label file .*rename it",
            "nerfstudio",
            file,
            split=SplitBy(block=1, margin=0),
        )


def test_odd_names_of_folders_and_images_come_back(room, tmp_path, frames_of):
    names = [
        'a, "quoted".jpg',
        "zwölf  blanks.jpg",
        "#5.jpg",
        "line\nbreak.jpg",
        "5².jpg",
        "~x.jpg",
    ]
    few = Room(room.files[:6], names, room.pose_B44[:6])
    file = write_nerfstudio(tmp_path / "two  blanks: [a] #b", few)
    import_data("nerfstudio", [str(file)], str(tmp_path / "own"), split=SplitBy(block=1, margin=0))
    frames = frames_of(tmp_path / "own")
    card = read_card(tmp_path / "own" / "own.yaml")
    assert {Path(image).name for image in frames["image"]} == set(names)
    assert all((card.root / image).is_file() for image in frames["image"])
    assert card.scenes == ("two-blanks-a-b",)


@pytest.mark.parametrize("kind", KINDS)
def test_links_keep_their_names_wherever_one_stands(kind, room, tmp_path, frames_of, monkeypatch):
    """Images may be links into a store of blobs; a path with `..` in it must not follow them."""
    WRITE[kind](tmp_path / "studio", room)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "studio")
    for number, image in enumerate(sorted((tmp_path / "studio").rglob("*.jpg"))):
        image.rename(tmp_path / "blobs" / f"{number}")
        image.symlink_to(tmp_path / "blobs" / f"{number}")
    monkeypatch.chdir(tmp_path / "blobs")
    for number, path in enumerate(("../studio", "../linked/../studio", "../linked")):
        own = tmp_path / f"own-{number}"
        import_data(kind, [path], str(own), scenes=["hall"], split=ALL_BUT_MARGIN)
        frames = frames_of(own)
        assert set(frames["image"]) == set(room.names)
        (card,) = own.glob("*.yaml")
        assert ".." not in read_card(card).root.parts


def test_an_import_that_breaks_off_leaves_nothing(sources, tmp_path, refused, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mspose.tools.importing.data_set_folder.shutil.copyfile", full)
    refused(
        "cannot write .*: No space left on device; nothing was written",
        "colmap",
        sources["colmap"],
        copy=True,
    )


def test_poses_that_are_none_stop_or_are_left_out(room, tmp_path, refused, frames_of):
    file = write_nerfstudio(tmp_path / "studio", room)
    content = json.loads(file.read_text())
    content["frames"][4]["transform_matrix"][0][0] = float("nan")
    content["frames"][9]["transform_matrix"] = (np.diag([2, 2, 2, 1]) @ room.pose_B44[9]).tolist()
    file.write_text(json.dumps(content))
    refused(
        r"frame 4 \(walk 1/frame-4.jpg\): the pose holds NaN.*--on-bad-frame skip",
        "nerfstudio",
        file,
    )
    text = import_data(
        "nerfstudio", [str(file)], str(tmp_path / "own"), on_bad_frame="skip", split=ALL_BUT_MARGIN
    )
    assert "left out, bad pose: 2: walk 1/frame-4.jpg, walk 1/frame-9.jpg" in text
    assert len(frames_of(tmp_path / "own")) == 28
    reasons = pd.read_csv(tmp_path / "own" / "left_out.csv")["reason"]
    assert reasons[0].startswith("bad pose: ")
    assert reasons[0].endswith("frame 4 (walk 1/frame-4.jpg): the pose holds NaN or infinity")
    assert "frame 9 (walk 1/frame-9.jpg): the pose is not a rotation" in reasons[1]


def test_all_is_accepted_by_the_loader_of_label_files(sources, tmp_path):
    """The card's own facts agree with what the files hold."""
    import_data("kapture", [str(sources["kapture"])], str(tmp_path / "own"))
    card = yaml.safe_load((tmp_path / "own" / "own.yaml").read_text())
    for split in ("train", "test"):
        frames = load_frames(read_card(tmp_path / "own" / "own.yaml"), split=split)
        assert len(frames) == card["scenes"]["studio"]["frames"][split] > 0
