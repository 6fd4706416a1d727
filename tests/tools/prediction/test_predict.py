"""`mspose predict`, from images on disk to files of poses."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import processes
import pytest
from PIL import Image

import mspose
from mspose.data.cards import data_root, read_card
from mspose.data.images import read_image
from mspose.errors import MsposeError
from mspose.evaluation import evaluate_run
from mspose.files import with_checksum
from mspose.inference import PoseEstimator
from mspose.metrics import read_predictions

POSE = ["tx", "ty", "tz", "qw", "qx", "qy", "qz"]
ESTIMATE = [f"{name}_est" for name in POSE]


@pytest.fixture
def predict(call, small_run):
    """`predict(images, ...)` with the small run -> (exit status, standard output, lines on standard
    error).
    """

    def run(
        *words: object, model: Path = small_run, quiet: bool = True
    ) -> tuple[int, str, list[str]]:
        return call("predict", model, *words, "--device=cpu", *(["--quiet"] if quiet else []))

    return run


@pytest.fixture
def refused(predict):
    """`refused(pattern, images, ...)`: nothing on standard output, one line on standard error,
    status 2.
    """

    def check(pattern: str, *words: object, **options: Path) -> None:
        status, out, lines = predict(*words, **options)
        assert (status, out, len(lines)) == (2, "", 1), (status, out, lines)
        assert re.search(f"mspose: error: .*{pattern}", lines[0]), lines[0]

    return check


@pytest.fixture(scope="module")
def evaluated_frames(small_data, small_run, tmp_path_factory) -> tuple[pd.DataFrame, Path]:
    """(predictions of `mspose evaluate --given-scene`, folder of the images)."""
    run = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("evaluated") / "run"))
    evaluate_run(run, given_scene=True, device="cpu", progress=False)
    return read_predictions(run / "predictions" / "test.csv"), data_root(read_card(small_data))


@pytest.fixture
def images(small_data, tmp_path) -> Path:
    """A folder of the test frames of one scene, as 1.png to 5.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(
        sorted((small_data.parent / "attic" / "test-01").iterdir()), start=1
    ):
        shutil.copy(path, folder / f"{number}.png")
    return folder


def video(images: Path, name: str = "clip.avi") -> Path:
    """The images as a video of ten frames a second."""
    path = images.parent / name
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 60))
    for image in sorted(images.iterdir()):
        writer.write(cv2.imread(str(image)))
    writer.release()
    return path


def csv(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), float_precision="round_trip")


def test_predictions_are_those_of_evaluate(predict, evaluated_frames):
    table, root = evaluated_frames
    status, out, lines = predict(root / "cellar" / "test-01", "--scene=cellar", "--batch_size=2")
    assert (status, lines) == (0, [])
    found, evaluated = csv(out), table[table["scene"] == "cellar"]
    assert found["image"].tolist() == [str(root / image) for image in evaluated["image"]]
    np.testing.assert_allclose(found[POSE], evaluated[ESTIMATE], atol=1e-5)
    assert (found["scene"] == "cellar").all()
    np.testing.assert_allclose(found["scene_probability"], found["p_cellar"])
    np.testing.assert_allclose(found["p_attic"] + found["p_cellar"], 1, atol=1e-6)


def test_the_scene_is_predicted_unless_it_is_given(predict, images, small_run):
    found = csv(predict(images)[1])
    best = np.where(found["p_attic"] > found["p_cellar"], "attic", "cellar")
    assert found["scene"].tolist() == best.tolist()
    estimate = mspose.load(small_run)(read_image(images / "1.png"))
    np.testing.assert_allclose(
        found.loc[0, POSE].astype(float), [*estimate.position, *estimate.orientation], atol=1e-5
    )


def test_an_image_may_be_a_path(small_run, images):
    estimator = mspose.load(small_run)
    assert estimator(images / "1.png") != estimator(
        images / "1.png"
    )  # not equal, rather than an error
    for path in (images / "1.png", str(images / "1.png")):
        by_path, by_pixels = (
            estimator(path, "attic"),
            estimator(read_image(images / "1.png"), "attic"),
        )
        np.testing.assert_array_equal(by_path.position, by_pixels.position)
    mixed = estimator.estimates([images / "1.png", read_image(images / "2.png")])
    np.testing.assert_allclose(mixed[1].position, estimator(images / "2.png").position, atol=1e-5)
    assert estimator.estimates([]) == []
    with pytest.raises(MsposeError, match="cannot read .*nowhere.png: No such file"):
        estimator(images / "nowhere.png")


def test_files_folders_and_videos_together(predict, images):
    clip = video(images)
    status, out, lines = predict(
        images / "3.png", clip, images / ".." / "images", "--every=2", "--format=jsonl"
    )
    assert status == 2
    assert "3.png is there twice" in lines[-1]
    status, out, lines = predict(clip, images, "--every=2", "--format=jsonl")
    assert (status, lines) == (0, [])
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows[:3]] == [f"{clip}#{number}" for number in (0, 2, 4)]
    assert [row["time_s"] for row in rows] == pytest.approx([0, 0.2, 0.4, *[None] * 5])
    assert [Path(row["image"]).name for row in rows[3:]] == [
        f"{number}.png" for number in range(1, 6)
    ]
    assert set(rows[0]["scene_probabilities"]) == {"attic", "cellar"}


def test_evo_agrees_with_our_errors(predict, images, evaluated_frames, tmp_path):
    evo_ape = Path(sys.executable).with_name("evo_ape")
    if not evo_ape.is_file():
        pytest.skip("evo is not installed")
    table, _ = evaluated_frames
    frames = table[table["scene"] == "attic"].sort_values("image")
    status, out, lines = predict(
        images, "--scene=attic", "--format=tum", "--out", tmp_path / "estimate.txt"
    )
    assert (status, out, lines) == (0, f"{tmp_path / 'estimate.txt'}\n", [])
    truth = frames[["tx", "ty", "tz", "qx", "qy", "qz", "qw"]].to_numpy()
    np.savetxt(tmp_path / "truth.txt", np.column_stack([np.arange(1, 6), truth]), fmt="%.12f")
    words = [str(evo_ape), "tum", "truth.txt", "estimate.txt"]
    home = {**os.environ, "HOME": str(tmp_path), "MPLBACKEND": "agg"}
    said = subprocess.run(
        words, cwd=tmp_path, env=home, capture_output=True, text=True, check=False, timeout=120
    )
    assert said.returncode == 0, said.stderr
    evo = dict(re.findall(r"^\s*(rmse|median|max)\s+([\d.]+)$", said.stdout, re.M))
    error = frames["position_error_m"]
    ours = {"rmse": np.sqrt((error**2).mean()), "median": error.median(), "max": error.max()}
    assert {name: float(value) for name, value in evo.items()} == pytest.approx(ours, abs=1e-5)


def test_pycolmap_reads_what_was_predicted(predict, images, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    words = (images, "--scene=attic", "--format=colmap")
    status, out, lines = predict(*words, "--focal-px=70", "--out", tmp_path / "model")
    assert (status, out) == (0, f"{tmp_path / 'model'}\n")
    assert len(lines) == 1  # training's focal length is unknown
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    found = csv(predict(images, "--scene=attic")[1]).set_index("image")
    for image in model.images.values():
        matrix = image.cam_from_world().inverse()
        x, y, z, w = matrix.rotation.quat
        read = np.array([*matrix.translation, *(np.array([w, x, y, z]) * (1 if w >= 0 else -1))])
        np.testing.assert_allclose(
            read, found.loc[str(images / image.name), POSE].astype(float), atol=1e-6
        )
    assert len(model.images) == 5
    printed = predict(*words)[1]
    assert printed == (tmp_path / "model" / "images.txt").read_text()


def test_rows_are_printed_as_they_are_computed(predict, images):
    (images / "5.png").write_bytes(b"broken")
    status, out, lines = predict(images, "--batch_size=2")
    assert status == 2
    assert len(csv(out)) == 4
    assert "5.png is not an image" in lines[-1]
    assert "--on-bad-frame skip" in lines[-1]


def test_bad_images_are_left_out_if_asked(predict, images, refused, tmp_path):
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:200])
    (images / "4.png").write_bytes(b"")
    status, out, lines = predict(images, "--on-bad-frame=skip")
    assert status == 0
    assert [Path(name).name for name in csv(out)["image"]] == ["1.png", "3.png", "5.png"]
    assert [
        bool(re.search(pattern, line))
        for pattern, line in zip(("2.png", "4.png", "2 of 5"), lines, strict=True)
    ]
    for number in (1, 3, 5):
        (images / f"{number}.png").unlink()
    status, out, lines = predict(images, "--on-bad-frame=skip", "--out", tmp_path / "poses.csv")
    assert status == 2
    assert "none of 2 images could be read" in lines[-1]
    assert not (tmp_path / "poses.csv").exists()


def test_queries_unlike_training_are_warned_of(predict, images):
    for number in (1, 2):
        Image.open(images / f"{number}.png").rotate(90, expand=True).save(images / f"{number}.png")
    Image.open(images / "3.png").resize((160, 120)).save(images / "3.png")
    status, _, lines = predict(images, "--focal-px=70")
    assert status == 0
    for pattern, line in zip(
        ("another shape", "focal length", "is resized", "of 5 images: 2 "), lines, strict=True
    ):
        assert pattern in line
    assert "1.png is 60x80" in lines[0]
    assert "training images are 80x60" in lines[2]


def test_a_model_that_does_not_know_its_training_images_says_so(
    predict, images, small_run, refused, tmp_path
):
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    description = json.loads((run / "model.json").read_text())
    assert description["trained_on"]["image_sizes"] == [[80, 60, 18]]
    for name in ("image_sizes", "focal_per_short_side"):
        del description["trained_on"][name]
    (run / "model.json").write_text(json.dumps(with_checksum(description)))
    status, out, lines = predict(images, model=run)
    assert (status, len(csv(out)), len(lines)) == (0, 5, 1)
    assert "does not say what sizes and focal lengths" in lines[0]


def test_an_interrupted_prediction_leaves_nothing(predict, images, monkeypatch, tmp_path):
    real, calls = PoseEstimator.estimates_of, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(PoseEstimator, "estimates_of", interrupted)
    words = (images, "--scene=attic", "--batch_size=2", "--out", tmp_path / "out" / "poses")
    for form in ("csv", "colmap"):
        calls.clear()
        assert predict(*words, "--format", form, "--focal-px=70")[0] == 130
        assert not (tmp_path / "out").exists()


def test_a_reader_that_has_enough_is_no_error(images, small_run):
    words = ["predict", small_run, images, "--quiet", "--batch-size=1"]
    command = [sys.executable, "-m", "mspose", *words]
    assert processes.run_without_reader(command) == (1, "")


def test_a_closed_standard_output_is_no_error(predict, images, monkeypatch, tmp_path):
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)  # as Python finds it after `>&-`
        assert predict(images, "--out", tmp_path / "poses.csv")[0] == 0
        sys.stdout.close()
    assert len(csv((tmp_path / "poses.csv").read_text())) == 5


def test_progress_is_shown_beside_the_rows(predict, images):
    _, out, lines = predict(images, quiet=False)
    assert len(csv(out)) == 5
    assert "predicting: 100%" in lines[-1]
    assert "5/5" in lines[-1]


def test_bad_input_is_one_line(refused, images, tmp_path):
    tum = (images, "--format=tum")
    refused("no file or folder .*nowhere", tmp_path / "nowhere")
    refused("holds no model", images, model=tmp_path)
    refused(
        "scene garage is unknown to the model, which knows: attic, cellar", images, "--scene=garage"
    )
    refused(
        "format tum is of one scene; the model knows several, choose with --scene: attic, cellar",
        *tum,
    )
    refused("--every: without effect on images", images, "--every=2")
    refused("--fps: without effect on --format csv", images, "--fps=2")
    refused("focal_px.*0", images, "--focal-px=0")
    refused("focal_px.*nan", images, "--focal-px=nan")
    refused("--focal-px inf: expected a positive, finite number", images, "--focal-px=inf")
    refused("required.*images|images.*required")
    refused("format.*html", images, "--format=html")
    (tmp_path / "there.png").write_text("precious")
    refused("there.png is there already", images, "--out", tmp_path / "there.png")
    refused(
        "cannot write .*there.png/poses.csv", images, "--out", tmp_path / "there.png" / "poses.csv"
    )
    assert (tmp_path / "there.png").read_text() == "precious"
    model = (images, "--scene=attic", "--format=colmap", "--out", tmp_path / "model")
    refused("1.png: its focal length is not known, nor that of training: give --focal-px", *model)
    assert not (tmp_path / "model").exists()
