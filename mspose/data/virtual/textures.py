"""Painted surfaces for the virtual data set: every painter takes a generator and a size and returns
an RGB texture.

A pose can only be regressed from images whose places differ, so no painter repeats itself exactly:
regular patterns (bricks, boards, tiles) carry noise at scales from two texels to the whole surface,
and pictures are drawn anew each time. All sizes are in texels; `TEXELS_PER_METRE` of them make a
metre.

Textures are the same to the last bit everywhere: OpenCV is used for what it computes in whole
numbers (drawing at integer points and angles, exact bilinear resizing of bytes), NumPy for the
rest, by the rules of `exact.py`.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mspose.data.virtual.exact import cosine_sine, uniform

TEXELS_PER_METRE = 150.0

Image = NDArray[np.uint8]  # (H, W, 3), RGB
Colour = Sequence[float]  # red, green, blue in 0..255
Painter = Callable[
    [np.random.Generator, int, int], Image
]  # (generator, height, width) -> (height, width, 3)


def fractal_noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    coarsest: float = 256.0,
    persistence: float = 0.7,
    stretch: tuple[float, float] = (1.0, 1.0),
) -> NDArray[np.float32]:
    """Noise (H, W), about -1..1, summed over octaves whose cells halve from `coarsest` texels down
    to two.

    `stretch` lengthens the cells along (y, x): (1, 12) gives the grain of a board.
    """
    total = np.zeros((height, width), np.float32)
    weight, offset, power, cell = 1.0, 0.0, 0.0, coarsest
    while cell >= 2.0 and weight >= 0.01:
        rows = max(2, math.ceil(height / (cell * stretch[0])) + 1)
        columns = max(2, math.ceil(width / (cell * stretch[1])) + 1)
        grid = rng.integers(256, size=(rows, columns), dtype=np.uint8)
        smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        total += np.float32(weight / 127.5) * smooth
        offset += weight
        power += weight * weight
        weight, cell = weight * persistence, cell / 2.0
    return (total - np.float32(offset)) / np.float32(0.9 * math.sqrt(power))


def _finish(image: NDArray[np.floating]) -> Image:
    return np.clip(image, 0.0, 255.0).astype(np.uint8, order="C")


def _tinted(
    rng: np.random.Generator, height: int, width: int, colour: Colour, contrast: float
) -> NDArray[np.float32]:
    """A plain colour under brightness noise at all scales and a slow drift of its hue."""
    brightness = 1.0 + contrast * fractal_noise(rng, height, width)
    drift = np.stack([fractal_noise(rng, height, width, 300.0, 0.3) for _ in range(3)], axis=-1)
    return np.asarray(colour, np.float32) * brightness[..., None] * (1.0 + 0.4 * contrast * drift)


def bright_colour(
    rng: np.random.Generator, low: float = 65.0, high: float = 205.0
) -> tuple[float, float, float]:
    """A random colour whose channels differ clearly."""
    channels = np.array([low, (low + high) / 2 + uniform(rng, -0.4, 0.4) * (high - low), high])
    red, green, blue = channels[rng.permutation(3)] * uniform(rng, 0.8, 1.05)
    return float(red), float(green), float(blue)


def _draw_shapes(
    rng: np.random.Generator,
    image: Image,
    count: int,
    smallest: float,
    largest: float,
    colours: Sequence[Colour] | None = None,
) -> None:
    """Draw `count` random ellipses, polygons, rings and strokes, large ones first, in place."""
    height, width = image.shape[:2]
    share = np.sort(rng.random(count))[::-1]
    sizes = (
        smallest + max(0.0, largest - smallest) * share * share * share
    )  # many small ones, a few large ones
    for size in sizes.tolist():
        colour = (
            bright_colour(rng, 50, 215)
            if colours is None
            else colours[int(rng.integers(len(colours)))]
        )
        x, y = uniform(rng, 0, width), uniform(rng, 0, height)
        degrees, kind = int(rng.integers(360)), int(rng.integers(4))
        if kind == 0:
            axes = (max(1, int(size)), max(1, int(size * uniform(rng, 0.4, 1.0))))
            cv2.ellipse(image, (int(x), int(y)), axes, degrees, 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == 1:
            cosine, sine = cosine_sine(
                np.sort(uniform(rng, 0, 2 * math.pi, int(rng.integers(3, 6))))
            )
            points = np.stack([x + size * cosine, y + size * sine], axis=-1)
            cv2.fillPoly(image, [points.astype(np.int32)], colour, cv2.LINE_AA)
        elif kind == 2:
            cv2.circle(
                image,
                (int(x), int(y)),
                max(2, int(size)),
                colour,
                max(1, int(size / 4)),
                cv2.LINE_AA,
            )
        else:
            cosine, sine = cosine_sine(degrees * (math.pi / 180))
            end = (int(x + 2 * size * cosine), int(y + 2 * size * sine))
            cv2.line(image, (int(x), int(y)), end, colour, max(1, int(size / 5)), cv2.LINE_AA)


def plaster(colour: Colour, contrast: float = 0.22, motifs: int = 0) -> Painter:
    """A painted wall: noise, stains and, where wanted, large flat motifs in related colours."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = _finish(_tinted(rng, height, width, colour, contrast))
        if motifs:
            tones = [
                np.clip(np.asarray(colour) * uniform(rng, 0.6, 1.3, 3), 0, 255).tolist()
                for _ in range(4)
            ]
            _draw_shapes(rng, image, motifs, 8, 90, tones)
            grain = 1.0 + 0.5 * contrast * fractal_noise(rng, height, width, 32.0)
            image = _finish(image * grain[..., None])
        return image

    return paint


def bricks(
    colour: Colour,
    brick: tuple[int, int] = (36, 12),
    mortar: Colour = (170, 165, 155),
    spread: float = 0.22,
) -> Painter:
    """Courses of bricks (width, height in texels), each with its own tone; also cut stone, with
    large bricks.
    """

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        long, high = brick
        y, x = np.mgrid[0:height, 0:width]
        row = y // high
        shift = rng.integers(0, long, height // high + 1)[row]
        column = (x + shift) // long
        tone = uniform(rng, 1 - spread, 1 + spread, (height // high + 1, width // long + 3, 3))
        mean = (tone[..., :1] + tone[..., 1:2] + tone[..., 2:]) / 3
        tone = 0.7 * mean + 0.3 * tone
        image = np.asarray(colour) * tone[row, column]
        joint = ((y % high) < max(1, high // 10)) | (((x + shift) % long) < max(1, high // 10))
        image[joint] = mortar
        return _finish(image * (1.0 + 0.25 * fractal_noise(rng, height, width))[..., None])

    return paint


def boards(colour: Colour, board: int = 20, along_x: bool = True, spread: float = 0.2) -> Painter:
    """Wooden boards with grain, `board` texels wide, running along the texture's x or y axis."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        high, wide = (height, width) if along_x else (width, height)
        y, x = np.mgrid[0:high, 0:wide]
        row = y // board
        length = 8 * board
        shift = rng.integers(0, length, high // board + 1)[row]
        column = (x + shift) // length
        tone = uniform(rng, 1 - spread, 1 + spread, (high // board + 1, wide // length + 3))[
            row, column
        ]
        grain = fractal_noise(rng, high, wide, 24.0, 0.8, (1.0, 12.0))
        image = np.asarray(colour) * (tone * (1.0 + 0.22 * grain))[..., None]
        image[((y % board) == 0) | (((x + shift) % length) == 0)] *= 0.5
        image *= (1.0 + 0.15 * fractal_noise(rng, high, wide))[..., None]
        return _finish(image if along_x else image.transpose(1, 0, 2))

    return paint


def tiles(colours: Sequence[Colour], tile: int = 45, joint: Colour = (120, 115, 110)) -> Painter:
    """Square tiles, each of a colour drawn from `colours`, some with a small ornament."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        y, x = np.mgrid[0:height, 0:width]
        rows, columns = height // tile + 1, width // tile + 1
        choice = np.asarray(colours, np.float64)[rng.integers(len(colours), size=(rows, columns))]
        choice *= uniform(rng, 0.85, 1.15, (rows, columns, 1))
        image = choice[y // tile, x // tile]
        image[((y % tile) < 2) | ((x % tile) < 2)] = joint
        image = _finish(image * (1.0 + 0.18 * fractal_noise(rng, height, width))[..., None])
        for row, column in np.argwhere(rng.random((rows, columns)) < 0.25):
            centre = (int((column + 0.5) * tile), int((row + 0.5) * tile))
            colour = bright_colour(rng)
            cv2.ellipse(
                image,
                centre,
                (tile // 3, int(rng.integers(3, tile // 3))),
                int(rng.integers(180)),
                0,
                360,
                colour,
                int(rng.integers(1, 4)),
                cv2.LINE_AA,
            )
        return image

    return paint


def paving(colour: Colour, stone: int = 50) -> Painter:
    """Irregular paving: the Voronoi cells of points, one at random in each square of `stone`
    texels.
    """

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        rows, columns = height // stone + 3, width // stone + 3  # one more square on each side
        seed_y, seed_x = rng.integers(stone, size=(2, rows * columns)).astype(np.int32)
        y, x = np.mgrid[0:height, 0:width].astype(np.int32)
        square_y, square_x = y // stone + 1, x // stone + 1
        nearest = np.full((height, width), 2**31 - 1, np.int32)
        label = np.zeros((height, width), np.int32)
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                number = (square_y + row) * columns + square_x + column
                down = (square_y + row - 1) * stone + seed_y[number] - y
                right = (square_x + column - 1) * stone + seed_x[number] - x
                squared = down * down + right * right
                label = np.where(squared < nearest, number, label)
                nearest = np.minimum(squared, nearest)
        tone = uniform(rng, 0.7, 1.25, (rows * columns, 1)) * uniform(
            rng, 0.93, 1.07, (rows * columns, 3)
        )
        image = np.asarray(colour) * tone[label]
        joint = np.zeros((height, width), bool)
        joint[1:] |= label[1:] != label[:-1]
        joint[:-1] |= joint[1:]
        joint[:, 1:] |= label[:, 1:] != label[:, :-1]
        joint[:, :-1] |= joint[:, 1:]
        image[joint] *= 0.55
        image *= (1.0 + 0.2 * fractal_noise(rng, height, width))[..., None]
        return _finish(image - 0.15 * np.sqrt(nearest.astype(np.float64))[..., None])

    return paint


def picture(frame: Colour = (60, 40, 25)) -> Painter:
    """An abstract painting, shapes from the size of the canvas down to a few texels, in a frame."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        ramp = np.linspace(0, 1, height)[:, None, None]
        ground = (1 - ramp) * bright_colour(rng) + ramp * bright_colour(rng)
        image = _finish(np.broadcast_to(ground, (height, width, 3)))
        size = min(height, width)
        _draw_shapes(rng, image, 26, max(2.0, size / 30), size / 2.5)
        image = _finish(image * (1.0 + 0.15 * fractal_noise(rng, height, width, 64.0))[..., None])
        border = max(2, size // 16)
        cv2.rectangle(image, (0, 0), (width - 1, height - 1), frame, 2 * border)
        return image

    return paint


def poster(paper: Colour = (235, 230, 215)) -> Painter:
    """A sheet with a title, a drawing and lines of writing."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = _finish(_tinted(rng, height, width, paper, 0.08))
        ink = tuple(uniform(rng, 10, 90, 3).tolist())
        end = (int(width * uniform(rng, 0.5, 0.9)), height // 7)
        cv2.rectangle(image, (width // 10, height // 14), end, bright_colour(rng), -1)
        drawing = image[height // 6 : height // 2, width // 10 : width - width // 10]
        if drawing.size:
            part = np.ascontiguousarray(drawing)
            _draw_shapes(rng, part, 12, 3, max(4, min(part.shape[:2]) / 2))
            drawing[:] = part
        for y in range(int(height * 0.55), int(height * 0.95), 7):
            x = width // 10
            while x < width * 0.85:
                word = int(rng.integers(4, 18))
                cv2.line(image, (x, y), (min(x + word, int(width * 0.9)), y), ink, 2)
                x += word + 5
        return image

    return paint


def books() -> Painter:
    """The spines of a row of books."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = np.full((height, width, 3), 25, np.uint8)
        x = 0
        while x < width:
            thick = int(rng.integers(4, 11))
            top = int(height * uniform(rng, 0.0, 0.3))
            colour = np.asarray(bright_colour(rng, 30, 200)) * uniform(rng, 0.5, 1.1)
            cv2.rectangle(image, (x, top), (x + thick - 1, height), colour.tolist(), -1)
            for y in uniform(rng, top, height, 2):
                cv2.line(
                    image,
                    (x, int(y)),
                    (x + thick - 2, int(y)),
                    bright_colour(rng),
                    int(rng.integers(1, 5)),
                )
            cv2.line(image, (x, top), (x, height), (15, 15, 15), 1)
            x += thick
        return _finish(image * (1.0 + 0.1 * fractal_noise(rng, height, width, 16.0))[..., None])

    return paint


def cabinet(colour: Colour, columns: int = 2, rows: int = 3) -> Painter:
    """Doors or drawers with handles."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = _finish(_tinted(rng, height, width, colour, 0.12))
        edge, handle = [0.45 * c for c in colour], bright_colour(rng, 90, 230)
        for row in range(rows):
            for column in range(columns):
                left, right = column * width // columns, (column + 1) * width // columns - 1
                top, bottom = row * height // rows, (row + 1) * height // rows - 1
                tone = uniform(rng, 0.85, 1.15)
                image[top:bottom, left:right] = _finish(image[top:bottom, left:right] * tone)
                cv2.rectangle(image, (left, top), (right, bottom), edge, 2)
                x, y = (
                    int(uniform(rng, 0.35, 0.65) * (right - left)) + left,
                    top + (bottom - top) // 3,
                )
                cv2.line(image, (x - 8, y), (x + 8, y), handle, 3)
        return image

    return paint


def window(sky: Colour = (200, 220, 245), frame: Colour = (235, 235, 230)) -> Painter:
    """A window: sky, hills and roofs behind glazing bars. Bright, as a window is."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = _finish(_tinted(rng, height, width, sky, 0.12))
        x = np.arange(width)
        for depth in range(3):
            corners = uniform(rng, -1, 1, 8)
            part, rest = np.divmod(7 * x, width)
            slope = corners[part] + (corners[part + 1] - corners[part]) * (rest / width)
            ridge = height * (0.45 + 0.15 * depth) + 0.08 * height * slope
            hill = np.array([90, 130, 80]) * uniform(rng, 0.7, 1.2, 3)
            image[np.arange(height)[:, None] > ridge] = _finish(hill)
        for _ in range(5):
            left, top = int(uniform(rng, 0, width)), int(uniform(rng, 0.4, 0.8) * height)
            colour = bright_colour(rng, 80, 200)
            cv2.rectangle(image, (left, top), (left + int(rng.integers(8, 30)), height), colour, -1)
        bar = max(3, width // 28)
        for column in np.linspace(0, width, int(rng.integers(3, 5))):
            cv2.line(image, (int(column), 0), (int(column), height), frame, bar)
        for row in np.linspace(0, height, 3):
            cv2.line(image, (0, int(row)), (width, int(row)), frame, bar)
        return image

    return paint


def door(colour: Colour) -> Painter:
    """A panelled door with a handle and a sign."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = boards(colour, 30, along_x=False, spread=0.06)(rng, height, width)
        dark, light = [0.5 * c for c in colour], [min(1.4 * c, 255.0) for c in colour]
        for top, bottom in ((0.06, 0.42), (0.5, 0.94)):
            for left, right in ((0.1, 0.45), (0.55, 0.9)):
                a, b = (
                    (int(left * width), int(top * height)),
                    (int(right * width), int(bottom * height)),
                )
                cv2.rectangle(image, a, b, dark, 4)
                cv2.line(image, (a[0], b[1]), b, light, 2)
        cv2.rectangle(image, (0, 0), (width - 1, height - 1), dark, 5)
        cv2.circle(
            image, (int(0.92 * width), int(0.48 * height)), 5, (220, 190, 90), -1, cv2.LINE_AA
        )
        return image

    return paint


def rug() -> Painter:
    """A woven rug: bands around the edge and motifs in the middle."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        ground, colours = bright_colour(rng, 50, 180), [bright_colour(rng) for _ in range(4)]
        image = _finish(_tinted(rng, height, width, ground, 0.1))
        _draw_shapes(rng, image, 40, 5, min(height, width) / 4, colours)
        for inset in (0, 8, 20):
            cv2.rectangle(
                image,
                (inset, inset),
                (width - 1 - inset, height - 1 - inset),
                colours[inset % 4],
                6,
            )
        weave = 1.0 + 0.12 * fractal_noise(rng, height, width, 4.0)
        return _finish(image * weave[..., None])

    return paint


def leaves(colour: Colour = (70, 120, 50)) -> Painter:
    """Foliage: thousands of small leaves, dark ones below light ones."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = _finish(np.broadcast_to(np.asarray(colour) * 0.35, (height, width, 3)))
        count = height * width // 40
        brightness = np.linspace(0.45, 1.3, count)[:, None]
        tones = np.clip(
            np.asarray(colour) * brightness * uniform(rng, 0.75, 1.25, (count, 3)), 0, 255
        ).tolist()
        places = rng.integers((0, 0, 2, 0), (width, height, 6, 180), size=(count, 4)).tolist()
        for tone, (x, y, length, degrees) in zip(tones, places, strict=True):
            cv2.ellipse(image, (x, y), (length, 2), degrees, 0, 360, tone, -1)
        return image

    return paint


def stripes(colours: Sequence[Colour], band: int = 24) -> Painter:
    """Cloth in vertical stripes of uneven width, for awnings, curtains and sofas."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        widths = rng.integers(
            max(1, band // 2), band + band // 2 + 1, size=width // max(1, band // 2) + 2
        )
        edges = np.cumsum(widths)
        which = (
            rng.integers(0, len(colours), edges.size + 1)
            if len(colours) > 2
            else np.arange(edges.size + 1) % 2
        )
        image = np.asarray(colours, np.float64)[which[np.searchsorted(edges, np.arange(width))]]
        folds = 1.0 + 0.25 * fractal_noise(rng, height, width, 128.0, 0.6, (6.0, 1.0))
        return _finish(image[None] * folds[..., None])

    return paint


def sky(horizon: Colour = (215, 225, 235), zenith: Colour = (90, 140, 210)) -> Painter:
    """One side of the sky above a horizon: a gradient and clouds."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        ramp = np.linspace(1, 0, height)[:, None, None]
        ramp = ramp * (0.7 + 0.3 * ramp)
        image = (1 - ramp) * np.asarray(horizon) + ramp * np.asarray(zenith)
        cloud = np.clip(1.6 * fractal_noise(rng, height, width, 200.0, 0.6, (1.0, 2.0)), 0, 1)[
            ..., None
        ]
        return _finish(image * (1 - cloud) + 248.0 * cloud)

    return paint


def screen() -> Painter:
    """A lit display with windows of text and colour."""

    def paint(rng: np.random.Generator, height: int, width: int) -> Image:
        image = _finish(_tinted(rng, height, width, bright_colour(rng, 30, 160), 0.1))
        for _ in range(4):
            left, top = int(uniform(rng, 0, 0.7) * width), int(uniform(rng, 0, 0.7) * height)
            right, bottom = (
                left + int(uniform(rng, 0.2, 0.5) * width),
                top + int(uniform(rng, 0.2, 0.5) * height),
            )
            cv2.rectangle(image, (left, top), (right, bottom), bright_colour(rng, 120, 255), -1)
            for y in range(top + 3, bottom - 2, 4):
                end = left + 2 + int(uniform(rng, 0.2, 0.9) * (right - left))
                cv2.line(image, (left + 2, y), (end, y), (30, 30, 40), 1)
        cv2.rectangle(image, (0, 0), (width - 1, height - 1), (20, 20, 22), 5)
        return image

    return paint
