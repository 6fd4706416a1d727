import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tools.importing.builders import FOCAL, SIZE, Room, write_nerfstudio

from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.tools.importing.views import stacked
from mspose.tools.importing.importer import import_data
from mspose.tools.importing.nerfstudio import read_nerfstudio
from mspose.tools.importing.splits import SplitBy


def read(path: Path, focal_px: float | None = None):
    return read_nerfstudio(path, None, focal_px=focal_px)


def rewrite(file: Path, **changes) -> dict:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return content


def test_a_camera_that_looks_along_minus_z_in_opengl_looks_along_plus_z_here(tmp_path, room):
    """The unit matrix: x right, y up, looking along -z."""
    one = Room(room.files[:1], ["0.jpg"], np.diag([1.0, -1, -1, 1])[None])
    content = json.loads(write_nerfstudio(tmp_path, one).read_text())
    assert content["frames"][0]["transform_matrix"] == np.eye(4).tolist()
    (view,) = read(tmp_path).views
    np.testing.assert_array_equal(view.orientation @ [0, 0, 1], [0, 0, -1])  # forward
    np.testing.assert_array_equal(view.orientation @ [0, 1, 0], [0, -1, 0])  # down
    np.testing.assert_array_equal(view.orientation @ [1, 0, 0], [1, 0, 0])


def test_the_file_or_its_folder(tmp_path, room):
    file = write_nerfstudio(tmp_path, room)
    assert (
        [view.image for view in read(file).views]
        == [view.image for view in read(tmp_path).views]
        == room.names
    )
    other = file.rename(tmp_path / "cameras.json")
    assert len(read(other).views) == 30


@pytest.mark.parametrize("style", ["./{}", ".\\{}", "without ending", "absolute", "above"])
def test_file_paths_as_tools_write_them(style, tmp_path, room, frames_of):
    file = write_nerfstudio(tmp_path / "studio", room)
    content = json.loads(file.read_text())
    for frame, name in zip(content["frames"], room.names, strict=True):
        frame["file_path"] = {
            "without ending": name.removesuffix(".jpg"),
            "absolute": str(tmp_path / "studio" / name),
            "above": f"../studio/{name}",
        }.get(style, style.format(name).replace("/", style[1]))
    file.write_text(json.dumps(content))
    import_data(
        "nerfstudio",
        [str(tmp_path / "studio")],
        str(tmp_path / "own"),
        split=SplitBy(block=3, margin=0),
    )
    ends = {image.removeprefix("studio/") for image in frames_of(tmp_path / "own")["image"]}
    assert ends == set(room.names)


def test_full_paths_that_lead_elsewhere(tmp_path, room, frames_of):
    """The root is what the images have in common, not what they have in common with
    transforms.json.
    """
    content = json.loads(write_nerfstudio(tmp_path / "studio", room).read_text())
    room.copy_images(tmp_path / "disk" / "walks")
    for frame in content["frames"]:
        frame["file_path"] = str(tmp_path / "disk" / "walks" / frame["file_path"])
    (tmp_path / "cameras").mkdir()
    (tmp_path / "cameras" / "transforms.json").write_text(json.dumps(content))
    for copy, folder in (
        (False, tmp_path / "disk" / "walks"),
        (True, tmp_path / "copied" / "images" / "cameras"),
    ):
        out = tmp_path / ("copied" if copy else "own")
        import_data(
            "nerfstudio",
            [str(tmp_path / "cameras")],
            str(out),
            copy=copy,
            split=SplitBy(block=3, margin=0),
        )
        (card,) = out.glob("*.yaml")
        root = read_card(card).root
        assert {root / image for image in frames_of(out)["image"]} == {
            folder / name for name in room.names
        }
        assert copy or root == folder


def test_an_ending_is_not_mistaken_for_part_of_a_name(tmp_path, room):
    """`r.01` is the image r.01.jpg, not r.jpg."""
    write_nerfstudio(
        tmp_path, Room(room.files[:3], ["r.jpg", "r.01.jpg", "r.02.jpg"], room.pose_B44[:3])
    )
    content = json.loads((tmp_path / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["file_path"] = frame["file_path"].removesuffix(".jpg")
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    assert [view.file.name for view in read(tmp_path).views] == ["r.jpg", "r.01.jpg", "r.02.jpg"]


def test_intrinsics_of_all_and_of_single_frames(tmp_path, room):
    angle = 2 * math.atan(SIZE[0] / 2 / FOCAL)
    focal = lambda: [view.focal_px for view in read(tmp_path).views]  # noqa: E731
    file = write_nerfstudio(tmp_path, room, fl_x=30, fl_y=34, w=48)
    assert set(focal()) == {32}
    content = rewrite(file)
    content["frames"][3] |= {"fl_x": 50.0}
    content["frames"][4] |= {"camera_angle_x": angle, "w": 96}
    file.write_text(json.dumps(content))
    np.testing.assert_allclose(focal()[2:6], [32, 50, 2 * FOCAL, 32])
    rewrite(file, fl_x=None, fl_y=None, w=None, camera_angle_x=angle)
    np.testing.assert_allclose(focal()[:3], FOCAL)  # the width is the image's own
    np.testing.assert_allclose(focal()[4], 2 * FOCAL)
    up_angle = 2 * math.atan(SIZE[1] / 2 / FOCAL)
    rewrite(file, camera_angle_x=None, camera_angle_y=up_angle)
    np.testing.assert_allclose(focal()[:3], FOCAL)
    rewrite(file, camera_angle_y=None)
    assert np.isnan(focal()).sum() == 28  # known for the two frames that say it


@pytest.mark.parametrize(
    "camera",
    [
        {"fl_x": -5},
        {"fl_x": 0},
        {"fl_x": math.inf},
        {"camera_angle_x": 0.0, "w": 48},
        {"fl_x": "40"},
    ],
)
def test_impossible_focal_lengths(camera, tmp_path, room):
    write_nerfstudio(tmp_path / "studio", room, **camera)
    with pytest.raises(
        MsposeError, match="frame 0 .*(a focal length of .* pixels is impossible|is not a number)"
    ):
        import_data("nerfstudio", [str(tmp_path / "studio")], str(tmp_path / "own"))


def test_without_a_camera_model(tmp_path, room, frames_of):
    write_nerfstudio(tmp_path / "studio", room, up=[0, 0, 1])
    with pytest.raises(
        MsposeError, match=r"transforms.json has no camera model \(fl_x or camera_angle_x\)"
    ) as caught:
        read(tmp_path / "studio")
    assert "\n" not in str(caught.value)
    import_data("nerfstudio", [str(tmp_path / "studio")], str(tmp_path / "own"), focal_px=41.0)
    assert set(frames_of(tmp_path / "own")["focal_px"]) == {41.0}


def test_splits_that_the_files_name(tmp_path, room, frames_of):
    """Lists in transforms.json are taken only when asked for: they are often every n-th frame."""
    file = write_nerfstudio(tmp_path / "studio", room)
    test = [f"./{name}" for name in room.names[3:30:9]]
    rewrite(
        file,
        test_filenames=test,
        train_filenames=[name for name in room.names[:28] if f"./{name}" not in test],
    )
    text = import_data("nerfstudio", [str(file)], str(tmp_path / "blocks"))
    assert "the files have a split of their own: --split given takes it" in text
    text = import_data("nerfstudio", [str(file)], str(tmp_path / "own"), split=SplitBy("given"))
    frames = frames_of(tmp_path / "own").set_index("image")
    assert set(frames.index[frames["split"] == "test"]) == set(room.names[3:30:9])
    assert len(frames) == 28
    assert "left out, in no split: 2: walk 2/frame-13.jpg, walk 2/frame-14.jpg" in text
    rewrite(file, test_filenames=None, train_filenames=None)
    with pytest.raises(MsposeError, match="--split given: the files name no split"):
        import_data("nerfstudio", [str(file)], str(tmp_path / "no"), split=SplitBy("given"))


def test_blenders_files(tmp_path, room, frames_of):
    angle = {"camera_angle_x": 2 * math.atan(SIZE[0] / 2 / FOCAL)}
    for split, rows in (("train", slice(0, 20)), ("val", slice(20, 22)), ("test", slice(22, 30))):
        part = Room(
            room.files[rows],
            [f"{split}/r_{n}.jpg" for n in range(len(room.files[rows]))],
            room.pose_B44[rows],
        )
        file = write_nerfstudio(tmp_path / "lego", part, f"transforms_{split}.json", **angle)
        file.write_text(file.read_text().replace(".jpg", ""))
    text = import_data(
        "nerfstudio", [str(tmp_path / "lego")], str(tmp_path / "own"), split=SplitBy("given")
    )
    frames = frames_of(tmp_path / "own")
    assert frames["split"].value_counts().to_dict() == {"train": 20, "test": 8}
    assert set(frames["sequence"]) == {"train", "test"}
    np.testing.assert_allclose(frames["focal_px"], FOCAL)
    assert "val" in text.splitlines()[0]


def damaged(content: dict, **frame) -> dict:
    content["frames"][2] |= frame
    return content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: {"frames": []}, "transforms.json has no frames"),
        (lambda c: {"camera": 1}, "transforms.json is not a transforms.json: it has no list of frames"),
        (lambda c: [1], "it has no list of frames"),
        (lambda c: {**c, "frames": [1]}, "it has no list of frames"),
        (lambda c: damaged(c, file_path=3), "frame 2: file_path is missing"),
        (lambda c: damaged(c, file_path=" "), "frame 2: file_path is missing"),
        (lambda c: damaged(c, transform_matrix="x"), r"frame 2 \(walk 1/frame-2.jpg\): transform_matrix is not"),
        (lambda c: damaged(c, transform_matrix=[[1, 2], [3]]), "frame 2 .*is not a matrix of numbers"),
        (lambda c: damaged(c, transform_matrix=np.eye(3).tolist()), "frame 2 .*4x4 or 3x4"),
        (lambda c: damaged(c, transform_matrix=[[10**400] * 4] * 4), "frame 2 .*is not a matrix of numbers"),
        (lambda c: damaged(c, transform_matrix=(np.eye(4) + np.eye(4, k=-3)).tolist()), "frame 2 .*is it transposed"),
        (lambda c: damaged(c, transform_matrix=np.diag([1, 1, -1, 1]).tolist()), "not a rotation but a reflection"),
        (lambda c: damaged(c, file_path="walk 1/frame-3.jpg"), "frame-3.jpg is there twice"),
    ],
)  # fmt: skip
def test_damaged_files(damage, message, tmp_path, room):
    file = write_nerfstudio(tmp_path / "studio", room)
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(MsposeError, match=message) as caught:
        import_data("nerfstudio", [str(file)], str(tmp_path / "own"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("text", [b"", b"{", b'{"frames": [', b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_not_json(text, tmp_path):
    (tmp_path / "transforms.json").write_bytes(text)
    with pytest.raises(MsposeError, match="not JSON, or cut off|cannot read") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_three_rows_are_a_pose_too(tmp_path, room):
    file = write_nerfstudio(tmp_path, replace(room))
    content = json.loads(file.read_text())
    whole = stacked(read(file).views)
    for frame in content["frames"]:
        del frame["transform_matrix"][3]
    file.write_text(json.dumps(content))
    for first, second in zip(whole, stacked(read(file).views), strict=True):
        np.testing.assert_array_equal(first, second)


def test_what_a_reader_should_know(tmp_path, room):
    write_nerfstudio(tmp_path, room, fl_x=40, k1=0.1, applied_scale=0.5)
    distortion, scale = read(tmp_path).notes
    assert distortion == "the camera model has distortion"
    assert "applied_scale is 0.5: --scale 2 undoes it" in scale
    for camera in (
        {"camera_model": "OPENCV_FISHEYE"},
        {"is_fisheye": True},
        {"camera_model": "OPENCV", "p2": 0.1},
    ):
        content = json.loads(write_nerfstudio(tmp_path, room, fl_x=40).read_text())
        assert read(tmp_path).notes == []
        content["frames"][3] |= camera  # a camera of its own
        (tmp_path / "transforms.json").write_text(json.dumps(content))
        assert read(tmp_path).notes == ["the camera model has distortion"]
