"""The table of an ablation, from committed made-up records in tests/golden and from changed copies
of them.
"""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from studies.builders import FILE, GOLDEN, RESULTS

from mspose.attention.knock_out import KnockOut
from mspose.cli import main
from mspose.errors import MsposeError
from mspose.metrics import write_errors
from mspose.run import Run
from mspose.studies.ablation.finished import finished_ablation
from mspose.studies.ablation.plan import read_ablation
from mspose.studies.ablation.table import ablation_table
from mspose.studies.ablation.worth import make_worth_table
from mspose.studies.knock_out import Errors, summarise, write_knock_out_errors

pytestmark = pytest.mark.usefixtures("settings_are_read_once")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the made-up records that the test may change."""
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def run_folder(results: Path, label: str, seed: int) -> Path:
    return results / "remedies-small" / label / f"seed-{seed}"


def change(path: Path, **values: Any) -> None:
    """Set values in a JSON or YAML file."""
    read, write = (
        (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    )
    path.write_text(write({**read(path.read_text()), **values}))


def rows(text: str, label: str) -> list[list[str]]:
    """Cells of a row of a Markdown table, in its two parts."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {label} (")]
    return [[part.strip() for part in line.split("|")[1:-1]] for line in lines]


# the whole text


NUMBER = re.compile(r"\d+\.(\d+)")


@pytest.mark.parametrize(("format", "ending"), [("markdown", "md"), ("latex", "tex")])
def test_the_text_is_that_of_the_committed_files(format: Any, ending: str) -> None:
    """To the last digit but one, which is not rounded alike on every machine.

    Where a change is meant: mspose table tests/golden/results --ablation tests/golden/remedies.yaml
    --format ...
    """
    expected = (GOLDEN / f"remedies.{ending}").read_text(encoding="utf-8")
    text = ablation_table(FILE, [RESULTS], format=format)
    assert NUMBER.sub("#", text) == NUMBER.sub("#", expected)
    for found, wanted in zip(NUMBER.finditer(text), NUMBER.finditer(expected), strict=True):
        digits = len(wanted[1])
        assert len(found[1]) == digits
        assert float(found[0]) == pytest.approx(float(wanted[0]), abs=1.1 * 10**-digits)


def test_the_csv_is_that_of_the_committed_file() -> None:
    """To nine digits, for the same reason."""
    text = ablation_table(FILE, [RESULTS], format="csv")
    found, expected = (
        pd.read_csv(io.StringIO(part)) for part in (text, (GOLDEN / "remedies.csv").read_text())
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


# metrics, differences and intervals


def numbers(results: Path) -> pd.DataFrame:
    table = pd.read_csv(io.StringIO(ablation_table(FILE, [results], format="csv")))
    return table.set_index(["variant", "scene"])


def test_medians_differences_and_attention_are_those_of_the_records() -> None:
    table = numbers(RESULTS)
    medians = {
        (label, seed): Run(run_folder(RESULTS, label, seed))
        .errors()
        .groupby("scene")["position_error_m"]
        .median()
        for label in ("none", "aligned")
        for seed in (0, 1, 2)
    }
    attic = [medians["aligned", seed]["attic"] for seed in (0, 1, 2)]
    row = table.loc[("aligned", "attic")]
    assert row["position_m"] == pytest.approx(np.mean(attic), abs=1e-12)
    assert row["position_m_std"] == pytest.approx(np.std(attic, ddof=1), abs=1e-12)
    averages = {key: value.mean() for key, value in medians.items()}
    difference = np.mean([averages["aligned", seed] - averages["none", seed] for seed in (0, 1, 2)])
    row = table.loc[("aligned", "Average")]
    assert row["position_m_difference"] == pytest.approx(difference, abs=1e-12)
    assert row["position_m_low"] < difference < row["position_m_high"] < 0

    entropies = []
    for seed in (0, 1, 2):
        study = Run(run_folder(RESULTS, "none", seed)).attention
        layers = [layer for layer in study["layers"] if layer["branch"] == "orientation"]
        entropies.append(np.mean([layer["entropy"] for layer in layers]))
    reference = table.loc[("none", "Average")]
    assert reference["orientation_entropy_nats"] == pytest.approx(np.mean(entropies), abs=1e-12)
    assert reference["orientation_layers"] == "uniform 5, selective 1"


def test_rounding_of_the_errors_changes_nothing_but_the_last_digits(results: Path) -> None:
    """Frames and seeds are drawn by their numbers, so that every machine draws the same."""
    rng = np.random.default_rng(0)
    for path in results.rglob("test.csv"):
        table = pd.read_csv(path)
        for name in ("tx_est", "ty_est", "tz_est"):
            table[name] *= 1 + rng.normal(0, 1e-15, len(table))
        table.to_csv(path, index=False)
    pd.testing.assert_frame_equal(numbers(results), numbers(RESULTS), rtol=1e-9)


def test_the_same_frames_are_drawn_for_both_variants_of_a_pair(results: Path) -> None:
    """Where every error is the reference's plus a constant, the interval has no width."""
    for seed in (0, 1, 2):
        table = pd.read_csv(run_folder(results, "none", seed) / "predictions" / "test.csv")
        offset = (
            table[["tx_est", "ty_est", "tz_est"]].to_numpy() - table[["tx", "ty", "tz"]].to_numpy()
        )
        length = np.linalg.norm(offset, axis=1, keepdims=True)
        table[["tx_est", "ty_est", "tz_est"]] += 0.05 * offset / length
        table.to_csv(run_folder(results, "aligned", seed) / "predictions" / "test.csv", index=False)
    assert rows(ablation_table(FILE, [results]), "aligned")[0][4] == "+0.050 [+0.050, +0.050] ‡"


def with_correlated_errors(results: Path) -> None:
    """200 frames a scene, of which ten neighbours each have the same errors."""
    rng = np.random.default_rng(0)
    for path in sorted(results.rglob("test.csv")):
        parts = [
            pd.DataFrame(
                {
                    "image": [f"{scene}/frame-{number}.png" for number in range(200)],
                    "scene": scene,
                    "position_error_m": np.repeat(rng.gamma(2, 0.1, 20), 10),
                    "orientation_error_deg": np.repeat(rng.gamma(2, 2, 20), 10),
                }
            )
            for scene in ("attic", "cellar")
        ]
        write_errors(Run(path.parents[1]).errors_file, pd.concat(parts))
        path.unlink()


def test_frames_are_resampled_in_blocks_that_follow_from_the_errors(results: Path) -> None:
    with_correlated_errors(results)
    text = ablation_table(FILE, [results])
    (blocks,) = re.findall(r"Neighbouring frames resampled together: (.*)\.", text)
    lengths = [int(length) for length in re.findall(r" (\d+)", blocks)]
    assert len(lengths) == 2 and min(lengths) > 3
    assert "resampled together: attic 1" in ablation_table(FILE, [results], block=1)

    def width(block: int | None) -> float:
        text = ablation_table(FILE, [results], format="csv", seeds=[0], block=block)
        row = pd.read_csv(io.StringIO(text)).set_index(["variant", "scene"]).loc["aligned", "attic"]
        return float(row["position_m_high"] - row["position_m_low"])

    assert width(None) > 1.5 * width(1)


def test_frames_of_the_data_set_that_were_not_evaluated_are_named(results: Path) -> None:
    for path in results.rglob("metrics.json"):
        scenes = json.loads(path.read_text())["scenes"]
        scenes["attic"]["frames_expected"] = 5000
        change(path, scenes=scenes)
    text = ablation_table(FILE, [results])
    frames = scenes["attic"]["frames"]
    assert f"Not all test frames of the data set: attic {frames} of 5,000." in text


# missing and unusable runs


def test_missing_runs_and_unpaired_seeds_are_named(results: Path) -> None:
    shutil.rmtree(run_folder(results, "none", 2))
    text = ablation_table(FILE, [results])
    assert "Missing: seed 2 of none, scaled; seeds 0, 1, 2 of both." in text
    assert "Not in a difference, since the variant or none lacks them: seed 2 of aligned." in text
    assert rows(text, "aligned")[0][0] == "aligned (3 seeds)"  # whose mean has all its seeds
    shutil.rmtree(results / "remedies-small" / "none")
    text = ablation_table(FILE, [results])
    assert "No differences: none, the reference, has no finished run." in text
    assert rows(text, "aligned")[0][4] == "–" and "bootstrap" not in text


def test_of_a_single_seed_the_interval_is_said_to_cover_frames_alone(results: Path) -> None:
    text = ablation_table(FILE, [results], seeds=[1])
    assert "over blocks of frames alone, since there is one seed" in text and "widened" not in text
    assert "includes 0, or is of one seed" in text and rows(text, "aligned")[0][4].endswith("] †")
    assert (
        rows(text, "aligned")[0][0] == "aligned (1 seed)" and "±" not in rows(text, "aligned")[0][3]
    )
    assert "Missing: seed 1 of both." in text
    shutil.rmtree(run_folder(results, "scaled", 0))
    assert "Interval over frames alone, since one seed is paired: scaled." in ablation_table(
        FILE, [results]
    )


def test_runs_that_do_not_count_are_named(results: Path) -> None:
    change(run_folder(results, "aligned", 1) / "config.yaml", loss={"qka_weight": 0.2})
    change(run_folder(results, "aligned", 2) / "metrics.json", quick=True)
    change(run_folder(results, "aligned", 0) / "attention" / "attention.json", config_hash="x")
    shutil.copytree(run_folder(results, "aligned", 0), run_folder(results, "old", 0))
    change(run_folder(results, "old", 0) / "metrics.json", variant="old")
    text = ablation_table(FILE, [results])
    assert rows(text, "aligned")[0][0] == "aligned (1 seed)"
    assert rows(text, "aligned")[0][5:] == ["–", "–", "–"]
    for remark in (
        "Left out, other settings than remedies.yaml: seed 1 of aligned (loss.qka_weight 0.2, not"
        " 0.1).",
        "Missing: seeds 1, 2 of aligned; seed 2 of scaled",
        "Left out, quick tries at toy size: seed 2 of aligned.",
        "Left out, not in remedies.yaml: old.",
        "(mspose attention RUN makes them): seed 0 of aligned",
    ):
        assert remark in text


def test_settings_that_all_runs_share_are_named_and_folders_do_not_count(results: Path) -> None:
    for path in results.rglob("config.yaml"):
        change(path, training={"epochs": 3}, runs="/elsewhere", device="cuda")
    for path in results.rglob("attention.json"):
        path.unlink()
    text = ablation_table(FILE, [results])
    assert "All runs have other settings than remedies.yaml: training.epochs 3, not 30." in text
    assert rows(text, "aligned")[0][0] == "aligned (3 seeds)" and "elsewhere" not in text
    assert "Attention entropy" not in text and "No attention metrics" in text


def test_a_table_from_records_is_the_table_from_predictions(results: Path) -> None:
    for path in results.rglob("test.csv"):
        run = Run(path.parents[1])
        write_errors(run.errors_file, run.errors())
        path.unlink()
    assert ablation_table(FILE, [results]) == ablation_table(FILE, [RESULTS])


def test_runs_that_cannot_be_compared_are_refused(results: Path) -> None:
    path = run_folder(results, "aligned", 1) / "predictions" / "test.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(MsposeError, match=r"aligned/seed-1 was tested on other frames than .*none"):
        ablation_table(FILE, [results])
    change(run_folder(results, "aligned", 1) / "metrics.json", scene_selection="given")
    with pytest.raises(MsposeError, match="not evaluated on the same data"):
        ablation_table(FILE, [results])
    path = run_folder(results, "none", 0) / "config.yaml"
    path.write_text("a: [")
    with pytest.raises(MsposeError, match=re.escape(str(path))):
        ablation_table(FILE, [results])


def test_a_run_counts_before_its_record_and_where_they_differ_the_log_says_so(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(
        run_folder(results, "none", 0) / "metrics.json", bad_frames=3
    )  # its figures are the same
    finished = finished_ablation(read_ablation(FILE), [results, RESULTS])
    assert finished.runs["none"][0].folder == run_folder(results, "none", 0)
    assert not caplog.records
    metrics = json.loads((run_folder(results, "none", 0) / "metrics.json").read_text())
    metrics["scenes"]["attic"]["median_position_error_m"] = 9.0
    change(run_folder(results, "none", 0) / "metrics.json", scenes=metrics["scenes"])
    finished_ablation(read_ablation(FILE), [results, RESULTS])
    assert "different metrics: those of the first count" in caplog.text


def test_the_same_run_twice_below_one_folder_is_refused(results: Path) -> None:
    folder = run_folder(results, "none", 0)
    shutil.copytree(folder, folder.parent / "copy")
    with pytest.raises(MsposeError, match="are both remedies-small/none/0: remove one"):
        ablation_table(FILE, [results])


def test_without_any_run_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MsposeError, match="no finished run of remedies-small; run `mspose ablate"):
        ablation_table(FILE, [tmp_path, tmp_path / "nowhere"])


# from the command line


def test_the_table_verb_prints_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["table", str(RESULTS), "--ablation", str(FILE), "--format", "latex", "--seeds", "0", "1"])
    assert capsys.readouterr().out == ablation_table(FILE, [RESULTS], seeds=[0, 1], format="latex")
    main(["table", str(RESULTS), "--ablation", str(FILE), "--out", str(tmp_path / "table.md")])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text == ablation_table(FILE, [RESULTS])


# the worth of self-attention


def knock_out(folder: Path, shift: float, seed: int) -> None:
    """Give a record a knock-out, in which only the position branch's selection is worth something,
    `shift` metres.
    """
    run = Run(folder)
    rng = np.random.default_rng(seed)
    errors = run.errors()
    error_F2 = errors[["position_error_m", "orientation_error_deg"]].to_numpy()
    whole = {
        KnockOut(by, branch): error_F2
        + rng.normal(0, 1e-3, error_F2.shape)
        + [shift * (branch == "position" and by == "mean"), 0]
        for branch in ("both", "position", "orientation")
        for by in ("mean", "own", "nothing")
    }
    found = Errors(errors[["image", "scene"]], {None: error_F2, **whole})
    write_knock_out_errors(run.knock_out_file, found)
    study = json.loads(run.attention_file.read_text())
    # as an older study is read
    study |= {"format": 3, "layers": run.attention["layers"], "start": "unknown: made up"}
    study |= {"decoder": [], "knock_out": summarise(found)}
    run.attention_file.write_text(json.dumps(study))


def test_the_worth_of_attention_stands_below_the_table_with_intervals_over_seeds(
    results: Path,
) -> None:
    assert "worth of self-attention" not in ablation_table(FILE, [results])
    for seed, shift in enumerate((0.1, 0.11, 0.12)):
        knock_out(run_folder(results, "aligned", seed), shift, seed)
    ablation = read_ablation(FILE)
    table = make_worth_table(ablation, finished_ablation(ablation, [results]))
    assert table is not None
    csv = pd.read_csv(io.StringIO(table.to_csv())).set_index(["variant", "branch", "replaced_by"])
    assert csv["seeds"].to_dict() == {
        ("aligned", branch, by): 3
        for branch in ("both", "position", "orientation")
        for by in ("mean", "own", "nothing")
    }
    found = csv.loc["aligned", "position", "mean"]
    assert found["position_m_difference"] == pytest.approx(0.11, abs=2e-3)
    # three seeds: wider than the seeds themselves
    assert 0 < found["position_m_low"] < 0.1 < 0.12 < found["position_m_high"]
    assert abs(csv.loc["aligned", "position", "own"]["position_m_difference"]) < 2e-3
    text = ablation_table(FILE, [results])
    (below,) = text.split("worth of self-attention")[1:]
    line = next(line for line in below.splitlines() if re.search(r"\|\s+position\s+\|", line))
    assert not line.split("|")[4].strip().endswith("†")
    assert line.split("|")[5].strip().endswith("†")
    assert "Without a knock-out: none, scaled" in below
    assert ablation_table(FILE, [results], format="latex").count("\\begin{table}") == 2


def test_knock_outs_on_other_frames_do_not_share_a_row(results: Path) -> None:
    for seed in (0, 1):
        knock_out(run_folder(results, "aligned", seed), 0.1, seed)
    path = Run(run_folder(results, "aligned", 1)).knock_out_file
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(MsposeError, match=r"was knocked out on other frames than .*seed-0"):
        ablation_table(FILE, [results])
