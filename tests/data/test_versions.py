"""Versions of rendered data sets, through training, evaluation and baselines to the tables."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mspose.config import DataSettings, config_hash, read_settings
from mspose.data.cards import read_card
from mspose.data.versions import predicted_data, recorded_version, rendered_version, with_version
from mspose.data.virtual import RECORD, VERSION
from mspose.data.virtual.dataset import render_virtual
from mspose.errors import MsposeError
from mspose.evaluation import evaluate_predictions, evaluate_run
from mspose.run import load_model
from mspose.studies.baselines import evaluate_baselines
from mspose.studies.rows import collect_runs
from mspose.training import train

RENDER = {"frames_per_sequence": 6, "width": 96, "height": 72, "focal_px": 87.75}
SCENES = ("kitchenette", "gallery")


def set_version(root, scene, version):
    record = root / scene / RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": version}))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("rendered") / "rooms"
    render_virtual(root, frames=dict.fromkeys(SCENES, (6, 3)), progress=False, workers=1, **RENDER)
    return root


@pytest.fixture
def card(rendered, tmp_path):
    """A card of a rendered data set that the test may change."""
    shutil.copytree(rendered, tmp_path / "rooms")
    scenes = {scene: {"frames": {"train": 6, "test": 3}} for scene in SCENES}
    path = tmp_path / "rooms.yaml"
    path.write_text(
        yaml.safe_dump({"name": "rooms", "format": "virtual", "scenes": scenes, "render": RENDER})
    )
    return path


def test_the_version_on_disk_is_that_of_the_scenes_records(card, tmp_path):
    rooms, root = read_card(card), tmp_path / "rooms"
    assert rendered_version(rooms) == VERSION
    assert rendered_version(rooms, tmp_path / "nothing") is None
    assert rendered_version(read_card("7scenes")) is None
    set_version(root, "gallery", 1)
    assert rendered_version(rooms, scenes=["gallery"]) == 1
    with pytest.raises(
        MsposeError, match=r"different versions .gallery 1, kitchenette 2.: `mspose data get"
    ):
        rendered_version(rooms)
    (root / "gallery" / RECORD).write_text("{}")
    with pytest.raises(MsposeError, match="cannot read the version"):
        rendered_version(rooms)


def test_what_recorded_no_version_of_rendered_rooms_is_of_version_1():
    assert recorded_version({"ground_truth": "rendered"}) == 1
    assert recorded_version({"ground_truth": "rendered", "data_version": None}) == 1
    assert recorded_version({"ground_truth": "rendered", "data_version": 2}) == 2
    assert recorded_version({"ground_truth": "original"}) is None
    assert recorded_version({}) is None


def test_settings_note_the_version_of_rendered_data_alone():
    assert with_version(DataSettings(dataset="virtual")).version == VERSION
    assert with_version(DataSettings(dataset="virtual", version=VERSION)).version == VERSION
    assert with_version(DataSettings(dataset="7scenes")).version is None
    assert with_version(DataSettings(dataset="nowhere")).version is None
    with pytest.raises(MsposeError, match=f"data.version 1: this mspose renders version {VERSION}"):
        with_version(DataSettings(dataset="virtual", version=1))


def test_no_pictures_of_another_version_stand_beside_predictions(card, tmp_path):
    about = {"dataset": "rooms", "ground_truth": "rendered"}
    with pytest.raises(
        MsposeError, match=f"the frames are of version 1 of rooms, in .* is version {VERSION}"
    ):
        predicted_data(str(card), None, about)
    assert (
        predicted_data(str(card), None, {**about, "data_version": VERSION})[1] == tmp_path / "rooms"
    )
    shutil.rmtree(tmp_path / "rooms")
    assert (
        predicted_data(str(card), None, about)[1] == tmp_path / "rooms"
    )  # who looks for an image finds none


def test_runs_record_the_version_and_are_evaluated_on_no_other(card, small_settings, tmp_path):
    data = replace(small_settings.data, dataset=str(card), holdout=0.0)
    settings = replace(
        small_settings, data=data, training=replace(small_settings.training, epochs=1)
    )
    run = train(settings, progress=False)
    assert read_settings(run / "config.yaml").data.version == VERSION
    assert load_model(run)[1]["trained_on"]["data_version"] == VERSION
    metrics, path = evaluate_run(run, progress=False)
    assert metrics["data_version"] == metrics["provenance"]["model"]["data_version"] == VERSION
    assert evaluate_predictions(run / "predictions" / "test.csv")[0]["data_version"] == VERSION
    for metrics, _ in evaluate_baselines(settings, progress=False).values():
        assert metrics["data_version"] == VERSION
    assert {row.group.data_version for row in collect_runs([tmp_path / "runs"])} == {VERSION}

    for scene in SCENES:
        set_version(tmp_path / "rooms", scene, 1)
    with pytest.raises(
        MsposeError, match=f"trained on version {VERSION} of .*version 1 in .*: train it anew"
    ):
        evaluate_run(run, progress=False)

    older = (run / "config.yaml").read_text().replace(f"version: {VERSION}", "version: null")
    (run / "config.yaml").write_text(older)  # as runs on version 1 have it
    with pytest.raises(MsposeError, match=f"other settings .data.version: None -> {VERSION}"):
        train(settings, progress=False)


def test_the_hash_of_settings_without_version_is_that_of_before_there_were_versions(small_settings):
    newer = replace(small_settings, data=replace(small_settings.data, version=2))
    assert config_hash(newer) != config_hash(small_settings)
    record = (
        Path(__file__).parents[2] / "experiments/results/qka-and-encoding-virtual/neither/seed-0"
    )
    metrics = json.loads((record / "metrics.json").read_text())
    assert (
        config_hash(read_settings(record / "config.yaml"))
        == metrics["provenance"]["model"]["config_hash"]
    )
