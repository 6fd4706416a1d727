"""Arithmetic that gives the same bits on every processor.

Rooms and paths follow from random numbers by many decisions: whether a picture fits on a wall, how
many books stand on a shelf, which surfaces face the camera. A single bit can turn a decision, so
all that leads to one is computed with
operations whose results IEEE 754 defines to the last bit: + - * / and the square root of single
numbers, comparisons and rounding. Sine, exponential and power are not among them (their last bit
depends on the C library and on the processor's vector unit), nor are matrix products, `numpy.sum`
and `numpy.linalg.norm`, which add in an order that depends on the processor too, nor is Python's
`sum`, which adds more precisely from 3.12 on; `math.fsum` is exact. NumPy rounds after every
operation on whole arrays, as Python does on single numbers.

Of the generators `random`, `integers` and `permutation` are exact; `uniform` is not, since
compilers may fuse its multiplication and addition, nor are `normal`, `dirichlet` and the like,
which take logarithms.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_QUARTER = math.pi / 2
_QUARTER_HIGH = 1.57079632673412561417  # its first 33 bits: whole multiples of it are exact
_QUARTER_LOW = 6.07710050650619224932e-11  # the rest of pi / 2
_SINE = [(-1) ** n / math.factorial(2 * n + 1) for n in range(8)]  # Taylor coefficients
_COSINE = [(-1) ** n / math.factorial(2 * n) for n in range(9)]


def uniform(
    rng: np.random.Generator,
    low: ArrayLike,
    high: ArrayLike,
    size: int | tuple[int, ...] | None = None,
) -> Any:
    """Random numbers between `low` and `high`, as `Generator.uniform` draws them: a float, or an
    array.
    """
    if isinstance(low, int | float) and isinstance(high, int | float):
        return low + (high - low) * rng.random(size)
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return low + (high - low) * rng.random(
        np.broadcast_shapes(low.shape, high.shape) if size is None else size
    )


def cosine_sine(angle: ArrayLike) -> tuple[Any, Any]:
    """Cosine and sine of angles in radians (up to thousands), within 1e-15."""
    angle = np.asarray(angle, np.float64)
    quarters = np.rint(angle / _QUARTER)
    rest = (
        angle - quarters * _QUARTER_HIGH
    ) - quarters * _QUARTER_LOW  # at most an eighth of a turn
    square = rest * rest
    cosine, sine = _polynomial(_COSINE, square), rest * _polynomial(_SINE, square)
    turn = quarters.astype(np.int64) % 4
    odd = turn % 2 == 1
    first, second = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    return np.where((turn == 1) | (turn == 2), -first, first), np.where(turn >= 2, -second, second)


def _polynomial(coefficients: list[float], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of coefficients[n] * x^n."""
    result = np.full(x.shape, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def dot(a_3: NDArray[Any], b_3: NDArray[Any]) -> NDArray[Any]:
    """Products (...,) of vectors (..., 3), added from x to z."""
    return a_3[..., 0] * b_3[..., 0] + a_3[..., 1] * b_3[..., 1] + a_3[..., 2] * b_3[..., 2]


def length(vector_3: NDArray[Any]) -> NDArray[Any]:
    """Euclidean lengths (...,) of vectors (..., 3)."""
    return np.sqrt(dot(vector_3, vector_3))


def matrix_product(a_33: NDArray[np.float64], b_33: NDArray[np.float64]) -> NDArray[np.float64]:
    """Products (..., 3, 3) of matrices (..., 3, 3)."""
    terms = [a_33[..., :, k, None] * b_33[..., None, k, :] for k in range(3)]
    return terms[0] + terms[1] + terms[2]


def rotation_matrix(vector_3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations (..., 3, 3) about axes by angles, both given by rotation vectors (..., 3)
    (Rodrigues' formula).
    """
    angle = length(vector_3)
    x, y, z = np.moveaxis(vector_3 / np.where(angle > 0, angle, 1.0)[..., None], -1, 0)
    c, s = cosine_sine(angle)
    rest = 1.0 - c
    rows = [
        [c + rest * x * x, rest * x * y - s * z, rest * x * z + s * y],
        [rest * x * y + s * z, c + rest * y * y, rest * y * z - s * x],
        [rest * x * z - s * y, rest * y * z + s * x, c + rest * z * z],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def median(values: NDArray[np.float64]) -> float:
    """Middle value, or the mean of the middle two."""
    ordered = np.sort(values, axis=None)
    low, high = ordered[(ordered.size - 1) // 2], ordered[ordered.size // 2]
    return float((low + high) / 2.0)
