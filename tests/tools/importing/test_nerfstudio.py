import json
import math
from pathlib import Path

import numpy as np
import pytest
from tools.importing.builders import ALL, FOCAL, SIZE, Room, write_nerfstudio

from mspose.errors import MsposeError
from mspose.tools.importing.nerfstudio import read_nerfstudio
from mspose.tools.importing.views import stacked


def read(path: Path, focal_px: float | None = None):
    return read_nerfstudio(path, None, focal_px=focal_px)


def rewrite(file: Path, name_of=None, **changes) -> dict:
    """Change entries (None: remove them) and names of images of a transforms.json."""
    content = {**json.loads(file.read_text()), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    for frame in content["frames"] if name_of else []:
        frame["file_path"] = name_of(frame["file_path"])
    file.write_text(json.dumps(content))
    return content


def part(room: Room, names: list[str], rows=slice(None)) -> Room:
    return Room(room.files[rows][: len(names)], names, room.pose_B44[rows][: len(names)])


@pytest.fixture
def studio(room, tmp_path) -> Path:
    return write_nerfstudio(tmp_path / "studio", room)


def test_a_camera_that_looks_along_minus_z_in_opengl_looks_along_plus_z_here(tmp_path, room):
    """The unit matrix: x right, y up, looking along -z."""
    one = Room(room.files[:1], ["0.jpg"], np.diag([1.0, -1, -1, 1])[None])
    content = json.loads(write_nerfstudio(tmp_path, one).read_text())
    assert content["frames"][0]["transform_matrix"] == np.eye(4).tolist()
    (view,) = read(tmp_path).views
    np.testing.assert_array_equal(view.orientation, np.diag([1, -1, -1]))


def test_the_file_or_its_folder(studio, room):
    for path in (studio, studio.parent):
        assert [view.image for view in read(path).views] == room.names
    assert len(read(studio.rename(studio.parent / "cameras.json")).views) == 30


@pytest.mark.parametrize(
    "name_of",
    [
        "./{}".format,
        lambda name: ".\\" + name.replace("/", "\\"),
        lambda name: name.removesuffix(".jpg"),
        "../studio/{}".format,
        lambda name: name.replace(".jpg", ".JPG"),
        lambda name: name.replace(".jpg", ".png"),
        lambda name: "C:\\Users\\me\\spoon\\" + name.replace("/", "\\"),
        "/home/somebody-else/render/{}".format,
    ],
    ids=["dot", "backslash", "no ending", "above", "case", "ending", "Windows", "POSIX"],
)
def test_file_paths_as_tools_write_them(name_of, studio, room, imported, request):
    rewrite(studio, name_of)
    text, frames, _ = imported("nerfstudio", studio.parent, **ALL)
    assert {image.removeprefix("studio/") for image in frames.index} == set(room.names)
    other_name = request.node.callspec.id in ("case", "ending", "Windows", "POSIX")
    assert ("30 images have other names here, such as" in text) == other_name


def test_images_whose_ending_is_in_capitals_here(studio, room, imported):
    for path in studio.parent.rglob("*.jpg"):
        path.rename(path.with_suffix(".JPG"))
    for out, name_of in (("own", str), ("other", lambda name: name.removesuffix(".jpg"))):
        rewrite(studio, name_of)
        _, frames, _ = imported("nerfstudio", studio, **ALL, out=out)
        assert all(image.endswith(".JPG") for image in frames.index)


def test_full_paths_that_lead_elsewhere(tmp_path, studio, room, imported, refused):
    """The root is common to the images, not to the images and transforms.json."""
    room.copy_images(tmp_path / "disk" / "walks")
    rewrite(studio, f"{tmp_path}/disk/walks/{{}}".format)
    (tmp_path / "cameras").mkdir()
    file = studio.rename(tmp_path / "cameras" / "transforms.json")
    _, frames, card = imported("nerfstudio", file, **ALL)
    assert card.root == tmp_path / "disk" / "walks"
    assert set(frames.index) == set(room.names)
    refused("is not copied, as it lies outside of .*--images", "nerfstudio", file, copy=True)
    given = {"copy": True, "images": [tmp_path / "disk" / "walks"]}
    _, frames, card = imported("nerfstudio", file, **ALL, out="copied", **given)
    assert card.root == tmp_path / "copied" / "images"
    assert set(frames.index) == {f"cameras/{name}" for name in room.names}


def test_an_ending_is_not_mistaken_for_part_of_a_name(tmp_path, room):
    """`r.01` is the image r.01.jpg, not r.jpg."""
    names = ["r.jpg", "r.01.jpg", "r.02.jpg"]
    rewrite(write_nerfstudio(tmp_path, part(room, names)), lambda name: name.removesuffix(".jpg"))
    assert [view.file.name for view in read(tmp_path).views] == names


def test_intrinsics_of_all_and_of_single_frames(tmp_path, room):
    angle, up_angle = (2 * math.atan(side / 2 / FOCAL) for side in SIZE)
    file = write_nerfstudio(tmp_path, room, fl_x=30, fl_y=34, w=48)

    def focal():
        return [view.focal_px for view in read(tmp_path).views]

    assert set(focal()) == {32}
    content = rewrite(file)
    content["frames"][3] |= {"fl_x": 50.0}
    content["frames"][4] |= {"camera_angle_x": angle, "w": 96}
    file.write_text(json.dumps(content))
    np.testing.assert_allclose(focal()[2:6], [32, 50, 2 * FOCAL, 32])
    rewrite(file, fl_x=None, fl_y=None, w=None, camera_angle_x=angle)
    np.testing.assert_allclose(focal()[:3], FOCAL)  # the width is the image's own
    np.testing.assert_allclose(focal()[4], 2 * FOCAL)
    rewrite(file, camera_angle_x=None, camera_angle_y=up_angle)
    np.testing.assert_allclose(focal()[:3], FOCAL)
    rewrite(file, camera_angle_y=None)
    assert np.isnan(focal()).sum() == 28  # known for the two frames that state it


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ({"fl_x": -5}, "frame 0 .*a focal length of -5 pixels is impossible"),
        ({"fl_x": 0}, "frame 0 .*a focal length of 0 pixels is impossible"),
        ({"fl_x": math.inf}, "frame 0 .*a focal length of inf pixels is impossible"),
        ({"camera_angle_x": 0.0, "w": 48}, "frame 0 .*a focal length of -1 pixels is impossible"),
        ({"fl_x": "40"}, "frame 0 .*fl_x is not a number"),
        ({"up": [0, 0, 1]}, r"transforms.json has no camera model \(fl_x or camera_angle_x\)"),
    ],
)
def test_impossible_focal_lengths(camera, message, tmp_path, room, refused):
    refused(message, "nerfstudio", write_nerfstudio(tmp_path / "studio", room, **camera))


def test_a_focal_length_may_be_given(tmp_path, room, imported):
    file = write_nerfstudio(tmp_path / "studio", room, up=[0, 0, 1])
    assert set(imported("nerfstudio", file, focal_px=41.0)[1]["focal_px"]) == {41.0}


def test_splits_that_the_files_name(studio, room, imported, refused):
    """Lists in transforms.json are taken only when asked for: they are often every n-th frame."""
    test = room.names[3:30:9]
    train = [name for name in room.names[:28] if name not in test]
    rewrite(studio, test_filenames=[f"./{name}" for name in test], train_filenames=train)
    text, _, _ = imported("nerfstudio", studio, out="blocks")
    assert "the files have a split of their own: --split given takes it" in text
    text, frames, _ = imported("nerfstudio", studio, split="given")
    assert set(frames.index[frames["split"] == "test"]) == set(test)
    assert len(frames) == 28
    assert "left out, in no split: 2: walk 2/frame-13.jpg, walk 2/frame-14.jpg" in text
    rewrite(studio, test_filenames=None, train_filenames=None)
    message = "--split given: the files name no split"
    refused(message, "nerfstudio", studio, split="given")


def test_blenders_files(tmp_path, room, imported):
    angle = {"camera_angle_x": 2 * math.atan(SIZE[0] / 2 / FOCAL)}
    for split, rows in (("train", slice(0, 20)), ("val", slice(20, 22)), ("test", slice(22, 30))):
        names = [f"{split}/r_{number}.jpg" for number in range(rows.stop - rows.start)]
        some, file = part(room, names, rows), f"transforms_{split}.json"
        write_nerfstudio(tmp_path / "lego", some, file, **angle)
        rewrite(tmp_path / "lego" / file, lambda name: name.removesuffix(".jpg"))
    text, frames, _ = imported("nerfstudio", tmp_path / "lego", split="given")
    assert frames["split"].value_counts().to_dict() == {"train": 20, "test": 8}
    assert set(frames["sequence"]) == {"train", "test"}
    np.testing.assert_allclose(frames["focal_px"], FOCAL)
    assert "val" in text.splitlines()[0]


def test_scannets_lists_of_frames_and_bad_ones(studio, room, imported, tmp_path):
    frames = rewrite(studio)["frames"]
    for number in (3, 25):
        frames[number]["is_bad"] = True
    frames[4]["is_bad"] = False
    rewrite(studio, frames=frames[:20], test_frames=frames[20:], has_mask=True)
    text, found, _ = imported("nerfstudio", studio, split="given")
    assert set(found.index[found["split"] == "test"]) == {*room.names[20:]} - {room.names[25]}
    assert set(found.index[found["split"] == "train"]) == {*room.names[:20]} - {room.names[3]}
    bad = f"{room.names[3]}, {room.names[25]}"
    assert f"left out, marked as bad (is_bad) in the file: 2: {bad}" in text
    assert "not read: has_mask" in text
    rewrite(studio, frames=[], val_frames=frames[:5], test_frames=None, train_frames=frames[5:])
    _, found, _ = (
        imported("nerfstudio", studio, split="given", out="other") if False else (None, found, None)
    )


def test_fields_that_are_not_read_are_named(studio):
    frames = rewrite(studio)["frames"]
    frames[2]["depth_file_path"] = "depth/2.png"
    rewrite(studio, frames=frames, cx=24, aabb_scale=4)
    assert read(studio).notes == ["not read: cx, aabb_scale, depth_file_path"]


def test_a_focal_length_that_is_stated_twice(studio):
    """Pixels precede an angle, as in nerfstudio; instant-ngp's field of view is in degrees."""
    angle = 2 * math.atan(SIZE[0] / 2 / 50)
    rewrite(studio, camera_angle_x=angle)
    capture = read(studio)
    assert {view.focal_px for view in capture.views} == {FOCAL}
    assert capture.notes == ["a focal length is stated twice, the first is taken: 40, 50 pixels"]
    rewrite(studio, fl_x=None, fl_y=None, camera_angle_x=None, x_fov=math.degrees(angle))
    capture = read(studio)
    np.testing.assert_allclose([view.focal_px for view in capture.views], 50)
    assert capture.notes == []


def damaged(content: dict, **frame) -> dict:
    content["frames"][2] |= frame
    return content


def posed(content: dict, matrix) -> dict:
    return damaged(content, transform_matrix=matrix)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: {"frames": []}, "transforms.json has no frames"),
        (lambda c: {"camera": 1}, "is not a transforms.json: it has no list"),
        (lambda c: [1], "it has no list of frames"),
        (lambda c: {**c, "frames": [1]}, "it has no list of frames"),
        (lambda c: damaged(c, file_path=3), "frame 2: file_path is missing"),
        (lambda c: damaged(c, file_path=" "), "frame 2: file_path is missing"),
        (lambda c: posed(c, "x"), r"frame 2 \(walk 1/frame-2.jpg\)"),
        (lambda c: posed(c, [[1, 2], [3]]), "2 .*is not a matrix of numbers"),
        (lambda c: posed(c, np.eye(3).tolist()), "frame 2 .*4x4 or 3x4"),
        (lambda c: posed(c, [[10**400] * 4] * 4), "2 .*is not a matrix of numbers"),
        (lambda c: posed(c, (np.eye(4) + np.eye(4, k=-3)).tolist()), "is it transposed"),
        (lambda c: posed(c, np.diag([1, 1, 1, 100]).tolist()), "0 0 0 100, .*: is the pose scaled"),
        (lambda c: posed(c, np.diag([1, 1, -1, 1]).tolist()), "a rotation times -1, a reflection"),
        (lambda c: posed(c, np.diag([0.01, 0.01, 0.01, 1]).tolist()), "but a rotation times 0.01"),
        (lambda c: posed(c, np.diag([1, 2, 1, 1]).tolist()), "R.T R differs from the identity by"),
        (lambda c: posed(c, [[-math.inf] * 4] * 4), "the pose holds NaN or infinity"),
        (lambda c: {**c, "test_frames": 5}, "test_frames is not a list of frames"),
        (lambda c: {**c, "train_filenames": ["a"], "val_filenames": ["./a"]},
         "a is in train_filenames and in val_filenames"),
        (lambda c: damaged(c, file_path="walk 1/frame-3.jpg"), "frame-3.jpg is there twice"),
    ],
)  # fmt: skip
def test_damaged_files(damage, message, studio, refused):
    studio.write_text(json.dumps(damage(json.loads(studio.read_text()))))
    refused(message, "nerfstudio", studio)


@pytest.mark.parametrize("text", [b"", b"{", b'{"frames": [', b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_not_json(text, tmp_path):
    (tmp_path / "transforms.json").write_bytes(text)
    with pytest.raises(MsposeError, match="not JSON, or cut off|cannot read") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_three_rows_are_a_pose_too(studio):
    whole, content = stacked(read(studio).views), rewrite(studio)
    for frame in content["frames"]:
        del frame["transform_matrix"][3]
    studio.write_text(json.dumps(content))
    for first, second in zip(whole, stacked(read(studio).views), strict=True):
        np.testing.assert_array_equal(first, second)


def test_notes(studio):
    rewrite(studio, k1=0.1, applied_scale=0.5)
    assert read(studio).notes == [
        "the camera model has distortion",
        "applied_scale is 0.5: --scale 2 undoes it",
    ]
    plain = rewrite(studio, k1=None, applied_scale=None)
    assert read(studio).notes == []
    for camera in (
        {"camera_model": "OPENCV_FISHEYE"},
        {"is_fisheye": True},
        {"camera_model": "OPENCV", "p2": 0.1},
    ):
        frames = [*plain["frames"][1:], {**plain["frames"][0], **camera}]  # a camera of its own
        rewrite(studio, frames=frames)
        assert read(studio).notes == ["the camera model has distortion"]
