import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pose_matrix import pose_matrix

from mspose.errors import MsposeError
from mspose.inference import Estimate
from mspose.poses import normalize_quaternion
from mspose.tools.prediction.inputs import ImageFile, Query, Video
from mspose.tools.prediction.pose_files import (
    ColmapFile,
    CsvFile,
    JsonLines,
    TumFile,
    colmap_folder,
    open_output,
    with_times,
)

SCENES = ("attic", 'a "b", c')


def estimate(seed: int) -> Estimate:
    rng = np.random.default_rng(seed)
    quaternion = normalize_quaternion(rng.normal(size=4))[0]
    return Estimate(rng.normal(size=3), quaternion, SCENES[0], {SCENES[0]: 0.75, SCENES[1]: 0.25})


def images(folder: str, *names: str) -> list[ImageFile]:
    return [ImageFile(Path(folder, name), Path(folder)) for name in names]


def text_of(pose_file, *pairs) -> str:
    return pose_file.begin() + "".join(pose_file.pose(view, found) for view, found in pairs)


AWKWARD = (
    Query('a b/"x", ü\n.png', 80, 60),
    Query("clip.mp4#7", 80, 60, time_ns=280_000_000),
    Query("bad\udcff.png", 80, 60),
)
SHOWN = 'a b/"x", ü\n.png', "clip.mp4#7", "bad\\udcff.png"


def test_csv_reads_back_exactly():
    found = [estimate(seed) for seed in range(3)]
    rows = list(
        csv.DictReader(
            io.StringIO(text_of(CsvFile(SCENES), *zip(AWKWARD, found, strict=True)), newline="")
        )
    )
    assert list(rows[0]) == [
        *("image", "time_s", "tx", "ty", "tz", "qw", "qx", "qy", "qz"),
        *("scene", "scene_probability", "p_attic", 'p_a "b", c'),
    ]
    for row, name, one in zip(rows, SHOWN, found, strict=True):
        assert row["image"] == name
        assert [float(row[name]) for name in ("tx", "ty", "tz")] == one.position.tolist()
        assert [float(row[name]) for name in ("qw", "qx", "qy", "qz")] == one.orientation.tolist()
        values = [
            row["scene"],
            float(row["scene_probability"]),
            float(row["p_attic"]),
            float(row['p_a "b", c']),
        ]
        assert values == ["attic", 0.75, 0.75, 0.25]
    assert [row["time_s"] for row in rows] == ["", "0.28", ""]


def test_json_lines_read_back_exactly():
    found = [estimate(seed) for seed in range(3)]
    lines = text_of(JsonLines(), *zip(AWKWARD, found, strict=True)).encode().decode().splitlines()
    for line, name, one in zip(lines, SHOWN, found, strict=True):
        row = json.loads(line)
        assert (row["image"], row["scene"], row["scene_probabilities"]) == (
            name,
            "attic",
            one.scene_probabilities,
        )
        assert [row[name] for name in ("tx", "ty", "tz")] == one.position.tolist()
        assert [row[name] for name in ("qw", "qx", "qy", "qz")] == one.orientation.tolist()
    assert [json.loads(line)["time_s"] for line in lines] == [None, 0.28, None]


def test_tum_has_its_order_of_numbers():
    one = estimate(1)
    comments = [
        line
        for line in text_of(TumFile("frames"), (AWKWARD[1], one)).splitlines()
        if line[0] == "#"
    ]
    assert comments[1] == "# timestamps: frames"
    (values,) = np.loadtxt(io.StringIO(text_of(TumFile("frames"), (AWKWARD[1], one))), ndmin=2)
    assert values.tolist() == [0.28, *one.position, *one.orientation[1:], one.orientation[0]]


def test_times_of_a_trajectory():
    def times(sources, fps=None):
        timed, said = with_times(sources, fps)
        return [(source.path.name, source.time_ns / 1e9) for source in timed], said

    stamps = images("rgb", "1305031102.175304.png", "1305031102.2.png", "1305031101.9.png")
    found, said = times(stamps)
    assert "names" in said
    names = "1305031101.9.png", "1305031102.175304.png", "1305031102.2.png"
    assert found == [(name, float(name[:-4])) for name in names]
    assert times(stamps, 10)[0] == [
        (image.path.name, place / 10) for place, image in enumerate(stamps)
    ]
    for names in (
        ("a.png", "2.png"),
        ("1.png", "01.png"),
        ("1e3.png", "2.png"),
        ("-1.png", "1.png"),
        ("²", "1"),
        ("20240101120000123.png", "1.png"),
    ):
        found, said = times(images("x", *names))
        assert found == [(name, place) for place, name in enumerate(names)]
        assert "rank in the order" in said
    clip = Video(Path("clip.avi"), Path(), 5)
    assert with_times([clip])[0] == [clip]
    with pytest.raises(MsposeError, match="--fps: without effect on a video"):
        with_times([clip], 5)
    for sources in ([clip, clip], [clip, *stamps]):
        with pytest.raises(MsposeError, match="one clock: give one video, or images alone"):
            with_times(sources)


def test_pycolmap_reads_our_poses_back(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    wide = [
        Query(f"photos/ü/{number}.png", 80, 60, focal_px=70.0 + number // 2) for number in range(4)
    ]
    seen = [*wide, Query("photos/clip.mp4#3", 60, 81)]
    found = [estimate(seed) for seed in range(len(seen))]
    folder = colmap_folder(
        [*images("photos", "ü/0.png", "ü/1.png"), Video(Path("photos/clip.mp4"), Path("photos"), 9)]
    )
    pose_file = ColmapFile(folder, lambda view: (view.focal_px or 50.0, "guessed"))
    with open_output(tmp_path / "model", pose_file) as write:
        write(text_of(pose_file, *zip(seen, found, strict=True)))
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    read = {image.name: image for image in model.images.values()}
    assert len(read) == 5
    for view, one in zip(seen, found, strict=True):
        image = read[view.name.removeprefix("photos/")]
        pose_34 = image.cam_from_world().inverse().matrix()
        np.testing.assert_allclose(
            pose_34, pose_matrix(one.position, one.orientation)[0, :3], atol=1e-6
        )
        camera = model.cameras[image.camera_id]
        focal = view.focal_px or 50.0
        assert (camera.model.name, camera.width, camera.height) == (
            "PINHOLE",
            view.width,
            view.height,
        )
        assert camera.params.tolist() == [focal, focal, view.width / 2, view.height / 2]
    assert len(model.cameras) == 3
    assert "# focal length of camera 1: guessed" in (tmp_path / "model" / "cameras.txt").read_text()


def test_names_for_colmap_are_relative_to_what_was_given():
    assert colmap_folder(images("my photos", "a/1.png", "b/2.png")) == Path("my photos")
    assert colmap_folder([*images("x/a", "1.png"), *images("x/b", "1.png")]) == Path("x")
    assert colmap_folder(images("", "1.png")) == Path()
    with pytest.raises(
        MsposeError, match=r"x/1 2.png: COLMAP's text format ends a name at a space"
    ):
        colmap_folder(images("x", "1.png", "1 2.png"))
    with pytest.raises(MsposeError, match="relative to one folder"):
        colmap_folder([*images("x", "1.png"), *images("/y", "1.png")])


@pytest.mark.parametrize("pose_file", [JsonLines(), ColmapFile(Path(), lambda _: (1.0, "guessed"))])
def test_output_appears_whole_or_not_at_all(pose_file, tmp_path):
    out = tmp_path / "new" / "poses"
    for stop in (KeyboardInterrupt, MsposeError("broken")):
        with pytest.raises((KeyboardInterrupt, MsposeError)), open_output(out, pose_file) as write:
            write("half")
            raise stop
        assert list(tmp_path.iterdir()) == []
    with open_output(out, pose_file) as write:
        write("whole")
        assert not out.exists()
    assert (out / "images.txt" if out.is_dir() else out).read_text() == "whole"
    assert [path.name for path in out.parent.iterdir()] == ["poses"]
    assert out.stat().st_mode & 0o044 == 0o044  # others may read it, as what is made here usually
    with pytest.raises(MsposeError, match="poses is there already"), open_output(out, pose_file):
        pass
    (tmp_path / "old.csv").write_text("old")
    if not isinstance(pose_file, ColmapFile):
        with open_output(tmp_path / "old.csv", pose_file) as write:
            write("new")
            assert (tmp_path / "old.csv").read_text() == "old"
        assert (tmp_path / "old.csv").read_text() == "new"
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MsposeError, match="cannot write .*file/poses"),
        open_output(tmp_path / "file/poses", pose_file),
    ):
        pass


def test_without_cameras_file_no_focal_length_is_asked_for():
    pose_file = ColmapFile(Path(), None)
    seen = Query("a.png", 80, 60), Query("b.png", 60, 80), Query("c.png", 80, 60)
    lines = [pose_file.pose(view, estimate(0)).splitlines() for view in seen]
    assert [line[0].split()[8] for line in lines] == ["1", "2", "1"]
    assert all(line[1] == "" for line in lines)
