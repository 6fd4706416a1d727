"""Ablation files: what they say, and one clear line for everything that they cannot say."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mspose.ablation.plan import QUICK, read_ablation

from mspose.config import config_hash, flatten, read_settings
from mspose.data.versions import with_version
from mspose.errors import MsposeError

ROOT = Path(__file__).parents[2]
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
    """`write(seeds=[1], settings=None)`: the good file with some keys changed, or left out where None; its path."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def make(**changes) -> Path:
        values = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return tmp_path / "small.yaml"

    return make


@pytest.fixture
def refused(write):
    """`refused(pattern, seeds=[])`: reading that file, or making its cells, ends in one line with the pattern in it."""

    def check(pattern: str, **changes) -> str:
        path = write(**changes)
        with pytest.raises(MsposeError, match=pattern) as caught:
            read_ablation(path).cells()
        line = str(caught.value)
        assert "\n" not in line
        assert str(path) in line
        return line

    return check


def test_the_file_as_it_is_described(write):
    ablation = read_ablation(write())
    assert (ablation.name, ablation.title, ablation.labels) == (
        "small",
        "A title",
        ("neither", "qka", "sine"),
    )
    cells = ablation.cells(runs="somewhere")
    order = [("neither", 0), ("qka", 0), ("sine", 0), ("neither", 3), ("qka", 3), ("sine", 3)]
    assert [(cell.label, cell.seed) for cell in cells] == order
    assert cells[4].folder == Path("somewhere/small-rooms/qka/seed-3")
    assert str(cells[4]) == "qka, seed 3"
    assert [cell.settings.loss.qka_weight for cell in cells[:3]] == [0, 0.1, 0]
    assert [cell.settings.model.position_encoding for cell in cells[:3]] == [
        "learned",
        "learned",
        "sine",
    ]
    assert len({config_hash(cell.settings) for cell in cells}) == 6


def test_settings_are_optional(write):
    ablation = read_ablation(write(settings=None, variants={"plain": {"loss.qka_weight": 0}}))
    assert [cell.settings.loss.qka_weight for cell in ablation.cells()] == [0.1, 0, 0.1, 0]


def test_the_cells_of_the_file_in_the_repository_are_those_of_a_train_command():
    cells = {str(cell): cell for cell in read_ablation("qka-and-encoding").cells()}
    words = (
        "--experiment=qka-and-encoding-virtual",
        "--variant=both",
        "--seed=1",
        "--model.position_encoding=sine",
    )
    settings = read_settings(
        ROOT / "experiments" / "virtual.yaml", [*words, "--loss.qka_weight=0.1"]
    )
    assert cells["both, seed 1"].settings == replace(
        settings, data=with_version(settings.data)
    )  # as training notes it


def test_another_base_some_seeds_and_some_variants(write, tmp_path):
    (tmp_path / "halls.yaml").write_text(yaml.safe_dump({"experiment": "halls"}))
    cells = read_ablation(write()).cells(str(tmp_path / "halls.yaml"), [7], variants=["sine"])
    assert [(str(cell), cell.settings.experiment) for cell in cells] == [
        ("sine, seed 7", "small-halls")
    ]
    ablation = read_ablation(write())
    with pytest.raises(MsposeError, match=r"no variant 'sin'; there are: neither, qka, sine"):
        ablation.cells(variants=["sin"])
    with pytest.raises(
        MsposeError, match=r"experiment 'hall' is not in .*; there are: .*7scenes.*virtual"
    ):
        ablation.cells("hall")
    for seeds, pattern in (([], "expected whole"), ([1, 1], "has 1 twice"), ([-1], "has -1")):
        with pytest.raises(
            MsposeError, match="--seeds " + (pattern if seeds else r"is \[\], " + pattern)
        ):
            ablation.cells(seeds=seeds)


def test_overrides_hold_for_all_but_not_for_what_the_rows_differ_in(write):
    ablation = read_ablation(write())
    assert {
        cell.settings.training.epochs for cell in ablation.cells(overrides={"training.epochs": 4})
    } == {4}
    with pytest.raises(MsposeError, match=r"loss.qka_weight is what the variants of .* differ in"):
        ablation.cells(overrides={"loss.qka_weight": 0.2})


def test_toy_size_leaves_alone_what_a_variant_states(write):
    variants = {"none": {"model.position_encoder_layers": 0}, "wide": {"model.dim": 64}}
    cells = {
        cell.label: cell.settings
        for cell in read_ablation(write(variants=variants)).cells(quick=True)
    }
    assert {label: settings.model.dim for label, settings in cells.items()} == {
        "neither": 256,
        "none": 256,
        "wide": 64,
    }
    assert [settings.model.position_encoder_layers for settings in cells.values()] == [6, 0, 6]
    for name, value in QUICK.items():
        if name not in ("model.position_encoder_layers", "model.dim"):
            assert {flatten(settings)[name] for settings in cells.values()} == {value}
    assert {settings.experiment for settings in cells.values()} == {"small-rooms-quick"}
    assert all(settings.quick for settings in cells.values())


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"variant": {}}, r"unknown key 'variant'; there are: title, base, .*settings"),
        ({"title": None}, r"title is missing; expected: title, base"),
        ({"reference": 3}, r"reference is 3, expected text"),
        ({"reference": "qka"}, r"qka is the reference, .* and a variant"),
        ({"reference": "a/b"}, r"variants.a/b: variant 'a/b' is not a plain name"),
        ({"base": "nowhere.yaml"}, r"base nowhere.yaml: there is no such file"),
        ({"base": "nowhere"}, r"base 'nowhere' is not in .*; there are: .*virtual"),
        ({"seeds": []}, r"seeds is \[\], expected whole numbers"),
        ({"seeds": 3}, r"seeds is 3, expected whole numbers"),
        ({"seeds": [0, 1, 0]}, r"seeds has 0 twice"),
        ({"seeds": [0, -1]}, r"seeds has -1, expected whole numbers from 0"),
        ({"seeds": [True]}, r"seeds has True"),
        ({"seeds": [2**63]}, r"seeds has 9223372036854775808"),
        ({"variants": {}}, r"variants is \{\}, expected a label"),
        ({"variants": ["qka"]}, r"variants is \['qka'\], expected a label"),
        ({"variants": {"qka": None}}, r"variants.qka is None, expected settings by name"),
        ({"variants": {"qka": {}}}, r"variants.qka changes nothing of neither"),
        (
            {"variants": {"qka": {"loss.qka_weight": 0.0}}},
            r"variants.qka changes nothing of neither",
        ),
        (
            {"variants": {"fast": {"training.compile": True}}},
            r"variants.fast changes nothing of neither",
        ),
        (
            {"variants": {"a": {"loss.qka_weight": 0.1}, "b": {"loss": {"qka_weight": 0.1}}}},
            r"variants.b is the same as a",
        ),
        (
            {"variants": {"a b": {"loss.qka_weight": 0.1}}},
            r"variants.a b: variant 'a b' is not a plain name",
        ),
        ({"variants": {1: {"loss.qka_weight": 0.1}}}, r"the label 1 is no text: put it in quotes"),
        ({"variants": {"a": {3: 0.1}}}, r"variants.a: every name is a text"),
        (
            {"variants": {"a": {"loss.qka_wait": 0.1}}},
            r"variants.a: .*qka_wait.*did you mean loss.qka_weight",
        ),
        ({"variants": {"a": {"model.kind.x": 1}}}, r"variants.a: .*model.kind.x.*names that exist"),
        ({"variants": {"a": {"model.dim": "wide"}}}, r"variants.a: .*model.dim.*PositiveInt"),
        ({"variants": {"a": {"model": 3}}}, r"variants.a: .*'model'.* is not accepted"),
        ({"variants": {"a": {"seed": 4}}}, r"variants.a.seed is not for the file to say"),
        ({"settings": {"experiment": "x"}}, r"settings.experiment is not for the file to say"),
        ({"settings": {"loss.qka": 1}}, r"settings: .*loss.qka.*names that exist"),
        ({"settings": [1]}, r"settings is \[1\], expected settings by name"),
    ],
)
def test_what_a_file_cannot_say(refused, changes, pattern):
    refused(pattern, **changes)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("title: a\ntitle: b\n", r"is not YAML that can be read: 'title' is there twice .*line 2"),
        ("variants:\n  a: {x: 1}\n  a: {y: 1}\n", r"'a' is there twice"),
        ("variants: {a: {x: 1, x: 2}}\n", r"'x' is there twice"),
        ("title: [\n", "is not YAML that can be read"),
        ("? [a]\n: 1\n", "is not YAML that can be read|unknown key"),
        ("just words\n", "expected title, base, .* found 'just words'"),
        ("", "expected title, base, .* found None"),
        ("!!python/object/apply:os.system [ls]\n", "is not YAML that can be read"),
    ],
)
def test_what_is_no_ablation_file(tmp_path, text, pattern):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(MsposeError, match=pattern) as caught:
        read_ablation(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(
        MsposeError, match=r"ablation 'qka' is not in .*; there are: .*qka-and-encoding"
    ):
        read_ablation("qka")
    with pytest.raises(MsposeError, match=r"ablation .*none.yaml: there is no such file"):
        read_ablation(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MsposeError, match=r"bytes.yaml is not YAML"):
        read_ablation(tmp_path / "bytes.yaml")
