"""Ablation files: the runs that they plan, and one clear line for what they cannot say."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mspose.config import config_hash, flatten, read_settings
from mspose.data.versions import with_version
from mspose.errors import MsposeError
from mspose.studies.ablation.plan import QUICK, read_ablation
from mspose.studies.ablation.single_run import run_of, title

ROOT = Path(__file__).parents[3]
GOOD = {
    "title": "A title",
    "base": "base.yaml",
    "settings": {"loss.qka_weight": 0, "model": {"position_encoding": "learned"}},
    "reference": "neither",
    "seeds": [0, 3],
    "variants": {"qka": {"loss.qka_weight": 0.1}, "sine": {"model": {"position_encoding": "sine"}}},
}
BASE = {"experiment": "rooms", "data": {"dataset": "virtual"}, "training": {"epochs": 3}}


@pytest.fixture
def write(tmp_path):
    """`write(seeds=[1], settings=None)`: the good file with some keys changed, or left out where
    None; its path.
    """
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def make(**changes) -> Path:
        values = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return tmp_path / "small.yaml"

    return make


@pytest.fixture
def refused(write):
    """`refused(pattern, seeds=[])`: reading that file, or listing its runs, ends in one line with
    the pattern in it.
    """

    def check(pattern: str, **changes) -> str:
        path = write(**changes)
        with pytest.raises(MsposeError, match=pattern) as caught:
            read_ablation(path).runs()
        line = str(caught.value)
        assert "\n" not in line
        assert str(path) in line
        return line

    return check


def test_the_file_as_it_is_described(write):
    ablation = read_ablation(write())
    assert (ablation.name, ablation.title) == ("small", "A title")
    runs = ablation.runs(folder="somewhere")
    order = [("neither", 0), ("qka", 0), ("sine", 0), ("neither", 3), ("qka", 3), ("sine", 3)]
    assert [(run.variant, run.seed) for run in runs] == order
    assert run_of(runs[4]).folder == Path("somewhere/small-rooms/qka/seed-3")
    assert title(runs[4]) == "qka, seed 3"
    assert [run.loss.qka_weight for run in runs[:3]] == [0, 0.1, 0]
    encodings = [run.model.position_encoding for run in runs[:3]]
    assert encodings == ["learned", "learned", "sine"]
    assert len({config_hash(run) for run in runs}) == 6
    ablation = read_ablation(write(settings=None, variants={"plain": {"loss.qka_weight": 0}}))
    assert [run.loss.qka_weight for run in ablation.runs()] == [0.1, 0, 0.1, 0]


def test_the_runs_of_the_file_in_the_repository_are_those_of_a_train_command():
    runs = {title(run): run for run in read_ablation("qka-and-encoding").runs()}
    words = ["--experiment=qka-and-encoding-virtual", "--variant=both", "--seed=1"]
    words += ["--model.position_encoding=sine", "--loss.qka_weight=0.1"]
    expected = read_settings(ROOT / "experiments" / "virtual.yaml", words)
    assert runs["both, seed 1"] == replace(expected, data=with_version(expected.data))


def test_another_base_some_seeds_and_some_variants(write, tmp_path):
    (tmp_path / "halls.yaml").write_text(yaml.safe_dump({"experiment": "halls"}))
    ablation = read_ablation(write())
    (run,) = ablation.runs(str(tmp_path / "halls.yaml"), [7], variants=["sine"])
    assert (title(run), run.experiment) == ("sine, seed 7", "small-halls")
    with pytest.raises(MsposeError, match=r"no variant 'sin'; there are: neither, qka, sine"):
        ablation.runs(variants=["sin"])
    with pytest.raises(MsposeError, match=r"no experiment 'hall'; there are: .*7scenes.*virtual"):
        ablation.runs("hall")
    for seeds in ([], [1, 1], [-1]):
        with pytest.raises(MsposeError, match="--seeds: expected different whole numbers"):
            ablation.runs(seeds=seeds)


def test_overrides_hold_for_all_but_not_for_what_the_rows_differ_in(write):
    ablation = read_ablation(write())
    runs = ablation.runs(overrides={"training.epochs": 4})
    assert {run.training.epochs for run in runs} == {4}
    with pytest.raises(MsposeError, match=r"loss.qka_weight is what the variants of .* differ in"):
        ablation.runs(overrides={"loss.qka_weight": 0.2})


def test_toy_size_leaves_out_what_a_variant_states(write):
    variants = {"none": {"model.position_encoder_layers": 0}, "wide": {"model.dim": 64}}
    runs = {run.variant: run for run in read_ablation(write(variants=variants)).runs(quick=True)}
    widths = {label: run.model.dim for label, run in runs.items()}
    assert widths == {"neither": 256, "none": 256, "wide": 64}
    assert [run.model.position_encoder_layers for run in runs.values()] == [6, 0, 6]
    for name, value in QUICK.items():
        if name not in ("model.position_encoder_layers", "model.dim"):
            assert {flatten(run)[name] for run in runs.values()} == {value}
    assert {(run.experiment, run.quick) for run in runs.values()} == {("small-rooms-quick", True)}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"variant": {"a": 1}}, r"variant.* is not accepted"),
        ({"title": None}, r"required: title"),
        ({"reference": 3}, r"\"reference\": Expected a str"),
        ({"reference": "qka"}, r"none with the label of the reference"),
        ({"reference": "a/b"}, r"variants.a/b: variant 'a/b' is not a plain name"),
        ({"base": "nowhere.yaml"}, r"base: no such experiment: .*nowhere.yaml"),
        ({"base": "nowhere"}, r"base: there is no experiment 'nowhere'; there are: .*virtual"),
        ({"seeds": []}, r"seeds: expected different whole numbers"),
        ({"seeds": [0, 1, 0]}, r"seeds: expected different whole numbers"),
        ({"seeds": [0, -1]}, r"seeds: expected different whole numbers"),
        ({"variants": {}}, r"variants: expected some"),
        ({"variants": {"qka": None}}, r"\"variants\": Expected a dict"),
        ({"variants": {"qka": {"loss.qka_weight": 0.0}}}, r"variants.qka changes nothing"),
        ({"variants": {"fast": {"training.compile": True}}}, r"variants.fast changes nothing"),
        (
            {"variants": {"a": {"loss.qka_weight": 0.1}, "b": {"loss": {"qka_weight": 0.1}}}},
            r"variants.b is the same as a",
        ),
        ({"variants": {"a": {"loss.qka_wait": 0.1}}}, r"variants.a: .*mean loss.qka_weight"),
        ({"variants": {"a": {"model.dim": "wide"}}}, r"variants.a: .*model.dim.*Width"),
        ({"variants": {"a": {"seed": 4}}}, r"variants.a.seed is not for the file to say"),
        ({"settings": {"loss.qka": 1}}, r"settings: .*loss.qka.*names that exist"),
        ({"settings": [1]}, r"\"settings\": Expected a dict"),
    ],
)
def test_a_bad_ablation_file_is_refused_in_one_line(refused, changes, pattern):
    refused(pattern, **changes)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("title: a\ntitle: b\n", r"is not YAML that can be read: 'title' is there twice .*line 2"),
        ("title: [\n", "is not YAML that can be read"),
        ("", "is not an ablation file: .* found None"),
        ("!!python/object/apply:os.system [ls]\n", "is not YAML that can be read"),
        (None, "no such ablation"),
    ],
)
def test_what_is_no_ablation_file(tmp_path, text, pattern):
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(MsposeError, match=pattern) as caught:
        read_ablation(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_unknown_name_is_answered_with_those_that_exist():
    with pytest.raises(MsposeError, match=r"no ablation 'qka'; there are: .*qka-and-encoding"):
        read_ablation("qka")


def test_a_file_can_ask_for_knock_outs_which_make_no_other_runs(write):
    asked = read_ablation(write(knock_out=True)).runs()
    plain = read_ablation(write()).runs()
    assert all(settings.attention.knock_out for settings in asked)
    assert not any(settings.attention.knock_out for settings in plain)
    assert list(map(config_hash, asked)) == list(map(config_hash, plain))
