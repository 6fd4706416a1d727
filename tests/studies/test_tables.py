"""Tables of runs and published rows, as Markdown, LaTeX and CSV."""

import io
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.builders import write_run

from mspose.config import DataSettings, Settings, write_settings
from mspose.errors import MsposeError
from mspose.metrics import average_over_scenes, write_metrics
from mspose.run import Run
from mspose.studies.rows import PUBLISHED_CSV, Measure, collect_runs, lacking_frames, published_rows
from mspose.studies.tables import LATEX, MARKDOWN, Kind, make_table, metric_cells, table_text

SOURCE = "Doe: A Method, 2020"
HEADER = (
    "method,dataset,ground_truth,split,scene,median_position_error_m,median_orientation_error_deg,"
    "source,note\n"
)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Two published methods, the second without one scene."""
    path = tmp_path / "published.csv"
    rows = [
        f'Net_1,rooms,original,test,attic,0.20,4.0,"{SOURCE}",',
        f'Net_1,rooms,original,test,cellar,0.40,6,"{SOURCE}",a note',
        f'Net_1,rooms,original,test,average,0.30,5.0,"{SOURCE}",',
        'Half,rooms,original,test,attic,0.10,3.0,"Roe, 2021",',
        'Half,rooms,original,test,average,0.15,3.5,"Roe, 2021",',
        'Other,rooms,sfm,test,attic,0.01,0.1,"Poe, 2022",',
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def three_seeds(root: Path) -> None:
    for seed, (position, orientation) in enumerate([(0.10, 4.0), (0.12, 4.5), (0.14, 5.0)]):
        write_run(root, {"attic": (position, orientation), "cellar": (0.4, 5.0)}, seed=seed)


def one_line(error: pytest.ExceptionInfo[MsposeError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# the three formats, whole


def squeezed(text: str) -> str:
    """Markdown without the padding that lines up the columns."""
    return re.sub(r":-+", ":-", re.sub(r" +", " ", text))


MARKDOWN_TABLE = """\
Median position error (m) / median orientation error (°); Average: unweighted mean over scenes. \
Data set rooms, ground truth original, split test, scene predicted. Mean ± standard deviation over \
seeds.

| Method | attic | cellar | Average |
|:-|:-:|:-:|:-:|
| *Published* | | | |
| Net_1 [1] | 0.20 / 4.00 | **0.40** / 6.00 | 0.30 / 5.00 |
| Half [2] | **0.10** / **3.00** | – | **0.15** / **3.50** |
| *This repository* | | | |
| rooms/all (3 seeds) | 0.12±0.02 / 4.50±0.50 | **0.40±0.00** / **5.00±0.00** | \
0.26±0.01 / 4.75±0.25 |
| rooms/attic (1 seed, one scene) [3] | **0.10** / **3.00** | – | – |
| rooms/baseline-mean-pose (1 seed, scene given) | 0.80 / 32.00 | 0.90 / 30.00 | 0.85 / 31.00 |

1. Doe: A Method, 2020; a note
2. Roe, 2021
3. bad frames left out: 3

Frames evaluated in this repository: attic 100, cellar 100.
"""


def test_markdown(tmp_path: Path, published: Path) -> None:
    runs = tmp_path / "runs"
    three_seeds(runs)
    mean = {"attic": (0.8, 32.0), "cellar": (0.9, 30.0)}
    baseline = {"variant": "baseline-mean-pose", "scene_selection": "given"}
    write_run(runs, mean, scene_accuracy=None, **baseline)
    write_run(runs, {"attic": (0.1, 2.995)}, variant="attic", bad_frames=3)
    text = table_text([runs], published_csv=published)
    assert squeezed(text) == MARKDOWN_TABLE
    # columns line up in a terminal
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


LATEX_TABLE = r"""\begin{table}[t]
\centering
\caption{Median position error (m) / median orientation error ($^{\circ}$); Average: unweighted \
mean over scenes. Data set rooms, ground truth original, split test, scene predicted. Mean $\pm$ \
standard deviation over seeds.}
\footnotesize
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{lccc}
\toprule
Method & attic & cellar & Average \\
\midrule
\emph{Published} &  &  &  \\
Net\_1$^{1}$ & 0.20 / 4.00 & \textbf{0.40} / 6.00 & 0.30 / 5.00 \\
Half$^{2}$ & \textbf{0.10} / \textbf{3.00} & -- & \textbf{0.15} / \textbf{3.50} \\
\midrule
\emph{This repository} &  &  &  \\
rooms/all (3 seeds) & 0.12$\pm$0.02 / 4.50$\pm$0.50 & \
\textbf{0.40$\pm$0.00} / \textbf{5.00$\pm$0.00} & 0.26$\pm$0.01 / 4.75$\pm$0.25 \\
rooms\_50\%/a\&b (1 seed, one scene) & 0.50 / 9.00 & -- & -- \\
\bottomrule
\end{tabular}}
\par\smallskip
{\footnotesize\raggedright
$^{1}$ Doe: A Method, 2020; a note\par
$^{2}$ Roe, 2021\par
Frames evaluated in this repository: attic 100, cellar 100.\par}
\end{table}
"""


def test_latex(tmp_path: Path, published: Path) -> None:
    three_seeds(tmp_path / "runs")
    write_run(tmp_path / "runs", {"attic": (0.5, 9.0)}, experiment="rooms_50%", variant="a&b")
    text = table_text([tmp_path / "runs"], format="latex", published_csv=published)
    assert text == re.sub(r" \\\n", " ", LATEX_TABLE)


def test_csv_is_long_and_unrounded(tmp_path: Path, published: Path) -> None:
    three_seeds(tmp_path / "runs")
    write_run(tmp_path / "runs", {"attic": (1 / 3, 2.0)}, variant="attic", scene_accuracy=None)
    text = table_text([tmp_path / "runs"], format="csv", published_csv=published)
    header, first, *_ = text.splitlines()
    assert (
        header
        == "label,section,dataset,ground_truth,split,scene_selection,quick,data_version,scene,"
        "seeds,frames,position_m,position_m_std,orientation_deg,orientation_deg_std,scene_accuracy,"
        "scene_accuracy_std,source,note"
    )
    about = "Net_1,Published,rooms,original,test,predicted,False,,attic"
    assert first == f'{about},,,0.2,,4.0,,,,"{SOURCE}",a note'
    table = pd.read_csv(io.StringIO(text), float_precision="round_trip").set_index(
        ["label", "scene"]
    )
    assert len(table) == 4 * 3
    assert table.loc[("rooms/all", "attic"), "position_m"] == np.mean([0.10, 0.12, 0.14])
    assert table.loc[("rooms/all", "attic"), "position_m_std"] == np.std([0.10, 0.12, 0.14], ddof=1)
    assert table.loc[("rooms/all", "Average"), "orientation_deg"] == np.mean([4.5, 4.75, 5.0])
    assert (
        table.loc[("rooms/all", "Average"), "frames"] == 200
        and table.loc[("rooms/all", "attic"), "seeds"] == 3
    )
    assert table.loc[("rooms/attic", "attic"), "position_m"] == 1 / 3
    assert table.loc[("rooms/attic", ["cellar", "Average"]), "position_m"].isna().all()
    assert table.loc[("Half", "Average"), "position_m"] == 0.15


RECALL_TABLE = """\
Share of frames (%) with both errors within the thresholds; unweighted mean over scenes. Data set \
rooms, ground truth original, split test, scene predicted. Mean ± standard deviation over seeds.

| Method | 0.05 m, 5° | 0.25 m, 5° | Scene accuracy |
|:-|:-:|:-:|:-:|
| *This repository* | | | |
| rooms/all (2 seeds) | **15.0±7.1** | **60.0±14.1** | **99.0±0.0** |
| rooms/attic (1 seed, one scene) | – | – | – |

Frames evaluated in this repository: attic 100, cellar 100.
"""


def test_recall_tables(tmp_path: Path, published: Path) -> None:
    scenes = {"attic": (0.1, 4.0), "cellar": (0.2, 5.0)}
    for seed, recall in enumerate([(0.10, 0.5), (0.20, 0.7)]):
        write_run(tmp_path / "runs", scenes, seed=seed, recall=recall)
    write_run(tmp_path / "runs", variant="attic", recall=(0.3, 0.4))
    text = table_text([tmp_path / "runs"], kind="recall", published_csv=published)
    assert squeezed(text) == RECALL_TABLE
    per_scene = table_text([tmp_path / "runs"], kind="recall-scenes", published_csv=published)
    assert "within 0.05 m, 5° / 0.25 m, 5°. Data set rooms" in per_scene
    (row,) = [line for line in per_scene.splitlines() if line.startswith("| rooms/attic")]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "rooms/attic (1 seed, one scene)",
        "**30.0** / 40.0",
        "–",
        "–",
        "–",
    ]
    table = pd.read_csv(io.StringIO(table_text([tmp_path / "runs"], format="csv", kind="recall")))
    assert table["recall_0.05m_5deg"].tolist()[:3] == pytest.approx([0.15] * 3)
    assert table["recall_0.25m_5deg_std"].tolist()[:3] == pytest.approx([np.sqrt(0.02)] * 3)


# what is bold, what is a dash


def cells(text: str, start: str) -> list[str]:
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_the_best_is_found_after_rounding_so_that_equal_looking_cells_are_all_bold(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, {"attic": (0.114, 4.004)}, variant="a")
    write_run(tmp_path, {"attic": (0.106, 3.996)}, variant="b")
    write_run(tmp_path, {"attic": (0.1151, 3.9949)}, variant="c")
    text = table_text([tmp_path])
    assert cells(text, "rooms/a ")[0] == "**0.11** / 4.00"
    assert cells(text, "rooms/b ")[0] == "**0.11** / 4.00"
    assert cells(text, "rooms/c ")[0] == "0.12 / **3.99**"
    finer = table_text([tmp_path], digits=3)
    assert (
        cells(finer, "rooms/a ")[0] == "0.114 / 4.00"
        and cells(finer, "rooms/b ")[0] == "**0.106** / 4.00"
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 50), min_size=1, max_size=3), min_size=2, max_size=6),
    st.booleans(),
)
def test_a_cell_is_bold_just_where_none_printed_is_better(
    values: list[list[float]], larger: bool
) -> None:
    measures = [Measure(tuple(value)) for value in values]
    best = max if larger else min
    found = [number for (number,) in metric_cells([[m] for m in measures], (2,), best=best)]
    printed = [float(number.text.partition("±")[0]) for number in found]
    assert [number.bold for number in found] == [value == best(printed) for value in printed]
    assert [number.text for number in found] == [measure.text(2) for measure in measures]


def test_no_average_is_taken_over_a_missing_scene_but_a_printed_one_stands(
    published: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "runs", variant="attic")
    text = table_text([tmp_path / "runs"], published_csv=published)
    assert cells(text, "rooms/attic")[1:] == ["–", "–"]
    assert cells(text, "Half")[1:] == ["–", "**0.15** / **3.50**"]
    published.write_text(
        "".join(line for line in published.read_text().splitlines(True) if ",average," not in line)
    )
    text = table_text([tmp_path / "runs"], published_csv=published)
    assert cells(text, "Half")[1:] == ["–", "–"]
    assert cells(text, "Net_1")[2] == "**0.30** / **5.00**"  # complete, so its mean can be taken
    assert cells(table_text([tmp_path / "runs"], published=False), "rooms/attic") == [
        "0.10 / 4.00",
        "0.10 / 4.00",
    ]


def test_signs_with_a_meaning_are_escaped() -> None:
    assert (
        LATEX.plain("a_b & 5% #1 {x} $y \\ ~ ^ ±°–")
        == "a\\_b \\& 5\\% \\#1 \\{x\\} \\$y \\textbackslash{} \\textasciitilde{}"
        " \\textasciicircum{} $\\pm$$^{\\circ}$--"
    )
    assert MARKDOWN.plain("a|b *c* _d_") == "a\\|b \\*c\\* _d_"


# which rows share a table


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"dataset": "halls"}, {"dataset": "rooms"}),
        ({"ground_truth": "sfm"}, {"ground_truth": "original"}),
        ({"split": "val"}, {"split": "test"}),
    ],
)
def test_rows_measured_differently_are_refused_until_one_kind_is_chosen(
    tmp_path: Path, change: dict[str, str], option: dict[str, str]
) -> None:
    write_run(tmp_path, variant="a")
    write_run(tmp_path, {"attic": (0.2, 5)}, variant="b", **change)
    with pytest.raises(MsposeError, match="cannot share a table") as error:
        table_text([tmp_path])
    message = one_line(error)
    for part in (
        *change.values(),
        *option.values(),
        "rooms/a",
        "rooms/b",
        "--dataset",
        "--ground-truth",
        "--split",
    ):
        assert part in message
    text = table_text([tmp_path], **option)  # type: ignore[arg-type]
    assert "rooms/a" in text and "rooms/b" not in text
    assert "rooms/b" in table_text([tmp_path], **change)  # type: ignore[arg-type]


def test_given_and_predicted_scenes_are_refused_together_but_baselines_may_stand_beside(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, variant="a")
    write_run(tmp_path, {"attic": (0.8, 32)}, variant="baseline-mean-pose", scene_selection="given")
    assert "| rooms/baseline-mean-pose (1 seed, scene given) " in table_text([tmp_path])
    write_run(tmp_path, variant="b", scene_selection="given")
    with pytest.raises(MsposeError, match=r"scene predicted \(rooms/a.*scene given \(rooms/b"):
        table_text([tmp_path])
    baselines = [tmp_path / "rooms" / "baseline-mean-pose"]
    assert "scene given." in table_text(baselines)


def test_runs_at_toy_size_never_stand_beside_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, variant="real")
    write_run(tmp_path, {"attic": (0.2, 5)}, experiment="rooms-quick", variant="toy", quick=True)
    with caplog.at_level("INFO", "mspose"):
        assert [row.name for row in collect_runs([tmp_path])] == ["rooms/real"]
    assert "toy size (quick) share no table with others, left out: 1" in caplog.text
    toys = collect_runs([tmp_path / "rooms-quick"])
    assert "at toy size (quick)." in table_text([tmp_path / "rooms-quick"])
    with pytest.raises(
        MsposeError, match=r"cannot share a table: .*toy size \(quick\) \(rooms-quick/toy\)"
    ):
        make_table([*collect_runs([tmp_path / "rooms"]), *toys])


def test_rows_of_different_versions_of_rendered_rooms_never_share_a_table(tmp_path: Path) -> None:
    """What recorded no version of rendered rooms is of version 1; other data sets have none."""
    rendered = {"dataset": "virtual", "ground_truth": "rendered"}
    older = write_run(tmp_path / "older", **rendered)
    newer = write_run(tmp_path / "newer", {"attic": (0.2, 4.0)}, data_version=2, **rendered)
    stated = write_run(tmp_path / "stated", variant="stated", data_version=1, **rendered)
    with pytest.raises(MsposeError) as error:
        make_table(collect_runs([older, newer]))
    assert "virtual version 1, ground truth rendered" in one_line(error)
    assert "virtual version 2, ground truth rendered" in one_line(error)
    with pytest.raises(MsposeError, match="cannot share a table"):
        table_text([older, newer])
    assert "Data set virtual version 2, ground truth rendered" in table_text([newer])
    together = table_text([older, stated], format="csv")
    assert set(pd.read_csv(io.StringIO(together))["data_version"]) == {1}
    assert "version" not in make_table(collect_runs([write_run(tmp_path / "real")])).caption


@pytest.mark.parametrize(
    "change", [{"ground_truth": "colmap"}, {"split": "val"}, {"scene_selection": "given"}]
)
def test_a_table_says_that_no_published_row_fits(
    tmp_path: Path, published: Path, change: dict[str, str]
) -> None:
    write_run(tmp_path / "runs", **change)
    text = table_text([tmp_path / "runs"], published_csv=published)
    assert "Net_1" not in text and "No published rows are shown" in text
    latex = table_text([tmp_path / "runs"], format="latex", published_csv=published)
    assert latex.startswith("% No published rows are shown") and latex.count("No published") == 1
    assert "No published rows" not in table_text([tmp_path / "runs"], published=False)


def test_a_run_whose_data_set_is_not_known_has_a_table_of_its_own(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        {"all": (0.1, 4)},
        experiment="external",
        dataset=None,
        ground_truth=None,
        split=None,
        seed=None,
    )
    text = table_text([tmp_path])
    assert "Data set unknown, ground truth unknown" in text and "| external/all |" in squeezed(text)
    write_run(tmp_path)
    with pytest.raises(MsposeError, match="cannot share"):
        table_text([tmp_path])


# finding runs


def test_a_filter_considers_the_other_evaluations_of_a_run_too(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_run(tmp_path, {"attic": (0.2, 5)}, split="train", name="metrics-train.json")
    for paths in ([tmp_path], [run]):
        assert cells(table_text(paths), "rooms/all")[0] == "0.10 / 4.00"
        assert cells(table_text(paths, split="train"), "rooms/all")[0] == "0.20 / 5.00"
    assert cells(table_text([run / "metrics-train.json"]), "rooms/all")[0] == "0.20 / 5.00"


def test_the_same_seed_at_two_places_is_refused_and_both_are_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a")
    two = write_run(tmp_path / "b", {"attic": (0.2, 5)})
    with pytest.raises(MsposeError, match="rooms/all, seed 0") as error:
        collect_runs([tmp_path])
    assert str(one) in one_line(error) and str(two) in one_line(error)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"frames": 99}, "frames"), ({"thresholds": [[0.1, 5.0], [0.25, 5.0]]}, "recall thresholds")],
)
def test_seeds_that_were_evaluated_differently_have_no_mean(
    tmp_path: Path, change: Any, named: str
) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, **change)
    with pytest.raises(MsposeError, match=f"seeds of rooms/all with different {named}"):
        collect_runs([tmp_path])


def test_rows_on_other_frames_are_visible(tmp_path: Path) -> None:
    write_run(tmp_path, variant="a", frames=100)
    write_run(tmp_path, variant="b", frames=98)
    assert "attic 100 or 98." in table_text([tmp_path])


@pytest.mark.parametrize("stated", [None, 2000])
def test_a_row_without_all_test_frames_of_the_data_set_says_so(
    tmp_path: Path, stated: int | None
) -> None:
    """Their number is in the metrics, or else on the card."""
    seven = {"dataset": "7scenes", "experiment": "7scenes"}
    run = write_run(tmp_path, {"chess": (0.1, 4), "fire": (0.2, 5)}, frames=16, **seven)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["scenes"]["chess"]["frames_expected"] = stated
    metrics["scenes"]["fire"]["frames"] = 2000
    write_metrics(run / "metrics.json", metrics)
    assert lacking_frames([Run(run)]) == ["chess 16 of 2,000"]
    for kind in get_args(Kind):
        for format in ("markdown", "latex"):
            text = table_text([tmp_path], kind=kind, format=format, published=False)
            assert "7scenes/all (1 seed, not all test frames)" in text
            assert "test frames evaluated: chess 16 of 2,000" in text
    assert "test frames evaluated: chess 16" in table_text([tmp_path], format="csv")
    metrics["scenes"]["chess"]["frames"] = 2000
    write_metrics(run / "metrics.json", metrics)
    assert "not all" not in table_text([tmp_path], published=False)


def test_frames_that_were_not_localised_are_counted_in_a_note(tmp_path: Path) -> None:
    write_run(tmp_path, variant="baseline-structure", not_localised=7)
    assert "which have the retrieved pose: 7" in table_text([tmp_path])


def test_a_model_of_one_scene_is_marked_beside_rows_of_several(tmp_path: Path) -> None:
    write_run(tmp_path, {"attic": (0.1, 4), "cellar": (0.1, 4)}, variant="both")
    alone = write_run(tmp_path, variant="attic")
    write_run(tmp_path, {"cellar": (0.1, 4)}, variant="tested-on-cellar")
    write_settings(alone / "config.yaml", Settings(data=DataSettings(scenes=["attic"])))
    text = squeezed(table_text([tmp_path]))
    assert "| rooms/attic (1 seed, model of one scene) |" in text
    assert "| rooms/tested-on-cellar (1 seed, one scene) |" in text
    assert "| rooms/both (1 seed) |" in text
    assert "| rooms/attic (1 seed) |" in squeezed(table_text([alone]))


# quantiles, area under recall, costs


def test_quantiles_and_areas_under_recall_are_averaged_over_scenes(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"attic": (0.1, 4), "cellar": (0.1, 4)})
    older = write_run(tmp_path, {"attic": (0.1, 4), "cellar": (0.1, 4)}, variant="older")
    metrics = json.loads((run / "metrics.json").read_text())
    for scene, factor in (("attic", 1), ("cellar", 3)):
        metrics["scenes"][scene] |= {
            "position_error_m_quantiles": [0.1 * factor, 0.2 * factor, 0.3 * factor],
            "orientation_error_deg_quantiles": [1.0 * factor, 2.0 * factor, 3.0 * factor],
            "auc": [0.1 * factor, 0.2 * factor],
        }
    metrics["average"] = average_over_scenes(metrics["scenes"])
    write_metrics(run / "metrics.json", metrics)
    text = table_text([tmp_path], kind="quantiles")
    assert "75, 90, 95 % quantiles of position error (m) / orientation error (°)" in text
    assert cells(text, "rooms/all") == [
        "**0.20** / **2.00**",
        "**0.40** / **4.00**",
        "**0.60** / **6.00**",
    ]
    assert cells(text, "rooms/older") == ["–", "–", "–"]
    text = table_text([tmp_path], kind="auc")
    assert cells(text, "rooms/all") == ["**20.0**", "**40.0**"]
    assert cells(text, "rooms/older") == ["–", "–"]
    table = pd.read_csv(io.StringIO(table_text([tmp_path], kind="auc", format="csv")))
    assert table["auc_0.25m_5deg"].tolist()[:3] == pytest.approx([0.2, 0.6, 0.4])
    table = pd.read_csv(io.StringIO(table_text([tmp_path], kind="quantiles", format="csv")))
    assert table["orientation_deg_95_percent"].tolist()[:3] == pytest.approx([3, 9, 6])
    assert Run(older).metrics["average"]["frames"] == 200


def test_what_models_cost_stands_in_columns_of_its_own(tmp_path: Path) -> None:
    for seed, time in enumerate((10.0, 12.0)):
        run = write_run(tmp_path, seed=seed)
        metrics = json.loads((run / "metrics.json").read_text())
        cost = {"parameters": 1_250_000, "megabytes": 5.04, "milliseconds_per_image": time}
        metrics["provenance"] = {"model": cost}
        write_metrics(run / "metrics.json", metrics)
    write_run(tmp_path, variant="external")
    costs = ["parameters", "megabytes", "milliseconds_per_image"]
    text = table_text([tmp_path], costs=costs)
    assert "| Parameters (M) | Weights (MB) | ms per image |" in squeezed(text)
    assert cells(text, "rooms/all")[-3:] == ["1.2", "5.0", "11.0"]
    assert cells(text, "rooms/external")[-3:] == ["–", "–", "–"]
    assert "Time: of the whole evaluation" in text and "Parameters" not in table_text([tmp_path])
    table = pd.read_csv(io.StringIO(table_text([tmp_path], costs=costs, format="csv")))
    assert table["parameters"].tolist()[:2] == [1_250_000, 1_250_000]
    with pytest.raises(MsposeError, match="column price: expected one of parameters"):
        table_text([tmp_path], costs=["price"])


def test_where_no_run_fits_the_message_names_those_that_there_are(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    there = "there are runs of rooms, ground truth original, split test"
    with pytest.raises(MsposeError, match=f"no run has split val; {there}"):
        table_text([tmp_path], split="val")
    (run / "metrics.json").write_text('{"data')
    with pytest.raises(MsposeError, match="metrics.json is not JSON") as error:
        table_text([tmp_path])
    assert str(run) in one_line(error)


def test_recall_needs_the_same_thresholds(tmp_path: Path) -> None:
    write_run(tmp_path, variant="a")
    write_run(tmp_path, variant="b", thresholds=[[1.0, 10.0]])
    with pytest.raises(MsposeError, match=r"rooms/a: 0\.05 m, 5°, 0\.25 m, 5°; rooms/b: 1 m, 10°"):
        table_text([tmp_path], kind="recall")
    assert "rooms/b" in table_text([tmp_path])


def test_a_table_needs_a_row() -> None:
    with pytest.raises(MsposeError, match="at least one row"):
        make_table([])


# published rows


def test_printed_averages_are_the_means_of_their_scenes_to_rounding() -> None:
    rows = published_rows()
    rows = [row for row in rows if not row.empty]
    assert len(rows) == 6 and {row.group[:3] for row in rows} == {
        ("7scenes", "original", "test"),
        ("cambridge", "sfm", "test"),
    }
    differ = []
    text = (
        pd.read_csv(PUBLISHED_CSV, dtype=str)
        .query("scene == 'average'")
        .set_index(["method", "dataset"])
    )
    for row in rows:
        assert row.average_printed and row.source
        for name, column in (
            ("position_m", "median_position_error_m"),
            ("orientation_deg", "median_orientation_error_deg"),
        ):
            mean = np.mean([scene.measures[name].mean for scene in row.scenes.values()])
            printed = str(text.loc[(row.name, row.group.dataset), column])
            unit = 10.0 ** -len(printed.partition(".")[2])
            if abs(mean - float(printed)) > unit / 2 + 1e-9:
                differ.append(
                    f"{row.name}, {row.group.dataset}, {name}: printed {printed}, mean of its"
                    f" scenes {mean:.4f}"
                )
    assert not differ, differ


def test_published_rows_are_those_of_the_papers() -> None:
    medians = {(row.name, row.group.dataset): row for row in published_rows()}
    transformer = medians["MS-Transformer", "7scenes"]
    assert list(transformer.scenes) == [
        "chess",
        "fire",
        "heads",
        "office",
        "pumpkin",
        "redkitchen",
        "stairs",
    ]
    assert transformer.scenes["stairs"].measures["position_m"].mean == 0.26
    assert transformer.average.measures["orientation_deg"].mean == 7.28
    church = medians["MS-Transformer", "cambridge"].scenes["StMarysChurch"]
    assert [measure.mean for measure in church.measures.values()] == [1.62, 3.99]
    names = [row.name for row in published_rows(dataset="cambridge")]
    assert names == ["MSPN", "MS-Transformer", "ActMST"]
    assert {row.note for row in medians.values()} == {"", "one model per scene"}


def test_rows_to_fill_in_stand_as_named_and_the_lines_are_given(tmp_path: Path) -> None:
    """In Markdown as text; in LaTeX, whose tables go into papers, as a comment."""
    path = tmp_path / "published.csv"
    lines = ["Net,rooms,original,test,attic,0.2,4,Doe,", "New,rooms,original,test,attic,,,Roe,"]
    lines += ["New,rooms,original,test,cellar,,,Roe,", "New,rooms,original,test,average,,,Roe,"]
    path.write_text(HEADER + "\n".join(lines) + "\n")
    write_run(tmp_path / "runs", {"attic": (0.1, 4), "cellar": (0.2, 5)})
    text = table_text([tmp_path / "runs"], published_csv=path)
    assert cells(text, "New [2]") == ["–", "–", "–"]
    assert f"Empty cells of New: lines 3, 4, 5 of {path}." in text
    latex = table_text([tmp_path / "runs"], format="latex", published_csv=path)
    assert "\nNew$^{2}$ & -- & -- & -- \\\\\n" in latex
    printed = [line for line in latex.splitlines() if not line.startswith("%")]
    assert latex.startswith(f"% Empty cells of New: lines 3, 4, 5 of {path}.")
    assert "published.csv" not in "".join(printed)
    path.write_text(
        path.read_text().replace(
            "New,rooms,original,test,attic,,", "New,rooms,original,test,attic,0.3,5"
        )
    )
    text = table_text([tmp_path / "runs"], published_csv=path)
    assert cells(text, "New [2]") == ["0.30 / 5.00", "–", "–"]
    assert f"Empty cells of New: lines 4, 5 of {path}." in text


def test_the_published_file_names_actmst_on_both_data_sets(tmp_path: Path) -> None:
    rows = [row for row in published_rows() if row.name == "ActMST"]
    lines = PUBLISHED_CSV.read_text().splitlines()
    for row, scenes in zip(rows, (7, 4), strict=True):
        assert not row.scenes and row.average is None and "NeurIPS 2024" in row.source
        numbers = re.fullmatch(r"lines ([\d, ]+) of experiments/published.csv", row.empty)
        assert numbers is not None
        named = [lines[int(number) - 1] for number in numbers[1].split(", ")]
        assert len(named) == scenes + 1
        assert all(line.startswith(f"ActMST,{row.group.dataset},") for line in named)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("Net,rooms,original,test,attic,small,4,s,", "line 3: median_position_error_m is 'small'"),
        ("Net,rooms,original,test,attic,,4,s,", "line 3: median_position_error_m is ''"),
        ("Net,rooms,original,test,attic,0.1,,s,", "line 3: median_orientation_error_deg is ''"),
        ("Old,rooms,original,test,attic,0.1,4,s,", "line 3: Old has scene attic twice"),
        (
            "Net,rooms,original,test,attic,0.1,4,a source, with a comma,",
            "line 3: 10 values, expected 9",
        ),
    ],
)
def test_a_bad_row_that_a_user_added_is_named_with_its_line(
    tmp_path: Path, line: str, named: str
) -> None:
    path = tmp_path / "published.csv"
    path.write_text(HEADER + "Old,rooms,original,test,attic,0.1,4,s,\n" + line + "\n")
    with pytest.raises(MsposeError, match=named) as error:
        published_rows(path)
    assert str(path) in one_line(error)
