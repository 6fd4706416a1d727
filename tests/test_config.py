from pathlib import Path

import pytest

from mspose.config import (
    Settings,
    changed_settings,
    config_hash,
    differences,
    flatten,
    nearest_names,
    read_settings,
    read_yaml,
    settings_parser,
    to_settings,
    write_settings,
)
from mspose.errors import MsposeError

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))


def parse(*arguments: str) -> Settings:
    parser = settings_parser(prog="mspose train")
    return to_settings(parser.parse_args(list(arguments)), parser)


def test_file_then_command_line(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("seed: 3\nmodel:\n  dim: 64\n  heads: 4\n")
    settings = parse(f"--config={file}", "--model.heads=2", "--data.scenes=[chess, fire]")
    assert (settings.seed, settings.model.dim, settings.model.heads) == (3, 64, 2)
    assert settings.data.scenes == ["chess", "fire"]
    assert settings.training == Settings().training


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.position_encodng=sine", "did you mean model.position_encoding.*model.dim"),
        ("--traning.epochs=3", "did you mean training.epochs\\?"),
        ("--model.qka=3", "did you mean loss.qka_weight\\?.*model.dim"),
        ("--data.learning_rate=3", "did you mean training.learning_rate\\?"),
        ("--seed=lucky", "seed.*lucky"),
        ("--training.epochs=0", "training.epochs.*0 does not conform"),
        ("--data.holdout=1.5", "data.holdout.*1.5"),
        ("--augmentation.hue=0.7", "augmentation.hue.*0.7"),
        ("--training.learning_rate=inf", "training.learning_rate inf is not a finite number"),
        ("--variant=../../elsewhere", "variant '../../elsewhere' is not a plain name"),
        ("--seed=99999999999999999999", "seed .* too large|seed.*9999"),
        ("--frobnicate=1", "names that exist: .*data.*, device.*training"),
        ("--config=missing.yaml", "no such experiment: .*missing.yaml"),
        ("--config=virtul", "no experiment 'virtul'; there are: 7scenes, .*virtual"),
    ],
)
def test_bad_settings_are_refused_in_one_line(argument, message):
    with pytest.raises(MsposeError, match=message) as caught:
        parse(argument)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model:\n  posicion_encoding: sine\n",
            "posicion_encoding.*did you mean model.position_encoding",
        ),
        ("model:\n  qka: 3\n", "did you mean loss.qka_weight"),
        ("modle:\n  dim: 3\n", "modle.*names that exist"),
        ("model: [\n", "parsing"),
        ("model:\n  dim: wide\n", "model.dim.*wide"),
        ("model: null\n", "model|mapping"),
        ("model: [1, 2]\n", "model"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(MsposeError, match=message) as caught:
        parse(f"--config={file}")
    assert "\n" not in str(caught.value)


def test_a_name_is_found_in_whatever_group_it_is():
    names = flatten(Settings())
    assert nearest_names("loss.qka", names) == ["loss.qka_weight"]
    assert nearest_names("epoch", names) == ["training.epochs"]
    assert nearest_names("model.cutout", names) == ["augmentation.cutout"]
    assert nearest_names("zebra", names) == []


def test_a_bare_name_is_an_experiment_here_or_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("--config=redkitchen").experiment == "redkitchen"
    assert parse("--config=experiments/redkitchen.yaml").experiment == "redkitchen"
    (tmp_path / "redkitchen.yaml").write_text("experiment: beside\n")
    assert parse("--config=redkitchen").experiment == "beside"
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "redkitchen.yaml").write_text("experiment: here\n")
    assert parse("--config=redkitchen").experiment == "here"
    assert parse("--config=redkitchen.yaml").experiment == "beside"


def test_resolved_settings_come_back(tmp_path):
    settings = parse(
        "--training.epochs=7",
        "--data.holdout=0.25",
        "--data.scenes=[a]",
        "--training.learning_rate=3e-4",
    )
    write_settings(tmp_path / "config.yaml", settings)
    assert read_settings(tmp_path / "config.yaml") == settings
    with pytest.raises(MsposeError, match="no such settings file"):
        read_settings(tmp_path / "none.yaml")


def test_the_hash_stands_for_mathematics_not_for_places():
    settings = Settings()
    words = "--runs=/a --device=cpu --data.root=/b --data.cache=/c --data.cache_on_device=true"
    elsewhere = parse(*words.split())
    other = parse("--model.position_encoding=learned")
    assert config_hash(settings) == config_hash(elsewhere)
    assert config_hash(settings) != config_hash(other)
    assert differences(settings, elsewhere) == []
    assert differences(settings, other) == ["model.position_encoding: sine -> learned"]


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], "runs/virtual/all/seed-0"),
        (["--data.scenes=[chess,fire]", "--seed=2"], "runs/virtual/chess-fire/seed-2"),
        (["--data.ground_truth=sfm"], "runs/virtual/all-sfm/seed-0"),
        (["--data.ground_truth=original"], "runs/virtual/all/seed-0"),
        (["--variant=mine", "--runs=there"], "there/virtual/mine/seed-0"),
    ],
)
def test_run_folders(arguments, folder):
    assert parse(*arguments).run_folder("original") == Path(folder)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_file_is_valid(path):
    assert read_settings(path).experiment == path.stem


def test_there_are_experiments():
    assert {"7scenes", "cambridge", "cambridge-finetune", "virtual", "redkitchen"} <= {
        path.stem for path in EXPERIMENTS
    }


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!timestamp 2020-01-01",
        "!!binary aGk=",
        "!!set {a, b}",
        "!own 3",
        "&a [*a]",
        "&a {b: *a}",
        '"a\\0b"',
        "[" * 5000,
        "9" * 5000,
    ],
)
def test_yaml_that_is_more_than_plain_values_is_one_line(tmp_path, value):
    file = tmp_path / "experiment.yaml"
    file.write_text(f"experiment: {value}\n")
    with pytest.raises(MsposeError, match=r"experiment\.yaml") as caught:
        read_settings(file)
    assert "\n" not in str(caught.value)


def test_aliases_that_multiply_are_refused_at_once(tmp_path):
    file = tmp_path / "experiment.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file.write_text("\n".join(lines))
    with pytest.raises(MsposeError, match="more than 100000 values"):
        read_yaml(file, "a card")


def test_yaml_values_are_text_where_they_look_like_dates(tmp_path):
    file = tmp_path / "card.yaml"
    file.write_text("a: 2020-01-01\nb: 1e-4\nc: &shared [1, 2.5]\nd: *shared\ne: =\nf:\n")
    values = {"a": "2020-01-01", "b": 1e-4, "c": [1, 2.5], "d": [1, 2.5], "e": "="}
    assert read_yaml(file, "a card") == values


@pytest.mark.parametrize(
    "words", [("model.dim", 10**6), ("model.position_encoder_layers", 10**9), ("data.crop", 10**6)]
)
def test_sizes_that_nobody_means_are_refused(words):
    with pytest.raises(MsposeError, match=words[0]):
        changed_settings(Settings(), {words[0]: words[1]})


@pytest.mark.parametrize("text", ["runs: null", "seed:", "model: {dim: null}", "data: {cache: ~}"])
def test_a_null_where_there_has_to_be_a_value_is_refused(tmp_path, text):
    file = tmp_path / "experiment.yaml"
    file.write_text(text)
    with pytest.raises(MsposeError, match="null|NoneType|None"):
        read_settings(file)
    file.write_text("variant: null\ndata: {root: null}")
    assert read_settings(file).variant is None
