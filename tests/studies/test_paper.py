"""The paper's folder from the made-up records in tests/golden, from a real small run, and where
there is nothing.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from studies.builders import FILE, RESULTS, write_run

from mspose.errors import MsposeError
from mspose.evaluation import evaluate_run
from mspose.studies.ablation.table import ablation_table
from mspose.studies.attention_study import study_run
from mspose.studies.paper import writing
from mspose.studies.paper.contents import contents
from mspose.studies.paper.piece import Piece
from mspose.studies.paper.writing import make_paper, summary

pytestmark = pytest.mark.usefixtures("settings_are_read_once")
FIGURES = ("entropy", "query-key-gap", "purity", "encoding", "verdicts")  # of the made-up records


@pytest.fixture(scope="module")
def paper(
    settings_are_read_once: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Piece]]:
    """Of the made-up records alone; not to be changed."""
    out = tmp_path_factory.mktemp("paper") / "paper"
    return out, make_paper([RESULTS], out, ablations=[FILE])


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def section(index: str, title: str) -> str:
    """Of a piece in index.md."""
    (found,) = [part for part in index.split("\n## ") if part.startswith(title)]
    return found


def write_trained(root: Path, dataset: str, **changes: Any) -> Path:
    """Made-up metrics of a trained run."""
    about = {"dataset": dataset, "experiment": dataset, "thresholds": [[0.25, 5]], **changes}
    return write_run(root, {"chess": (0.2, 6.0)}, frames=9, recall=(0.5,), **about)


def test_records_alone_give_every_table_and_every_figure_of_numbers(
    paper: tuple[Path, list[Piece]],
) -> None:
    out, pieces = paper
    tables = {f"tables/table-remedies-small.{kind}" for kind in ("md", "tex", "csv")}
    tables |= {f"tables/table-recall-rooms.{kind}" for kind in ("md", "tex", "csv")}
    figures = {
        f"figures/figure-{name}-remedies-small.{kind}"
        for name in FIGURES
        for kind in ("pdf", "png")
    }
    assert files(out) == {"index.md", "index.html"} | tables | figures
    for format, ending in (("markdown", "md"), ("latex", "tex"), ("csv", "csv")):
        text = (out / f"tables/table-remedies-small.{ending}").read_text(encoding="utf-8")
        assert text == ablation_table(FILE, [RESULTS], format=format)  # type: ignore[arg-type]
    for file in (out / "figures").iterdir():
        assert file.read_bytes().startswith({".pdf": b"%PDF", ".png": b"\x89PNG"}[file.suffix])
    assert "2 tables, 5 figures" in summary(pieces)
    assert summary(pieces).count("missing: runs of remedies-small:") == 1


def test_the_index_names_command_runs_commit_device_and_what_is_missing(
    paper: tuple[Path, list[Piece]],
) -> None:
    out, pieces = paper
    index = (out / "index.md").read_text(encoding="utf-8")
    table = section(index, "Made-up remedies, on small")
    for words in (
        f"command: `mspose table {RESULTS} --ablation {FILE}`",
        (
            "remedies-small/none: seeds 0, 1, 2; remedies-small/aligned: seeds 0, 1, 2;"
            " remedies-small/scaled: seeds 0, 1"
        ),
        "commit: 0123456789ab",
        "device: a made-up device",
        (
            "missing: runs of remedies-small: seed 2 of scaled; seeds 0, 1, 2 of both; made by"
            f" `mspose ablate {FILE}`"
        ),
        "(tables/table-remedies-small.tex)",
    ):
        assert words in table
    entropy = section(index, "Attention entropy per encoder layer")
    assert (
        "stands for: F, attention entropy" in entropy
        and "figure-entropy-remedies-small.png)" in entropy
    )
    assert "mspose attention runs/remedies-small/scaled/seed-0 runs/" in entropy
    space = section(index, "Query-key space")
    assert "files: none" in space and "mspose attention runs/remedies-small/none/seed-0`" in space
    third = section(index, "Median errors of trained runs, 7scenes")
    assert "stands for: T3, 7Scenes per scene" in third and "make train DATASET=7scenes" in third
    assert [piece.stands_for[:2] for piece in pieces][:4] == ["T2", "T3", "T4", "T4"]


def test_the_page_needs_no_other_file_and_shows_tables_and_pictures(
    paper: tuple[Path, list[Piece]],
) -> None:
    page = (paper[0] / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(https?:|//)", page) and "<script" not in page
    assert page.count("<img") == page.count('src="data:image/png;base64,') == len(FIGURES)
    assert (
        page.count("<table") == 2
        and "−0.155 [−0.179, −0.132]" in page
        and "<b>0.151±0.004</b>" in page
    )
    anchors = set(re.findall(r"href=\"#([^\"]+)\"", page))
    assert anchors == set(re.findall(r"<h2 id=\"([^\"]+)\"", page))
    for link in re.findall(r"href=\"([^#\"]+)\"", page):
        assert (paper[0] / link).is_file(), link


def test_published_rows_stand_beside_runs_on_their_own_data_alone(tmp_path: Path) -> None:
    for dataset in ("7scenes", "virtual"):
        write_trained(tmp_path / "runs", dataset)
    out = tmp_path / "paper"
    pieces = make_paper([tmp_path / "runs"], out, ablations=[FILE])
    seven, virtual = (
        (out / f"tables/table-median-{name}.md").read_text() for name in ("7scenes", "virtual")
    )
    assert "MS-Transformer" in seven and "| 7scenes/all (1 seed" in seven
    assert (
        "MS-Transformer" not in virtual and "Published" not in virtual and "0.200 / 6.00" in virtual
    )
    assert "Published" not in (out / "tables/table-recall-virtual.md").read_text()
    (missing,) = [piece for piece in pieces if piece.name == "table-remedies"]
    assert missing.missing[0].command == f"mspose ablate {FILE}" and not missing.files
    assert not [piece for piece in pieces if piece.draw]


def test_frames_and_scenes_that_a_table_lacks_are_missing_in_the_index(tmp_path: Path) -> None:
    write_trained(tmp_path / "runs", "7scenes")
    make_paper([tmp_path / "runs"], tmp_path / "paper", ablations=[FILE])
    index = (tmp_path / "paper" / "index.md").read_text()
    for title in ("Median errors of trained runs, 7scenes", "Recall, 7scenes"):
        piece = section(index, title)
        assert "- missing: test frames, evaluated are chess 9 of 2,000 (7scenes/all)" in piece
        assert "- missing: a run on fire, heads, office" in piece
        assert "missing: nothing" not in piece
    latex = (tmp_path / "paper/tables/table-median-7scenes.tex").read_text()
    assert "7scenes/all (1 seed, one scene, not all test frames)" in latex


def test_quick_tries_are_in_no_table_and_ground_truths_have_one_each(tmp_path: Path) -> None:
    write_trained(tmp_path / "runs", "7scenes")
    write_trained(tmp_path / "runs", "7scenes", variant="all-sfm", ground_truth="sfm")
    write_trained(tmp_path / "runs", "7scenes", variant="toy", quick=True)
    make_paper([tmp_path / "runs"], tmp_path / "paper", ablations=[FILE])
    tables = tmp_path / "paper" / "tables"
    original = (tables / "table-median-7scenes-original-test.md").read_text()
    sfm = (tables / "table-median-7scenes-sfm-test.md").read_text()
    assert "MS-Transformer" in original and "all-sfm" not in original
    assert "MS-Transformer" not in sfm and "all-sfm" in sfm
    assert "toy" not in original + sfm + (tmp_path / "paper" / "index.md").read_text()


def test_versions_of_rendered_rooms_have_a_table_each(tmp_path: Path) -> None:
    """Runs from before there were versions are of version 1."""
    write_trained(tmp_path / "runs", "virtual", ground_truth="rendered")
    (piece,) = [
        p
        for p in contents([tmp_path / "runs"], [], "mspose paper")
        if p.name == "table-median-virtual"
    ]
    assert piece.title == "Median errors of trained runs, virtual version 1"
    write_trained(
        tmp_path / "runs", "virtual", variant="newer", ground_truth="rendered", data_version=2
    )
    make_paper([tmp_path / "runs"], tmp_path / "paper", ablations=[FILE])
    for version, there, absent in (
        (1, "virtual/all", "newer"),
        (2, "virtual/newer", "virtual/all"),
    ):
        for kind in ("median", "recall"):
            table = (
                tmp_path / f"paper/tables/table-{kind}-virtual-rendered-test-version-{version}.md"
            )
            assert f"Data set virtual version {version}," in table.read_text()
            assert there in table.read_text() and absent not in table.read_text()


def test_attention_is_asked_for_of_networks_that_have_some(tmp_path: Path) -> None:
    """Not of MSPN, networks without encoders, baselines, or another method's predictions."""
    write_trained(tmp_path / "runs", "virtual", experiment="external", variant="other")
    settings = {"transformer": {}, "baseline-retrieval": {}, "mspn": {"model": {"kind": "mspn"}}}
    settings["bare"] = {"model": {"position_encoder_layers": 0, "orientation_encoder_layers": 0}}
    for variant, values in settings.items():
        run = write_trained(tmp_path / "runs", "virtual", variant=variant)
        (run / "config.yaml").write_text(json.dumps(values))
    pieces = {piece.name: piece for piece in contents([tmp_path / "runs"], [], "mspose paper")}
    (missing,) = pieces["figures-virtual"].missing
    assert missing.command == "mspose attention runs/virtual/transformer/seed-0"


def test_a_run_and_its_record_count_once(tmp_path: Path) -> None:
    write_trained(tmp_path / "runs", "virtual")
    shutil.copytree(tmp_path / "runs", tmp_path / "records")
    out = tmp_path / "paper"
    make_paper([tmp_path / "runs", tmp_path / "records"], out, ablations=[FILE])
    assert "virtual/all (1 seed)" in (out / "tables/table-median-virtual.md").read_text()
    assert f"`mspose table {tmp_path}/runs/virtual/all`" in (out / "index.md").read_text()


def test_nothing_of_an_earlier_paper_is_left_as_if_current(tmp_path: Path) -> None:
    out = tmp_path / "paper"
    for name in (
        "tables/table-old.md",
        "figures/figure-old.pdf",
        "figures/notes/mine.txt",
        "draft.tex",
        "index.md",
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    write_trained(tmp_path / "runs", "virtual")
    make_paper([tmp_path / "runs"], out, ablations=[FILE])
    assert {"figures/notes/mine.txt", "draft.tex"} < files(out)
    assert not {"tables/table-old.md", "figures/figure-old.pdf"} & files(out)
    assert "old" not in (out / "index.md").read_text().split()


def test_a_paper_that_was_cut_off_has_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "paper"
    write_trained(tmp_path / "runs", "virtual")
    make_paper([tmp_path / "runs"], out, ablations=[FILE])

    def full(*_: Any) -> None:
        raise MsposeError("cannot write: No space left on device")

    monkeypatch.setattr(writing, "_write_table", full)
    with pytest.raises(MsposeError, match="No space left"):
        make_paper([tmp_path / "runs"], out, ablations=[FILE])
    assert not {"index.md", "index.html"} & files(out)


def test_where_no_run_is_finished_one_line_says_so_and_nothing_is_touched(
    tmp_path: Path, refused: Any
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "paper"
    write_trained(runs, "virtual", quick=True)
    (out / "tables").mkdir(parents=True)
    (out / "index.md").write_text("earlier")
    for folder, words in (
        (runs, "no finished run in"),
        (tmp_path / "nowhere", "no such folder of runs"),
    ):
        words = f"{words}.*{folder}"
        refused(words, "paper", folder, "--out", out, "--ablation", FILE)
    assert (out / "index.md").read_text() == "earlier"


def test_the_index_has_why_a_table_is_missing_and_the_command_that_fills_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mspose.studies.paper.contents.figures", lambda *_, **__: [])
    results = Path(shutil.copytree(RESULTS, tmp_path / "results"))
    for path in results.rglob("config.yaml"):
        path.write_text(path.read_text() + "training:\n  epochs: 3\n")
    make_paper([results], tmp_path / "paper", ablations=[FILE])
    index = (tmp_path / "paper" / "index.md").read_text()
    command = f"mspose ablate {FILE} --training.epochs 3`"
    assert command in section(index, "Made-up remedies, on small")
    path = results / "remedies-small" / "none" / "seed-0" / "predictions" / "test.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    pieces = make_paper([results], tmp_path / "paper", ablations=[FILE])
    (piece,) = [piece for piece in pieces if piece.name == "table-remedies-small"]
    assert not piece.files and "was tested on other frames" in piece.missing[0].what
    assert "table-recall-rooms.md" in (tmp_path / "paper" / "index.md").read_text()


def test_pictures_of_frames_are_there_where_the_runs_samples_are(
    small_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "runs" / "small" / "all" / "seed-5"))
    evaluate_run(run, device="cpu", progress=False)
    study_run(run, frames=2, neighbours=2, samples=1, device="cpu", progress=False)

    def drawn() -> dict[str, Piece]:
        pieces = contents([tmp_path / "runs"], [], "mspose paper")
        return {piece.name: piece for piece in pieces if piece.draw is not None}

    numbers = {f"figure-{name}-small" for name in (*FIGURES, "tokens")}
    spaces = {"figure-space-position-small", "figure-space-orientation-small"}
    frames = {f"figure-{part}-attention-small-all-small" for part in ("encoder", "decoder")}
    pieces = drawn()
    assert set(pieces) == numbers | spaces | frames
    for name in ("figure-query-key-gap-small", "figure-encoder-attention-small-all-small"):
        draw = pieces[name].draw
        assert draw is not None and draw().axes
    (run / "attention" / "samples.npz").unlink()
    assert set(drawn()) == numbers
