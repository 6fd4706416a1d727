"""Rooms, paths and poses are the same to the bit, and images but for rounding, whatever the
libraries run on.

The libraries choose their code by processor: here they are told to take that of others.
"""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from mspose.data.virtual import VERSION

ROOT = Path(__file__).parents[3]
GREY_LEVELS, SHARE = 1, 0.001  # by which images may differ, and in how many of their pixels
NUMPY = " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
OPENCV = ",".join(
    name[1:] for name in cv2.getCPUFeaturesLine().split() if name[0] == "*" and name[-1] != "?"
)

PINNED = {
    "atelier": ("071005bd34da5bcd", [137, 109, 112, 102, 137, 127, 133, 116, 104, 100, 101, 103]),
    "library": ("d20502cb086c305b", [110, 124, 72, 56, 107, 121, 77, 59, 73, 106, 79, 59]),
    "courtyard": ("a4ff628f6e0c9c73", [163, 134, 112, 91, 129, 148, 133, 104, 134, 155, 139, 154]),
    "workshop": ("8541d782e96cbfb0", [159, 115, 109, 101, 122, 117, 104, 79, 88, 78, 74, 76]),
    "gallery": ("e2addbda2375ce56", [98, 132, 127, 227, 105, 121, 122, 154, 75, 99, 124, 141]),
    "kitchenette": (
        "a4f15c73f01c9fa7",
        [186, 130, 153, 215, 206, 140, 150, 168, 192, 112, 87, 106],
    ),
    "arcade": ("c5a729c1b5bf36ab", [91, 116, 154, 130, 89, 98, 93, 132, 78, 82, 104, 95]),
}
"""By scene: of what must be equal to the bit, and mean grey levels of the first image's 3 x 4
parts.
"""

SETTINGS = {
    "openblas-haswell-opencv-baseline": {
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENCV_CPU_DISABLE": OPENCV,
        "OPENCV_IPP": "disabled",
        "JSIMD_FORCENONE": "1",
    },
    "openblas-sandybridge-opencv-without-ipp-numpy-baseline": {
        "OPENBLAS_CORETYPE": "Sandybridge",
        "OPENCV_IPP": "disabled",
        "NPY_DISABLE_CPU_FEATURES": NUMPY,
    },
    "openblas-skylakex-two-threads": {
        "OPENBLAS_CORETYPE": "SkylakeX",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
    },
}
"""Of one library each, together to save time; OpenBLAS multiplies on Zen as on Haswell."""


def run(command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def taken(folder, **environment):
    file = folder / "snapshot.npz"
    ended = run([str(Path(__file__).with_name("snapshot.py")), str(file)], **environment)
    if ended.returncode == -signal.SIGILL:
        pytest.skip(f"this processor has not the instructions that {environment} asks for")
    assert ended.returncode == 0, ended.stderr
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return taken(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("scene", PINNED)
def test_a_version_always_renders_the_same(plain, scene):
    """Whoever changes these raises VERSION, so that frames of before are not taken for those of
    now.
    """
    assert VERSION == 2
    exact = [
        name
        for name in sorted(plain)
        if name.endswith(f"/{scene}") and not name.startswith("image/")
    ]
    digest = hashlib.sha256(b"".join(plain[name].tobytes() for name in exact)).hexdigest()[:16]
    parts = plain[f"image/{scene}"][0].reshape(3, 40, 4, 40, 3).mean(axis=(1, 3, 4))
    assert digest == PINNED[scene][0]
    assert np.abs(parts.ravel() - PINNED[scene][1]).max() <= 1.0


@pytest.mark.parametrize("name", SETTINGS)
def test_scenes_and_poses_are_the_same_to_the_bit_and_images_but_for_rounding(
    plain, tmp_path, name
):
    other = taken(tmp_path, **SETTINGS[name])
    assert other.keys() == plain.keys()
    for key, array in plain.items():
        assert other[key].shape == array.shape, key
        if not key.startswith("image/"):
            assert other[key].tobytes() == array.tobytes(), key
            continue
        difference = np.abs(other[key].astype(int) - array).max(axis=-1)
        assert difference.max() <= GREY_LEVELS, key
        assert np.mean(difference > 0) <= SHARE, key


def test_the_settings_do_change_what_libraries_compute():
    """A matrix product comes out otherwise under one core type or another: the comparisons above
    can fail.
    """
    types = ("Haswell", "Sandybridge", "Prescott")
    code = (
        "import numpy as np; a = np.random.default_rng(0).random((64, 64)); print((a @"
        " a).tobytes().hex())"
    )
    found = {run(["-c", code], OPENBLAS_CORETYPE=name).stdout for name in types}
    if "" in found:
        pytest.skip(
            "this processor, or its library of linear algebra, has not all of these core types"
        )
    assert len(found) > 1
