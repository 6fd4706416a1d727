"""The changes that docs/extending.md shows, applied to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mspose.data.cards import load_frames, read_card

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"```diff\n(.*?)```\n+```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize(("diff", "code"), SECTIONS, ids=["encoding", "loss term", "backbone"])
def test_the_shown_change_of_one_file_works(diff, code, tmp_path):
    shutil.copytree(
        ROOT / "mspose", tmp_path / "mspose", ignore=shutil.ignore_patterns("__pycache__")
    )
    assert len(re.findall(r"^\+\+\+ ", diff, re.M)) == 1
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_the_shown_card_loads(tmp_path):
    card = re.search(r"```yaml\n(.*?)```", PAGE, re.S)
    assert card is not None
    (tmp_path / "attic.yaml").write_text(card[1])
    folder = tmp_path / yaml.safe_load(card[1])["root"]
    folder.mkdir()
    header = "scene,split,seq,img_path,t1,t2,t3,q1,q2,q3,q4"
    (folder / "a.png").touch()
    (folder / "labels.csv").write_text(f"{header}\nattic,train,1,a.png,0,0,1,1,0,0,0\n")
    frames = load_frames(read_card(tmp_path / "attic.yaml"), split="train")
    assert frames["tz"].tolist() == [1.0]
