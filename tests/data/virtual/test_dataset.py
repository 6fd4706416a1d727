"""The virtual data set on disk: layout, labels, determinism, and what happens to interrupted and
foreign folders.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from mspose.data.cache import open_cache
from mspose.data.cards import read_card
from mspose.data.seven_scenes import read_seven_scenes
from mspose.data.virtual import RECORD, VERSION, dataset, sequences
from mspose.data.virtual.dataset import render_virtual
from mspose.data.virtual.rendering import Camera, Lighting, render_frame
from mspose.data.virtual.rooms import SCENE_NAMES
from mspose.data.virtual.scene import scene_key
from mspose.data.virtual.sequences import SPLITS, plan_sequences
from mspose.data.virtual.trajectory import trajectory
from mspose.errors import MsposeError
from mspose.files import locked
from mspose.poses import orientation_error, position_error, rotation_to_quaternion

TINY = {
    "frames_per_sequence": 6,
    "width": 96,
    "height": 72,
    "focal_px": 87.75,
    "workers": 1,
    "progress": False,
}
LIBRARY = {"library": (6, 6)}
ATELIER = {"atelier": (12, 7)}
FRAMES = {**ATELIER, **LIBRARY}

build_scene = sequences._built_scene  # which keeps them: many tests look at the same scenes


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("virtual")
    render_virtual(root, frames=FRAMES, **TINY)
    return root


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def test_scenes_have_names_of_their_own():
    assert len(SCENE_NAMES) == 7
    assert not set(SCENE_NAMES) & set(read_card("7scenes").scenes)


def test_the_cards_are_the_demo_and_a_set_of_7scenes_size():
    demo, full, published = read_card("virtual"), read_card("virtual-full"), read_card("7scenes")
    assert len(demo.scenes) >= 4
    assert set(demo.known_scenes) == set(full.scenes) == set(SCENE_NAMES)
    counts = [sorted(fact.frames.items()) for fact in full.scene_facts.values()]
    assert sorted(counts) == sorted(
        sorted(fact.frames.items()) for fact in published.scene_facts.values()
    )
    assert demo.root != full.root
    for card in (demo, full):
        assert card.format == "virtual"
        assert card.focal_px == card.render["focal_px"]


def test_it_is_written_in_seven_scenes_layout_and_loads(rendered):
    folder = rendered / "atelier"
    assert (folder / "TrainSplit.txt").read_text() == "sequence1\nsequence2\n"
    assert (folder / "TestSplit.txt").read_text() == "sequence3\nsequence4\n"
    assert np.allclose(
        np.loadtxt(folder / "camera-intrinsics.txt"), Camera(96, 72, 87.75).intrinsics_33
    )
    names = sorted(path.name for path in (folder / "seq-04").iterdir())
    # what remained of seven frames
    assert names == ["frame-000000.color.jpg", "frame-000000.pose.txt"]
    for split, counts in (("train", (12, 6)), ("test", (7, 6))):
        table = read_seven_scenes(
            rendered, list(FRAMES), split, dataset="virtual", ground_truth="rendered"
        )
        assert tuple(table.groupby("scene").size()[list(FRAMES)]) == counts
        for image in table["image"]:
            assert cv2.imread(str(rendered / image)).shape == (72, 96, 3)
        assert table["focal_px"].eq(87.75).all()


def test_the_label_is_the_pose_that_rendered_the_image(rendered):
    """The image of a frame is the one that its pose file's pose gives, and of no other pose of the
    sequence.
    """
    key = [0, scene_key("library"), 0, 0]
    rng = np.random.default_rng(key)
    scene, camera, lighting = build_scene("library", 0), Camera(96, 72, 87.75), Lighting.draw(rng)
    folder = rendered / "library/seq-01"
    labels = [np.loadtxt(folder / f"frame-{i:06d}.pose.txt") for i in range(6)]
    assert np.array_equal(labels, trajectory(scene, rng, 6))  # every digit is there
    table = read_seven_scenes(rendered, ["library"], "train")
    stored = [
        cv2.imread(str(rendered / image))[..., ::-1].astype(float) for image in table["image"]
    ]
    for i, image in enumerate(stored):
        differences = [
            np.abs(render_frame(scene, pose, camera, lighting)[0] - image).mean() for pose in labels
        ]
        assert np.argmin(differences) == i
        assert differences[i] < 8.0  # of the JPEG
        position = table.loc[i, ["tx", "ty", "tz"]].to_numpy(float)
        assert position_error(position[None], labels[i][None, :3, 3])[0] < 1e-12


def test_png_holds_the_rendered_pixels_exactly(tmp_path):
    render_virtual(tmp_path, frames={"atelier": (1, 1)}, image_format="png", **TINY)
    rng = np.random.default_rng([0, scene_key("atelier"), 0, 0])
    scene, lighting = build_scene("atelier", 0), Lighting.draw(rng)
    image, _ = render_frame(scene, trajectory(scene, rng, 1)[0], Camera(96, 72, 87.75), lighting)
    stored = cv2.imread(str(tmp_path / "atelier/seq-01/frame-000000.color.png"))[..., ::-1]
    assert np.array_equal(stored, image)
    assert len(read_seven_scenes(tmp_path, ["atelier"], "test")) == 1


def test_the_same_seed_gives_the_same_files_with_any_number_of_processes(rendered, tmp_path):
    render_virtual(tmp_path, frames=FRAMES, **{**TINY, "workers": 2})
    assert contents(tmp_path) == contents(rendered)


def test_another_seed_gives_other_rooms_and_paths(rendered, tmp_path):
    render_virtual(tmp_path, frames=LIBRARY, seed=1, **TINY)
    there, here = contents(rendered / "library"), contents(tmp_path / "library")
    assert all(there[name] != here[name] for name in here if name.startswith("seq-"))


def test_a_larger_data_set_begins_with_the_same_sequences():
    def plan(train, test):
        settings = {"frames_per_sequence": 6, "seed": 0, "image_format": "jpg"}
        return plan_sequences("gallery", train, test, camera=Camera(96, 72, 87.75), **settings)

    small, large = plan(6, 6), plan(60, 60)
    for mine, its in ((small[0], large[0]), (small[1], large[10])):
        assert mine.split == its.split
        for (image, pose), (its_image, its_pose) in zip(mine.render(), its.render(), strict=True):
            assert np.array_equal(pose, its_pose)
            assert np.array_equal(image, its_image)


def test_more_frames_of_a_sequence_follow_the_same_path():
    scene = build_scene("arcade", 0)
    few, many = (trajectory(scene, np.random.default_rng(3), frames) for frames in (21, 63))
    assert np.allclose(few, many[1::3], atol=1e-12)


def test_training_and_test_views_differ_but_are_near(rendered):
    name = "workshop"
    scene = build_scene(name, 0)
    paths = {}
    for split, count in (("train", 8), ("test", 2)):
        keys = [[0, scene_key(name), SPLITS.index(split), number] for number in range(count)]
        paths[split] = np.concatenate(
            [trajectory(scene, np.random.default_rng(key), 50) for key in keys]
        )
    train, test = paths["train"], paths["test"]
    metres = np.linalg.norm(train[None, :, :3, 3] - test[:, None, :3, 3], axis=-1)
    cosine = (np.einsum("aij,bij->ab", test[:, :3, :3], train[:, :3, :3]) - 1) / 2
    degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    assert ((metres > 0.01) | (degrees > 0.3)).all()
    assert np.median((metres / 0.5 + degrees / 15).min(axis=1)) < 1.5
    # the mean pose is a poor answer, as it is on 7Scenes
    quaternion = rotation_to_quaternion(test[:, :3, :3])
    middle = np.repeat(
        rotation_to_quaternion(train[:, :3, :3]).mean(axis=0)[None], len(test), axis=0
    )
    centre = np.repeat(train[:, :3, 3].mean(axis=0)[None], len(test), axis=0)
    assert 0.5 < np.median(position_error(centre, test[:, :3, 3])) < 1.1
    assert 15 < np.median(orientation_error(middle, quaternion)) < 45


def test_paths_are_smooth_upright_and_inside_their_box():
    scene = build_scene("kitchenette", 0)
    poses = trajectory(scene, np.random.default_rng(0), 1000)
    assert np.allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-12
    )
    assert np.linalg.det(poses[:, :3, :3]) == pytest.approx(1.0)
    assert (poses[:, 3] == (0, 0, 0, 1)).all()
    assert (poses[:, :3, 3] > scene.view_low_3 - 0.03).all()
    assert (poses[:, :3, 3] < scene.view_high_3 + 0.03).all()
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert 0.001 < np.median(steps) < 0.03  # metres between frames at 30 frames a second
    assert steps.max() < 0.06
    assert (poses[:, 2, 1] < -0.6).all()  # the camera's y axis points down


def test_views_that_look_alike_are_near_each_other():
    name = "arcade"
    scene, camera = build_scene(name, 0), Camera(64, 48, 58.5)
    poses = trajectory(scene, np.random.default_rng(1), 120)
    renders = [render_frame(scene, pose, camera, Lighting())[0] for pose in poses]
    small = np.array(
        [cv2.resize(image, (16, 12), interpolation=cv2.INTER_AREA) for image in renders], float
    )
    small = small.reshape(len(small), -1)
    small -= small.mean(axis=1, keepdims=True)
    unlike = ((small[:, None] - small[None]) ** 2).sum(axis=-1)
    metres = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=-1)
    np.fill_diagonal(unlike, np.inf)
    cosine = (np.einsum("aij,bij->ab", poses[:, :3, :3], poses[:, :3, :3]) - 1) / 2
    degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    likest = np.arange(120), unlike.argmin(axis=1)
    assert np.median(metres[likest]) < 0.3 * np.median(metres)
    assert np.quantile(degrees[likest], 0.95) < 20 < np.median(degrees)


# Interrupted and foreign folders


def test_complete_scenes_are_left_alone_and_missing_ones_added(rendered, tmp_path):
    render_virtual(tmp_path, frames=LIBRARY, **TINY)
    before = stamps(tmp_path / "library")
    render_virtual(tmp_path, frames=FRAMES, **TINY)
    assert stamps(tmp_path / "library") == before
    assert contents(tmp_path) == contents(rendered)


def test_a_killed_rendering_is_continued_by_the_next(rendered, tmp_path):
    code = (
        "import sys, time; from mspose.data.virtual import dataset, sequences\n"
        "plain = sequences.Sequence.render\n"
        "def slow(self):\n"
        "    for frame in plain(self):\n"
        "        time.sleep(0.1); yield frame\n"
        "sequences.Sequence.render = slow\n"
        f"dataset.render_virtual(sys.argv[1], frames={ATELIER!r}, **{TINY!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3]
    )
    partial = tmp_path / "atelier/.seq-02.partial"
    deadline = time.monotonic() + 60
    while not (partial.is_dir() and len(list(partial.iterdir())) >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "atelier/seq-02").exists()
    assert not list(tmp_path.rglob("*Split.txt"))
    first = stamps(tmp_path / "atelier/seq-01")
    render_virtual(tmp_path, frames=ATELIER, **TINY)
    assert stamps(tmp_path / "atelier/seq-01") == first  # what was whole is kept
    assert contents(tmp_path / "atelier") == contents(rendered / "atelier")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_nothing_passes_for_complete(
    rendered, tmp_path, monkeypatch, workers
):
    written = Path.write_bytes

    def full(self, data):
        if self.name.startswith("frame-000003"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return written(self, data)

    if workers == 1:
        monkeypatch.setattr(Path, "write_bytes", full)
    # a process of its own does not see the patch: a file where a folder should be fails as well
    else:
        (tmp_path / "atelier").mkdir()
        shutil.copy(rendered / "atelier" / RECORD, tmp_path / "atelier")
        (tmp_path / "atelier/.seq-02.partial").write_text("in the way")
    with pytest.raises(MsposeError, match="cannot render into") as caught:
        render_virtual(tmp_path, frames={"atelier": (12, 7)}, **{**TINY, "workers": workers})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*Split.txt"))
    assert not (tmp_path / "atelier/seq-02").exists()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 1}, "seed"),
        ({"width": 97}, "width"),
        ({"focal_px": 90.0}, "focal_px"),
        ({"image_format": "png"}, "image_format"),
        ({"frames_per_sequence": 3}, "frames_per_sequence"),
        ({"frames": {"atelier": (12, 8)}}, "test_frames"),
        ({"frames": {"gallery": (6, 6)}, "seed": 1}, "seed"),  # beside scenes of another seed
    ],
)
def test_a_folder_rendered_with_other_settings_is_refused_untouched(rendered, change, names):
    before = stamps(rendered)
    with pytest.raises(MsposeError, match=f"other settings.*{names}"):
        render_virtual(rendered, **{"frames": FRAMES, **TINY, **change})
    assert stamps(rendered) == before


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "chess/seq-01/frame-000000.pose.txt",
        "atelier/seq-01/frame-000000.color.png",
        "library/me",
    ],
)
def test_a_folder_with_anything_else_is_refused_untouched(tmp_path, path):
    foreign = tmp_path / path
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("precious")
    with pytest.raises(MsposeError, match="not a virtual scene"):
        render_virtual(tmp_path, frames=FRAMES, **TINY)
    assert contents(tmp_path) == {path: b"precious"}


def made_older(root, scene):
    """Make a rendered scene one of version 1, with a colour of its own."""
    record = json.loads((root / scene / RECORD).read_text())
    (root / scene / RECORD).write_text(json.dumps({**record, "version": VERSION - 1}))
    for image in (root / scene).glob("seq-*/*.color.jpg"):
        cv2.imwrite(str(image), np.full((72, 96, 3), (10, 250, 10), np.uint8))


def test_scenes_of_an_older_version_are_rendered_anew(rendered, tmp_path, caplog):
    shutil.copytree(rendered, tmp_path / "data")
    root = tmp_path / "data"
    made_older(root, "atelier")
    (root / "atelier/seq-99").mkdir()  # where the older version had more frames
    (root / "atelier/seq-99/frame-000000.pose.txt").write_text("")
    (root / "atelier/.DS_Store").write_text("")
    library = stamps(root / "library")
    with caplog.at_level("INFO", logger="mspose"):
        render_virtual(root, frames=FRAMES, **TINY)
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: atelier of an older version: rendered anew in version {VERSION}"
    ]
    (root / "atelier/.DS_Store").unlink()
    assert contents(root) == contents(rendered)
    assert stamps(root / "library") == library


def test_what_was_interrupted_while_an_older_version_was_deleted_goes_on(
    rendered, tmp_path, monkeypatch
):
    shutil.copytree(rendered, tmp_path / "data")
    root = tmp_path / "data"
    made_older(root, "atelier")
    removed = Path.unlink

    def interrupted(self, **options):
        if self.name == "frame-000003.pose.txt":
            raise KeyboardInterrupt
        removed(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render_virtual(root, frames=FRAMES, **TINY)
    assert not list((root / "atelier").glob("*Split.txt"))
    render_virtual(root, frames=FRAMES, **TINY)
    assert contents(root) == contents(rendered)


@pytest.mark.parametrize(
    "path", ["notes.txt", "seq-01/frame-000000.depth.png", "seq-1/frame-000000.pose.txt", "seq-7"]
)
def test_foreign_files_in_a_scene_of_an_older_version_keep_it_as_it_is(rendered, tmp_path, path):
    shutil.copytree(rendered, tmp_path / "data")
    root = tmp_path / "data"
    made_older(root, "atelier")
    made_older(root, "library")
    foreign = root / "library" / path
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("precious")
    before = contents(root)
    with pytest.raises(
        MsposeError, match="is no part of the virtual data set, whose older version"
    ):
        render_virtual(root, frames=FRAMES, **TINY)
    assert contents(root) == {
        **before,
        **{name: text for name, text in contents(root).items() if name[0] == "."},
    }


def test_older_versions_of_other_settings_and_newer_versions_are_refused(rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "data")
    root = tmp_path / "data"
    made_older(root, "atelier")
    with pytest.raises(MsposeError, match="other settings .seed"):
        render_virtual(root, frames=FRAMES, seed=1, **TINY)
    record = json.loads((root / "atelier" / RECORD).read_text())
    (root / "atelier" / RECORD).write_text(json.dumps({**record, "version": VERSION + 1}))
    with pytest.raises(MsposeError, match=f"version {VERSION + 1} there, {VERSION} asked for"):
        render_virtual(root, frames=FRAMES, **TINY)


def test_older_scenes_that_are_not_asked_for_stay(rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "data")
    made_older(tmp_path / "data", "atelier")
    before = stamps(tmp_path / "data/atelier")
    render_virtual(tmp_path / "data", frames=LIBRARY, **TINY)
    assert stamps(tmp_path / "data/atelier") == before


def test_the_frame_cache_holds_the_images_of_the_newer_version(rendered, tmp_path):
    shutil.copytree(rendered, tmp_path / "data")
    root = tmp_path / "data"
    made_older(root, "library")

    def cached(data):
        table = read_seven_scenes(data, ["library"], "train")
        _, cache = open_cache(table, data, short_side=36, folder=tmp_path / "cache", progress=False)
        return np.array([cache[row] for row in range(len(cache))])

    assert (cached(root)[..., 1] > 200).all()
    render_virtual(root, frames=FRAMES, **TINY)
    assert np.array_equal(cached(root), cached(rendered))


def test_complete_data_needs_no_permission_to_write(rendered, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("wrote into complete data")

    monkeypatch.setattr(dataset, "locked", refuse)
    render_virtual(rendered, frames=FRAMES, **TINY)


def test_two_processes_do_not_render_the_same_sequence(rendered, tmp_path):
    call = f"render_virtual(sys.argv[1], frames={LIBRARY!r}, **{TINY!r})"
    code = f"import sys; from mspose.data.virtual.dataset import render_virtual; {call}"
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[3]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert contents(tmp_path / "library") == contents(rendered / "library")


def test_who_comes_while_another_process_begins_waits_for_it(tmp_path, caplog):
    begun = tmp_path / "library" / "begun"
    with ThreadPoolExecutor(1) as thread, caplog.at_level("INFO", logger="mspose"):
        with locked(tmp_path / dataset.LOCK):
            begun.parent.mkdir()
            begun.touch()
            coming = thread.submit(render_virtual, tmp_path, frames={"library": (2, 1)}, **TINY)
            while "waiting for another process that renders" not in caplog.text:
                assert not coming.done(), coming.exception()
                time.sleep(0.05)
            begun.unlink()
        coming.result(60)
    assert (tmp_path / "library" / RECORD).is_file()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_rendering_processes_end_with_the_one_that_started_them(tmp_path, number):
    options = {**TINY, "width": 320, "height": 240, "workers": 2}
    call = f"render_virtual(sys.argv[1], frames={{'atelier': (300, 300)}}, **{options!r})"
    script = tmp_path / "render.py"  # a file, which the rendering processes can import
    script.write_text(
        "import sys\nfrom mspose.data.virtual.dataset import render_virtual\n"
        f"if __name__ == '__main__':\n    {call}\n"
    )
    root = tmp_path / "data"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    main = subprocess.Popen([sys.executable, script, root], env=environment)
    deadline = time.monotonic() + 60
    while len(list(root.glob("atelier/.seq-*.partial/*"))) < 4:
        assert main.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    main.send_signal(number)
    main.wait()
    with locked(root / dataset.LOCK):  # as all of them held it, until the last has ended
        written = contents(root)
        time.sleep(0.5)
        assert contents(root) == written


def test_a_sequence_that_is_not_whole_is_rendered_anew(rendered, tmp_path, caplog):
    shutil.copytree(rendered, tmp_path / "data")
    root = tmp_path / "data"
    (root / "library/seq-01/frame-000001.pose.txt").unlink()
    (root / "atelier/seq-02/frame-000003.color.jpg").write_bytes(b"")
    kept = stamps(root / "library/seq-02")
    with caplog.at_level("INFO", logger="mspose"):
        render_virtual(root, frames=FRAMES, **TINY)
    assert contents(root) == contents(rendered)
    assert stamps(root / "library/seq-02") == kept
    assert caplog.text.count("is not whole: it is rendered anew") >= 2


def test_what_a_killed_process_left_in_its_first_moment_is_no_obstacle(tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library/.virtual.json.abcd1234.part").touch()
    render_virtual(tmp_path, frames={"library": (1, 1)}, **TINY)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["holiday.jpg", "seq-01/holiday.jpg"])
def test_foreign_files_in_a_scene_are_named(tmp_path, name):
    render_virtual(tmp_path, frames={"library": (2, 1)}, **TINY)
    foreign = tmp_path / "library" / name
    foreign.write_text("precious")
    (tmp_path / "library/seq-01/frame-000001.pose.txt").unlink()
    with pytest.raises(MsposeError, match=r"holiday\.jpg is no part"):
        render_virtual(tmp_path, frames={"library": (2, 1)}, **TINY)
    assert foreign.read_text() == "precious"


def test_hidden_files_and_empty_folders_are_no_obstacle(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "library").mkdir()
    render_virtual(tmp_path, frames={"library": (1, 1)}, **TINY)
    assert (tmp_path / "library/TestSplit.txt").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": {"chess": (6, 6)}}, "chess; there are: atelier"),
        ({"frames": {}}, "there are: atelier"),
        ({"frames": {"atelier": (6, 0)}}, "at least one"),
        ({"frames_per_sequence": 0}, "frames_per_sequence"),
        ({"width": 0}, "width"),
        ({"height": "240"}, "height"),
        ({"focal_px": "long"}, "focal_px"),
        ({"seed": 0.5}, "seed"),
        ({"focal_px": float("nan")}, "focal_px"),
        ({"seed": -1}, "seed"),
        ({"image_format": "gif"}, "png, jpg"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path, change, message
):
    with pytest.raises(MsposeError, match=message):
        render_virtual(tmp_path / "new", **{"frames": FRAMES, **TINY, **change})
    assert not (tmp_path / "new").exists()


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "root").write_text("")
    with pytest.raises(MsposeError, match="cannot render into"):
        render_virtual(tmp_path / "root", frames=FRAMES, **TINY)


def test_an_unreadable_record_is_named(tmp_path):
    (tmp_path / "atelier").mkdir()
    (tmp_path / "atelier" / RECORD).write_text("{")
    with pytest.raises(MsposeError, match=r"virtual\.json is not JSON.*move .*atelier away"):
        render_virtual(tmp_path, frames=FRAMES, **TINY)


def test_sequences_are_lit_each_in_its_own_way():
    rngs = [
        np.random.default_rng([0, scene_key("atelier"), split, number])
        for split in (0, 1)
        for number in range(4)
    ]
    lightings = [Lighting.draw(rng) for rng in rngs]
    assert len({lighting.gain for lighting in lightings}) == 8
    assert all(0.8 <= lighting.gain <= 1.2 for lighting in lightings)
