"""The layout that README.md promises: floors, sizes, commands, links."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mspose.cli import _settings, _train

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mspose"
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLOORS = {
    "cli": 5, "data_verbs": 5, "result_verbs": 5, "study_verbs": 5, "__main__": 5,
    "tables": 4, "rows": 4, "pages": 4, "bench": 4, "ablation": 4, "attention_study": 4, "paper": 4,
    "report": 4, "view": 4, "data_check": 4,
    "training": 3, "objective": 3, "monitoring": 3, "prediction": 3, "evaluation": 3, "metrics": 3, "baselines": 3,
    "conversion": 3, "export": 3, "image_sources": 3, "trajectory_files": 3, "query_check": 3,
    "localisation": 3,
    "models": 2, "losses": 2, "data": 2,
    "config": 1, "poses": 1, "checkpoint": 1, "errors": 1, "distributed": 1, "compilation": 1, "allocator": 1,
    "openmp": 1,
}  # fmt: skip
SOURCES = sorted(PACKAGE.rglob("*.py"))


def floor(module: str) -> int:
    return FLOORS[module.split(".")[1]]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down_and_files_stay_small(path):
    module = "mspose." + str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 420
    if module in ("mspose.__init__", "mspose.__main__"):
        return
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.startswith("mspose."):
                assert floor(name) <= floor(module), f"{module} imports {name}"


def test_readme_names_every_module_of_the_top_floors():
    for path in PACKAGE.glob("*.py"):
        if not path.name.startswith("_"):
            assert f"`{path.name}`" in README, path.name


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_make_help_lists_every_target():
    listed = make("help").stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert targets is not None
    for target in targets[1].split():
        assert f"make {target} " in listed, target


README_COMMANDS = sorted(
    {line.split("#")[0].strip() for line in re.findall(r"^make .*$", README, re.M)}
)


@pytest.mark.parametrize("command", README_COMMANDS)
def test_the_make_commands_of_the_readme_exist_and_their_arguments_are_accepted(command):
    dry = subprocess.run(
        ["make", "-n", "-o", ".venv/.ready", *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert dry.returncode == 0, dry.stderr
    for line in dry.stdout.splitlines():
        if line.startswith(".venv/bin/mspose train"):
            _parse_train(shlex.split(line)[2:])


@pytest.mark.parametrize(
    "name", ["7scenes", "cambridge", "cambridge-finetune", "virtual", "redkitchen"]
)
def test_train_commands_of_the_makefile_take_every_variable(name):
    dry = make(
        "-n",
        "-o",
        ".venv/.ready",
        "train",
        f"DATASET={name}",
        "SCENE=a b",
        "SEED=3",
        "ARGS=--training.epochs 2",
    )
    line = next(line for line in dry.stdout.splitlines() if "mspose train" in line)
    settings = _parse_train(shlex.split(line)[2:])
    assert (settings.experiment, settings.seed, settings.training.epochs) == (name, 3, 2)
    assert settings.data.scenes == ["a", "b"]


@pytest.mark.parametrize(
    ("target", "verb"), [("train", "train --config"), ("eval", "evaluate runs/a")]
)
def test_several_processes_are_started_by_torchrun(target, verb):
    for count, start in (
        ("1", ".venv/bin/mspose"),
        ("4", "torchrun --standalone --nproc-per-node 4 -m mspose"),
    ):
        assert (
            f"{start} {verb}"
            in make("-n", "-o", ".venv/.ready", target, "RUN=runs/a", f"NPROC={count}").stdout
        )


def test_eval_asks_for_its_run():
    answer = make("-o", ".venv/.ready", "eval")
    assert answer.returncode != 0
    assert "RUN=" in answer.stdout + answer.stderr


def _parse_train(words: list[str]):
    parser, _ = _train()
    words = [str(ROOT / word) if word.startswith("experiments/") else word for word in words]
    return _settings(parser.parse_args(words), parser)


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
)
def test_links_and_pictures_of_the_pages_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).is_file(), target


def test_the_constraints_hold_every_requirement():
    pinned = {
        re.split("[=]=", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    text = (ROOT / "setup.cfg").read_text()
    wanted = re.findall(r"^    ([A-Za-z][\w\-]*)(?:\[\w+\])?(?:>=[\d.]+)?$", text, re.M)
    assert len(wanted) > 20
    assert {name.lower().replace("_", "-") for name in wanted} <= pinned
