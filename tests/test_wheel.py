"""The package as it is installed: from a wheel, in an empty folder, without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "LICENSE", "setup.cfg", "setup.py", "pyproject.toml")
CARD = {
    "format": "virtual",
    "scenes": {name: {"frames": {"train": 6, "test": 2}} for name in ("atelier", "library")},
    "render": {"width": 64, "height": 48, "focal_px": 50, "frames_per_sequence": 3},
}
TINY = (
    "--data.resize=48 --data.crop=40 --data.holdout=0 --model.pretrained=false --model.dim=16"
    " --model.heads=2 --model.feedforward=16 --model.head_hidden=16 --training.epochs=1"
    " --training.batch_size=4 --device=cpu --quiet"
)
SCRIPT = """
import sys, mspose
from mspose.cli import main
print(mspose.__file__)
for line in sys.stdin.read().splitlines():
    print("$", line, flush=True)
    try:
        main(line.split())
    except SystemExit as stop:
        print("exit", stop.code)
"""


def python(*words: object, text: str = "", **where: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)), input=text, text=True, stdout=subprocess.PIPE, check=False,
        stderr=subprocess.STDOUT, env=environment, timeout=240, **where,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The Python of an environment that our wheel was built for and installed into, which shares
    all other installed libraries.
    """
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    for path in (*map(ROOT.joinpath, FILES), *ROOT.glob("datasets/*.yaml")):
        (folder / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))
    left_out = shutil.ignore_patterns("__pycache__", "results")
    for name in ("mspose", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    python(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    own = folder / "env" / "bin" / "python"
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    # a path in it, unlike a site folder, is searched without its own .pth files
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    pip = [own, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    python(*pip, "install", "--no-deps", "--no-build-isolation", "--ignore-installed", folder)
    return own


@pytest.mark.timeout(600)
def test_an_installed_package_works_in_an_empty_folder(installed, tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "virtual.yaml").write_text(yaml.safe_dump(CARD))
    run = "runs/virtual/all/seed-0"
    commands = [
        "data list",
        f"train --config virtual {TINY}",
        f"evaluate {run} --device cpu --quiet",
        "table",
        "train --config experiments/7scenes.yaml",
        "ablate nothing",
        "bench load --quick --repeat 1",
    ]
    out = python(installed, "-c", SCRIPT, text="\n".join(commands), cwd=tmp_path)
    where, *answers = out.split("$ ")
    assert str(installed.parents[1]) in where
    said = dict(zip(commands, (answer.partition("\n")[2] for answer in answers), strict=True))
    assert f"{tmp_path}/datasets/7scenes " in said["data list"]
    assert f"{tmp_path}/datasets/virtual " in said["data list"]
    assert run in said[commands[1]]
    assert "virtual/all" in said["table"]
    assert f"{tmp_path}/datasets/7scenes/chess" in said[commands[4]]
    assert "there are: attention-regularisers, baselines" in said["ablate nothing"]
    assert "exit" not in "".join(said[command] for command in (*commands[:4], commands[-1]))
    script = installed.with_name("mspose")
    assert python(script, "--version", cwd=tmp_path).startswith("mspose ")
