"""The changes that docs/extending.md shows, applied to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from mspose.data.cards import load_frames, read_card

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.S)
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_shown_changes_of_one_file_each_work(tmp_path):
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mspose", tmp_path / "mspose", ignore=left_out)
    assert len(DIFFS) == len(CODE) == 3  # of a position encoding, a loss term and a backbone
    changed = {name for diff in DIFFS for name in re.findall(r"^\+\+\+ (.*)", diff, re.M)}
    assert len(changed) == 3
    for diff in DIFFS:
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = [sys.executable, "-c", "\n".join(CODE)]
    subprocess.run(code, cwd=tmp_path, env=environment, check=True)


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
