import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
from pose_matrix import pose_matrix
from tools.importing.builders import (
    ALL,
    FOCAL,
    SIZE,
    Room,
    change_line,
    matrices,
    quaternion,
    write_colmap,
)

from mspose.errors import MsposeError
from mspose.poses import camera_to_world, quaternion_to_rotation
from mspose.tools.importing.camera_models import PARAMETERS, focal_length
from mspose.tools.importing.colmap import read_colmap
from mspose.tools.importing.views import stacked


@pytest.fixture(scope="module")
def pycolmap():
    return pytest.importorskip("pycolmap")


@pytest.fixture
def model(room, tmp_path):
    return write_colmap(tmp_path, room)


def plain_names(room: Room) -> Room:
    """Names without blanks: COLMAP's own reader of the text format ends a name at the first."""
    return replace(room, names=[name.replace(" ", "_") for name in room.names])


def poses_of(views) -> np.ndarray:
    """Camera-to-world matrices of views, which are world-to-camera."""
    position_B3, orientation_B4, _ = stacked(views)
    return pose_matrix(*reversed(camera_to_world(orientation_B4, position_B3)))


def same(ours, theirs) -> None:
    ours, theirs = (sorted(views, key=lambda view: view.image) for views in (ours, theirs))
    names = ("image", "sequence", "moment", "file", "focal_px", "size_px")
    for first, second in zip(ours, theirs, strict=True):
        assert [getattr(first, name) for name in names] == [getattr(second, name) for name in names]
    np.testing.assert_allclose(poses_of(ours), poses_of(theirs), atol=1e-12)


def test_pycolmap_reads_our_poses_out_of_a_text_model(pycolmap, room, tmp_path):
    """An outside judge of the builder, and of what the poses of the format mean."""
    room = plain_names(room)
    model = pycolmap.Reconstruction(str(write_colmap(tmp_path, room)))
    images = {image.name: image for image in model.images.values()}
    centres = [images[name].projection_center() for name in room.names]
    directions = [images[name].viewing_direction() for name in room.names]
    np.testing.assert_allclose(centres, room.pose_B44[:, :3, 3], atol=1e-9)
    np.testing.assert_allclose(directions, room.pose_B44[:, :3, 2], atol=1e-9)


def test_both_readers_give_the_same(pycolmap, room, tmp_path):
    """The reader of text, and pycolmap's of the binary model that it made of that text."""
    room = plain_names(room)
    text = write_colmap(tmp_path, room)
    binary = tmp_path / "sparse" / "binary"
    binary.mkdir()
    pycolmap.Reconstruction(str(text)).write_binary(str(binary))
    ours, theirs = read_colmap(text, None), read_colmap(binary, None)
    same(ours.views, theirs.views)
    np.testing.assert_allclose(poses_of(ours.views), room.pose_B44, atol=1e-9)
    assert ours.notes == theirs.notes == ["camera models with distortion: SIMPLE_RADIAL"]


def make_rig(pycolmap, room: Room):
    """A reconstruction of two cameras on a rig, made by pycolmap; and name -> pose (4, 4)."""

    def rigid(matrix_44):
        w, x, y, z = quaternion(matrix_44[:3, :3])
        return pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([x, y, z, w])), matrix_44[:3, 3])

    model = pycolmap.Reconstruction()
    cameras = [
        pycolmap.Camera.create_from_model_name(n, name, FOCAL + n, *SIZE)
        for n, name in ((1, "PINHOLE"), (2, "RADIAL"))
    ]
    for camera in cameras:
        model.add_camera(camera)
    other_from_rig = np.eye(4)
    other_from_rig[:3, :3] = quaternion_to_rotation([0.9, 0.1, -0.3, 0.2])[0]
    other_from_rig[:3, 3] = [0.3, -0.1, 0.05]
    rig = pycolmap.Rig(rig_id=1)
    rig.add_ref_sensor(cameras[0].sensor_id)
    rig.add_sensor(cameras[1].sensor_id, rigid(other_from_rig))
    model.add_rig(rig)
    poses = {}
    for number, pose_44 in enumerate(room.pose_B44[:12]):
        rig_from_world = np.linalg.inv(pose_44)
        frame = pycolmap.Frame()
        frame.frame_id, frame.rig_id, frame.rig_from_world = 40 + number, 1, rigid(rig_from_world)
        images = []
        for camera, its in ((0, rig_from_world), (1, other_from_rig @ rig_from_world)):
            name = f"rig/cam{camera}/{number}.jpg"
            poses[name] = np.linalg.inv(its)
            image_id = 100 * camera + number + 1
            image = pycolmap.Image(name=name, camera_id=1 + camera, image_id=image_id)
            image.frame_id = frame.frame_id
            frame.add_data_id(image.data_id)
            images.append(image)
        model.add_frame(frame)
        for image in images:
            model.add_image(image)
        model.register_frame(frame.frame_id)
    return model, poses


@pytest.fixture
def rig(pycolmap, room, tmp_path):
    """(poses by name, folder) of a rig's model with its images, in `text` and `binary`."""
    model, poses = make_rig(pycolmap, room)
    for kind, write in (("binary", model.write_binary), ("text", model.write_text)):
        (tmp_path / kind).mkdir()
        write(str(tmp_path / kind))
    few = Room(room.files[:24], list(poses), np.stack(list(poses.values())))
    few.copy_images(tmp_path / "images")
    return poses, tmp_path


def test_cameras_of_a_rig(rig, imported):
    """Each image gets its own pose from that of the rig; a frame stays in one split."""
    poses, folder = rig
    assert (folder / "text" / "frames.txt").is_file()
    same(read_colmap(folder / "text", None).views, read_colmap(folder / "binary", None).views)
    _, frames, _ = imported("colmap", folder / "binary", scenes=["hall"], block=2)
    np.testing.assert_allclose(matrices(frames), [poses[name] for name in frames.index], atol=1e-9)
    splits = frames["split"].to_dict()
    for number in range(12):
        assert splits.get(f"rig/cam0/{number}.jpg") == splits.get(f"rig/cam1/{number}.jpg")
    assert {splits[f"rig/cam1/{number}.jpg"] for number in (4, 5)} == {"test"}
    assert set(frames["sequence"]) == {"rig/cam0"}  # the first of its folders
    assert set(frames["focal_px"]) == {FOCAL + 1, FOCAL + 2}


def test_where_rigs_and_images_differ_the_rigs_count_as_in_colmap(rig, imported):
    poses, folder = rig
    lines = (folder / "text" / "images.txt").read_text().split("\n")
    stale = next(number for number, line in enumerate(lines) if line.endswith("cam1/3.jpg"))
    cells = lines[stale].split()
    lines[stale] = " ".join([*cells[:5], str(float(cells[5]) + 0.49), *cells[6:]])
    (folder / "text" / "images.txt").write_text("\n".join(lines))
    text, frames, _ = imported("colmap", folder / "text", scenes=["hall"], block=2, margin=0)
    np.testing.assert_allclose(matrices(frames), [poses[name] for name in frames.index], atol=1e-9)
    assert "images.txt differs from rigs.txt and frames.txt" in text
    assert "1 images, by up to 0.49 units and 0 degrees: rig/cam1/3.jpg" in text


def stale(folder) -> None:
    """Shift the pose of one image in images.bin, but not in rigs.bin and frames.bin."""
    content = (folder / "images.bin").read_bytes()
    start = content.index(b"rig/cam1/3.jpg\0") - 4 - 8  # camera id, tz
    (tz,) = struct.unpack_from("<d", content, start)
    changed = content[:start] + struct.pack("<d", tz + 0.49) + content[start + 8 :]
    (folder / "images.bin").write_bytes(changed)


def test_the_rigs_of_a_binary_model_count_as_well(rig, imported):
    poses, folder = rig
    stale(folder / "binary")
    text, frames, _ = imported("colmap", folder / "binary", scenes=["hall"], block=2, margin=0)
    np.testing.assert_allclose(matrices(frames), [poses[name] for name in frames.index], atol=1e-9)
    assert "images.bin differs from rigs.bin and frames.bin" in text
    assert "1 images, by up to 0.49 units and 0 degrees: rig/cam1/3.jpg" in text


def test_of_text_and_binary_files_the_latter_count_as_in_colmap(pycolmap, room, tmp_path, imported):
    room = plain_names(room)
    text_model = write_colmap(tmp_path, room)
    pycolmap.Reconstruction(str(text_model)).write_binary(str(text_model))
    line = (text_model / "images.txt").read_text().split("\n")[4]
    cells = line.split()
    cells[5] = str(float(cells[5]) + 0.25)
    change_line(text_model / "images.txt", 5, line, " ".join(cells))
    text, frames, _ = imported("colmap", text_model, scenes=["hall"], **ALL)
    np.testing.assert_allclose(matrices(frames.loc[room.names]), room.pose_B44, atol=1e-9)
    assert "images.txt differs from the .bin files, whose poses are taken" in text
    assert "1 images, by up to 0.25 units and 0 degrees" in text
    (text_model / "images.txt").write_text("1 2 3")
    text, _, _ = imported("colmap", text_model, scenes=["hall"], **ALL, out="other")
    assert "the text was not compared: " in text
    (text_model / "points3D.bin").unlink()  # then COLMAP would read the text
    with pytest.raises(MsposeError, match="images.txt, line 1: expected IMAGE_ID"):
        read_colmap(text_model, None)


def test_rigs_need_pycolmap(rig, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MsposeError, match=r"rigs need pycolmap: pip install pycolmap; a model"):
        read_colmap(rig[1] / "text", None)


def test_every_camera_model_of_colmap_has_its_focal_length(pycolmap):
    for name in set(pycolmap.CameraModelId.__members__) - {"INVALID"}:
        camera = pycolmap.Camera.create_from_model_name(1, name, 70.0, *SIZE)
        for number, index in enumerate(camera.focal_length_idxs()):
            camera.params[index] += number
        expected = camera.mean_focal_length() if len(camera.focal_length_idxs()) else np.nan
        np.testing.assert_equal(focal_length(name, list(camera.params)), expected)
        assert len(camera.params) == PARAMETERS[name]
        assert list(PARAMETERS)[int(camera.model)] == name


def test_a_camera_model_of_the_future_has_poses_but_no_focal_length(room, tmp_path):
    capture = read_colmap(write_colmap(tmp_path, room, camera="EXOTIC 48 36 1 2 3"), None)
    assert np.isnan([view.focal_px for view in capture.views]).all()
    assert capture.notes == ["camera models whose focal length is not known here: EXOTIC"]


def test_names_from_windows_and_with_blanks(room, model):
    text = (model / "images.txt").read_text().replace("walk 1/", "walk 1\\")
    (model / "images.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    views = read_colmap(model, None).views
    assert [view.image for view in views] == room.names
    assert all(view.file and view.file.is_file() for view in views)


def test_without_pycolmap_text_is_read_and_binary_asks_for_it(room, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert len(read_colmap(model, None).views) == len(room.names)
    for name in ("cameras", "images"):
        (model / f"{name}.txt").rename(model / f"{name}.bin")
    message = r"need pycolmap: pip install pycolmap; .*model_converter"
    with pytest.raises(MsposeError, match=message):
        read_colmap(model, None)


@pytest.mark.parametrize("end", [".", "sparse", "sparse/0"])
def test_the_model_is_found_in_a_project(end, model):
    project = model.parent.parent
    capture = read_colmap(project / end, None)
    assert capture.source == model
    assert capture.image_folders == [project / "images"]


def test_several_models_are_to_be_chosen_from(room, model, tmp_path):
    model.rename(tmp_path / "sparse" / "1")
    write_colmap(tmp_path, room)
    few = Room(room.files[:4], room.names[:4], room.pose_B44[:4])
    write_colmap(tmp_path / "other", few).rename(tmp_path / "sparse" / "2")
    message = (
        r"several COLMAP models \(sparse/0: 30 images, sparse/1: 30 images, sparse/2: 4 images\):"
        r" give the folder of one of them, as .*sparse/0, which has most images"
    )
    with pytest.raises(MsposeError, match=message):
        read_colmap(tmp_path, None)
    assert len(read_colmap(tmp_path / "sparse" / "1", None).views) == 30


@pytest.mark.parametrize(
    ("file", "line", "old", "new", "message"),
    [
        ("images.txt", 5, " 3 walk 1/frame-1.jpg", "", "expected IMAGE_ID .*8 values"),
        ("images.txt", 5, " 3 walk", " three walk", "'three' is not a whole number"),
        ("images.txt", 5, " 3 walk", " 4 walk", "camera 4 is not among"),
        ("images.txt", 4, "1.5 2.5 -1", "9 1 0 0 0 0 0 0 3 2.jpg", "expected the 2-D points"),
        ("cameras.txt", 2, "SIMPLE_RADIAL 48", "OPENCV 48", "OPENCV has 8 parameters, not 4"),
        ("cameras.txt", 2, "RADIAL 48", "RADIAL wide", "'wide' is not a number"),
        ("cameras.txt", 2, "3 SIMPLE", "SIMPLE", "'SIMPLE_RADIAL' is not a whole number"),
        ("cameras.txt", 2, " 48 36 40.0 24.0 18.0 0.01", " 48", "expected CAMERA_ID"),
    ],
)  # fmt: skip
def test_damaged_text(file, line, old, new, message, model):
    change_line(model / file, line, old, new)
    with pytest.raises(MsposeError, match=f"{file}, line {line}: .*{message}") as caught:
        read_colmap(model, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "cells", "message"),
    [
        (1, "x", "'x' is not a number"),
        (5, "nan", "holds NaN"),
        (6, "1e999", "infinity"),
        (1, "0 0 0 0", "the quaternion is zero"),
    ],
)
def test_bad_poses_are_named_by_file_and_line(first, cells, message, model, refused):
    line = (model / "images.txt").read_text().split("\n")[4]
    values = line.split()
    values[first : first + len(cells.split())] = cells.split()
    change_line(model / "images.txt", 5, line, " ".join(values))
    refused(f"images.txt, line 5: .*{message}", "colmap", model)


def test_models_without_what_they_need(model, tmp_path):
    def fails(message, folder=model):
        with pytest.raises(MsposeError, match=message):
            read_colmap(folder, None)

    (model / "images.txt").write_text("# nothing\n")
    fails("holds no image with a pose")
    (model / "images.txt").write_bytes(b"\xff\xfe\x00")
    fails("images.txt is not a text file")
    (model / "cameras.txt").unlink()
    fails("cameras.txt is missing: a COLMAP model has cameras beside its images")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "database.db").write_bytes(b"")
    fails("there is a COLMAP database, but no model", tmp_path / "project")


@pytest.mark.parametrize("name", ["images.bin", "frames.bin", "rigs.bin", "cameras.bin"])
def test_binary_files_that_were_cut_off(name, pycolmap, room, tmp_path):
    """pycolmap itself never returns from some of them."""
    make_rig(pycolmap, room)[0].write_binary(str(tmp_path))
    whole = (tmp_path / name).read_bytes()
    for length in [0, 5, *range(8, len(whole), max(1, len(whole) // 23))]:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(MsposeError, match="cut off|damaged|empty") as caught:
            read_colmap(tmp_path, None)
        assert "\n" not in str(caught.value)
    (tmp_path / name).write_bytes(whole)
    assert len(read_colmap(tmp_path, None).views) == 24
    (tmp_path / "points3D.bin").unlink()
    with pytest.raises(MsposeError, match="pycolmap cannot read the model, it is damaged"):
        read_colmap(tmp_path, None)
