import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from tools.checking.builders import change_labels, motion, render, room, write_set

from mspose.cli import main
from mspose.data.virtual.trajectory import trajectory
from mspose.errors import MsposeError
from mspose.poses import normalize_quaternion
from mspose.tools.checking import check
from mspose.tools.checking.check import check_data
from mspose.tools.checking.image_files import _repeated_images
from mspose.tools.checking.matching import Matched
from mspose.tools.checking.trajectories import unit_findings

QUATERNION, POSITION = ["q1", "q2", "q3", "q4"], ["t1", "t2", "t3"]


@pytest.fixture(scope="module")
def filmed():
    """Two hand-held sequences of the room: (scene, split, sequence) -> poses, images."""
    train_N44 = motion("hand-held")
    # the same part of the walk, at other steps
    test_N44 = trajectory(room(), np.random.default_rng(3), 200)[8:18]
    test_N44[:, :3, 3] += [0.1, 0.05, 0.05]
    return {
        ("room", "train", "seq-1"): (train_N44, render(train_N44)),
        ("room", "test", "seq-2"): (test_N44, render(test_N44)),
    }


@pytest.fixture
def clean(filmed, tmp_path) -> Path:
    """A folder in which there is nothing to find."""
    return write_set(tmp_path / "own", filmed)


@pytest.fixture
def found(monkeypatch):
    """`found(folder)`: the findings by kind, without matching images or plotting."""
    monkeypatch.setattr(check, "matched_pairs", lambda *_: Matched([], "not matched"))
    monkeypatch.setattr(check, "_plot", lambda *_: None)

    def run(folder, **options):
        checked = check_data(str(folder), progress=False, **options)
        kinds = {finding.kind: finding for finding in checked.findings}
        assert len(kinds) == len(checked.findings), kinds
        return kinds

    return run


def test_a_clean_set_has_no_findings_and_a_picture(clean, capsys):
    main(["data", "check", str(clean), "--quiet"])
    out = capsys.readouterr().out
    assert "no errors, no warnings" in out
    assert "| room " in out
    record = json.loads((clean / "check" / "check.json").read_text())
    assert record["findings"] == []
    assert record["image_sizes"] == [[240, 180, 34]]
    scene = record["scenes"]["room"]
    assert scene["frames"] == {"train": 24, "test": 10}
    assert scene["pictures"]["best_readings"] == ["as labelled"]
    assert scene["pictures"]["median_distance_m"] == pytest.approx(2, abs=1)
    assert scene["pictures"]["pairs"] >= 6
    with Image.open(clean / "check" / "trajectories.png") as picture:
        assert min(picture.size) > 600
    main(["data", "check", str(clean / "own.yaml"), "--quiet"])  # again, over its own files


def test_errors_end_in_status_1_and_warnings_in_0(clean, capsys):
    change_labels(clean, lambda table: table[table["split"] == "train"])
    main(["data", "check", str(clean), "--quiet"])
    assert "no errors, 1 warning" in capsys.readouterr().out
    (clean / "room" / "seq-1" / "frame-3.jpg").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(clean), "--quiet"])
    assert stop.value.code == 1
    assert "1 error, 1 warning" in capsys.readouterr().out


def test_missing_broken_blank_and_turned_images(clean, found):
    images = clean / "room" / "seq-1"
    (images / "frame-0.jpg").unlink()
    (images / "frame-1.jpg").write_bytes((images / "frame-1.jpg").read_bytes()[:3000])
    (images / "frame-2.jpg").write_bytes(b"")
    Image.new("RGB", (240, 180), "grey").save(images / "frame-4.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images / "frame-5.jpg") as image:
        image.load()
    image.save(images / "frame-5.jpg", exif=exif)
    kinds = found(clean)
    assert set(kinds) == {"unreadable-image", "blank-image", "exif-orientation"}
    bad = kinds["unreadable-image"]
    assert bad.level == "error"
    assert [example.split(":")[0] for example in bad.examples] == [
        f"room/seq-1/frame-{i}.jpg" for i in range(3)
    ]
    assert "labels.csv, line 2]" in bad.examples[0]
    assert kinds["blank-image"].examples[0].startswith("room/seq-1/frame-4.jpg")
    assert kinds["exif-orientation"].examples[0].startswith("room/seq-1/frame-5.jpg")


def test_images_of_several_sizes_and_odd_focal_lengths(clean, found):
    for number in (0, 1):
        path = clean / "room" / "seq-1" / f"frame-{number}.jpg"
        with Image.open(path) as image:
            image.resize((480, 360 + 40 * number)).save(path)
    kinds = found(clean)
    assert set(kinds) == {"image-proportions"}
    assert kinds["image-proportions"].examples[0] == "240x180: 32 images"
    card = clean / "own.yaml"
    card.write_text(card.read_text().replace("200.0", "2000"))
    assert "odd-focal-length" in found(clean)


def test_every_bad_label_is_listed(clean, found):
    def spoil(table):
        table = table.astype(dict.fromkeys(POSITION + QUATERNION, object))
        table.loc[2, "t1"] = "nan"
        table.loc[5, "q2"] = "east"
        table.loc[7, QUATERNION] = 0.0
        return table

    change_labels(clean, spoil)
    bad = found(clean)["bad-label"]
    assert bad.level == "error"
    assert [int(example.split("line ")[1].split(":")[0]) for example in bad.examples] == [4, 7, 9]


def test_a_set_of_bad_labels_alone_lists_them(clean, found, caplog):
    change_labels(clean, lambda table: table.assign(t2="nan")[table["split"] == "train"])
    kinds = found(clean)
    assert list(kinds) == ["unreadable-labels"]
    assert len(kinds["unreadable-labels"].examples) == 24
    assert caplog.records == []  # said once, in the report
    change_labels(clean, lambda table: table.iloc[:0])
    with pytest.raises(MsposeError, match="own has no frames"):
        found(clean)


def test_impossible_numbers_and_names_that_no_font_has(clean, recwarn):
    def spoil(table):
        table.loc[3, "t1"] = 9e6
        return table.assign(scene="a $x_$ 厨房")

    change_labels(clean, spoil)
    kinds = [finding.kind for finding in check_data(str(clean), progress=False).findings]
    assert {"large-extent", "jump"} <= set(kinds)
    record = json.loads((clean / "check" / "check.json").read_text(), parse_constant=pytest.fail)
    assert record["scenes"]["a $x_$ 厨房"]["frames"] == {"test": 10, "train": 24}
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_an_image_labelled_twice(clean, found):
    change_labels(clean, lambda table: table.iloc[[*range(len(table)), 3, 30]])
    kinds = found(clean)
    assert list(kinds) == ["image-labelled-twice"]
    assert len(kinds["image-labelled-twice"].examples) == 2
    assert "line 5" in kinds["image-labelled-twice"].examples[0]


def test_repeated_images(clean, found):
    images = clean / "room"
    (images / "seq-1" / "frame-4.jpg").write_bytes((images / "seq-1" / "frame-3.jpg").read_bytes())
    within = found(clean)
    assert {kind: its.level for kind, its in within.items()} == {"repeated-picture": "warning"}
    with Image.open(images / "seq-1" / "frame-9.jpg") as image:
        image.save(images / "seq-2" / "frame-0.png")  # the same pixels in another file
    (images / "seq-2" / "frame-0.jpg").unlink()
    kinds = found(clean)
    assert kinds["picture-in-both-splits"].level == "error"
    assert "seq-1/frame-9" in kinds["picture-in-both-splits"].examples[0]


@pytest.mark.parametrize(("tests", "level"), [(50, "error"), (150, "warning")])
def test_a_single_known_picture_of_many_is_no_error(tests, level):
    frames = pd.DataFrame(
        {"image": [str(row) for row in range(tests + 1)], "split": ["train"] + ["test"] * tests}
    )
    digests = [b"same", b"same", *(bytes([row]) for row in range(tests - 1))]
    (finding,) = _repeated_images(frames, pd.DataFrame({"digest": digests, "blank": False}))
    assert (finding.kind, finding.level) == ("picture-in-both-splits", level)
    assert f": 1 of {tests} (" in finding.text


def spoil(table):
    """Two frames with one pose."""
    table.loc[4, POSITION + QUATERNION] = table.loc[3, POSITION + QUATERNION].to_numpy()
    return table


def test_repeated_poses(clean, found):
    change_labels(clean, spoil)
    first = found(clean)["repeated-pose"].examples[0]
    assert first.startswith("room/seq-1/frame-3.jpg = room/seq-1/frame-4.jpg")


def test_lines_are_found_for_names_with_brackets_too(clean, found):
    old, new = "room/seq-1/frame-3.jpg", "room/seq-1/a (3).jpg"
    (clean / old).rename(clean / new)
    change_labels(clean, lambda table: spoil(table.replace(old, new)))
    (example,) = found(clean)["repeated-pose"].examples
    where = f"{clean / 'labels.csv'}, line 5"
    assert example == f"room/seq-1/a (3).jpg = room/seq-1/frame-4.jpg [{where}]"


def test_jumps(clean, found):
    def spoil(table):
        table.loc[10, "t1"] += 5
        return table

    change_labels(clean, spoil)
    jump = found(clean)["jump"]
    assert len(jump.examples) == 2
    assert {example.split(":")[0] for example in jump.examples} == {
        "room/seq-1/frame-9.jpg -> room/seq-1/frame-10.jpg",
        "room/seq-1/frame-10.jpg -> room/seq-1/frame-11.jpg",
    }


@pytest.mark.parametrize(
    ("factor", "shift", "kind", "text"),
    [
        (10_000, 0, "large-extent", "positions span"),
        (1e-7, 0, "small-extent", "cm only"),
        (1000, 5e6, "far-from-origin", "km away"),
        (0, 0, "small-extent", "room: all positions are the same"),
    ],
)
def test_a_unit_that_is_not_metres_and_a_far_origin(factor, shift, kind, text, clean, found):
    def scaled(table):
        table[POSITION] = table[POSITION] * factor + shift
        return table

    change_labels(clean, scaled)
    assert text in found(clean)[kind].text


def test_millimetres_are_suspected_by_the_distance_of_what_is_seen(clean):
    def in_millimetres(table):
        table[POSITION] *= 1000
        return table

    change_labels(clean, in_millimetres)
    checked = check_data(str(clean), progress=False)
    (finding,) = checked.findings
    assert (finding.level, finding.kind) == ("warning", "large-extent")
    assert "are positions in metres, or in millimetres?" in finding.text


@pytest.mark.parametrize(
    ("extent_m", "depth_m", "kind"),
    [
        (1500, 15, None),  # a long drive
        (1500, np.nan, "large-extent"),
        (30_000, 15, "large-extent"),  # a frame far away from the others
        (0.03, 0.5, None),  # a camera that hardly moves
        (0.03, np.nan, "small-extent"),
        (0.4, 400, "large-extent"),
        (0.04, 0.01, "small-extent"),
    ],
)
def test_the_unit_is_judged_by_distances_where_they_are_known(extent_m, depth_m, kind):
    part = pd.DataFrame({"scene": "s", "tx": [0.0, extent_m], "ty": 0.0, "tz": 0.0})
    found = [finding.kind for finding in unit_findings(part, depth_m)]
    assert found == ([kind] if kind else [])


def test_mixed_signs_are_a_note_and_flips_of_the_target_a_warning(clean, found):
    def signs(table):
        table.loc[::2, QUATERNION] *= -1
        return table

    change_labels(clean, signs)
    assert {kind: its.level for kind, its in found(clean).items()} == {"mixed-signs": "note"}

    def turned(table):  # about the camera's own axis, so that w passes 0 between two frames
        angle = np.pi + np.linspace(-0.2, 0.2, len(table))
        quaternion = [np.cos(angle / 2), np.sin(angle / 2), 0 * angle, 0 * angle]
        table[QUATERNION] = normalize_quaternion(np.stack(quaternion, axis=1))
        return table

    change_labels(clean, turned)
    assert len(found(clean)["quaternion-flip"].examples) == 1


def test_splits_that_leak_or_do_not_meet(clean, found, filmed, tmp_path):
    (_, (pose_N44, image_NHW3)), _ = filmed.items()

    def every_third(table):
        table = table[table["seq"] == "seq-1"].assign(split="train")
        table.iloc[::3, table.columns.get_loc("split")] = "test"
        return table

    change_labels(clean, every_third)
    assert "8 of 8" in found(clean)["test-near-train"].text

    # the same, when each split calls its frames a sequence of its own
    change_labels(clean, lambda table: table.assign(seq=table["split"]))
    assert "test-near-train" in found(clean)

    def blocks_with_a_margin(table):
        table = table[table["img_path"].str.contains("seq-1")].assign(seq="seq-1", split="train")
        table.loc[10:13, "split"] = "test"
        return table.drop([8, 9, 14, 15])

    write_set(clean, filmed)
    change_labels(clean, blocks_with_a_margin)
    assert found(clean) == {}

    halves = {("room", "train", "a"): (pose_N44[:12], image_NHW3[:12])}
    away_N44 = pose_N44[12:].copy()
    away_N44[:, :3, 3] += [0.0, 0.0, 3.0]
    away_N44[:, :3, :3] = away_N44[:, :3, :3] @ np.diag([-1.0, 1.0, -1.0])  # looking back
    halves[("room", "test", "b")] = (away_N44, image_NHW3[12:])
    kinds = found(write_set(tmp_path / "halves", halves))
    assert {"test-outside-train", "test-views-unseen"} <= set(kinds)


def test_scenes_and_splits_that_are_missing(clean, found, filmed, tmp_path):
    (_, train), (_, test) = filmed.items()
    folder = write_set(
        tmp_path / "scenes",
        {
            ("a", "train", "1"): train,
            ("a", "test", "2"): test,
            ("b", "train", "1"): train,
            ("c", "test", "1"): test,
        },
    )
    kinds = {finding.kind: finding for finding in check_data(str(folder), progress=False).findings}
    assert kinds["scene-only-in-test"].level == "error"
    assert kinds["scene-only-in-train"].level == "warning"
    assert kinds["scene-only-in-train"].text.endswith(": b")
    change_labels(clean, lambda table: table.assign(split="test"))
    assert found(clean)["no-training-frames"].level == "error"
    change_labels(clean, lambda table: table.assign(split="val"))
    assert "no-training-frames" in found(clean)
    scenes = {"scenes": {"room": {"frames": {"test": 30}}}}
    card = yaml.safe_load((clean / "own.yaml").read_text()) | scenes
    (clean / "own.yaml").write_text(yaml.safe_dump(card))
    change_labels(clean, lambda table: table.assign(split="test"))
    (example,) = found(clean)["frame-count"].examples
    assert example == "room test: 34 frames here, 30 as the card says"


def test_a_wrong_convention_is_said_by_the_command(clean, capsys):
    card = clean / "own.yaml"
    card.write_text(card.read_text().replace("camera-to-world", "world-to-camera"))
    main(["data", "check", str(clean), "--quiet", "--out", str(clean / "elsewhere")])
    out = capsys.readouterr().out
    assert "room: the poses seem to be in another convention: world-to-camera. " in out
    assert (clean / "elsewhere" / "check.json").is_file()
    assert not (clean / "check").exists()


def test_an_image_set_in_one_folder_with_one_frame(filmed, found, tmp_path):
    (_, (pose_N44, image_NHW3)), _ = filmed.items()
    one = {("r", "train", "s"): (pose_N44[:1], image_NHW3[:1])}
    folder = write_set(tmp_path / "one", one, focal_px=None)
    assert set(found(folder)) == {"no-test-frames", "unknown-focal-length"}


def test_the_table_says_why_images_are_not_judged(filmed, tmp_path):
    (_, (pose_N44, image_NHW3)), _ = filmed.items()
    still = {("r", "train", "s"): (pose_N44[:6], image_NHW3[:1].repeat(6, axis=0))}
    checked = check_data(str(write_set(tmp_path / "still", still)), progress=False)
    assert "the camera hardly moves |" in checked.text


def test_a_virtual_set_by_its_card(tmp_path, found, caplog):
    from mspose.data.preparation import get_data

    caplog.set_level(logging.ERROR)
    counts = {"train": 2, "test": 1}
    card = {
        "name": "rooms",
        "format": "virtual",
        "scenes": {"atelier": {"frames": counts}, "library": {"frames": counts}},
    }
    size = {"width": 48, "height": 36, "focal_px": 40}
    card["render"] = {**size, "image_format": "png", "frames_per_sequence": 2}
    (tmp_path / "rooms.yaml").write_text(yaml.safe_dump(card))
    get_data(dataset=str(tmp_path / "rooms.yaml"), scenes=["atelier"], progress=False)
    assert set(found(tmp_path)) == {"scene-not-here"}
    (tmp_path / "rooms" / "atelier" / "seq-01" / "frame-000001.pose.txt").write_text("1 0 0")
    kinds = found(tmp_path)
    assert "holds 3 values: expected the 16 of a 4x4 matrix" in kinds["bad-label"].examples[0]
    assert "frame-count" in kinds


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["folder/"], "holds no card"),
        (["folder/a.yaml", "folder/b.yml"], "several cards"),
        (["x.zip"], "is an archive"),
        (["x.csv"], "is not a card"),
        (["x.yaml"], "is not a card"),
        ([], "nothing at"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_text("- 1")
    first = next(iter(tmp_path.iterdir()), tmp_path / "x")
    with pytest.raises(MsposeError, match=message):
        check_data(str(first), progress=False)
    with pytest.raises(MsposeError, match="there is no data set 'nowhere'"):
        check_data("nowhere", progress=False)


def test_unknown_names_and_folders_of_others_are_refused(clean, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "theirs").mkdir()
    plot = tmp_path / "theirs" / "trajectories.png"
    plot.write_bytes(b"a plot of theirs")
    for options, message in (
        ({"scenes": ["attic"]}, "no scene 'attic'; its scenes: room"),
        ({"splits": ["val"]}, "no split 'val'; its splits: test, train"),
        ({"out": str(tmp_path / "file")}, "cannot write into"),
        ({"out": str(tmp_path / "theirs")}, "of something else"),
    ):
        with pytest.raises(MsposeError, match=message):
            check_data(str(clean), progress=False, **options)
    assert plot.read_bytes() == b"a plot of theirs"
