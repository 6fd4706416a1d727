"""Runs on another version of the virtual rooms: never in one table with those of this one."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mspose.config import read_settings
from mspose.data.virtual import VERSION
from mspose.errors import MsposeError
from mspose.studies.ablation.finished import finished_ablation
from mspose.studies.ablation.plan import read_ablation
from mspose.studies.ablation.table import ablation_table

ROOT = Path(__file__).parents[3]
FILE = ROOT / "experiments/ablations/qka-and-encoding.yaml"
RECORDS = ROOT / "experiments/results/qka-and-encoding-virtual"
EXPERIMENT = "qka-and-encoding-virtual"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two seeds of two variants, recorded when rooms had no version."""
    for label in ("neither", "qka"):
        for seed in (0, 1):
            run = f"{label}/seed-{seed}"
            shutil.copytree(RECORDS / run, tmp_path / "results" / EXPERIMENT / run)
            metrics = tmp_path / "results" / EXPERIMENT / run / "metrics.json"
            values = json.loads(metrics.read_text())
            values.pop("data_version", None)
            metrics.write_text(json.dumps(values))
    return tmp_path / "results"


def made_newer(run: Path) -> None:
    metrics, settings = (
        json.loads((run / "metrics.json").read_text()),
        yaml.safe_load((run / "config.yaml").read_text()),
    )
    settings["data"]["version"] = VERSION
    (run / "metrics.json").write_text(json.dumps({**metrics, "data_version": VERSION}))
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def test_runs_are_planned_on_this_version() -> None:
    assert {run.data.version for run in read_ablation(FILE).runs()} == {VERSION}
    assert {row.data.version for row in read_ablation(FILE).rows("7scenes").values()} == {None}


def test_the_table_says_that_runs_are_of_an_older_version(results: Path) -> None:
    finished = finished_ablation(read_ablation(FILE), [results])
    assert finished.group.data_version == 1
    assert (
        f"All runs have other settings than {FILE.name}: data.version 1, not {VERSION}."
        in finished.remarks
    )
    assert not finished.overrides  # nothing can be made anew on version 1
    assert "Data set virtual version 1," in ablation_table(FILE, [results])


def test_runs_of_an_older_version_are_left_out_beside_newer_ones_and_named(results: Path) -> None:
    made_newer(results / EXPERIMENT / "qka" / "seed-1")
    finished = finished_ablation(read_ablation(FILE), [results])
    assert {label: list(seeds) for label, seeds in finished.runs.items()} == {"qka": [1]}
    assert finished.group.data_version == VERSION
    left_out = next(
        line for line in finished.remarks if line.startswith("Left out, other settings")
    )
    assert f"seed 0 of neither (data.version 1, not {VERSION})" in left_out


def test_a_run_of_this_version_and_the_record_of_an_older_one_are_two(
    results: Path, tmp_path: Path
) -> None:
    newer = tmp_path / "runs" / EXPERIMENT / "qka" / "seed-0"
    shutil.copytree(results / EXPERIMENT / "qka" / "seed-0", newer)
    made_newer(newer)
    finished = finished_ablation(read_ablation(FILE), [tmp_path / "runs", results])
    assert [run.folder for run in finished.runs["qka"].values()] == [newer]


def test_another_version_cannot_be_asked_for() -> None:
    with pytest.raises(
        MsposeError, match=f"data.version 1: this mspose renders version {VERSION} of virtual"
    ):
        read_ablation(FILE).rows(overrides={"data.version": 1})


def test_settings_of_before_there_were_versions_have_none() -> None:
    assert read_settings(RECORDS / "neither/seed-0/config.yaml").data.version is None
