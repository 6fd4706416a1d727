"""Predictions files, the metrics computed from them, and their provenance."""

import json
import logging
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.metrics import auc_from_errors

from mspose import provenance as provenance_module
from mspose.errors import MsposeError
from mspose.metrics import (
    POSE_COLUMNS,
    PREDICTION_COLUMNS,
    area_under_recall,
    compute_metrics,
    read_metrics,
    read_predictions,
    with_errors,
    write_metrics,
    write_predictions,
)
from mspose.poses import orientation_error, position_error
from mspose.provenance import provenance


def predictions(position_m: list[float], degrees: list[float], **columns: Any) -> pd.DataFrame:
    """Frames whose estimates are off by the given distances (along y) and angles (about z)."""
    half = np.radians(np.asarray(degrees, dtype=np.float64)) / 2
    count = len(position_m)
    table = pd.DataFrame(
        {
            "image": [f"seq-01/frame-{i:06d}.color.png" for i in range(count)],
            "scene": "chess", "predicted_scene": "chess", "scene_probability": 0.75,
            "tx": 1.0, "ty": 0.0, "tz": 3.0, "qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0,
            "tx_est": 1.0, "ty_est": position_m, "tz_est": 3.0,
            "qw_est": np.cos(half), "qx_est": 0.0, "qy_est": 0.0, "qz_est": np.sin(half),
        }
    )  # fmt: skip
    return with_errors(table.assign(**columns))


def random_predictions(count: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = rng.choice(["chess", "fire", "heads"], size=count)
    table = predictions(
        [0.0] * count, [0.0] * count, scene=names, predicted_scene=rng.permutation(names)
    )
    return with_errors(table.assign(**{name: rng.normal(size=count) for name in POSE_COLUMNS}))


def write_text(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, index=False)
    return path


def run_metrics(**changes: Any) -> dict[str, Any]:
    computed = compute_metrics(predictions([0.1, 0.2], [1.0, 2.0]), thresholds=[(0.15, 5.0)])
    about = {
        "dataset": "7scenes",
        "ground_truth": "original",
        "split": "test",
        "scene_selection": "predicted",
    }
    return {
        **about,
        "experiment": "e",
        "variant": "all",
        "seed": 0,
        **computed,
        "bad_frames": 0,
        **changes,
    }


# predictions files


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=14, max_size=14))
def test_poses_read_back_as_the_same_floats(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    table = predictions([0.0, 0.0], [0.0, 0.0])
    table.loc[1, list(POSE_COLUMNS)] = values
    path = tmp_path_factory.mktemp("floats") / "test.csv"
    if any(np.abs(values[start : start + 4]).max() < 1e-12 for start in (3, 10)):
        with pytest.raises(MsposeError, match="quaternion"):
            with_errors(table)
        return
    write_predictions(path, with_errors(table))
    read = read_predictions(path)
    assert tuple(read.columns) == PREDICTION_COLUMNS
    np.testing.assert_array_equal(
        read[list(POSE_COLUMNS)].to_numpy(), table[list(POSE_COLUMNS)].to_numpy()
    )
    assert read["scene_probability"].tolist() == [0.75, 0.75]


def test_errors_are_those_of_the_poses_and_read_back_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = random_predictions(50)
    write_predictions(tmp_path / "test.csv", table)
    read = read_predictions(tmp_path / "test.csv")
    assert not caplog.records
    expected = position_error(
        table[["tx_est", "ty_est", "tz_est"]].to_numpy(), table[["tx", "ty", "tz"]].to_numpy()
    )
    np.testing.assert_array_equal(read["position_error_m"], expected)
    written = pd.read_csv(tmp_path / "test.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(written, read)


def test_float32_and_unpredicted_scenes_are_written(tmp_path: Path) -> None:
    table = predictions([0.1, 0.2], [1, 2], predicted_scene=None, scene_probability=None)
    table["ty_est"] = table["ty_est"].astype(np.float32)
    write_predictions(tmp_path / "a" / "test.csv", table)
    read = read_predictions(tmp_path / "a" / "test.csv")
    assert read["predicted_scene"].isna().all() and read["scene_probability"].isna().all()
    np.testing.assert_array_equal(
        read["ty_est"], np.array([0.1, 0.2], dtype=np.float32).astype(np.float64)
    )


def test_names_that_pandas_takes_for_missing_values_stay_names(tmp_path: Path) -> None:
    table = predictions(
        [0.1, 0.2, 0.3], [1, 2, 3], scene=["NA", "null", "1"], predicted_scene=["NA", "nan", "1"]
    )
    table["image"] = ["a, b.png", 'c"d.png', "é.png"]
    write_predictions(tmp_path / "test.csv", table)
    read = read_predictions(tmp_path / "test.csv")
    for column in ("scene", "predicted_scene", "image"):
        assert read[column].tolist() == table[column].tolist()


@pytest.mark.parametrize(
    ("cell", "named"),
    [
        ({"tz_est": math.nan}, "frame-000001.color.png: tz_est is nan"),
        ({"qw": 0.0}, "frame-000001.color.png: the true quaternion"),
    ],
)
def test_a_pose_without_errors_is_named(cell: dict[str, float], named: str) -> None:
    table = predictions([0.1, 0.2], [1, 2])
    table.loc[1, list(cell)] = list(cell.values())
    with pytest.raises(MsposeError, match=named):
        with_errors(table)


def test_another_methods_file_needs_poses_alone(tmp_path: Path) -> None:
    table = random_predictions(9)
    foreign = table[["image", *reversed(POSE_COLUMNS)]].assign(inliers=7, predicted_scene="chess")
    read = read_predictions(write_text(tmp_path / "other.csv", foreign))
    assert tuple(read.columns) == PREDICTION_COLUMNS
    assert set(read["scene"]) == {"all"}
    assert read["predicted_scene"].isna().all() and read["scene_probability"].isna().all()
    np.testing.assert_array_equal(read["orientation_error_deg"], table["orientation_error_deg"])
    computed = compute_metrics(read, thresholds=[(0.5, 10)])
    assert list(computed["scenes"]) == ["all"] and computed["average"]["scene_accuracy"] is None


def test_images_may_be_named_relative_to_their_scene(tmp_path: Path) -> None:
    table = predictions([0.1, 0.2], [1, 2], scene=["chess", "fire"], image="seq-01/a.png")
    assert len(read_predictions(write_text(tmp_path / "p.csv", table))) == 2


def test_error_columns_that_disagree_are_counted_and_the_poses_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = predictions([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4])
    table["position_error_m"] += [0, 9e-5, 2e-4, 0]
    table["orientation_error_deg"] += [0, 9e-4, 0, -2e-3]
    with caplog.at_level(logging.WARNING, logger="mspose"):
        read = read_predictions(write_text(tmp_path / "p.csv", table))
    (record,) = caplog.records
    assert (
        record.name == "mspose"
        and "2 of 4 rows" in record.getMessage()
        and "line 4" in record.getMessage()
    )
    np.testing.assert_allclose(read["position_error_m"], [0.1, 0.2, 0.3, 0.4], rtol=1e-12)
    np.testing.assert_allclose(read["orientation_error_deg"], [1, 2, 3, 4], rtol=1e-12)


@pytest.mark.parametrize("column", ["image", *POSE_COLUMNS])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = write_text(tmp_path / "p.csv", predictions([0.1], [1]).drop(columns=column))
    with pytest.raises(MsposeError, match=f"column {column} missing") as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def set_cells(table: pd.DataFrame, row: int, **cells: Any) -> pd.DataFrame:
    table = table.astype(object)
    for column, value in cells.items():
        table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        ({"ty": "nan"}, "line 4: ty is 'nan'"),
        ({"qz_est": "inf"}, "line 4: qz_est is 'inf'"),
        ({"tx_est": "fast"}, "line 4: tx_est is 'fast'"),
        ({"tx": ""}, "line 4: tx is ''"),
        ({"qw": 0.0}, "line 4: the true quaternion"),
        ({"qw_est": 0, "qz_est": 0}, "line 4: the estimated quaternion"),
        (
            {"image": "seq-01/frame-000000.color.png"},
            "line 4: seq-01/frame-000000.color.png is there twice",
        ),
        ({"image": ""}, "line 4: image ''"),
        ({"scene": ""}, "line 4: .*scene ''"),
        ({"predicted_scene": ""}, "line 4: predicted_scene is empty"),
        ({"scene_probability": "high"}, "line 4: scene_probability is 'high'"),
        ({"position_error_m": "nan"}, "line 4: position_error_m is 'nan'"),
    ],
)
def test_a_bad_value_is_named_with_its_line(
    tmp_path: Path, cells: dict[str, Any], named: str
) -> None:
    table = set_cells(predictions([0.1, 0.2, 0.3], [1, 2, 3]), 2, **cells)
    path = write_text(tmp_path / "p.csv", table)
    with pytest.raises(MsposeError, match=named) as error:
        read_predictions(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_lines_are_counted_past_blank_ones_and_a_byte_order_mark_is_no_name(tmp_path: Path) -> None:
    lines = predictions([0.1, 0.2], [1, 2]).to_csv(index=False).splitlines()
    good = "\ufeff" + "\r\n".join([lines[0], "", lines[1], "", lines[2], ""])
    (tmp_path / "p.csv").write_bytes(good.encode())
    assert len(read_predictions(tmp_path / "p.csv")) == 2
    (tmp_path / "p.csv").write_bytes(
        good.replace(lines[2], lines[2].replace("0.2", "far")).encode()
    )
    with pytest.raises(MsposeError, match="line 5: ty_est is 'far'"):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (",".join(PREDICTION_COLUMNS).encode() + b"\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a CSV text file"),
        ((",".join([*PREDICTION_COLUMNS, "tx"]) + "\n").encode(), "column tx is there twice"),
        (
            (",".join(PREDICTION_COLUMNS) + "\na.png,chess\n").encode(),
            "line 2: 2 values, expected 20",
        ),
        (b"image;scene;tx\na.png;chess;1\n", "column image, tx, ty.* missing"),
    ],
)
def test_a_file_that_is_no_predictions_file_is_refused(
    tmp_path: Path, content: bytes, named: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(MsposeError, match=named) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(MsposeError, match="cannot read"):
            read_predictions(path)


# metrics


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_medians_are_numpys_whatever_the_order_of_rows(count: int, seed: int) -> None:
    table = random_predictions(count, seed)
    shuffled = compute_metrics(table.sample(frac=1, random_state=seed), thresholds=[(1, 90)])
    assert shuffled == compute_metrics(table, thresholds=[(1, 90)])
    assert list(shuffled["scenes"]) == sorted(set(table["scene"]))
    for name, scene in shuffled["scenes"].items():
        part = table[table["scene"] == name]
        truth, estimate = (
            part[["qw", "qx", "qy", "qz"]],
            part[["qw_est", "qx_est", "qy_est", "qz_est"]],
        )
        angle = orientation_error(estimate.to_numpy(), truth.to_numpy())
        assert scene["frames"] == len(part)
        assert scene["median_orientation_error_deg"] == np.median(angle)
        distance = np.linalg.norm(
            part[["tx", "ty", "tz"]].to_numpy() - part[["tx_est", "ty_est", "tz_est"]], axis=1
        )
        assert scene["median_position_error_m"] == pytest.approx(np.median(distance), rel=1e-14)
        assert scene["scene_accuracy"] == np.mean(part["predicted_scene"] == name)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(1, 180)), min_size=1, max_size=4),
    st.floats(0, 2),
    st.floats(0, 90),
)
def test_recall_never_falls_when_a_threshold_is_loosened(
    seed: int, pairs: list[tuple[float, float]], metres: float, degrees: float
) -> None:
    table = random_predictions(30, seed)
    tight = compute_metrics(table, thresholds=pairs)
    loose = compute_metrics(table, thresholds=[(m + metres, d + degrees) for m, d in pairs])
    for name in [*tight["scenes"], None]:
        before = (tight["scenes"][name] if name else tight["average"])["recall"]
        after = (loose["scenes"][name] if name else loose["average"])["recall"]
        assert all(0 <= a <= b <= 1 for a, b in zip(before, after, strict=True))


def test_recall_wants_both_errors_and_takes_the_threshold_itself() -> None:
    table = predictions([0.25, 0.25, 0.1, 0.3], [0.0, 90.0, 90.0, 0.0])
    limit = float(table["orientation_error_deg"].max())
    computed = compute_metrics(
        table, thresholds=[(0.25, 5), (0.25, limit), (0.3, limit), (0.24999, limit)]
    )
    assert computed["average"]["recall"] == [0.25, 0.75, 1.0, 0.25]
    assert computed["thresholds"] == [[0.25, 5.0], [0.25, limit], [0.3, limit], [0.24999, limit]]


def test_an_average_counts_scenes_alike_and_an_even_count_takes_the_middle_two() -> None:
    table = predictions(
        [0.5, 0.25, 1.0, 4.0, 8.0], [0.0] * 5, scene=["b", "b", "b", "b", "a"], predicted_scene="b"
    )
    computed = compute_metrics(table, thresholds=[(1.0, 1.0)])
    assert list(computed["scenes"]) == ["a", "b"]
    assert computed["scenes"]["b"] == {
        "frames": 4, "median_position_error_m": 0.75, "median_orientation_error_deg": 0.0,
        "position_error_m_quantiles": pytest.approx([1.75, 3.1, 3.55]),
        "orientation_error_deg_quantiles": [0.0, 0.0, 0.0],
        "recall": [0.75], "auc": [0.375], "scene_accuracy": 1.0,
    }  # fmt: skip
    assert computed["average"] == {
        "frames": 5, "median_position_error_m": (8.0 + 0.75) / 2,
        "median_orientation_error_deg": 0.0,
        "position_error_m_quantiles": pytest.approx([4.875, 5.55, 5.775]),
        "orientation_error_deg_quantiles": [0.0, 0.0, 0.0],
        "recall": [0.375], "auc": [0.1875], "scene_accuracy": 0.5,
    }  # fmt: skip


def test_scene_accuracy_is_null_where_a_scene_was_not_predicted() -> None:
    table = predictions([0.1, 0.2], [1, 2], scene=["a", "b"], predicted_scene=["a", None])
    computed = compute_metrics(table, thresholds=[])
    assert [scene["scene_accuracy"] for scene in computed["scenes"].values()] == [1.0, None]
    assert computed["average"]["scene_accuracy"] is None and computed["average"]["recall"] == []


@pytest.mark.parametrize(
    "pair", [(0.0, 5.0), (-1.0, 5.0), (math.nan, 5.0), (0.1, math.inf), (0.1,), (0.1, 1, 2)]
)
def test_an_impossible_threshold_is_refused(pair: Any) -> None:
    with pytest.raises(MsposeError, match="threshold"):
        compute_metrics(predictions([0.1], [1.0]), thresholds=[(0.1, 1.0), pair])


def test_no_metrics_without_predictions() -> None:
    with pytest.raises(MsposeError, match="without predictions"):
        compute_metrics(predictions([0.1], [1]).iloc[:0], thresholds=[])


# metrics.json


def test_metrics_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.json"
    for written in (
        run_metrics(),
        run_metrics(dataset=None, ground_truth=None, split=None, seed=None),
    ):
        write_metrics(path, written)
        assert read_metrics(path) == written


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, run_metrics())
    before = path.read_text()
    bad = run_metrics()
    bad["scenes"]["chess"]["median_position_error_m"] = value
    with pytest.raises(MsposeError, match="JSON"):
        write_metrics(path, bad)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in run_metrics().items() if name != key}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected an object"),
        (json.dumps({"accuracy": 0.9}), "dataset is missing"),
        (json.dumps(without("variant")), "variant is missing"),
        (json.dumps(run_metrics(seed="0")), "seed is '0', expected int or null"),
        (json.dumps(run_metrics(thresholds=[])), "recall"),
        (json.dumps(run_metrics(scenes={})), "scenes"),
        (json.dumps(run_metrics(scenes={"chess": 3})), "chess: expected an object"),
        (json.dumps(without("average")), "average: expected an object"),
        (json.dumps(run_metrics()).replace('"frames": 2', '"frames": 1.5'), "chess: frames"),
        (json.dumps(run_metrics()).replace("[[0.15", "[[NaN"), "NaN is not a number"),
    ],
)
def test_a_broken_or_foreign_metrics_file_is_refused_in_one_line(
    tmp_path: Path, content: str, named: str
) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(MsposeError, match=named) as error:
        read_metrics(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_unreadable_metrics_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path, named in ((tmp_path, "cannot read"), (tmp_path / "binary.json", "not JSON")):
        with pytest.raises(MsposeError, match=named):
            read_metrics(path)


# provenance


def test_provenance_names_versions_machine_and_time(tmp_path: Path) -> None:
    found = provenance()
    assert (
        found["torch"]
        and found["numpy"] == np.__version__
        and found["device"]
        and found["platform"]
    )
    assert found["time_utc"].endswith("+00:00")
    write_metrics(tmp_path / "metrics.json", run_metrics(provenance=found))


def test_the_commit_is_that_of_the_repository_that_holds_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "repository" / "mspose"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(package), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet", str(package.parent))
    (package / "other.py").write_text("")
    git("add", "other.py")
    git("commit", "--quiet", "-m", "other")
    assert provenance_module._git_state(package) == (
        None,
        None,
    )  # the package merely lies in somebody's repository
    git("add", "provenance.py")
    git("commit", "--quiet", "-m", "package")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as inside a hook of another repository
    assert provenance_module._git_state(package) == (commit, False)
    (package / "provenance.py").write_text("changed = True\n")
    assert provenance_module._git_state(package) == (commit, True)


def test_no_git_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance_module._git_state(tmp_path) == (None, None)


# the area under recall


def test_the_area_under_recall_is_that_of_kornia() -> None:
    rng = np.random.default_rng(0)
    for error_N in (rng.gamma(1, 1, 50), np.zeros(3), np.full(4, 2.0), np.array([0.5, 1.0, 1.5])):
        expected = auc_from_errors(torch.from_numpy(error_N), 1.0)[1.0] / 100
        assert area_under_recall(error_N) == pytest.approx(expected, abs=1e-12)


def test_both_errors_count_as_shares_of_their_thresholds() -> None:
    """Recall at the scaled thresholds, integrated numerically."""
    rng = np.random.default_rng(1)
    table = predictions(rng.gamma(2, 0.1, 40).tolist(), rng.gamma(2, 2, 40).tolist())
    found = compute_metrics(table, thresholds=[(0.3, 5.0)])["average"]["auc"]
    recall = [
        compute_metrics(table, thresholds=[(0.3 * scale, 5 * scale)])["average"]["recall"][0]
        for scale in np.linspace(0.005, 0.995, 100)
    ]
    # the trapezoid rule counts half a frame more at each step
    assert found == [pytest.approx(np.mean(recall), abs=0.5 / 40 + 0.01)]


def test_metrics_of_older_versions_have_neither(tmp_path: Path) -> None:
    metrics = run_metrics()
    for scene in (*metrics["scenes"].values(), metrics["average"]):
        for name in ("auc", "position_error_m_quantiles", "orientation_error_deg_quantiles"):
            del scene[name]
    write_metrics(tmp_path / "metrics.json", metrics)
    assert read_metrics(tmp_path / "metrics.json") == metrics
    metrics["average"]["auc"] = 0.5
    write_metrics(tmp_path / "metrics.json", metrics)
    with pytest.raises(MsposeError, match=r"average: auc is 0\.5, expected list"):
        read_metrics(tmp_path / "metrics.json")
