"""The page as a file: what is in it, what is escaped, where it lands, how large it becomes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tools.report.builders import data_of, predictions, write_record, write_run

from mspose.cli import main
from mspose.config import LossSettings, Settings, write_settings
from mspose.errors import MsposeError
from mspose.tools.report.evaluations import evaluated_runs
from mspose.tools.report.page import make_report
from mspose.tools.report.pictures import Budget, telling_frames

SCENES = {"attic": 20, "cellar": 12}
HOSTILE = 'a</script><script>alert("1")</script> & "b" ünï\'—'


class Words(HTMLParser):
    """The page's text outside of scripts and styles, and the elements that it opens."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.opened, self._silent = "", [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.opened.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent = self._silent and tag not in ("script", "style")

    def handle_data(self, data):
        self.text += "" if self._silent else data


def read(path) -> tuple[str, Words]:
    page = path.read_text(encoding="utf-8")
    return page, Words(page)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "walk" / "all" / "seed-0"
    return write_run(folder, predictions(SCENES, wrong=3), settings=Settings(), logged=True)


@pytest.fixture(scope="module")
def page(run):
    return read(make_report([run]))


def test_a_run_s_page_lies_in_its_folder_and_has_every_part(run, page):
    assert (run / "report.html").is_file()
    text = page[1].text
    for words in (
        "walk/all, seed 0",
        "Recall",
        "Top-down",
        "In three dimensions",
        "Best, median and worst frames",
        "Scenes taken for each other",
        "Training",
        "Settings",
        "Where it comes from",
        "0123456789ab",
        f"mspose report {run}",
        "a device",
    ):
        assert words in text, words
    figures = json.loads((run / "metrics.json").read_text())["average"]
    assert f"{figures['median_position_error_m']:.3f} m" in text
    assert f"{100 * figures['scene_accuracy']:.1f} %" in text


def test_the_page_explains_itself(tmp_path):
    page = make_report(
        [write_run(tmp_path / "run", predictions({"attic": 6, "cellar": 4}))]
    ).read_text(encoding="utf-8")
    for words in (
        "give every scene the same weight",
        "data set's thresholds: 0.05 m / 5°, 0.25 m / 5°.",
        "of all scenes the mean of the scenes' medians",
        "of frames in the right scene, mean over scenes",
    ):
        assert words in page
    alone = make_report([write_run(tmp_path / "alone", predictions({"attic": 6}))]).read_text(
        encoding="utf-8"
    )
    assert "the scenes' medians" not in alone


def test_the_page_says_its_language_and_what_pictures_show_and_loads_nothing(page):
    source, words = page
    assert dict(words.opened)["html"] == {"lang": "en"}
    assert source.startswith("<!DOCTYPE html>")
    for tag, attributes in words.opened:
        assert tag not in ("link", "iframe", "object", "base")
        assert all(
            attributes[name].startswith(("data:", "#"))
            for name in ("src", "href")
            if name in attributes
        )
        assert tag != "img" or attributes["alt"]
        assert not any(name.startswith("on") for name in attributes)
    assert "default-src 'none'" in source


def test_all_frames_are_in_the_page(page):
    (numbers,) = data_of(page[0])
    assert {part["scene"]: len(part["names"]) for part in numbers["trajectories"]["sets"]} == SCENES
    assert [run["label"] for run in numbers["runs"]] == ["walk/all"]
    assert len(numbers["training"][0]["loss/total"][0]) == 300


def test_confusions_are_counted(page):
    cells = re.findall(r'<td style="background[^>]*>(\d+)</td>', page[0])
    assert list(map(int, cells)) == [17, 3, 3, 9]


def test_runs_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = []
    for variant, weight in (("both", 0.1), ("neither", 0.0)):
        for seed in (0, 1):
            settings = replace(
                Settings(),
                loss=LossSettings(qka_weight=weight),
                seed=seed,
                runs=f"/place/{variant}",
            )
            table = predictions(SCENES, seed=seed)
            runs.append(
                write_run(
                    tmp_path / variant / str(seed),
                    table,
                    variant=variant,
                    seed=seed,
                    settings=settings,
                )
            )
    path = make_report(runs, title="My comparison")
    assert path.resolve() == tmp_path / "report.html"
    source, words = read(path)
    (numbers,) = data_of(source)
    assert [(run["group"], run["variant"]) for run in numbers["runs"]][1:3] == [
        ("both (2 seeds)", 0),
        ("neither (2 seeds)", 1),
    ]
    assert numbers["runs"][0]["color"] == numbers["runs"][1]["color"] != numbers["runs"][2]["color"]
    assert "My comparison" in words.text
    assert "walk/both (2 seeds)" in words.text
    assert "±" in words.text
    assert (
        "No frame was taken for another scene's: both, seeds 0, 1; neither, seeds 0, 1."
        in words.text
    )
    differing = source.partition("What differs")[2].partition("</table>")[0]
    assert re.findall(r"<th [^>]*>(.*?)</th>", differing) == [
        "run",
        "loss.qka_weight",
        "both, seeds 0, 1",
        "neither, seeds 0, 1",
    ]
    assert re.findall(r"<td>(.*?)</td>", differing) == ["0.1", "0.0"]
    assert "Without training curves: both, seeds 0, 1" in words.text


def test_what_cannot_be_compared_stands_apart_and_quick_runs_are_marked(tmp_path):
    table = predictions(SCENES)
    write_run(tmp_path / "runs" / "a", table)
    write_run(tmp_path / "runs" / "b", table, dataset="halls")
    write_run(tmp_path / "runs" / "c", table, variant="try", quick=True)
    source, words = read(make_report([tmp_path / "runs"], out=tmp_path / "page.html"))
    assert len(data_of(source)) == 3
    assert "3 kinds of evaluation" in words.text
    assert "try (quick)" in words.text
    assert "Quick: runs at toy size" in words.text


def test_a_record_has_no_trajectories_and_says_so(run, tmp_path):
    source, words = read(make_report([write_record(run, tmp_path / "record")]))
    assert "Without poses" in words.text
    assert "no config.yaml says where the images are" in words.text
    assert data_of(source)[0]["trajectories"]["sets"] == []
    assert 'data-plot="space"' not in source.partition("<script>")[0]


def test_names_cannot_become_markup(tmp_path):
    table = predictions({HOSTILE: 6, "attic": 6})
    run = write_run(tmp_path / "run", table, variant=HOSTILE, provenance={"device": HOSTILE})
    source, words = read(make_report([run], title=HOSTILE))
    assert [tag for tag, _ in words.opened].count("script") == 3
    assert words.text.count(HOSTILE) >= 5
    (numbers,) = data_of(source)
    assert HOSTILE in numbers["places"]
    assert "alert(" not in source.replace("alert(&#34;", "").replace('alert(\\"', "").replace(
        "alert(&quot;", ""
    )


def test_a_folder_whose_name_is_no_text_is_no_obstacle(tmp_path):
    name = b'r\xff-\xc3\xbc "a"'.decode("utf-8", "surrogateescape")
    run = write_run(tmp_path / name, predictions({"attic": 5}))
    assert "mspose report" in read(make_report([run]))[1].text


def test_published_rows_of_the_data_set_are_in_the_table(tmp_path):
    run = write_run(
        tmp_path / "run", predictions({"chess": 5}), dataset="7scenes", ground_truth="original"
    )
    assert "MS-Transformer" in read(make_report([run]))[1].text


def test_attention_is_shown_where_there_is_a_study(run, tmp_path):
    folder = write_run(tmp_path / "run", predictions(SCENES))
    (folder / "attention").mkdir()
    Image.new("RGB", (400, 200), "white").save(folder / "attention" / "entropy.png")
    _, words = read(make_report([folder]))
    assert "Attention" in words.text
    assert "walk/all: entropy" in [
        attributes.get("alt") for tag, attributes in words.opened if tag == "img"
    ]


def test_a_page_of_seventeen_thousand_frames_stays_small(tmp_path):
    counts = {
        "chess": 2000,
        "fire": 2000,
        "heads": 1000,
        "office": 4000,
        "pumpkin": 2000,
        "redkitchen": 5000,
        "stairs": 1000,
    }
    table = predictions(counts, wrong=20)
    run = write_run(tmp_path / "run", table, dataset="7scenes", ground_truth="original")
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    )
    for frames in telling_frames(evaluated_runs([run])[0], None, Budget()).values():
        for frame in frames:
            (tmp_path / frame.image).parent.mkdir(parents=True, exist_ok=True)
            noise.save(tmp_path / frame.image, compress_level=0)
    settings = replace(
        Settings(), data=replace(Settings().data, dataset="7scenes", root=str(tmp_path))
    )
    write_settings(run / "config.yaml", settings)
    path = make_report([run])
    source, words = read(path)
    assert len(re.findall('<img src="data:image/jpeg', source)) == 21
    assert sum(len(part["names"]) for part in data_of(source)[0]["trajectories"]["sets"]) == 17_000
    assert path.stat().st_size < 15_000_000
    assert "are drawn, evenly spread" not in words.text


def test_only_our_own_page_is_replaced(run, tmp_path):
    target = tmp_path / "page.html"
    target.write_text("<p>mine</p>")
    with pytest.raises(MsposeError, match="is there and is no report of mspose"):
        make_report([run], out=target)
    assert target.read_text() == "<p>mine</p>"
    target.unlink()
    make_report([run], out=target, title="first")
    make_report([run], out=target, title="second")
    assert "<title>second" in target.read_text(encoding="utf-8")
    with pytest.raises(MsposeError, match="is a folder: name a file"):
        make_report([run], out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MsposeError, match="cannot write"):
        make_report([run], out=tmp_path / "file" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "page.html"]


def test_the_command_prints_the_path(run, tmp_path, capsys):
    assert main(["report", str(run), "--out", str(tmp_path / "new" / "page.html")]) in (None, 0)
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "page.html")
