import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tools.checking.builders import (
    CAMERA,
    MOTIONS,
    OPENGL,
    drive,
    frames_of,
    looking,
    misread,
    motion,
    moved,
    orbit,
    poses_of,
    render,
    statue,
    street,
    with_poses,
    write_set,
)

from mspose.data.virtual.rendering import Camera
from mspose.poses import quaternion_to_rotation
from mspose.tools.checking.conventions import (
    AS_LABELLED,
    INVERTED,
    Verdict,
    axes_meet_behind,
    convention_findings,
    judge_by_images,
    unexplained,
)
from mspose.tools.checking.conventions import OPENGL as OPENGL_AXES
from mspose.tools.checking.matching import FEWEST_PAIRS, Matched, matched_pairs

WAYS = (
    "world-to-camera",
    "world-to-camera orientations",
    "OpenGL",
    "OpenGL, world-to-camera",
    "x y z w, read as w x y z",
    "w x y z, read as x y z w",
    "x y z w, read as w x y z, in the inverse",
)
SILENT = Verdict(0, np.nan, reason="one frame only")


@pytest.fixture(scope="module", params=MOTIONS)
def filmed(request, tmp_path_factory):
    """(name of the motion, ordered frames, matched pairs) of one filmed sequence."""
    folder = tmp_path_factory.mktemp(request.param)
    pose_N44 = motion(request.param)
    write_set(folder, {("room", "train", "seq-1"): (pose_N44, render(pose_N44))})
    ordered = frames_of(folder, "train")
    return request.param, ordered, matched_pairs(ordered, "room", folder)


def with_focal_px(matched: Matched, focal_px: float) -> Matched:
    """The same matches, with other focal lengths given."""
    pairs = [pair._replace(focal1_px=focal_px, focal2_px=focal_px) for pair in matched.pairs]
    return Matched(pairs)


def left_open(motion: str) -> set[str]:
    """Findings that right labels may have: an almost straight path leaves something open."""
    return {"undecided-convention"} if motion == "forward" else set()


def kinds(ordered, pairs) -> list[str]:
    verdict, behind = judge_by_images(pairs, ordered), axes_meet_behind(ordered)
    return [finding.kind for finding in convention_findings("room", verdict, behind)]


def test_pictures_confirm_right_labels(filmed):
    name, ordered, pairs = filmed
    verdict = judge_by_images(pairs, ordered)
    assert verdict.pairs >= FEWEST_PAIRS
    assert verdict.best[0] == AS_LABELLED
    assert verdict.rest < 0.05
    assert verdict.fits
    assert set(kinds(ordered, pairs)) <= left_open(name)


@pytest.mark.parametrize("way", WAYS)
def test_every_wrong_convention_is_named(filmed, way):
    name, ordered, pairs = filmed
    wrong = misread(ordered, way)
    verdict = judge_by_images(pairs, wrong)
    (kind,) = kinds(wrong, pairs)
    if "read as" in way and kind in left_open(name):
        assert f"quaternions written {way.removesuffix(', in the inverse')}" in verdict.rivals
    else:
        assert kind == "suspected-convention"
        assert verdict.contradicts
        assert_named(verdict, way)


def assert_named(verdict: Verdict, way: str) -> None:
    """The reading that the verdict names first undoes `way`."""
    named = verdict.best[0]
    for word in ("world-to-camera", "OpenGL", "x y z w, read", "w x y z, read"):
        assert (word in named) == (word in way)
    assert ("beside camera centres" in named) == ("orientations" in way)


def test_images_of_several_sizes_are_no_other_convention(tmp_path):
    """An unknown focal length is guessed in long sides of each image, not of its neighbour."""
    pose_N44 = motion("hand-held")
    write_set(tmp_path, {("room", "train", "seq-1"): (pose_N44, render(pose_N44))}, focal_px=None)
    for file in sorted(tmp_path.glob("room/seq-1/*.jpg"))[::2]:
        with Image.open(file) as image:
            image.resize((480, 360)).save(file)
    ordered = frames_of(tmp_path, "train")
    pairs = matched_pairs(ordered, "room", tmp_path)
    assert {pair.long_side1_px / pair.long_side2_px for pair in pairs.pairs} >= {0.5, 2.0}
    assert judge_by_images(pairs, ordered).rest < 0.1
    assert kinds(ordered, pairs) == []


def test_it_is_named_without_a_known_focal_length_as_well(filmed):
    name, ordered, pairs = filmed
    unknown = with_focal_px(pairs, np.nan)
    assert set(kinds(ordered, unknown)) <= left_open(name)
    assert kinds(misread(ordered, "world-to-camera"), unknown) == ["suspected-convention"]


@given(
    quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    scale=st.floats(0.01, 100),
    shift=st.tuples(*[st.floats(-1000, 1000)] * 3),
)
@settings(max_examples=3, deadline=None, derandomize=True)
def test_no_world_frame_makes_right_labels_suspect(filmed, quaternion, scale, shift):
    name, ordered, pairs = filmed
    elsewhere = moved(ordered, quaternion_to_rotation(quaternion)[0], scale, shift)
    assert set(kinds(elsewhere, pairs)) <= left_open(name)
    assert kinds(misread(elsewhere, "world-to-camera"), pairs) == ["suspected-convention"]


def test_poses_of_other_images_and_wrong_focal_lengths_are_noticed(filmed):
    name, ordered, pairs = filmed
    order = np.random.default_rng(1).permutation(len(ordered))
    shuffled = with_poses(ordered, *(values[order] for values in poses_of(ordered)))
    if name != "forward":  # where all views are nearly one, so that other poses nearly fit
        assert kinds(shuffled, pairs) == ["poses-against-pictures"]
    doubled = with_focal_px(pairs, 2 * CAMERA.focal_px)
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

    def rest(turn_33, shift_3, second_M3=ray2_M3) -> float:
        return float(unexplained(ray1_M3, second_M3, turn_33[None], shift_3[None])[0])

    assert rest(turn_33, shift_3) < 1e-6
    assert rest(turn_33, 100 * shift_3) < 1e-6  # in any unit
    # on the epipolar line, but behind a camera
    assert rest(turn_33, -shift_3) > 0.1
    assert rest(turn_33, np.zeros(3), ray1_M3 @ turn_33.T) < 1e-6
    assert rest(turn_33.T, shift_3) > 0.2


# other paths and cameras


def write_and_match(folder, pose_N44, image_NHW3, focal_px):
    """(ordered frames, matched pairs) of a data set in the world of its first camera."""
    first_N44 = np.linalg.inv(pose_N44[0]) @ pose_N44
    write_set(folder, {("room", "train", "s"): (first_N44, image_NHW3)}, focal_px=focal_px)
    ordered = frames_of(folder, "train")
    return ordered, matched_pairs(ordered, "room", folder)


def test_wide_steps_round_a_thing(tmp_path):
    """Neighbouring views differ by 36 degrees, and what they show lies before a plain hall."""
    camera, pose_N44 = Camera(480, 360, 450.0), orbit(36, 10)
    image_NHW3 = render(pose_N44, statue(), camera)
    ordered, matched = write_and_match(tmp_path, pose_N44, image_NHW3, camera.focal_px)
    assert kinds(ordered, matched) == []
    verdict = judge_by_images(matched, ordered)
    assert verdict.fits
    assert verdict.best == (AS_LABELLED,)
    assert verdict.depth == pytest.approx(1.7, abs=0.4)
    for way in WAYS:
        wrong = misread(ordered, way)
        assert kinds(wrong, matched) == ["suspected-convention"]
        assert_named(judge_by_images(matched, wrong), way)


@pytest.fixture(scope="module", params=[(0.0, False), (0.3, False), (0.0, True)])
def driven(request, tmp_path_factory):
    """(bend, sideways, ordered frames, matched pairs) of a drive along the street."""
    bend, sideways = request.param
    camera, pose_N44 = Camera(620, 188, 360.0), drive(30, bend, sideways)
    image_NHW3 = render(pose_N44, street(), camera)
    folder = tmp_path_factory.mktemp("drive")
    return *request.param, *write_and_match(folder, pose_N44, image_NHW3, camera.focal_px)


def test_a_drive_is_confirmed_or_left_open(driven):
    bend, sideways, ordered, matched = driven
    verdict = judge_by_images(matched, ordered)
    assert verdict.fits
    assert verdict.best[0] == AS_LABELLED
    found = convention_findings("room", verdict, None)
    assert {(finding.level, finding.kind) for finding in found} <= {
        ("note", "undecided-convention")
    }
    # a half turn about the direction of the movement changes nothing without turns
    assert (OPENGL_AXES in verdict.rivals) == sideways
    assert ("pictures turned by 180 degrees" in verdict.rivals) == (not bend and not sideways)
    assert INVERTED not in verdict.rivals
    if not bend:
        (note,) = found
        assert note.examples == verdict.rivals


@pytest.mark.parametrize("way", ["world-to-camera", "OpenGL", *WAYS[4:6]])
def test_wrong_conventions_of_a_drive_are_named(driven, way):
    bend, sideways, ordered, matched = driven
    wrong = misread(ordered, way)
    verdict = judge_by_images(matched, wrong)
    (finding,) = convention_findings("room", verdict, None)
    # half turns about the direction of the movement, which change nothing without turns
    unseen = not bend and way in (("OpenGL", WAYS[5]) if sideways else WAYS[4:5])
    assert finding.kind == ("undecided-convention" if unseen else "suspected-convention")
    assert way in " ".join([finding.text, *finding.examples])


def test_why_nothing_is_judged(tmp_path):
    pose_N44 = motion("hand-held")[:8]
    image_NHW3 = render(pose_N44)
    still_NHW3 = np.repeat(image_NHW3[:1], 8, axis=0)
    other_NHW3 = np.random.default_rng(0).integers(0, 255, image_NHW3.shape, dtype=np.uint8)
    for number, (poses, images, reason) in enumerate(
        [
            (pose_N44[:1], image_NHW3[:1], "one frame only"),
            (pose_N44, still_NHW3, "the camera hardly moves"),
            (pose_N44, still_NHW3 * 0, "the images show too few points"),
            (pose_N44, other_NHW3, "fewer than 4 pairs of frames share enough points"),
        ]
    ):
        ordered, matched = write_and_match(tmp_path / str(number), poses, images, 200.0)
        assert matched.reason == reason
        verdict = judge_by_images(matched, ordered)
        assert (verdict.reason, verdict.fits, verdict.contradicts) == (reason, False, False)


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
