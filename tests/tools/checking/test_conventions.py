import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tools.checking.builders import (
    MOTIONS,
    OPENGL,
    frames_of,
    looking,
    misread,
    motion,
    moved,
    poses_of,
    render,
    with_poses,
    write_set,
)

from mspose.poses import quaternion_to_rotation
from mspose.tools.checking import conventions
from mspose.tools.checking.conventions import (
    AS_LABELLED,
    Verdict,
    axes_meet_behind,
    convention_findings,
    judge_by_images,
    unexplained,
)
from mspose.tools.checking.matching import matched_pairs

WAYS = ("world-to-camera", "world-to-camera orientations", "OpenGL", "OpenGL, world-to-camera")
SILENT = Verdict(0, np.nan, AS_LABELLED, np.nan, 0.0)


@pytest.fixture(scope="module", params=MOTIONS)
def filmed(request, tmp_path_factory):
    """(name of the motion, ordered frames, matched pairs) of one filmed sequence."""
    folder = tmp_path_factory.mktemp(request.param)
    pose_N44 = motion(request.param)
    write_set(folder, {("room", "train", "seq-1"): (pose_N44, render(pose_N44))})
    ordered = frames_of(folder, "train")
    return request.param, ordered, matched_pairs(ordered, "room", folder)


def kinds(ordered, pairs) -> list[str]:
    verdict, behind = judge_by_images(pairs, ordered), axes_meet_behind(ordered)
    return [finding.kind for finding in convention_findings("room", verdict, behind)]


def test_pictures_confirm_right_labels(filmed):
    _, ordered, pairs = filmed
    verdict = judge_by_images(pairs, ordered)
    assert verdict.pairs >= conventions.FEWEST_PAIRS
    assert verdict.best == AS_LABELLED
    assert verdict.rest < 0.05
    assert verdict.fits
    assert kinds(ordered, pairs) == []


@pytest.mark.parametrize("way", WAYS)
def test_every_wrong_convention_is_named(filmed, way):
    _, ordered, pairs = filmed
    wrong = misread(ordered, way)
    verdict = judge_by_images(pairs, wrong)
    assert kinds(wrong, pairs) == ["suspected-convention"]
    assert verdict.contradicts
    for word in ("world-to-camera", "OpenGL"):
        assert (word in verdict.best) == (word in way)
    assert ("orientations" in verdict.best) == ("orientations" in way)


def test_images_of_several_sizes_are_no_other_convention(tmp_path):
    """An unknown focal length is guessed in long sides of each image, not of its neighbour."""
    pose_N44 = motion("hand-held")
    write_set(tmp_path, {("room", "train", "seq-1"): (pose_N44, render(pose_N44))}, focal_px=None)
    for file in sorted(tmp_path.glob("room/seq-1/*.jpg"))[::2]:
        with Image.open(file) as image:
            image.resize((480, 360)).save(file)
    ordered = frames_of(tmp_path, "train")
    pairs = matched_pairs(ordered, "room", tmp_path)
    assert {pair.long_side1_px / pair.long_side2_px for pair in pairs} >= {0.5, 2.0}
    assert judge_by_images(pairs, ordered).rest < 0.1
    assert kinds(ordered, pairs) == []


def test_it_is_named_without_a_known_focal_length_as_well(filmed):
    _, ordered, pairs = filmed
    unknown = [pair._replace(focal1_px=np.nan, focal2_px=np.nan) for pair in pairs]
    assert kinds(ordered, unknown) == []
    assert kinds(misread(ordered, "world-to-camera"), unknown) == ["suspected-convention"]


@given(
    quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    scale=st.floats(0.01, 100),
    shift=st.tuples(*[st.floats(-1000, 1000)] * 3),
)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_no_world_frame_makes_right_labels_suspect(filmed, quaternion, scale, shift):
    _, ordered, pairs = filmed
    elsewhere = moved(ordered, quaternion_to_rotation(quaternion)[0], scale, shift)
    assert kinds(elsewhere, pairs) == []
    assert kinds(misread(elsewhere, "world-to-camera"), pairs) == ["suspected-convention"]


def test_poses_of_other_images_and_wrong_focal_lengths_are_noticed(filmed):
    name, ordered, pairs = filmed
    order = np.random.default_rng(1).permutation(len(ordered))
    shuffled = with_poses(ordered, *(values[order] for values in poses_of(ordered)))
    if name != "forward":  # where all views are nearly one, so that other poses nearly fit
        assert kinds(shuffled, pairs) == ["poses-against-pictures"]
    doubled = [
        pair._replace(focal1_px=2 * pair.focal1_px, focal2_px=2 * pair.focal2_px) for pair in pairs
    ]
    if name != "inward":  # circling a point suits any focal length
        assert kinds(ordered, doubled) == ["suspected-focal-length"]
        assert judge_by_images(doubled, ordered).focal_factor == 0.5


def test_what_the_poses_leave_unexplained():
    rng = np.random.default_rng(0)
    point_M3 = rng.uniform([-2, -2, 3], [2, 2, 8], (200, 3))
    turn_33 = quaternion_to_rotation([1, 0.02, 0.1, -0.03])[0]
    shift_3 = np.array([0.3, -0.1, 0.2])
    ray1_M3 = point_M3 / np.linalg.norm(point_M3, axis=1, keepdims=True)
    seen_M3 = point_M3 @ turn_33.T + shift_3
    ray2_M3 = seen_M3 / np.linalg.norm(seen_M3, axis=1, keepdims=True)
    assert unexplained(ray1_M3, ray2_M3, turn_33, shift_3) < 1e-6
    assert unexplained(ray1_M3, ray2_M3, turn_33, 100 * shift_3) < 1e-6  # in any unit
    # on the epipolar line, but behind a camera
    assert unexplained(ray1_M3, ray2_M3, turn_33, -shift_3) > 0.1
    assert unexplained(ray1_M3, ray1_M3 @ turn_33.T, turn_33, np.zeros(3)) < 1e-6
    assert unexplained(ray1_M3, ray2_M3, turn_33.T, shift_3) > 0.2


# the optical axes alone


def axes_speak(pose_N44) -> bool:
    empty = pd.DataFrame(index=range(len(pose_N44)))
    part = with_poses(empty, pose_N44[:, :3, :3], pose_N44[:, :3, 3])
    meeting = axes_meet_behind(part)
    found = convention_findings("room", SILENT, meeting)
    assert bool(meeting) == bool(found)
    return bool(found)


def flipped(pose_N44):
    pose_N44 = pose_N44.copy()
    pose_N44[:, :3, :3] = pose_N44[:, :3, :3] @ OPENGL
    return pose_N44


@pytest.mark.parametrize("degrees", [90, 180, 360])
def test_axes_that_meet_behind_the_cameras_are_noticed_without_pictures(degrees):
    turn_N = np.radians(np.linspace(0, degrees, 30))
    rng = np.random.default_rng(0)
    position_N3 = np.stack([4 * np.cos(turn_N), 4 * np.sin(turn_N), 1 + 0 * turn_N], axis=1)
    inward_N44 = looking(position_N3 + rng.normal(0, 0.1, (30, 3)), rng.normal(0, 0.3, (30, 3)))
    assert not axes_speak(inward_N44)
    assert axes_speak(flipped(inward_N44))


def test_world_to_camera_poses_are_noticed_where_their_axes_meet_behind():
    """That is where the world's origin lies beyond the object; elsewhere only images tell."""
    turn_N = np.radians(np.linspace(-100, 100, 40))
    position_N3 = np.stack([3 * np.sin(turn_N), -3 * np.cos(turn_N), 0.5 + 0 * turn_N], axis=1)
    inward_N44 = looking(position_N3, np.random.default_rng(0).normal(0, 0.1, (40, 3)))
    # a world with y down and z forward, whose origin is 4 m beyond the thing
    world_44 = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, -4], [0, 0, 0, 1]])
    inward_N44 = world_44 @ inward_N44
    assert not axes_speak(inward_N44)
    assert axes_speak(np.linalg.inv(inward_N44))


@pytest.mark.parametrize("name", MOTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_axes_are_silent_on_right_labels_wherever_the_world_begins(name, seed):
    rng = np.random.default_rng(seed)
    world_44 = np.eye(4)
    world_44[:3, :3] = quaternion_to_rotation(rng.normal(size=4))[0]
    world_44[:3, 3] = rng.normal(0, 100, 3)
    assert not axes_speak(world_44 @ motion(name))


def test_parallel_axes_and_few_frames_say_nothing():
    position_N3 = np.stack([np.linspace(0, 50, 30), np.zeros(30), np.zeros(30)], axis=1)
    sideways_N44 = looking(position_N3, position_N3 + np.array([0.0, 5.0, 0.0]))
    assert not axes_speak(sideways_N44)
    assert not axes_speak(flipped(sideways_N44))
    assert not axes_speak(flipped(motion("inward"))[:4])
