"""The page in a browser: it renders, its plots follow the choices, and it fits a phone."""

import re
from dataclasses import replace

import pytest
from tools.report.builders import data_of, predictions, write_run

from mspose.config import Settings
from mspose.metrics import with_errors
from mspose.tools.report import make_report

SCENES = {"attic": 30, "cellar": 17}
POINTS = (
    "name => document.querySelector(`[data-plot='${name}']`).data.map(trace => (trace.x ||"
    " []).length)"
)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "seed-0"
    return make_report(
        [write_run(run, predictions(SCENES, wrong=2), settings=Settings(), logged=True)]
    )


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    for variant, shift in (("long-" * 12 + "name", 0.1), ('<b>"bold"</b>\n  two  lines', 0.2)):
        for seed in (0, 1):
            table = predictions(SCENES, seed=seed, shift=shift)
            settings = replace(Settings(), seed=seed)
            write_run(
                folder / variant[0].strip("<") / str(seed),
                table,
                variant=variant,
                seed=seed,
                settings=settings,
            )
    write_run(folder / "other", predictions({"<img src=x>": 9, "hall": 5}), dataset="halls")
    return make_report([folder], out=folder / "report.html")


class Visit:
    """A page, opened and scrolled through, and what it said and asked for."""

    def __init__(self, browser, path, width):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.complaints, self.requests = [], []
        self.page.on(
            "console", lambda said: said.type == "error" and self.complaints.append(said.text)
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        for plot in self.page.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
            self.page.wait_for_function("plot => plot.dataset.drawn", arg=plot)

    def choose(self, name, label, group=0):
        self.page.select_option(f"select[data-choice='{name}'][data-group='{group}']", label=label)


@pytest.fixture(scope="module")
def visit(browser):
    """Opens a page once per width; a test sets the choices that it needs, and takes back what it
    unticked.
    """
    opened = {}

    def open_page(path, width=1280):
        if (path, width) not in opened:
            opened[path, width] = Visit(browser, path, width)
        return opened[path, width]

    yield open_page
    for seen in opened.values():
        seen.page.close()


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("which", ["one", "several"])
def test_the_page_renders_without_complaints_or_requests_and_fits(visit, request, which, width):
    path = request.getfixturevalue(which)
    seen = visit(path, width)
    assert seen.complaints == []
    assert {url.partition(":")[0] for url in seen.requests} <= {"file", "data", "blob"}
    drawn = seen.page.evaluate("document.querySelectorAll('.js-plotly-plot svg.main-svg').length")
    assert drawn >= 10
    buttons = seen.page.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)"
    )
    assert buttons
    assert not [
        title for title in buttons if re.search("cloud|share|edit", title or "", re.IGNORECASE)
    ]
    assert seen.page.evaluate("document.querySelectorAll('.js-plotly-plot').length") >= 9
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_plots_hold_every_frame_and_follow_the_scene(visit, one):
    seen = visit(one)
    for scene in ("attic", "cellar"):
        seen.choose("scene", scene)
        assert seen.page.evaluate(POINTS, "plane") == [
            3 * SCENES[scene],
            SCENES[scene],
            SCENES[scene],
        ]
        seen.page.query_selector("[data-plot='space']").scroll_into_view_if_needed()
        seen.page.wait_for_function("document.querySelector(\"[data-plot='space'] canvas\")")
        assert seen.page.evaluate(POINTS, "space") == [
            3 * SCENES[scene],
            SCENES[scene],
            SCENES[scene],
        ]
        assert f"{SCENES[scene]} frames of {scene}" in seen.page.inner_text(
            "[data-say='trajectory']"
        )
    drawn = seen.page.evaluate("document.querySelector(\"[data-plot='plane']\").data[2]")
    of_scene = data_of(one.read_text(encoding="utf-8"))[0]["trajectories"]["sets"][1]
    assert [text.partition("<br>")[0] for text in drawn["text"]] == of_scene["names"]
    assert "taken for attic" in drawn["text"][0]
    seen.choose("error", "orientation error")
    title = seen.page.evaluate(
        "document.querySelector(\"[data-plot='plane']\").data[2].marker.colorbar.title.text"
    )
    assert title == "orientation error (°)"
    assert seen.complaints == []


def test_curves_follow_the_scene_and_the_runs_that_are_ticked(visit, several):
    seen = visit(several)
    count = "document.querySelector(\"[data-plot='recall-position'][data-group='0']\").data.length"
    assert seen.page.evaluate(count) == 4
    seen.choose("place", "cellar")
    names = seen.page.evaluate(
        "document.querySelector(\"[data-plot='recall-position']\").data.map(trace => trace.name)"
    )
    bold = [index for index, name in enumerate(names) if name.startswith('&lt;b&gt;"bold"')]
    assert bold in ([0, 1], [2, 3])
    for number, left in ((0, 2), (1, 0)):
        seen.page.uncheck(f"input[data-variant='{number}'][data-group='0'] >> nth=0")
        assert seen.page.evaluate(count) == left
    for number in (0, 1):
        seen.page.check(f"input[data-variant='{number}'][data-group='0'] >> nth=0")
    assert seen.complaints == []


def test_every_run_s_trajectory_is_drawn_whatever_its_name(visit, several):
    seen = visit(several)
    said = []
    options = seen.page.query_selector_all("select[data-choice='run'][data-group='0'] option")
    for option in options:
        seen.page.select_option(
            "select[data-choice='run'][data-group='0']", value=option.get_attribute("value")
        )
        said.append(seen.page.text_content("[data-say='trajectory'][data-group='0']"))
    assert [text.endswith("two  lines, seed 1.") for text in said].count(True) == 1
    assert len(set(said)) == len(options) == 4
    assert seen.complaints == []


def test_a_few_estimates_far_away_hide_nothing(browser, tmp_path):
    table = predictions({"attic": 30})
    table.loc[[3, 9], "tx_est"] = [1e6, -3e9]
    seen = Visit(browser, make_report([write_run(tmp_path / "run", with_errors(table))]), 1280)
    assert "2 of the estimates lie so far away that they are outside" in seen.page.inner_text(
        "[data-say='trajectory']"
    )
    low, high = seen.page.evaluate(
        "document.querySelector(\"[data-plot='plane']\").layout.xaxis.range"
    )
    assert -5 < low < high < 5
    of_space = (
        "document.querySelector(\"[data-plot='space']\").data[2].x.filter(Number.isFinite).length"
    )
    seen.page.query_selector("[data-plot='space']").scroll_into_view_if_needed()
    seen.page.wait_for_function("document.querySelector(\"[data-plot='space'] canvas\")")
    assert seen.page.evaluate(of_space) == 28
    labels = seen.page.evaluate(
        "document.querySelector(\"[data-plot='histogram-position']\").layout.xaxis.ticktext"
    )
    assert len(labels) <= 9
    assert "1e8" in labels
    assert seen.complaints == []
    seen.page.close()


def test_on_paper_everything_is_open_and_no_plot_is_wider_than_the_paper(visit, one):
    seen = visit(one)
    state = """[[...document.querySelectorAll('details')].filter(part => part.open).length,
        Math.max(...[...document.querySelectorAll('.main-svg')].map(plot => plot.getBoundingClientRect().right))]"""
    before, _ = seen.page.evaluate(state)
    seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    opened, right = seen.page.evaluate(state)
    left = seen.page.evaluate("document.body.getBoundingClientRect().left")
    seen.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened == seen.page.evaluate("document.querySelectorAll('details').length")
    assert right - left <= 44 * 16 + 1
    after, wide = seen.page.evaluate(state)
    assert after == before < opened
    assert wide > right


def test_text_of_plots_shows_hostile_names_as_they_are(visit, several):
    seen = visit(several)
    drawn = seen.page.evaluate(
        "document.querySelector(\"[data-plot='plane'][data-group='1']\").data[2].text[0]"
    )
    assert drawn.startswith("&lt;img src=x&gt;/seq-01/")
    assert seen.page.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def test_without_scripts_tables_and_text_are_there(browser, one):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(one.as_uri())
    assert "The plots need JavaScript" in page.inner_text("noscript")
    assert page.is_visible("text=Scene by scene")
    assert page.is_visible("text=Where it comes from >> nth=1")
    context.close()
