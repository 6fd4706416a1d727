"""A library that is missing, or that cannot be loaded, is one line with what to install."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mspose.libraries import LIBRARIES, SYSTEM_PACKAGES, missing_library, require

ROOT = Path(__file__).parents[1]
BROKEN = {
    "libGL": "libGL.so.1: cannot open shared object file: No such file or directory",
    "libgthread-2.0": "libgthread-2.0.so.0: cannot open shared object file: No such file",
    "ABI": "numpy.core.multiarray\nfailed to import",
}


def broken(folder: Path, module: str, text: str) -> dict[str, str]:
    """The environment of a process in which a module raises ImportError when it is imported."""
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(f"raise ImportError({text!r})\n")
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths}


@pytest.mark.parametrize(
    ("words", "uses"),
    [
        ("data get --dataset virtual --root rendered --quiet", "virtual rooms, data check and"),
        ("data check {card} --quiet", "virtual rooms, data check and"),
    ],
)
def test_commands_name_the_systems_package_that_opencv_lacks(words, uses, small_data, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mspose", *words.format(card=small_data).split()],
        cwd=tmp_path,
        env=broken(tmp_path, "cv2", BROKEN["libGL"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mspose: error: {uses}")
    assert "without the system's libGL.so.1: install its package" in line
    assert "apt-get install libgl1 libglib2.0-0" in line


@pytest.mark.parametrize("kind", BROKEN)
def test_a_library_that_cannot_be_loaded(kind, tmp_path, monkeypatch):
    broken(tmp_path, "viser", BROKEN[kind])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "viser", raising=False)
    with pytest.raises(Exception, match=r"^mspose view needs viser, which ") as caught:
        require("viser")
    text = str(caught.value)
    assert "\n" not in text
    package = SYSTEM_PACKAGES.get(kind)
    assert (package or "pip install --force-reinstall viser") in text


@pytest.mark.parametrize("module", LIBRARIES)
def test_a_library_that_is_not_installed(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    library = LIBRARIES[module]
    with pytest.raises(Exception, match=f"^{re.escape(library.purpose)} {module}: pip install"):
        require(module)


def test_a_fault_of_this_package_is_none_of_a_library():
    with pytest.raises(ImportError) as caught:
        exec("from mspose.errors import Nothing")
    assert missing_library(caught.value) is None


def test_the_first_page_names_the_package_that_slim_systems_lack():
    assert SYSTEM_PACKAGES["libGL"] in (ROOT / "README.md").read_text()
