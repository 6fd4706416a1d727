from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tools.importing.builders import write_tum

from mspose.errors import MsposeError
from mspose.tools.importing.importer import import_data
from mspose.tools.importing.splits import SplitBy
from mspose.tools.importing.tum import associate, read_tum


def read(
    folder: Path,
    tolerance: float = 0.02,
    trajectory: Path | None = None,
    image_list: Path | None = None,
):
    return read_tum(folder, None, trajectory=trajectory, image_list=image_list, tolerance=tolerance)


@pytest.mark.parametrize(
    ("images", "poses", "tolerance", "expected"),
    [
        ([0.0, 1.0, 2.0], [0.1, 0.9, 2.3], 0.2, [0, 1, -1]),
        ([0.0, 1.0, 2.0], [2.05, 0.95, 0.05], 0.1, [2, 1, 0]),  # in any order
        ([0.0, 1.0], [0.4], 0.5, [0, -1]),  # a pose serves one image, the nearest
        ([1.0, 0.0], [0.4], 0.5, [-1, 0]),
        ([0.0, 0.2], [0.11, 0.35], 0.2, [-1, 0]),
        ([5.0], [1.0, 2.0], 0.5, [-1]),
        ([1.0], [1.0, 1.0], 0.5, [0]),
        ([1.0], [0.75, 1.25], 0.25, [0]),
    ],
)
def test_association(images, poses, tolerance, expected):
    assert associate(np.array(images), np.array(poses), tolerance).tolist() == expected


def test_association_of_many():
    rng = np.random.default_rng(3)
    images, poses = rng.uniform(0, 3, 60), rng.uniform(0, 3, 90)
    apart_BP = abs(images[:, None] - poses)
    found = associate(images, poses, 0.02)
    kept = np.flatnonzero(found >= 0)
    assert 10 < len(kept) < 60
    assert (apart_BP[kept, found[kept]] <= 0.02).all()
    assert len(set(found[kept])) == len(kept)
    nearest_pose, nearest_image = apart_BP.argmin(1), apart_BP.argmin(0)
    for image, pose in enumerate(nearest_pose):
        if nearest_image[pose] == image and apart_BP[image, pose] <= 0.02:  # each other's nearest
            assert found[image] == pose


def test_images_without_a_pose_are_counted_and_named(room, tmp_path, frames_of):
    write_tum(tmp_path / "desk", room)
    lines = (tmp_path / "desk" / "groundtruth.txt").read_text().splitlines()
    del lines[7:9]
    (tmp_path / "desk" / "groundtruth.txt").write_text("\n".join(lines))
    text = import_data(
        "tum", [str(tmp_path / "desk")], str(tmp_path / "own"), split=SplitBy(block=3, margin=0)
    )
    assert (
        "left out, no pose of its own within 0.02 s: 2: walk 1/frame-5.jpg, walk 1/frame-6.jpg"
        in text
    )
    assert "images have the pose nearest in time, at most 0.02 s away" in text
    assert len(frames_of(tmp_path / "own")) == 28
    assert frames_of(tmp_path / "own")["focal_px"].isna().all()
    assert len(pd.read_csv(tmp_path / "own" / "left_out.csv")) == 2


def test_the_tolerance_is_the_callers(room, tmp_path):
    write_tum(tmp_path, room)  # poses 3 ms after their images
    assert len(read(tmp_path, 0.0031).views) == 30
    with pytest.raises(
        MsposeError,
        match=r"no image has a pose within 0.002 s: .* from 1305031102.175.* to 1305031103.141",
    ):
        read(tmp_path, 0.002)


def test_other_names_of_the_files(room, tmp_path, frames_of):
    write_tum(tmp_path / "desk", room)
    (tmp_path / "desk" / "rgb.txt").rename(tmp_path / "desk" / "left.txt")
    with pytest.raises(
        MsposeError, match=r"there is no file .*rgb.txt: say which one it is with --image_list"
    ):
        read(tmp_path / "desk")
    (tmp_path / "desk" / "groundtruth.txt").rename(tmp_path / "slam.txt")
    with pytest.raises(
        MsposeError, match=r"there is no file .*groundtruth.txt: say which one it is with --trajectory"
    ):
        read(tmp_path / "desk")
    with pytest.raises(
        MsposeError, match=r"there is no file .*desk: say which one it is with --trajectory"
    ):
        read(tmp_path / "desk", trajectory=tmp_path / "desk")
    options = {
        "image_list": [str(tmp_path / "desk" / "left.txt")],
        "trajectory": [str(tmp_path / "slam.txt")],
    }
    import_data("tum", [str(tmp_path / "desk")], str(tmp_path / "own"), tolerance=0.004, **options)
    assert set(frames_of(tmp_path / "own")["scene"]) == {"desk"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("groundtruth.txt", "1 0 0 0 0 0 0", "groundtruth.txt, line 1: expected timestamp tx .*, found 7 values"),
        ("groundtruth.txt", "nan 0 0 0 0 0 0 1", "groundtruth.txt, line 1: 'nan' is not a timestamp"),
        ("groundtruth.txt", "# nothing", "groundtruth.txt is empty"),
        ("groundtruth.txt", "1.4e15 0 0 0 0 0 0 1", "groundtruth.txt, line 1: 1.4e15 is too large for seconds"),
        ("rgb.txt", "", "rgb.txt is empty"),
        ("rgb.txt", "1.0,", "rgb.txt, line 1: expected timestamp file"),
        ("rgb.txt", "x a.jpg", "rgb.txt, line 1: 'x' is not a timestamp"),
        ("rgb.txt", "#\n1.0", "rgb.txt, line 2: expected timestamp file"),
    ],
)  # fmt: skip
def test_damaged_files(file, text, message, room, tmp_path):
    write_tum(tmp_path, room)
    (tmp_path / file).write_text(text)
    with pytest.raises(MsposeError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "fault"), [("0 0 0 0", "the quaternion is zero"), ("0 0 0 w", "'w' is not a num")]
)
def test_a_bad_pose_is_named_by_its_line_or_left_out(cells, fault, room, tmp_path, frames_of):
    write_tum(tmp_path / "desk", room)
    lines = (tmp_path / "desk" / "groundtruth.txt").read_text().splitlines()
    lines[5] = " ".join([*lines[5].split()[:4], cells])
    (tmp_path / "desk" / "groundtruth.txt").write_text("\n".join(lines))
    with pytest.raises(MsposeError, match=f"groundtruth.txt, line 6: {fault}"):
        import_data("tum", [str(tmp_path / "desk")], str(tmp_path / "own"))
    split = SplitBy(block=3, margin=0)
    import_data(
        "tum", [str(tmp_path / "desk")], str(tmp_path / "own"), on_bad_frame="skip", split=split
    )
    assert len(frames_of(tmp_path / "own")) == 29


def test_nanoseconds_and_commas(tmp_path):
    """Stamps with more digits than a float has, in a list of EuRoC's kind; its poses in either
    unit, 4 ms later.
    """
    first = 1403636579763555584
    stamps = [first + 50_000_000 * number for number in range(20)]
    rows = [f"{stamp},{stamp}.png\r\n" for stamp in stamps]
    (tmp_path / "data.csv").write_text("#timestamp [ns],filename\r\n" + "".join(rows), newline="")
    later = [stamp + 4_000_007 for stamp in stamps]
    for name, times in (
        ("ns", later),
        ("s", [f"{stamp // 10**9}.{stamp % 10**9:09d}" for stamp in later]),
    ):
        (tmp_path / name).write_text(
            "".join(f"{time},{row},0,0,0,0,0,1\n" for row, time in enumerate(times))
        )
        capture = read(tmp_path, 0.0041, tmp_path / name, tmp_path / "data.csv")
        assert [view.position[0] for view in capture.views] == list(range(20))
        assert [view.image for view in capture.views] == [f"{stamp}.png" for stamp in stamps]
        with pytest.raises(MsposeError, match="no image has a pose within 0.0039 s"):
            read(tmp_path, 0.0039, tmp_path / name, tmp_path / "data.csv")
