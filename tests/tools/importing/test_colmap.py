import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tools.importing.builders import FOCAL, SIZE, Room, quaternion, write_colmap

from mspose.errors import MsposeError
from mspose.poses import camera_to_world, pose_matrix, quaternion_to_rotation
from mspose.tools.importing.camera_models import PARAMETERS, focal_length
from mspose.tools.importing.views import stacked
from mspose.tools.importing.colmap import read_colmap
from mspose.tools.importing.importer import import_data
from mspose.tools.importing.splits import SplitBy


@pytest.fixture(scope="module")
def pycolmap():
    return pytest.importorskip("pycolmap")


def plain_names(room: Room) -> Room:
    """Names without blanks: COLMAP's own reader of the text format ends a name at the first."""
    return replace(room, names=[name.replace(" ", "_") for name in room.names])


def poses_of(views) -> np.ndarray:
    """Camera-to-world matrices of views, which are world-to-camera."""
    position_B3, orientation_B4, _ = stacked(views)
    return pose_matrix(*reversed(camera_to_world(orientation_B4, position_B3)))


def same(ours, theirs) -> None:
    ours, theirs = (sorted(views, key=lambda view: view.image) for views in (ours, theirs))
    for first, second in zip(ours, theirs, strict=True):
        assert first.image == second.image
        assert (first.sequence, first.moment, first.file) == (
            second.sequence,
            second.moment,
            second.file,
        )
        assert (first.focal_px, first.size_px) == (second.focal_px, second.size_px)
    for mine, its in zip(stacked(ours), stacked(theirs), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-12)


def test_pycolmap_reads_our_poses_out_of_a_text_model(pycolmap, room, tmp_path):
    """An outside judge of the builder, and of what the poses of the format mean."""
    room = plain_names(room)
    model = pycolmap.Reconstruction(str(write_colmap(tmp_path, room)))
    centres = {image.name: image.projection_center() for image in model.images.values()}
    np.testing.assert_allclose(
        [centres[name] for name in room.names], room.pose_B44[:, :3, 3], atol=1e-9
    )
    looks = {image.name: image.viewing_direction() for image in model.images.values()}
    np.testing.assert_allclose(
        [looks[name] for name in room.names], room.pose_B44[:, :3, 2], atol=1e-9
    )


def test_both_readers_give_the_same(pycolmap, room, tmp_path):
    """Our reader of text, and pycolmap's of the binary model that pycolmap itself made of that
    text.
    """
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
    """A reconstruction of two cameras on a rig, made by pycolmap; returns it with the poses (2 B,
    4, 4).
    """

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
            image = pycolmap.Image(
                name=name, camera_id=1 + camera, image_id=100 * camera + number + 1
            )
            image.frame_id = frame.frame_id
            frame.add_data_id(image.data_id)
            images.append(image)
        model.add_frame(frame)
        for image in images:
            model.add_image(image)
        model.register_frame(frame.frame_id)
    return model, poses


def test_cameras_of_a_rig(pycolmap, room, tmp_path, frames_of, matrices):
    """Newer COLMAP stores a pose per frame of the rig; each image gets its own, and a frame stays
    in one split.
    """
    model, poses = make_rig(pycolmap, room)
    (tmp_path / "binary").mkdir()
    (tmp_path / "text").mkdir()
    model.write_binary(str(tmp_path / "binary"))
    model.write_text(str(tmp_path / "text"))
    assert (tmp_path / "text" / "frames.txt").is_file()
    same(read_colmap(tmp_path / "text", None).views, read_colmap(tmp_path / "binary", None).views)
    few = Room(room.files[:24], list(poses), np.stack(list(poses.values())))
    few.copy_images(tmp_path / "images")
    import_data(
        "colmap",
        [str(tmp_path / "binary")],
        str(tmp_path / "own"),
        scenes=["hall"],
        split=SplitBy(block=2),
    )
    frames = frames_of(tmp_path / "own").set_index("image")
    np.testing.assert_allclose(matrices(frames), [poses[name] for name in frames.index], atol=1e-9)
    splits = {name: frames.loc[name, "split"] for name in frames.index}
    for number in range(12):
        assert splits.get(f"rig/cam0/{number}.jpg") == splits.get(f"rig/cam1/{number}.jpg")
    assert {splits[f"rig/cam1/{number}.jpg"] for number in (4, 5)} == {"test"}
    assert set(frames["sequence"]) == {"rig/cam0"}  # the first of its folders
    model.deregister_frame(47)  # of what is left of a frame, one camera's image keeps its place
    (tmp_path / "fewer").mkdir()
    model.write_text(str(tmp_path / "fewer"))
    lines = (tmp_path / "fewer" / "images.txt").read_text().split("\n")
    gone = next(number for number, line in enumerate(lines) if line.endswith("cam0/3.jpg"))
    (tmp_path / "fewer" / "images.txt").write_text("\n".join(lines[:gone] + lines[gone + 2 :]))
    views = read_colmap(tmp_path / "fewer", None).views
    assert len(views) == 21
    order = sorted(views, key=lambda view: (view.sequence, view.moment, view.image))
    assert [view.image for view in order][4:9] == [
        f"rig/cam{n}/{k}.jpg" for n, k in ((0, 2), (1, 2), (1, 3), (0, 4), (1, 4))
    ]
    assert set(frames["focal_px"]) == {FOCAL + 1, FOCAL + 2}


def test_every_camera_model_of_colmap_has_its_focal_length(pycolmap):
    for name in pycolmap.CameraModelId.__members__:
        if name != "INVALID":
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


def test_a_blank_in_a_name_stays(room, tmp_path):
    model = write_colmap(tmp_path, room)
    assert {view.image for view in read_colmap(model, None).views} == set(room.names)


def test_names_from_windows(room, tmp_path):
    model = write_colmap(tmp_path, room)
    text = (model / "images.txt").read_text().replace("walk 1/", "walk 1\\")
    (model / "images.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    views = read_colmap(model, None).views
    assert [view.image for view in views] == room.names
    assert all(view.file and view.file.is_file() for view in views)


def test_without_pycolmap_text_is_read_and_binary_asks_for_it(room, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    model = write_colmap(tmp_path, room)
    assert len(read_colmap(model, None).views) == len(room.names)
    for name in ("cameras", "images"):
        (model / f"{name}.txt").rename(model / f"{name}.bin")
    with pytest.raises(
        MsposeError, match=r"need pycolmap: pip install pycolmap .*model_converter"
    ):
        read_colmap(model, None)


@pytest.mark.parametrize("end", [".", "sparse", "sparse/0"])
def test_the_model_is_found_in_a_project(end, room, tmp_path):
    model = write_colmap(tmp_path / "project", room)
    capture = read_colmap(tmp_path / "project" / end, None)
    assert capture.source == model
    assert capture.image_folders == [tmp_path / "project" / "images"]


def test_several_models_are_to_be_chosen_from(room, tmp_path):
    write_colmap(tmp_path, room)
    (tmp_path / "sparse" / "0").rename(tmp_path / "sparse" / "1")
    write_colmap(tmp_path, room)
    with pytest.raises(
        MsposeError, match=r"several COLMAP models \(sparse/0, sparse/1\): give the folder of one"
    ):
        read_colmap(tmp_path, None)
    assert len(read_colmap(tmp_path / "sparse" / "1", None).views) == 30


def change(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("file", "line", "old", "new", "message"),
    [
        ("images.txt", 5, " 3 walk 1/frame-1.jpg", "", "images.txt, line 5: expected IMAGE_ID .*found 8 values"),
        ("images.txt", 5, " 3 walk", " three walk", "images.txt, line 5: 'three' is not a whole number"),
        ("images.txt", 5, " 3 walk", " nan walk", "images.txt, line 5: 'nan' is not a whole number"),
        ("cameras.txt", 2, "3 SIMPLE", "nan SIMPLE", "cameras.txt, line 2: 'nan' is not a whole number"),
        ("images.txt", 5, " 3 walk", " 4 walk", "images.txt, line 5: camera 4 is not among the model's cameras"),
        ("images.txt", 4, "1.5 2.5 -1", "9 1 0 0 0 0 0 0 3 2.jpg", "line 4: expected the 2-D points of the image"),
        ("cameras.txt", 2, "SIMPLE_RADIAL 48", "OPENCV 48", "line 2: camera model OPENCV has 8 parameters, not 4"),
        ("cameras.txt", 2, "RADIAL 48", "RADIAL wide", "cameras.txt, line 2: 'wide' is not a number"),
        ("cameras.txt", 2, "3 SIMPLE_RADIAL", "SIMPLE_RADIAL", "cameras.txt, line 2: 'SIMPLE_RADIAL' is not a whole number"),
    ],
)  # fmt: skip
def test_damaged_text(file, line, old, new, message, room, tmp_path):
    model = write_colmap(tmp_path, room)
    change(model / file, line, old, new)
    with pytest.raises(MsposeError, match=message) as caught:
        read_colmap(model, None)
    assert "\n" not in str(caught.value)


def test_bad_poses_are_named_by_file_and_line(room, tmp_path):
    model = write_colmap(tmp_path, room)
    lines = (model / "images.txt").read_text().split("\n")
    cells = lines[4].split()
    faults = {1: ("x", "'x' is not a number"), 5: ("nan", "holds NaN"), 6: ("1e999", "infinity")}
    for cell, (fault, said) in faults.items():
        lines[4] = " ".join([*cells[:cell], fault, *cells[cell + 1 :]])
        (model / "images.txt").write_text("\n".join(lines))
        with pytest.raises(MsposeError, match=f"images.txt, line 5: .*{said}"):
            import_data("colmap", [str(model)], str(tmp_path / "out"))
    lines[4] = " ".join([cells[0], "0", "0", "0", "0", *cells[5:]])
    (model / "images.txt").write_text("\n".join(lines))
    with pytest.raises(MsposeError, match="images.txt, line 5: the quaternion is zero"):
        import_data("colmap", [str(model)], str(tmp_path / "out"))


def test_models_without_what_they_need(room, tmp_path):
    model = write_colmap(tmp_path, room)
    (model / "images.txt").write_text("# nothing\n")
    with pytest.raises(MsposeError, match="holds no image with a pose"):
        read_colmap(model, None)
    (model / "images.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MsposeError, match="images.txt is not a text file"):
        read_colmap(model, None)
    (model / "cameras.txt").unlink()
    with pytest.raises(
        MsposeError, match="cameras.txt is missing: a COLMAP model has cameras beside its images"
    ):
        read_colmap(model, None)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "database.db").write_bytes(b"")
    with pytest.raises(MsposeError, match="there is a COLMAP database, but no model"):
        read_colmap(tmp_path / "project", None)


@pytest.mark.parametrize("name", ["images.bin", "frames.bin", "rigs.bin", "cameras.bin"])
def test_binary_files_that_were_cut_off(name, pycolmap, room, tmp_path):
    """pycolmap itself never comes back from some of them."""
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
    with pytest.raises(
        MsposeError, match="pycolmap cannot read the model, it is damaged or incomplete"
    ):
        read_colmap(tmp_path, None)
