import logging
import math
from pathlib import Path

import numpy as np
import pytest
from pose_matrix import pose_matrix

from mspose import poses
from mspose.data.label_csv import read_label_csv
from mspose.data.seven_scenes import read_seven_scenes, read_sfm_poses, split_sequences
from mspose.errors import MsposeError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
POSITION, ORIENTATION = ["tx", "ty", "tz"], ["qw", "qx", "qy", "qz"]


def matrix(seed):
    rng = np.random.default_rng(seed)
    return pose_matrix(rng.normal(size=(1, 3)), rng.normal(size=(1, 4)))[0]


def write_frame(folder, number, pose=None, image="png"):
    folder.mkdir(parents=True, exist_ok=True)
    if image:
        (folder / f"frame-{number:06d}.color.{image}").write_bytes(b"an image")
    text = "\n".join(
        "\t".join(f"{value:.7e}" for value in row)
        for row in (matrix(number) if pose is None else pose)
    )
    (folder / f"frame-{number:06d}.pose.txt").write_text(text + "\n")


@pytest.fixture
def root(tmp_path):
    """Scenes attic and cellar; train: sequences 1 and 10, test: sequence 2; three frames each."""
    for scene in ("attic", "cellar"):
        for sequence in (1, 2, 10):
            for number in range(3):
                write_frame(tmp_path / scene / f"seq-{sequence:02d}", number)
        (tmp_path / scene / "TrainSplit.txt").write_bytes(b"sequence10\r\nsequence1\r\n")
        (tmp_path / scene / "TestSplit.txt").write_bytes(b"sequence2")
    return tmp_path


def test_poses_images_and_order(root):
    frames = read_seven_scenes(root, ["attic", "cellar"], "train", dataset="rooms", focal_px=585)
    assert frames["image"].tolist() == [
        f"{scene}/seq-{sequence}/frame-{number:06d}.color.png"
        for scene in ("attic", "cellar")
        for sequence in ("01", "10")
        for number in range(3)
    ]
    assert frames["sequence"].unique().tolist() == ["seq-01", "seq-10"]
    assert set(frames["dataset"]) == {"rooms"}
    assert set(frames["split"]) == {"train"}
    assert set(frames["ground_truth"]) == {"original"}
    assert set(frames["focal_px"]) == {585}
    found = pose_matrix(frames[POSITION].to_numpy(), frames[ORIENTATION].to_numpy())
    np.testing.assert_allclose(
        found, np.stack([matrix(number) for number in [0, 1, 2] * 4]), atol=1e-6
    )
    assert len(read_seven_scenes(root, ["attic"], "test")) == 3


@pytest.mark.parametrize(
    "text",
    [
        "sequence1\nsequence10",
        "sequence01\n\n sequence010 \n\n",
        "seq-01\r\nseq-10\r\n",
        "\ufeffSequence1\nseq10",
    ],
)
def test_spellings_of_a_split_file(root, text):
    (root / "attic" / "TrainSplit.txt").write_text(text, encoding="utf-8")
    assert [folder.name for folder in split_sequences(root / "attic", "train")] == [
        "seq-01",
        "seq-10",
    ]


def test_jpeg_or_png_other_files_and_sparse_numbers(root):
    folder = root / "attic" / "seq-02"
    write_frame(folder, 7, image="jpg")
    write_frame(folder, 1000000, image="jpeg")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "frame-000099.depth.png").write_bytes(b"")
    (root / "attic" / "seq-99.txt").write_bytes(b"")
    names = [Path(image).name for image in read_seven_scenes(root, ["attic"], "test")["image"]]
    assert names[3:] == ["frame-000007.color.jpg", "frame-1000000.color.jpeg"]


def test_intrinsics_beside_the_scene_go_before_the_cards(root):
    (root / "attic" / "camera-intrinsics.txt").write_text("292.5 0 160\n0 292.5 120\n0 0 1\n")
    frames = read_seven_scenes(root, ["attic", "cellar"], "test", focal_px=585)
    assert frames["focal_px"].tolist() == [292.5] * 3 + [585] * 3
    assert math.isnan(read_seven_scenes(root, ["cellar"], "test")["focal_px"][0])
    for text in ("", "1 2", "x 0 0 0 1 0 0 0 1", "-5 0 0 0 1 0 0 0 1"):
        (root / "attic" / "camera-intrinsics.txt").write_text(text)
        with pytest.raises(MsposeError, match=r"camera-intrinsics.txt: "):
            read_seven_scenes(root, ["attic"], "test")


STRUCTURE_FAULTS = {
    "a sequence that is not there": (
        lambda scene: (scene / "TestSplit.txt").write_text("\nsequence2\nsequence5\n"),
        r"TestSplit.txt, line 3 names sequence 5, which is not there: no folder .*seq-05",
    ),
    "a line that is no sequence": (
        lambda scene: (scene / "TestSplit.txt").write_text("second\n"),
        r"TestSplit.txt, line 1: 'second' is not the name of a sequence",
    ),
    "a sequence twice": (
        lambda scene: (scene / "TestSplit.txt").write_text("sequence2\nseq-02"),
        r"TestSplit.txt, line 2: seq-02 is there twice \(first: line 1\)",
    ),
    "an empty split file": (
        lambda scene: (scene / "TestSplit.txt").write_text("\n \n"),
        "no sequence: scene attic has no",
    ),
    "no split file": (
        lambda scene: (scene / "TestSplit.txt").unlink(),
        "cannot read .*TestSplit.txt: No such file",
    ),
    "an empty sequence": (
        lambda scene: [path.unlink() for path in (scene / "seq-02").iterdir()],
        "seq-02 holds no frames",
    ),
}


@pytest.mark.parametrize("name", STRUCTURE_FAULTS)
@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_a_fault_of_structure_always_stops(root, name, mode):
    change, message = STRUCTURE_FAULTS[name]
    change(root / "attic")
    with pytest.raises(MsposeError, match=message) as caught:
        read_seven_scenes(root, ["attic"], "test", on_bad_frame=mode)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


ROWS = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
FRAME_FAULTS = {
    "no pose file": (None, "the pose file is missing"),
    "empty": ("", "the pose file is empty: expected the 16"),
    "twelve values": ("1 0 0 0 0 1 0 0 0 0 1 0", "the pose file holds 12 values: expected the 16"),
    "NaN": ("nan " + "0 " * 14 + "1", "the pose holds NaN or infinity"),
    "lost": ("-inf " * 16, "the pose holds NaN or infinity"),
    "scaled": ("100 0 0 0 0 100 0 0 0 0 100 0 0 0 0 1", "a rotation times 100"),
    "a word": ("one " + "0 " * 15, "'one' is not a number"),
    "not a rotation": ("2 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "not a rotation"),
    "a reflection": ("-1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "reflection"),
    "zeros": ("0 " * 16, "not 0 0 0 1"),
    "transposed": ("1 0 0 0 0 1 0 0 0 0 1 0 5 6 7 1", "5 6 7 1, not 0 0 0 1: is it transposed"),
    "binary": (b"\xff\x00" * 16, "expected the 16"),
}


@pytest.mark.parametrize("name", FRAME_FAULTS)
def test_a_bad_pose_file_stops_or_is_left_out(root, name, caplog):
    text, message = FRAME_FAULTS[name]
    path = root / "attic" / "seq-02" / "frame-000001.pose.txt"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MsposeError) as caught:
        read_seven_scenes(root, ["attic"], "test")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="mspose"):
        frames = read_seven_scenes(root, ["attic"], "test", on_bad_frame="skip")
    assert frames["image"].tolist() == [
        f"attic/seq-02/frame-00000{number}.color.png" for number in (0, 2)
    ]
    assert f"left out 1 of 3 frames; the first: {path}: " in caplog.text


def test_a_pose_without_image_stops_or_is_left_out(root):
    (root / "attic" / "seq-02" / "frame-000002.color.png").unlink()
    with pytest.raises(MsposeError, match=r"frame-000002.pose.txt: there is no image beside it"):
        read_seven_scenes(root, ["attic"], "test")
    frames = read_seven_scenes(root, ["attic"], "test", on_bad_frame="skip")
    assert len(frames) == 2
    assert frames.attrs["bad_frames"] == 1


def test_a_scene_of_bad_frames_alone_stops_even_when_skipping(root):
    for path in (root / "attic" / "seq-02").glob("*.png"):
        path.unlink()
    with pytest.raises(MsposeError, match=r"scene attic has no test frames"):
        read_seven_scenes(root, ["attic", "cellar"], "test", on_bad_frame="skip")


def test_unknown_split(root):
    with pytest.raises(MsposeError, match=r"no split 'val'; there are: train, test"):
        read_seven_scenes(root, ["attic"], "val")


def sfm_line(name, seed, focal="525.5"):
    """A line of the second ground truth whose camera is `matrix(seed)`, by inverting the 4x4
    matrix.
    """
    world_to_camera = np.linalg.inv(matrix(seed))
    numbers = [
        *poses.rotation_to_quaternion(world_to_camera[None, :3, :3])[0],
        *world_to_camera[:3, 3],
    ]
    return " ".join([name, *(f"{value:.9f}" for value in numbers), focal])


def test_sfm_poses_are_inverted_and_sorted(tmp_path):
    names = [
        f"seq-{sequence}/frame-{number:06d}.color.png"
        for sequence in ("02", "10")
        for number in (0, 5, 40)
    ]
    lines = [sfm_line(name, seed, f"{500 + seed}.25") for seed, name in enumerate(names)]
    (tmp_path / "attic_train.txt").write_text("\r\n".join(lines[::-1]) + "\r\n\r\n")
    frames = read_sfm_poses({"attic": tmp_path / "attic_train.txt"}, "train")
    assert frames["image"].tolist() == [f"attic/{name}" for name in names]
    assert frames["sequence"].tolist() == ["seq-02"] * 3 + ["seq-10"] * 3
    assert frames["focal_px"].tolist() == [500.25 + seed for seed in range(6)]
    assert set(frames["ground_truth"]) == {"sfm"}
    found = pose_matrix(frames[POSITION].to_numpy(), frames[ORIENTATION].to_numpy())
    np.testing.assert_allclose(found, np.stack([matrix(seed) for seed in range(6)]), atol=1e-6)


SFM_FAULTS = {
    "too few": (
        "seq-01/frame-000001.color.png 1 0 0 0 0 0 0",
        "expected 8 numbers after the image, found 7",
    ),
    "too many": (
        "seq-01/frame-000001.color.png 1 0 0 0 0 0 0 525 1",
        "expected 8 numbers after the image, found 9",
    ),
    "a word": ("seq-01/frame-000001.color.png 1 0 0 0 0 x 0 525", "'x' is not a number"),
    "NaN": ("seq-01/frame-000001.color.png 1 0 0 0 0 nan 0 525", "NaN or infinity"),
    "zero quaternion": (
        "seq-01/frame-000001.color.png 0 0 0 0 1 2 3 525",
        "the quaternion is zero",
    ),
    "no focal length": (
        "seq-01/frame-000001.color.png 1 0 0 0 1 2 3 nan",
        "the focal length is not a number",
    ),
    "negative focal length": (
        "seq-01/frame-000001.color.png 1 0 0 0 1 2 3 -5",
        "focal length of -5",
    ),
}


@pytest.mark.parametrize("name", SFM_FAULTS)
def test_bad_sfm_lines_stop_or_are_left_out(tmp_path, name):
    line, message = SFM_FAULTS[name]
    path = tmp_path / "attic_test.txt"
    path.write_text(f"{sfm_line('seq-01/frame-000002.color.png', 0)}\n{line}\n")
    with pytest.raises(MsposeError, match=r"attic_test.txt, line 2: ") as caught:
        read_sfm_poses({"attic": path}, "test")
    assert message in str(caught.value)
    assert len(read_sfm_poses({"attic": path}, "test", on_bad_frame="skip")) == 1


def test_sfm_structure_faults(tmp_path):
    path = tmp_path / "attic_test.txt"
    path.write_text("\n")
    with pytest.raises(MsposeError, match=r"attic_test.txt is empty"):
        read_sfm_poses({"attic": path}, "test")
    path.write_text(f"{sfm_line('a.png', 0)}\n{sfm_line('b.png', 0)}\n{sfm_line('a.png', 1)}\n")
    with pytest.raises(
        MsposeError, match=r"line 3: image attic/a.png is there twice \(first: .*, line 1\)"
    ):
        read_sfm_poses({"attic": path}, "test", on_bad_frame="skip")


@needs_shared
def test_microsofts_own_files():
    train = read_seven_scenes(SHARED / "7scenes", ["stairs"], "train")
    test = read_seven_scenes(SHARED / "7scenes", ["stairs"], "test")
    assert sorted({*train["sequence"]}) == ["seq-02", "seq-03"]
    assert sorted({*test["sequence"]}) == ["seq-01", "seq-04"]
    labels = read_label_csv(
        [SHARED / "labels/7Scenes/stairs_test.csv"],
        "test",
        dataset="7scenes",
        ground_truth="original",
        convention="camera-to-world",
    )
    labels = (
        labels.assign(image=labels["image"].str.replace(".png", ".jpg"))
        .set_index("image")
        .loc[test["image"]]
    )
    np.testing.assert_allclose(test[POSITION], labels[POSITION], atol=1e-7)
    assert poses.orientation_error(test[ORIENTATION], labels[ORIENTATION]).max() < 1e-3


@needs_shared
def test_a_thousand_real_poses_equal_their_labels(tmp_path):
    scene = tmp_path / "redkitchen"
    scene.mkdir()
    (scene / "seq-01").symlink_to(SHARED / "7scenes/redkitchen/seq-01")
    (scene / "TrainSplit.txt").write_text("sequence1\n")
    frames = read_seven_scenes(tmp_path, ["redkitchen"], "train")
    labels = read_label_csv(
        [SHARED / "labels/7Scenes/redkitchen_train.csv"],
        "train",
        dataset="7scenes",
        ground_truth="original",
        convention="camera-to-world",
    ).head(1000)
    assert labels["image"].str.replace(".png", ".jpg").tolist() == frames["image"].tolist()
    np.testing.assert_allclose(frames[POSITION], labels[POSITION], atol=1e-7)
    assert poses.orientation_error(frames[ORIENTATION], labels[ORIENTATION]).max() < 0.01


@needs_shared
def test_both_ground_truths_are_close_so_the_inversion_is_right():
    """Brachmann et al. (ICCV 2021) report some centimetres and degrees between the two; a wrong
    inversion, metres.
    """
    for scene in ("chess", "heads", "stairs"):
        sfm = read_sfm_poses(
            {scene: SHARED / f"labels/7Scenes-sfm/{scene}_test.txt"}, "test"
        ).set_index("image")
        original = read_label_csv(
            [SHARED / f"labels/7Scenes/{scene}_test.csv"],
            "test",
            dataset="7scenes",
            ground_truth="original",
            convention="camera-to-world",
        ).set_index("image")
        assert sfm.index.equals(original.index)
        assert 0.005 < np.median(poses.position_error(sfm[POSITION], original[POSITION])) < 0.1
        assert 0.5 < np.median(poses.orientation_error(sfm[ORIENTATION], original[ORIENTATION])) < 4
        assert sfm["focal_px"].between(500, 550).all()
