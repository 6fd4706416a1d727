"""What the README, the documents and the Makefile promise: commands, links, pinned versions."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mspose import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "experiments/README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def make(*arguments: str) -> subprocess.CompletedProcess:
    # `make test ARGS=...` hands its variables, flags and level down, which an inner make would take
    environment = {"PATH": os.environ["PATH"]}
    command = ["make", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def dry(command: str) -> list[list[str]]:
    """The words of the commands that `make ...` would run."""
    done = make("-n", "-o", ".venv/.ready", *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines()]


def parse(words: list[str]) -> dict:
    """The arguments of an `mspose ...` command, which it accepts."""
    count = 2 if words[1] == "data" else 1
    name = " ".join(words[1 : 1 + count])
    return cli.parse(name, [cli.with_underscores(word) for word in words[1 + count :]])


def test_make_help_lists_every_target():
    listed = make("help").stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert targets is not None
    for target in targets[1].split():
        assert f"make {target} " in listed, target


def shell_lines(program: str) -> set[str]:
    """The lines of the pages' shell blocks that begin with a program."""
    blocks = re.findall(r"```sh\n(.*?)```", "".join(page.read_text() for page in PAGES), re.S)
    return set(re.findall(rf"^{program} .*$", "".join(blocks), re.M))


def test_the_make_commands_of_all_pages_exist_and_their_arguments_are_accepted():
    commands = {line.split("#")[0] for line in shell_lines("make")}
    assert len(commands) > 15
    for command in commands | {'make ablation SEEDS="0 1" DATASET=7scenes', "make cache"}:
        for words in dry(command):
            if words[:1] == [".venv/bin/mspose"]:
                parse(words)


def test_the_mspose_commands_of_all_pages_are_accepted():
    lines = shell_lines("mspose")
    assert len(lines) > 5
    for line in lines:
        parse(shlex.split(line.partition(" > ")[0], comments=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_have_dashes_on_all_pages(page):
    # settings, which have a dot, are spelled as in YAML
    assert re.findall(r"--\w+_\w+(?![\w.])", page.read_text(encoding="utf-8")) == []


def test_train_takes_every_variable_of_the_makefile():
    command = 'make train DATASET=redkitchen SCENE="a b" SEED=3 ARGS="--training.epochs 2"'
    arguments = parse(dry(command)[0])
    settings = arguments["settings"]
    assert (settings.experiment, settings.seed, settings.training.epochs) == ("redkitchen", 3, 2)
    assert arguments["scenes"] == ["a", "b"]


@pytest.mark.parametrize(("target", "command"), [("train", "train"), ("eval", "evaluate")])
def test_several_processes_are_started_by_torchrun(target, command):
    alone, four = (dry(f"make {target} RUN=a NPROC={count}")[-1] for count in (1, 4))
    assert alone[:2] == [".venv/bin/mspose", command]
    start = ".venv/bin/torchrun --standalone --nproc-per-node 4 -m mspose"
    assert " ".join(four).startswith(f"{start} {command}")


def test_eval_asks_for_its_run():
    answer = make("-o", ".venv/.ready", "eval")
    assert answer.returncode != 0
    assert "RUN=" in answer.stdout + answer.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_the_pages_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert page.parent.joinpath(target).is_file(), target


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
