"""Import in every format: the same poses after a round trip; bad input is one line."""

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
    ALL,
    FOCAL,
    NAMING,
    WRITE,
    Room,
    matrices,
    write_colmap,
    write_nerfstudio,
)
from tools.importing.test_nerfstudio import rewrite

from mspose.data.cards import read_card
from mspose.tools.importing.importer import KINDS


@pytest.fixture(scope="module")
def sources(room, tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind with the same frames; not to be changed."""
    folders = {kind: tmp_path_factory.mktemp(kind) / "studio" for kind in KINDS}
    for kind, folder in folders.items():
        folder.mkdir()
        WRITE[kind](folder, room)
    return folders


@pytest.fixture(params=NAMING)
def studio(request, room, tmp_path) -> tuple[str, Path]:
    """(kind, a folder of it), for each kind; it may be changed."""
    WRITE[request.param](tmp_path / "studio", room)
    return request.param, tmp_path / "studio"


@pytest.mark.parametrize("kind", NAMING)
def test_a_round_trip_gives_the_same_poses_and_names(kind, sources, room, tmp_path, imported):
    focal = {"focal_px": FOCAL} if kind == "tum" else {}
    text, frames, card = imported(kind, sources[kind], **ALL, **focal)
    assert set(frames.index) == set(room.names)
    np.testing.assert_allclose(matrices(frames.loc[room.names]), room.pose_B44, atol=1e-6)
    assert set(frames["scene"]) == {"studio"}
    assert set(frames["sequence"]) == {"walk 1", "walk 2"}
    np.testing.assert_allclose(frames["focal_px"], FOCAL)
    assert (card.name, card.format, card.ground_truths) == ("own", "label-csv", [kind])
    assert (card.label_convention, card.focal_px) == ("camera-to-world", FOCAL)
    assert card.scene_facts["studio"].frames == {"train": 24, "test": 6}
    assert all((card.root / image).is_file() for image in frames.index)
    assert pd.read_csv(tmp_path / "own" / "labels.csv")["img_path"].tolist() == room.names
    metric = kind in ("tum", "kapture")
    assert ("has no metres of its own: give --scale" in text) is not metric
    for words in ("1 metres per unit", "mspose data check", "mspose train", str(card.path)):
        assert words in text


def test_scale_is_metres_per_unit(sources, room, imported):
    text, frames, _ = imported("colmap", sources["colmap"], **ALL, scale=2.5)
    position_B3 = frames.loc[room.names, ["tx", "ty", "tz"]]
    np.testing.assert_allclose(position_B3, 2.5 * room.pose_B44[:, :3, 3], atol=1e-9)
    assert "scale: 2.5 metres per unit" in text


def test_several_folders_become_scenes_of_one_data_set(sources, room, tmp_path, imported):
    kitchen = tmp_path / "Küche №2"
    few = {name: getattr(room, name)[:15] for name in ("files", "names", "pose_B44")}
    model = write_colmap(kitchen, replace(room, **few))
    studio = sources["colmap"]
    _, frames, card = imported("colmap", studio, model, **ALL)
    assert frames["scene"].value_counts().to_dict() == {"studio": 30, "Kuche-No2": 15}
    assert list(card.scenes) == ["Kuche-No2", "studio"]
    assert all((card.root / image).is_file() for image in frames.index)
    _, frames, _ = imported("colmap", studio, model.parent, scenes=["a", "b.2"], out="named")
    assert set(frames["scene"]) == {"a", "b.2"}
    dense = kitchen / "dense" / "0" / "sparse"
    shutil.copytree(model, dense)
    assert "| Kuche-No2 " in imported("colmap", dense, out="dense")[0]
    write_nerfstudio(tmp_path / "01", room)
    assert "| 01 " in imported("nerfstudio", f"{tmp_path}/01/../01/", out="numbers")[0]


def test_copied_images_make_a_folder_that_can_travel(room, tmp_path, imported):
    raw = [tmp_path / "raw" / name for name in "ab"]
    for number, folder in enumerate(raw):
        write_nerfstudio(folder, replace(room, pose_B44=np.roll(room.pose_B44, number, axis=0)))
    _, frames, _ = imported("nerfstudio", *raw, copy=True, **ALL)
    shutil.rmtree(tmp_path / "raw")
    moved = (tmp_path / "own").rename(tmp_path / "own-moved")
    root = read_card(moved / "own.yaml").root
    assert set(frames.index) == {f"{scene}/{name}" for scene in "ab" for name in room.names}
    for scene in "ab":
        for file, name in zip(room.files, room.names, strict=True):
            assert (root / scene / name).read_bytes() == file.read_bytes()
    (tmp_path / "plain").mkdir()
    assert moved.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_images_that_are_not_on_disk(studio, tmp_path, refused, imported):
    kind, folder = studio
    for path in folder.rglob("walk 2/frame-[37].jpg"):
        path.unlink()
    message = (
        r"2 of its 30 images are not on disk \(searched walk 2/frame-3.jpg in .*--missing skip"
    )
    refused(message, kind, folder, missing="stop")
    if kind != "nerfstudio":  # whose entries without image were often deleted on purpose
        refused(message, kind, folder)
    options = {} if kind == "nerfstudio" else {"missing": "skip"}
    text, frames, _ = imported(kind, folder, **ALL, **options)
    assert "left out, no such image: 2: walk 2/frame-3.jpg, walk 2/frame-7.jpg" in text
    assert len(frames) == 28
    left_out = pd.read_csv(tmp_path / "own" / "left_out.csv").to_numpy().tolist()
    assert left_out == [["studio", f"walk 2/frame-{n}.jpg", "no such image"] for n in (3, 7)]
    for path in folder.rglob("*.jpg"):
        path.unlink()
    message = "none of its 30 images is on disk.*--images FOLDER"
    refused(message, kind, folder, missing="skip")


def test_images_may_be_in_another_folder(studio, room, tmp_path, imported, refused):
    kind, folder = studio
    for path in folder.rglob("*.jpg"):
        path.unlink()
    room.copy_images(tmp_path / "elsewhere")
    images = [str(tmp_path / "elsewhere")]
    _, frames, card = imported(kind, folder, images=images)
    assert set(frames.index) <= set(room.names)
    assert card.root == tmp_path / "elsewhere"
    refused("there is no folder .*nowhere", kind, folder, images=["nowhere"])
    (tmp_path / "others").mkdir()
    shutil.copy(room.files[0], tmp_path / "others" / "else.jpg")
    message = "others holds 1 images, such as else.jpg: name its files as the poses do"
    refused(message, kind, folder, images=[str(tmp_path / "others")])
    refused("--images: 2 given for 1 paths", kind, folder, images=images * 2)


def test_focal_lengths_belong_to_the_images_that_are_there(room, tmp_path, imported):
    """A model of large images whose small copies are used."""
    camera = f"PINHOLE 192 144 {4 * FOCAL} {4 * FOCAL + 8} 96 72"
    write_colmap(tmp_path / "studio", room, camera=camera)
    write_colmap(tmp_path / "turned", room, camera="SIMPLE_PINHOLE 36 48 40 24 18")
    for name, focal_px, expected, words in (
        ("studio", None, FOCAL + 1, "model is of 192x144: focal lengths are scaled by 0.25"),
        ("studio", 99.0, 99, "focal lengths are scaled"),
        ("turned", None, 40, "cropped or turned: focal lengths are left as they are"),
    ):
        out = f"{name}-{focal_px}"
        text, frames, _ = imported("colmap", tmp_path / name, focal_px=focal_px, out=out)
        assert set(frames["focal_px"]) == {expected}
        assert words in text


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_are_not_what_they_should_be(kind, sources, refused, tmp_path):
    refused("there is no folder .*nowhere", kind, tmp_path / "nowhere")
    (tmp_path / "studio.zip").write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / "studio", "w") as archive:
        archive.writestr("transforms.json", "{}")
    for name in ("studio.zip", "studio"):
        refused(f"{name} is an archive: unpack it first", kind, tmp_path / name)
    refused("/dev/null is a file: give the folder", kind, "/dev/null")
    (tmp_path / "empty").mkdir()
    refused("empty", kind, tmp_path / "empty")
    for other in set(KINDS) - {kind}:
        refused(f"try mspose data import {other} ", kind, sources[other])
    for name, message in (
        ("1.JPG", "there are images without poses: reconstruct them first"),
        ("data.tar.gz", "data.tar.gz is there: unpack it first"),
    ):
        (tmp_path / "empty" / name).write_bytes(b"")
        refused(message, kind, tmp_path / "empty")


def test_folders_to_write_that_are_not_free(sources, refused, imported, tmp_path):
    source = sources["colmap"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for out, message in (
        ("full", "--out: .*full is not empty"),
        ("file", "--out: .*file is a file"),
        ("file/own", "cannot write .*file/own"),
        ("my rooms", "the folder's name is the data set's, and 'my rooms' is not plain"),
        ("7scenes", "there is a data set 7scenes already"),
    ):
        refused(message, "colmap", source, out=out)
    (tmp_path / "free").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "free")
    imported("colmap", source, out="link")
    assert (tmp_path / "free" / "free.yaml").is_file()


def test_names_of_scenes_that_do_not_do(sources, refused, room, tmp_path):
    source = sources["colmap"]
    refused("would both be scene studio; name the scenes with --scenes", "colmap", source, source)
    refused("--scenes: 'a b' is not a plain name", "colmap", source, scenes=["a b"])
    refused("--scenes: 1 given for 2 paths", "colmap", source, source, scenes=["a"])
    refused("image .*frame-0.jpg is there twice", "colmap", source, source, scenes=["a", "b"])
    write_colmap(tmp_path / "居間", room)
    refused("居間 does not end in a plain name .*--scenes", "colmap", tmp_path / "居間")


@pytest.mark.parametrize(
    "option", [{"trajectory": ["x"]}, {"image_list": ["x"]}, {"tolerance": 0.1}]
)
def test_options_of_tum_are_refused_elsewhere(option, sources, refused):
    name = next(iter(option)).replace("_", "-")
    message = f"--{name} belongs to tum.*: with colmap it is without effect"
    refused(message, "colmap", sources["colmap"], **option)


def test_names_that_a_label_file_cannot_hold(room, tmp_path, refused):
    few = Room(room.files[:6], [f"{number}.jpg" for number in range(6)], room.pose_B44[:6])
    file = write_nerfstudio(tmp_path / "studio", few)
    for name in (b" 3.jpg", b"3\xff.jpg"):
        name = os.fsdecode(name)
        shutil.copy(tmp_path / "studio" / "3.jpg", tmp_path / "studio" / name)
        rewrite(file, lambda old, name=name: name if "3" in old else old)
        message = "cannot stand in a label file .*rename it"
        refused(message, "nerfstudio", file, block=1, margin=0)


def test_odd_names_of_folders_and_images_come_back(room, tmp_path, imported):
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
    _, frames, card = imported("nerfstudio", file, block=1, margin=0)
    assert {Path(image).name for image in frames.index} == set(names)
    assert all((card.root / image).is_file() for image in frames.index)
    assert list(card.scenes) == ["two-blanks-a-b"]


def test_links_keep_their_names_in_any_working_folder(
    studio, room, tmp_path, imported, monkeypatch
):
    """Images may be links into a store of blobs; a path with `..` in it must not follow them."""
    kind, folder = studio
    (tmp_path / "blobs").mkdir()
    (tmp_path / "linked").symlink_to(folder)
    for number, image in enumerate(sorted(folder.rglob("*.jpg"))):
        image.rename(tmp_path / "blobs" / f"{number}")
        image.symlink_to(tmp_path / "blobs" / f"{number}")
    monkeypatch.chdir(tmp_path / "blobs")
    for number, path in enumerate(("../studio", "../linked/../studio", "../linked")):
        _, frames, card = imported(kind, path, scenes=["hall"], **ALL, out=f"own-{number}")
        assert set(frames.index) == set(room.names)
        assert ".." not in card.root.parts


def test_an_import_that_breaks_off_leaves_nothing(sources, refused, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mspose.tools.importing.data_set_folder.shutil.copyfile", full)
    message = "cannot write .*: No space left on device; nothing was written"
    refused(message, "colmap", sources["colmap"], copy=True)


def test_bad_poses_stop_or_are_left_out(room, tmp_path, refused, imported):
    file = write_nerfstudio(tmp_path / "studio", room)
    frames = rewrite(file)["frames"]
    frames[4]["transform_matrix"][0][0] = float("nan")
    frames[9]["transform_matrix"] = (np.diag([2, 2, 2, 1]) @ room.pose_B44[9]).tolist()
    rewrite(file, frames=frames)
    message = r"frame 4 \(walk 1/frame-4.jpg\): the pose holds NaN.*--on-bad-frame skip"
    refused(message, "nerfstudio", file)
    text, frames, card = imported("nerfstudio", file, on_bad_frame="skip", **ALL)
    assert "left out, bad pose: 2: walk 1/frame-4.jpg, walk 1/frame-9.jpg" in text
    facts = yaml.safe_load(card.path.read_text())["scenes"]["studio"]["frames"]
    assert frames["split"].value_counts().to_dict() == facts
    reasons = pd.read_csv(tmp_path / "own" / "left_out.csv")["reason"]
    assert reasons[0].startswith("bad pose: ")
    assert reasons[0].endswith("frame 4 (walk 1/frame-4.jpg): the pose holds NaN or infinity")
    assert "frame 9 (walk 1/frame-9.jpg): the pose is not a rotation" in reasons[1]


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "{outside}/secret.jpg", "link.jpg", "in/secret.jpg"]
)
def test_only_images_of_the_folders_given_are_copied(room, tmp_path, refused, name):
    write_nerfstudio(tmp_path / "scan", room)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(room.files[0].read_bytes())
    (tmp_path / "scan/link.jpg").symlink_to(secret)
    (tmp_path / "scan/in").symlink_to(tmp_path)
    file = tmp_path / "scan/transforms.json"
    content = json.loads(file.read_text())
    content["frames"][0]["file_path"] = name.format(outside=tmp_path)
    file.write_text(json.dumps(content))
    refused(r"secret\.jpg|link\.jpg", "nerfstudio", tmp_path / "scan", copy=True)
    assert not (tmp_path / "own").exists()
