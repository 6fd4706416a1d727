"""A small data set on disk and the settings of a small network, for tests that need a whole run."""

import functools
import logging
import os
import re
import shutil
import signal
import threading

# one thread for us and for the processes that tests start: small tensors gain nothing from more,
# and busy machines, as with a worker of pytest on every core, lose
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OPENCV_FOR_THREADS_NUM"] = "1"

# a shell's background job starts with SIGINT ignored, and so would the processes that tests
# interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from dataclasses import replace
from pathlib import Path

import docstring_parser
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from mspose.config import (
    AugmentationSettings,
    DataSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
)
from mspose.data.batches import Batches
from mspose.data.cache import open_cache
from mspose.data.cards import data_root, load_frames, read_card
from mspose.data.virtual import sequences
from mspose.models.network import PoseNetwork
from mspose.poses import normalize_quaternion

torch.set_num_threads(1)
# TensorBoard reads the logs of a run in the order of their names, in which this number comes last:
# so it has five digits in all of them
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)
# the help of settings is read from their source again for every parser
docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)
# a room takes seconds to build, and many tests render the same ones
sequences._built_scene = functools.lru_cache(maxsize=8)(sequences.build_scene)
FRAMES = {"train": 12, "test": 5}


def write_small_data(folder: Path) -> Path:
    """Two scenes of noise images whose tint follows the pose, as label CSV and card; returns the
    card.
    """
    rng = np.random.default_rng(7)
    rows = []
    for scene, tint in (("attic", 60), ("cellar", 160)):
        for split, count in FRAMES.items():
            for number in range(count):
                name = f"{scene}/{split}-01/frame-{number:03d}.png"
                position = rng.uniform(-1, 1, 3)
                noise = rng.integers(0, 60, (60, 80, 3))
                pixels = (noise + tint + 30 * position).clip(0, 255).astype(np.uint8)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / name)
                quaternion = normalize_quaternion([1, *rng.uniform(-0.4, 0.4, 3)])[0]
                rows.append([scene, split, f"{split}-01", name, *position, *quaternion])
    columns = ["scene", "split", "seq", "img_path", "t1", "t2", "t3", "q1", "q2", "q3", "q4"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "labels.csv", index=False)
    card = {
        "name": "small",
        "format": "label-csv",
        "root": ".",
        "labels": ["labels.csv"],
        "label_convention": "camera-to-world",
        "ground_truths": ["made-up"],
        "thresholds": [[0.5, 10], [2.0, 90]],
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(card))
    return folder / "small.yaml"


@pytest.fixture(autouse=True)
def _plain_trajectories(monkeypatch):
    """Empty plots of trajectories in TensorBoard, as they take half the time of a small training;
    those of `small_run`, and of tests that call `trajectory_figure`, are drawn.
    """
    monkeypatch.setattr(
        "mspose.tensorboard_log.trajectory_figure", lambda table: Figure(figsize=(0.2, 0.2))
    )


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """The card of a small data set; not to be changed."""
    return write_small_data(tmp_path_factory.mktemp("small"))


@pytest.fixture
def own_data(tmp_path) -> Path:
    """The card of a small data set that the test may change."""
    return write_small_data(tmp_path / "data")


SMALL_NETWORK = {
    "backbone": "test_efficientnet",
    "pretrained": False,
    "dim": 16,
    "heads": 4,
    "feedforward": 24,
    "head_hidden": 20,
    "position_encoder_layers": 1,
    "position_decoder_layers": 1,
    "orientation_encoder_layers": 1,
    "orientation_decoder_layers": 1,
}
"""Settings of networks that tests build themselves."""


def settings_for(card: Path, folder: Path) -> Settings:
    """Two epochs of a small network on the small data set, all output below `folder`."""
    return Settings(
        experiment="small",
        runs=str(folder / "runs"),
        device="cpu",
        data=DataSettings(
            dataset=str(card), resize=48, crop=40, cache=str(folder / "cache"), holdout=0.25
        ),
        model=ModelSettings(
            **SMALL_NETWORK
            | {"backbone": "test_resnet", "heads": 2, "orientation_encoder_layers": 2}
        ),
        augmentation=AugmentationSettings(),
        training=TrainingSettings(epochs=2, batch_size=4, learning_rate=1e-3, evaluate_every=2),
    )


def vary(settings: Settings, **changes) -> Settings:
    """Settings with values changed: `vary(settings, seed=5, training__epochs=3)`."""
    for name, value in changes.items():
        group, _, field = name.partition("__")
        part = replace(getattr(settings, group), **{field: value}) if field else value
        settings = replace(settings, **{group: part})
    return settings


@pytest.fixture
def small_settings(small_data, tmp_path) -> Settings:
    """Settings of a small run below `tmp_path`."""
    return settings_for(small_data, tmp_path)


@pytest.fixture(scope="session")
def small_run(small_data, tmp_path_factory) -> Path:
    """The folder of a finished small run; not to be changed."""
    from mspose.training import train

    settings = settings_for(small_data, tmp_path_factory.mktemp("finished"))
    return train(replace(settings, seed=5), progress=False)


def read_events(folder: Path) -> EventAccumulator:
    """All scalars and images that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def small_batches(card_path: Path, folder: Path, network: PoseNetwork, **options) -> Batches:
    """The test split of the small data set, prepared for a network, with its cache in `folder`."""
    card = read_card(card_path)
    frames, cache = open_cache(
        load_frames(card, split="test"),
        data_root(card),
        short_side=48,
        folder=folder,
        progress=False,
    )
    values = {"crop": 40, "mean": network.mean, "std": network.std, "batch_size": 4, **options}
    return Batches(frames, cache, scenes=network.scenes, **values)


@pytest.fixture
def call(capsys):
    """`call("train", ...)`, the command line -> (exit status, standard output, lines on standard
    error).
    """
    from mspose.cli import main

    # `main` sets up logging for its process; the other tests share ours
    ours = logging.getLogger("mspose")
    before = ours.handlers[:], ours.level, threading.excepthook

    def run(*words: object) -> tuple[int, str, list[str]]:
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    yield run
    ours.handlers[:], ours.level, threading.excepthook = before


@pytest.fixture
def refused(call):
    """`refused(pattern, "train", ...)`: exit status 2 and one line on standard error, which has the
    pattern in it.
    """

    def check(pattern: str, *words: object) -> str:
        status, out, lines = call(*words)
        assert (status, out, len(lines)) == (2, "", 1), (words, out, lines)
        assert lines[0].startswith("mspose: error: "), lines[0]
        assert re.search(pattern, lines[0]), f"{pattern!r} is not in {lines[0]!r}"
        return lines[0]

    return check


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; without one on the machine, what is to be looked at in it is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if (chromium := next(filter(None, map(shutil.which, names)), None)) is None:
        pytest.skip("no Chromium on this machine")
    quiet = [
        "--no-sandbox",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    webgl = [
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ]  # on machines without a GPU
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=quiet + webgl)
        yield started
        started.close()
