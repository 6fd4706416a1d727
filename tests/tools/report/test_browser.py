"""The page in a browser: it renders, its plots follow the choices, and it fits a phone."""

import re
from dataclasses import replace

import pytest
from tools.report.builders import predictions, write_run

from mspose.config import Settings
from mspose.tools.report.page import make_report

SCENES = {"attic": 30, "cellar": 17}


class Visit:
    """A page, opened and scrolled through, its console errors and requests."""

    def __init__(self, browser, path, width):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.errors, self.requests = [], []
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        for plot in self.page.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
            self.page.wait_for_function("plot => plot.dataset.drawn", arg=plot)

    def choose(self, name, label, group=0):
        self.page.select_option(f"select[data-choice='{name}'][data-group='{group}']", label=label)

    def plot(self, name, expression, group=0):
        selector = f"[data-plot='{name}'][data-group='{group}']"
        return self.page.evaluate(f'document.querySelector("{selector}").{expression}')


def test_one_run_on_a_phone(browser, tmp_path):
    table = predictions(SCENES, wrong=2)
    table.loc[[3, 9], "tx_est"] = [1e6, -3e9]  # gross errors, which must not hide the rest
    run = write_run(tmp_path / "seed-0", table, settings=Settings(), logged=True)
    seen = Visit(browser, make_report([run]), 360)
    assert {url.partition(":")[0] for url in seen.requests} <= {"file", "data", "blob"}
    assert seen.page.evaluate("document.querySelectorAll('.js-plotly-plot').length") >= 9
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360
    titles = "[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)"
    buttons = seen.page.evaluate(titles)
    assert buttons and not [
        text for text in buttons if re.search("(?i)cloud|share|edit", text or "")
    ]

    for scene, finite in (("attic", 28), ("cellar", 17)):
        seen.choose("scene", scene)
        points = seen.plot("plane", "data.map(trace => trace.x.length)")
        assert points == [3 * SCENES[scene], SCENES[scene], SCENES[scene]]
        seen.page.query_selector("[data-plot='space']").scroll_into_view_if_needed()
        seen.page.wait_for_function("document.querySelector(\"[data-plot='space'] canvas\")")
        assert seen.plot("space", "data[2].x.filter(Number.isFinite).length") == finite
        said = seen.page.inner_text("[data-say='trajectory']")
        assert f"{SCENES[scene]} frames of {scene}" in said
        assert ("2 of the estimates lie so far away" in said) == (scene == "attic")
    assert "taken for attic" in seen.plot("plane", "data[2].text[0]")
    seen.choose("error", "orientation error")
    assert seen.plot("plane", "data[2].marker.colorbar.title.text") == "orientation error (°)"

    opened = "[...document.querySelectorAll('details')].filter(part => part.open).length"
    before = seen.page.evaluate(opened)
    seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert seen.page.evaluate(opened) == seen.page.evaluate(
        "document.querySelectorAll('details').length"
    )
    seen.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert seen.page.evaluate(opened) == before
    assert seen.errors == []
    seen.page.close()


@pytest.fixture
def several(tmp_path):
    for variant, shift in (("long-" * 12 + "name", 0.1), ('<b>"bold"</b>\n  two  lines', 0.2)):
        for seed in (0, 1):
            table = predictions(SCENES, seed=seed, shift=shift)
            folder = tmp_path / variant[0].strip("<") / str(seed)
            settings = replace(Settings(), seed=seed)
            write_run(folder, table, variant=variant, seed=seed, settings=settings)
    write_run(tmp_path / "other", predictions({"<img src=x>": 9, "hall": 5}), dataset="halls")
    return make_report([tmp_path], out=tmp_path / "report.html")


def test_several_runs_with_hostile_names(browser, several):
    seen = Visit(browser, several, 1280)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert seen.plot("recall-position", "data.length") == 4
    seen.choose("place", "cellar")
    names = seen.plot("recall-position", "data.map(trace => trace.name)")
    assert [name.startswith('&lt;b&gt;"bold"') for name in names].count(True) == 2
    for number, left in ((0, 2), (1, 0)):
        seen.page.uncheck(f"input[data-variant='{number}'][data-group='0'] >> nth=0")
        assert seen.plot("recall-position", "data.length") == left

    said = set()
    options = seen.page.query_selector_all("select[data-choice='run'][data-group='0'] option")
    for option in options:
        value = option.get_attribute("value")
        seen.page.select_option("select[data-choice='run'][data-group='0']", value=value)
        said.add(seen.page.text_content("[data-say='trajectory'][data-group='0']"))
    assert len(said) == len(options) == 4
    assert seen.plot("plane", "data[2].text[0]", group=1).startswith("&lt;img src=x&gt;/seq-01/")
    assert seen.page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert seen.errors == []
    seen.page.close()
