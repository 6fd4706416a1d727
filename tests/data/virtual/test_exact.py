"""The exact arithmetic against the libraries' own, and its very bits."""

import ast
import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from mspose.data.virtual import exact
from mspose.data.virtual.exact import (
    cosine_sine,
    length,
    matrix_product,
    median,
    rotation_matrix,
    uniform,
)


def bits(*arrays):
    return hashlib.sha256(
        b"".join(np.asarray(array, "<f8").tobytes() for array in arrays)
    ).hexdigest()[:16]


def test_cosine_and_sine_are_those_of_the_c_library_to_a_few_bits():
    rng = np.random.default_rng(0)
    eighths = np.arange(-64, 65) * (math.pi / 4)
    angles = np.concatenate(
        [rng.uniform(-4, 4, 20000), rng.uniform(-2000, 2000, 20000), eighths, [0.0, 1e-300, -1e-9]]
    )
    cosine, sine = cosine_sine(angles)
    assert np.abs(cosine - [math.cos(angle) for angle in angles]).max() < 5e-16
    assert np.abs(sine - [math.sin(angle) for angle in angles]).max() < 5e-16
    assert [float(value) for value in cosine_sine(0.0)] == [1.0, 0.0]


def test_a_number_has_the_same_bits_as_in_an_array():
    angles = np.linspace(-7, 7, 101)
    arrays = cosine_sine(angles)
    for i, angle in enumerate(angles.tolist()):
        assert [float(value) for value in cosine_sine(angle)] == [array[i] for array in arrays]


def test_rotations_are_those_of_opencv():
    vectors = np.random.default_rng(0).normal(0, 1, (50, 3))
    vectors[0] = 0
    rotations = rotation_matrix(vectors)
    for rotation, vector in zip(rotations, vectors, strict=True):
        assert np.allclose(rotation, cv2.Rodrigues(vector)[0], atol=1e-14)
    assert np.allclose(matrix_product(rotations, rotations), rotations @ rotations, atol=1e-14)
    assert np.allclose(length(vectors), np.linalg.norm(vectors, axis=1), rtol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_medians_are_numpys(count):
    values = np.random.default_rng(count).random(count)
    assert median(values) == np.median(values)


def test_uniform_numbers_have_numpys_shapes_and_limits():
    rng = np.random.default_rng(0)
    assert isinstance(uniform(rng, 2.0, 3.0), float)
    assert uniform(rng, -1.0, 1.0, (4, 2)).shape == (4, 2)
    corner = uniform(rng, (0.0, 10.0, -5.0), (1.0, 20.0, -4.0))
    assert (corner >= (0, 10, -5)).all()
    assert (corner < (1, 20, -4)).all()
    many = uniform(rng, 3.0, 5.0, 10000)
    assert many.min() >= 3.0
    assert many.max() < 5.0
    assert many.mean() == pytest.approx(4.0, abs=0.05)


def test_the_bits_are_these_everywhere():
    rng = np.random.default_rng(0)
    numbers = uniform(rng, -3.0, 8.0, (1000, 3))
    assert bits(numbers) == "b45d7a8f16577737"
    assert bits(*cosine_sine(numbers)) == "ce39b8668c9b7f16"
    assert bits(rotation_matrix(numbers), length(numbers)) == "5a2e5ad1b9de2ebd"


INEXACT = {
    *(
        "sin",
        "cos",
        "tan",
        "arctan",
        "arctan2",
        "exp",
        "log",
        "log2",
        "power",
        "hypot",
        "einsum",
        "matmul",
        "inner",
    ),
    *("linalg", "mean", "std", "average", "prod", "interp", "median", "trapezoid", "pow"),
    *(
        "normal",
        "dirichlet",
        "gamma",
        "beta",
        "exponential",
        "GaussianBlur",
        "Rodrigues",
        "INTER_CUBIC",
        "INTER_AREA",
    ),
}


@pytest.mark.parametrize(
    "path", sorted(Path(exact.__file__).parent.glob("*.py")), ids=lambda path: path.stem
)
def test_the_package_uses_no_arithmetic_that_differs_between_processors(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)), (
            f"line {node.lineno}: @"
        )
        if isinstance(node, ast.Attribute):
            assert node.attr not in INEXACT, f"line {node.lineno}: {node.attr}"
            # `rng.uniform`: a compiler may fuse its multiplication and addition
            drawn = (
                node.attr == "uniform"
                and isinstance(node.value, ast.Name)
                and node.value.id == "rng"
            )
            assert not drawn, f"line {node.lineno}: rng.uniform"
        if (
            path.stem not in ("dataset", "sequences")
            and isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
        ):
            assert node.func.id != "sum", (
                f"line {node.lineno}: sum, which adds otherwise from Python 3.12 on"
            )
