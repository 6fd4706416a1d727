import math
import os
import re
from functools import cache

import numpy as np
import pytest
from attention.builders import EDGES, knock_out, samples, study, write_run
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from mspose import plotting
from mspose.attention.curves import entropy_figure, gap_figure, tokens_figure
from mspose.attention.encoding_figure import encoding_figure
from mspose.attention.knock_out_figure import knock_out_figure
from mspose.attention.maps import decoder_maps_figure, encoder_maps_figure
from mspose.attention.query_key_space import space_figure
from mspose.attention.verdict_figure import centred, purity_figure, verdict_figure
from mspose.errors import MsposeError
from mspose.plotting import save_figure
from mspose.studies.attention_figures import draw, labels, read_samples

BASE = study(entropy=0.97, similarity=0.97)
REMEDY = study("qka", entropy=0.7, gap=0.2, purity=0.5, kind="sine")
PAIR = [("neither", BASE), ("qka", REMEDY)]
SEEDS = [("qka", study("qka", seed=seed)) for seed in range(3)]
LONG = [
    (f"variant-{n}-with-a-long-name", study(seed=n, layers=(2, 1), entropy=0.97 - 0.08 * n))
    for n in range(8)
]
ONE_SIDED = [
    ("no position encoder", study(layers=(0, 2), steps=0, kind="none")),
    ("one", study(layers=(0, 1))),
]
KNOCKED_OUT = [("both", {**REMEDY, "knock_out": knock_out()})] + [
    ("neither", {**study(seed=seed), "knock_out": knock_out(seed=seed)}) for seed in range(2)
]
WORTH = {**BASE, "layers": [{**layer, "worth": "does not matter"} for layer in BASE["layers"]]}
BARE = {**BASE, "layers": [], "encoding": {}, "training": None}
OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
GREYS = {"#666666", "#ffffff"}


def lines_of(axes):
    return [
        line
        for line in axes.lines
        if len(line.get_xdata()) > 2 or line.get_marker() not in ("None", None)
    ]


def words_of(figure):
    """Everything that can be read, without the labels of ticks beyond an axis's end."""
    hidden = set()
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for kind in ("major", "minor"):
                ticks = axis.get_ticklocs(minor=kind == "minor")
                for place, text in zip(ticks, axis.get_ticklabels(which=kind), strict=False):
                    if not axes.axison or not low - 1e-9 <= place <= high + 1e-9:
                        hidden.add(text)
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def legend_words(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def fill(axes):
    return [patch for patch in axes.patches if isinstance(patch, StepPatch)]


def test_entropy_of_both_branches_with_the_uniform_limit():
    figure = entropy_figure(PAIR)
    for axes, branch, tokens in zip(
        figure.axes, ("position", "orientation"), (196, 784), strict=True
    ):
        assert axes.get_title() == f"{branch} branch"
        assert axes.get_xlabel() == "encoder layer"
        drawn = lines_of(axes)
        for line, (_, content) in zip(drawn, PAIR, strict=True):
            expected = [of["entropy"] for of in content["layers"] if of["branch"] == branch]
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_array_equal(line.get_xdata(), [1, 2])
        limit = next(line for line in axes.lines if line not in drawn)
        np.testing.assert_allclose(limit.get_ydata(), math.log(tokens))
        assert any(f"log {tokens}" in text.get_text() for text in axes.texts)
        assert axes.get_ylim()[0] < min(drawn[1].get_ydata())
        assert axes.get_ylim()[1] > math.log(tokens)
    assert figure.axes[0].get_ylabel() == "attention entropy (nats)"
    assert legend_words(figure) == ["neither", "qka"]


def test_similarity_of_tokens_before_the_first_layer_and_behind_each():
    figure = tokens_figure(PAIR)
    for axes, branch in zip(figure.axes, ("position", "orientation"), strict=True):
        for line, (_, content) in zip(lines_of(axes), PAIR, strict=True):
            pairs = [of["token_similarity"] for of in content["layers"] if of["branch"] == branch]
            expected = [pairs[0]["before"], *(pair["after"] for pair in pairs)]
            np.testing.assert_allclose(line.get_ydata(), expected)
            np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
        assert axes.get_ylim()[1] > 1
    unknown = {**BASE, "layers": [{**of, "token_similarity": None} for of in BASE["layers"]]}
    figure = tokens_figure([("record", unknown), *PAIR[1:]])
    assert [len(lines_of(axes)) for axes in figure.axes] == [1, 1]
    assert "record (no encoder layers, or recorded without it)" in legend_words(figure)


def test_seeds_of_a_variant_are_a_mean_with_a_band():
    figure = entropy_figure([*PAIR[:1], *SEEDS])
    assert legend_words(figure) == ["neither", "qka (3\N{NO-BREAK SPACE}seeds)"]
    line = lines_of(figure.axes[0])[1]
    entropy = np.array([[of["entropy"] for of in content["layers"][:2]] for _, content in SEEDS])
    np.testing.assert_allclose(line.get_ydata(), entropy.mean(axis=0))
    (band,) = figure.axes[0].collections
    box = band.get_paths()[0].vertices[:, 1]
    assert (box.min(), box.max()) == pytest.approx((entropy.min(), entropy.max()))


def test_distance_over_steps_and_the_first_epoch_enlarged():
    figure = gap_figure(PAIR)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert axes.get_xlabel() == "training (steps)"
        assert axes.get_ylim()[0] == 0
    for whole, first, branch in ((*figure.axes[:2], "position"), (*figure.axes[2:], "orientation")):
        for line, early, (_, content) in zip(lines_of(whole), lines_of(first), PAIR, strict=True):
            logged = content["training"]
            np.testing.assert_allclose(line.get_xdata(), logged["step"])
            np.testing.assert_allclose(line.get_ydata(), logged["query_key_gap"][branch])
            np.testing.assert_array_equal(
                early.get_xdata(), [step for step in logged["step"] if step < 180]
            )
        assert first.get_xlim()[1] == 180
        assert "first epoch" in first.get_title()
    assert "units of q and k" in figure.axes[0].get_ylabel()


def test_logs_of_seeds_that_differ_in_length_are_compared_where_both_are():
    figure = gap_figure([("qka", study(steps=400)), ("qka", study(steps=300, seed=1))])
    assert lines_of(figure.axes[0])[0].get_xdata()[-1] == 290


def test_a_run_without_a_log_is_named_and_left_out():
    figure = gap_figure([*PAIR, ("converted", {**BASE, "training": None})])
    assert legend_words(figure)[-1] == "converted (no training log)"
    assert len(lines_of(figure.axes[0])) == 2


def test_purity_per_layer_with_its_marks():
    figure = purity_figure(PAIR)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert {0.5, 1.0} <= {line.get_xdata()[0] for line in axes.lines}
        assert "queries (%)" in axes.get_ylabel()
    for content, patch in zip(
        (BASE, REMEDY), (fill(figure.axes[0])[0], fill(figure.axes[0])[5]), strict=True
    ):
        share = np.array(content["layers"][0]["purity_histogram"]["share"])
        _, expected = centred(np.array(EDGES), share, 10)
        np.testing.assert_allclose(patch.get_data().values, 100 * expected.mean(axis=0))
    assert len(fill(figure.axes[0])) == 2 * (1 + 4)  # the mean and each of four heads, of two runs
    said = {text.get_text() for text in figure.axes[0].texts}
    assert said == {"mixed", "queries only"}
    _, second = centred(
        np.array(EDGES), np.array(BASE["layers"][0]["purity_histogram"]["share"])[1], 10
    )
    np.testing.assert_allclose(
        fill(purity_figure(PAIR, head=2).axes[0])[0].get_data().values, 100 * second
    )
    with pytest.raises(MsposeError, match=r"head: expected 1\.\.4, found 5"):
        purity_figure(PAIR, head=5)


@pytest.mark.parametrize("neighbours", [1, 3, 7, 10, 19])
def test_a_histogram_has_a_bin_around_each_value_that_purity_can_have(neighbours):
    found = np.repeat(np.arange(neighbours + 1), np.arange(1, neighbours + 2))
    bins = np.minimum((20 * found / neighbours + 1e-3).astype(int), 19)  # as in attention.json
    share = np.bincount(bins, minlength=20) / len(found)
    edges, merged = centred(np.array(EDGES), share, neighbours)
    np.testing.assert_allclose(
        (edges[:-1] + edges[1:]) / 2, np.arange(neighbours + 1) / neighbours, atol=1e-12
    )
    np.testing.assert_allclose(merged, np.bincount(found) / len(found))


def test_verdicts_in_words_colours_and_marks():
    collapsed = study(entropy=0.4, similarity=0.95)
    figure = verdict_figure(
        [("a", BASE), ("b", REMEDY), ("c", collapsed), *SEEDS[:2], ("qka", collapsed)]
    )
    axes = figure.axes[0]
    said = [text.get_text() for text in axes.texts]
    words = ("uniform", "selective", "collapsed", "selective 2/3", "uniform 1/3")
    assert [said.count(word) for word in words] == [4, 4, 4, 2, 2]
    marks = {(line.get_marker(), to_hex(line.get_color())) for line in axes.lines}
    assert marks == {("o", "#009e73"), ("s", "#e69f00"), ("X", "#d55e00")}
    assert said[said.index("collapsed") + 1] == "0.40, 0.95"


def test_a_column_of_verdicts_has_its_number_of_seeds_on_one_line():
    for width in range(5, 15):
        seeds = [("n" * width, content) for _, content in SEEDS]
        (axes,) = verdict_figure([*seeds, *LONG[:4]]).axes
        name = axes.get_xticklabels()[0].get_text()
        assert name.replace("\N{NO-BREAK SPACE}", " ").endswith("(3 seeds)"), name


def test_the_worth_of_attention_is_said_beside_the_verdict_where_it_was_measured():
    said = [text.get_text() for text in verdict_figure([("a", WORTH), ("b", BASE)]).axes[0].texts]
    assert [words == "does not matter" for words in said].count(True) == 4


def test_changes_of_every_knock_out_with_their_intervals_and_range_of_seeds():
    figure = knock_out_figure(KNOCKED_OUT)
    assert legend_words(figure) == ["mean of all values", "own value", "sublayer removed"]
    one, seeds = figure.axes[1], figure.axes[2]  # degrees of one run, metres of two
    places = ["both branches", "position branch", "orientation branch"]
    places += [f"{branch}, layer {n}" for branch in ("position", "orientation") for n in (1, 2)]
    for axes in figure.axes[::2]:  # the panels beside them have the same
        assert [label.get_text() for label in axes.get_yticklabels()] == places
    (row,) = [
        row
        for row in KNOCKED_OUT[0][1]["knock_out"]["rows"]
        if (row["branch"], row["layer"], row["by"]) == ("orientation", 1, "nothing")
    ]
    marks = [line for line in one.lines if line.get_marker() not in ("None", None)]
    spans = [line for line in one.lines if line.get_marker() in ("None", None)]
    index = 2 * len(places) + places.index("orientation, layer 1")
    assert marks[index].get_xdata()[0] == row["orientation_deg"]["difference"]
    expected = [row["orientation_deg"]["low"], row["orientation_deg"]["high"]]
    assert list(spans[index].get_xdata()) == expected
    changes = [
        row["position_m"]["difference"]
        for _, content in KNOCKED_OUT[1:]
        for row in content["knock_out"]["rows"][:1]
    ]
    spans = [line for line in seeds.lines if line.get_marker() in ("None", None)]
    assert sorted(spans[0].get_xdata()) == sorted(changes)
    assert seeds.get_title(loc="left") == "neither (2\N{NO-BREAK SPACE}seeds)"


def test_encodings_as_profile_and_matrices():
    arrays = samples()
    runs = [*PAIR, ("both", REMEDY)]
    figure = encoding_figure(runs, [arrays, None, arrays])
    assert legend_words(figure) == ["learned: neither", "sine: qka, both"]
    shown = [axes for axes in figure.findobj(type(figure.axes[0])) if axes.images]
    for axes in shown:
        assert axes.get_xlabel() == "token"
    assert (
        sum(
            np.array_equal(axes.images[0].get_array(), arrays["encoding/position"])
            for axes in shown
        )
        == 2
    )
    profiles = [
        axes for axes in figure.axes if axes.get_xlabel() == "distance on the map (grid cells)"
    ]
    assert len(profiles) == 2
    for axes, branch in zip(profiles, ("position", "orientation"), strict=True):
        for line, content in zip(axes.lines, (BASE, REMEDY), strict=True):
            np.testing.assert_allclose(
                line.get_xdata(), content["encoding"][branch]["grid_distance"]
            )
            np.testing.assert_allclose(
                line.get_ydata(), content["encoding"][branch]["token_distance"]
            )


@pytest.mark.parametrize(
    "make",
    [
        entropy_figure,
        tokens_figure,
        gap_figure,
        purity_figure,
        verdict_figure,
        encoding_figure,
        knock_out_figure,
    ],
)
def test_nothing_to_draw_is_said_in_one_line(make):
    for runs in ([], [("bare", BARE)]):
        with pytest.raises(MsposeError) as error:
            make(runs)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make", [entropy_figure, tokens_figure, purity_figure, encoding_figure, verdict_figure]
)
def test_a_branch_without_layers_is_said_or_left_out(make):
    figure = make(ONE_SIDED)
    for axes in figure.axes:
        assert axes.has_data() or any(text.get_text() for text in axes.texts), axes.get_title()


FIGURES = {
    "entropy": lambda: entropy_figure(PAIR),
    "entropy-eight": lambda: entropy_figure(LONG),
    "entropy-one-sided": lambda: entropy_figure(ONE_SIDED),
    "tokens-eight": lambda: tokens_figure(LONG),
    "distance-eight": lambda: gap_figure(LONG),
    "purity-eight": lambda: purity_figure(LONG),
    "purity-seeds": lambda: purity_figure(SEEDS),
    "verdicts-one": lambda: verdict_figure(PAIR[:1]),
    "verdicts-eight": lambda: verdict_figure(LONG),
    "knock-out-one": lambda: knock_out_figure(KNOCKED_OUT[:1]),
    "knock-out-seeds": lambda: knock_out_figure(KNOCKED_OUT),
    "knock-out-deep": lambda: knock_out_figure(
        [("full", {**study(layers=(6, 6)), "knock_out": knock_out((6, 6))})]
    ),
    "knock-out-millimetres": lambda: knock_out_figure(
        [("both", {**REMEDY, "knock_out": knock_out(size_m=0.0015)})]
    ),
    "verdicts-worth": lambda: verdict_figure([("a", WORTH), *PAIR]),
    "encoding-eight": lambda: encoding_figure(LONG),
    "encoding-matrices": lambda: encoding_figure(PAIR, [samples(), samples()]),
    "encoding-matrix": lambda: encoding_figure(PAIR[:1], [samples()]),
    "space-one": lambda: space_figure([("neither", samples())], "position", 1, 1, projection="pca"),
    "space-five": lambda: space_figure(
        [(label, samples()) for label, _ in LONG[:5]], "position", 1, 1, projection="pca"
    ),
    "encoder": lambda: encoder_maps_figure(samples(layers=(6, 4))),
    "encoder-one": lambda: encoder_maps_figure(samples(layers=(0, 1))),
    "decoder": lambda: decoder_maps_figure(
        samples(frames=3, scenes=("chess", "fire", "a-scene-with-a-long-name"))
    ),
    "decoder-one": lambda: decoder_maps_figure(samples(frames=1, scenes=("redkitchen",))),
}


@cache
def figure_of(name):
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_words_stay_on_the_page_and_apart(name):
    figure = figure_of(name)
    page = figure.bbox
    boxes = []
    for text in words_of(figure):
        box = text.get_window_extent()
        if box.width and box.height and text.get_size() > 0:
            assert box.x0 >= -1 and box.y0 >= -1, text.get_text()
            assert box.x1 <= page.width + 1 and box.y1 <= page.height + 1, text.get_text()
            boxes.append((text.get_text(), box))
    assert len(boxes) > 5
    for index, (text, box) in enumerate(boxes):
        for other_text, other in boxes[:index]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert wide < 1.5 or high < 1.5, f"{text!r} and {other_text!r} overlap"


@pytest.mark.parametrize("name", ["entropy-eight", "distance-eight", "encoding-eight"])
def test_lines_differ_in_colour_marker_and_style_of_the_safe_palette(name):
    figure = figure_of(name)
    handles = figure.legends[0].legend_handles
    assert {to_hex(handle.get_color()) for handle in handles} <= OKABE_ITO | GREYS
    assert len({to_hex(handle.get_color()) for handle in handles}) == len(handles)
    assert len({handle.get_marker() for handle in handles}) == len(handles)


def test_a_file_is_the_same_every_time_and_of_print_resolution(tmp_path):
    for name in ("one", "two"):
        figure = space_figure([("neither", samples())], "position", 1, 1, projection="pca")
        save_figure(figure, tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert picture.width == pytest.approx(300 * plotting.WIDTH, abs=1)


def test_a_pdf_holds_text_as_text(tmp_path):
    pdf = save_figure(entropy_figure(PAIR), tmp_path / "entropy.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"/Subtype /Image" not in pdf
    assert b"CreationDate" not in pdf


def test_labels_are_variants_with_experiments_where_there_are_several():
    assert labels([BASE, REMEDY, {**REMEDY, "seed": 1}]) == ["neither", "qka", "qka"]
    assert labels([BASE, {**REMEDY, "experiment": "other"}]) == ["made-up/neither", "other/qka"]
    assert labels([{**BASE, "quick": True}]) == ["neither (quick)"]


OF_ALL = ["encoding", "entropy", "purity", "query-key-gap", "space-orientation-layer-1-head-1",
          "space-position-layer-1-head-1", "tokens", "verdicts"]  # fmt: skip
OWN = ["decoder-attention-1", "encoder-attention-1", *OF_ALL]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two runs that were drawn, the first one with scalars of its training and pictures of an
    earlier time.
    """
    folder = tmp_path_factory.mktemp("drawn")
    runs = [
        write_run(
            folder / name, study(name, layers=(1, 1)), samples(layers=(1, 1), frames=1, seed=seed)
        )
        for seed, name in enumerate(("neither", "qka"))
    ]
    for place in (runs[0], runs[0] / "attention"):
        with SummaryWriter(str(place)) as writer:
            writer.add_scalar("loss/total", 3.0, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "DPI", 60)  # quicker
        return runs, folder / "compared", draw(runs, out=folder / "compared", projection="pca")


def test_draw_writes_each_runs_pictures_and_those_of_all(drawn):
    runs, compared, written = drawn
    for run in runs:
        assert sorted(path.stem for path in (run / "attention").glob("*.png")) == OWN
    assert sorted(path.stem for path in compared.glob("*.png")) == OF_ALL
    assert len(written) == len(set(written)) == 2 * len(OWN) + len(OF_ALL)
    assert all(path.is_file() for path in written)


def test_draw_shows_the_pictures_in_tensorboard_once_and_leaves_scalars_alone(drawn):
    run = drawn[0][0]
    for folder, names in ((run / "attention", OWN), (drawn[1], OF_ALL)):
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
        shown = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
        assert sorted(shown.Tags()["images"]) == [f"attention/{name}" for name in names]
        assert [len(shown.Images(tag)) for tag in shown.Tags()["images"]] == [1] * len(names)
    scalars = EventAccumulator(str(run)).Reload()
    assert scalars.Tags()["scalars"] == ["loss/total"]
    assert not scalars.Tags()["images"]


def test_a_record_without_samples_gives_what_figures_need_and_says_what_is_left_out(
    tmp_path, caplog
):
    run = write_run(tmp_path / "record", {**BASE, "training": None, "encoding": {}})
    with caplog.at_level("INFO", logger="mspose"):
        written = draw([run])
    assert sorted(path.stem for path in written) == ["entropy", "purity", "tokens", "verdicts"]
    assert "no figures of attention in frames" in caplog.text
    assert re.search(r"no .*query-key-gap\.png: .*TensorBoard log", caplog.text)
    assert re.search(r"no .*encoding\.png: ", caplog.text)


def test_draw_takes_a_branch_layer_and_head(tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 60)
    run = write_run(
        tmp_path / "run",
        {**BASE, "training": None, "encoding": {}},
        samples(sides=(2, 2), frames=1),
    )
    names = [
        path.stem for path in draw([run], branch="position", layer=1, head=2, projection="pca")
    ]
    assert [name for name in names if name.startswith("space")] == ["space-position-layer-1-head-2"]


def test_draw_refuses_a_run_without_study_and_broken_samples(tmp_path):
    with pytest.raises(MsposeError, match="holds no study"):
        draw([tmp_path])
    run = write_run(tmp_path / "run", BASE)
    np.savez(run / "attention/samples.npz", scenes=np.array(["attic"]))
    with pytest.raises(MsposeError, match="without image_F"):
        draw([run])
    # nothing is unpickled
    np.savez(run / "attention/samples.npz", image_F=np.array([os.getcwd, {}], dtype=object))
    with pytest.raises(MsposeError, match="is broken"):
        read_samples(run)
    (run / "attention/samples.npz").write_bytes(b"no archive")
    with pytest.raises(MsposeError, match=r"samples\.npz is broken"):
        read_samples(run)
