"""Furniture of the virtual scenes, made of the patches, boxes, cylinders and balls of a
`SceneBuilder`.
"""

import math
from itertools import pairwise

import numpy as np

from mspose.data.virtual import textures as paint
from mspose.data.virtual.exact import uniform
from mspose.data.virtual.scene import Place, SceneBuilder
from mspose.data.virtual.textures import Colour, Painter


def wood(rng: np.random.Generator) -> Painter:
    """Boards of a random wood or paint."""
    tones: list[Colour] = [
        (150, 105, 65),
        (190, 150, 100),
        (95, 62, 42),
        (170, 175, 170),
        (120, 60, 45),
        (70, 95, 100),
    ]
    return paint.boards(
        tones[int(rng.integers(len(tones)))], int(rng.integers(12, 30)), bool(rng.integers(2)), 0.12
    )


def clutter(b: SceneBuilder, place: Place, width: float, depth: float, count: int) -> None:
    """Small things side by side on a surface of this size: books, boxes, vases, balls, a screen."""
    slots = np.linspace(-width / 2, width / 2, count + 1)
    for left, right in pairwise(slots.tolist()):
        rng = b.generator()
        room = min(0.8 * (right - left), 0.8 * depth, 0.35)
        x = uniform(rng, left + room / 2, max(right - room / 2, left + room / 2))
        slack = (depth - room) / 2
        spot = place.moved(x, uniform(rng, -slack, slack))
        turn, kind = uniform(rng, -0.5, 0.5), int(rng.integers(6))
        colour = paint.bright_colour(rng)
        size = room * uniform(rng, 0.45, 0.75)
        if kind == 0:
            for layer in range(int(rng.integers(2, 6))):
                b.box(
                    spot.moved(0, 0, 0.035 * layer, uniform(rng, -0.3, 0.3)),
                    size,
                    0.7 * size,
                    0.035,
                    paint.plaster(paint.bright_colour(rng), 0.2),
                    top=paint.picture(),
                )
        elif kind == 1:
            b.box(
                spot.moved(turn=turn),
                size,
                0.8 * size,
                uniform(rng, 0.6, 1.3) * size,
                paint.plaster(colour, 0.2, motifs=8),
                front=paint.poster(),
            )
        elif kind == 2:
            r = size / 2
            b.turned_surface(
                spot,
                [(0.4 * r, 2.6 * r), (0.6 * r, 2.2 * r), (r, 1.2 * r), (0.6 * r, 0.0)],
                paint.plaster(colour, 0.3, motifs=12),
            )
        elif kind == 3:
            b.ball(spot, size / 2, paint.plaster(colour, 0.2, motifs=10))
        elif kind == 4:
            wide = min(1.2 * room, 0.6)
            b.box(
                spot.moved(turn=0.5 * turn),
                wide,
                0.05,
                0.65 * wide,
                paint.plaster((40, 40, 45), 0.2),
                front=paint.screen(),
                glowing_front=True,
            )
        else:
            spot = spot.moved(turn=turn)
            b.box(
                spot,
                size,
                0.5 * size,
                1.1 * size,
                paint.plaster(colour, 0.1),
                front=paint.picture(),
            )


def table(
    b: SceneBuilder,
    place: Place,
    width: float = 1.4,
    depth: float = 0.7,
    height: float = 0.72,
    things: int = 4,
) -> None:
    """A table with things on it."""
    rng = b.generator()
    b.stand(place, width, depth)
    material = wood(rng)
    b.box(place.moved(up=height - 0.05), width, depth, 0.05, material, bottom=True)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.box(
                place.moved(sx * (width / 2 - 0.06), sy * (depth / 2 - 0.06)),
                0.07,
                0.07,
                height - 0.05,
                material,
            )
    clutter(b, place.moved(up=height), width - 0.1, depth - 0.1, things)


def chair(b: SceneBuilder, place: Place) -> None:
    """A chair; its back is at its back."""
    rng = b.generator()
    b.stand(place, 0.45, 0.45)
    material = wood(rng)
    cloth = paint.stripes([paint.bright_colour(rng) for _ in range(3)], 8)
    b.box(place.moved(up=0.42), 0.45, 0.45, 0.05, material, top=cloth)
    back = paint.plaster(paint.bright_colour(rng), 0.2, 10)
    b.box(place.moved(back=0.2, up=0.47), 0.45, 0.04, 0.45, material, front=back)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.box(place.moved(sx * 0.19, sy * 0.19), 0.05, 0.05, 0.42, material)


def bookcase(
    b: SceneBuilder, place: Place, width: float = 1.2, depth: float = 0.32, height: float = 2.1
) -> None:
    """Open shelves with books and things standing in them."""
    rng = b.generator()
    b.stand(place, width, depth)
    material = wood(rng)
    b.box(place.moved(back=depth / 2 - 0.01), width, 0.02, height, material)
    for sx in (-1, 1):
        b.box(place.moved(sx * (width / 2 - 0.015)), 0.03, depth, height, material)
    levels = max(2, round(height / 0.38))
    for level in range(levels + 1):
        up = level * (height - 0.03) / levels
        b.box(place.moved(up=up), width - 0.06, depth, 0.03, material, bottom=True)
        if level == levels:
            break
        left = -width / 2 + 0.05
        while left < width / 2 - 0.2:
            wide = min(uniform(rng, 0.12, 0.45), width / 2 - 0.05 - left)
            tall = (height / levels - 0.05) * uniform(rng, 0.6, 0.95)
            spot = place.moved(left + wide / 2, uniform(rng, 0.0, 0.06), up + 0.03)
            if rng.random() < 0.75:
                b.box(
                    spot,
                    wide,
                    depth - 0.16,
                    tall,
                    paint.plaster((90, 75, 60), 0.2),
                    front=paint.books(),
                )
            else:
                clutter(b, spot, wide, depth - 0.16, 1)
            left += wide + uniform(rng, 0.01, 0.15)


def cupboard(
    b: SceneBuilder,
    place: Place,
    width: float = 1.0,
    depth: float = 0.45,
    height: float = 0.9,
    colour: Colour = (150, 120, 90),
    things: int = 3,
) -> None:
    """A chest of drawers, a wardrobe or a kitchen unit, with things on it where one can see its
    top.
    """
    rng = b.generator()
    b.stand(place, width, depth)
    front = paint.cabinet(colour, max(1, round(width / 0.45)), max(1, round(height / 0.35)))
    b.box(place, width, depth, height, paint.plaster(colour, 0.15), front=front, top=wood(rng))
    if things and height < 1.5:
        clutter(b, place.moved(up=height), width - 0.1, depth - 0.1, things)


def sofa(b: SceneBuilder, place: Place, width: float = 1.8) -> None:
    """A sofa with cushions."""
    rng = b.generator()
    b.stand(place, width, 0.8)
    cloth = paint.stripes([paint.bright_colour(rng, 60, 190) for _ in range(3)], 20)
    b.box(place, width, 0.8, 0.42, cloth)
    b.box(place.moved(back=0.3, up=0.42), width, 0.2, 0.4, cloth)
    for sx in (-1, 1):
        b.box(place.moved(sx * (width / 2 - 0.09), 0.0, 0.42), 0.18, 0.8, 0.18, cloth)
        b.box(
            place.moved(sx * 0.25 * width, 0.1, 0.42, uniform(rng, -0.3, 0.3)),
            0.4,
            0.12,
            0.36,
            paint.rug(),
        )


def crates(b: SceneBuilder, place: Place, count: int = 3, size: float = 0.45) -> None:
    """A stack of wooden crates, each turned a little."""
    rng = b.generator()
    b.stand(place, 1.1 * size, 1.1 * size)
    up = 0.0
    for _ in range(count):
        side = size * uniform(rng, 0.7, 1.0)
        turned = place.moved(up=up, turn=uniform(rng, -0.6, 0.6))
        b.box(turned, side, side, side, wood(rng), front=paint.poster())
        up += side


def column(
    b: SceneBuilder, place: Place, height: float, surface: Painter, radius: float = 0.16
) -> None:
    """A round column on a square foot, with a square head."""
    b.stand(place, 3 * radius, 3 * radius)
    b.box(place, 3 * radius, 3 * radius, 0.2, surface)
    b.turned_surface(place, [(radius * 0.9, height), (radius, 0.2)], surface, 14)
    b.box(place.moved(up=height - 0.15), 2.8 * radius, 2.8 * radius, 0.17, surface, bottom=True)


def plant(b: SceneBuilder, place: Place, height: float = 1.2) -> None:
    """A potted plant or, when tall, a small tree."""
    rng = b.generator()
    b.stand(place, 0.45, 0.45)
    pot = paint.plaster(paint.bright_colour(rng, 70, 190), 0.3, motifs=14)
    b.turned_surface(place, [(0.0, 0.28), (0.2, 0.3), (0.22, 0.3), (0.15, 0.0)], pot)
    b.turned_surface(
        place, [(0.03, 0.7 * height), (0.045, 0.25)], paint.boards((95, 70, 50), 6, False), 8
    )
    green = np.array((75, 125, 50)) * uniform(rng, (0.7, 0.8, 0.7), (1.4, 1.15, 1.6))
    spread = 0.16 * height
    for _ in range(5):
        right, back = uniform(rng, -spread, spread, 2).tolist()
        up, radius = uniform(rng, 0.45, 0.75) * height, uniform(rng, 0.5, 0.95) * spread
        b.ball(place.moved(right, back, up), radius, paint.leaves(green.tolist()))


def hanging_lamp(b: SceneBuilder, place: Place, ceiling: float, drop: float = 0.7) -> None:
    """A lamp on a cord below the ceiling; lights the scene."""
    rng = b.generator()
    shade = paint.stripes([paint.bright_colour(rng, 90, 230) for _ in range(3)], 10)
    foot = Place(place.x, place.y, ceiling - drop)
    b.turned_surface(foot, [(0.01, drop), (0.01, 0.2)], paint.plaster((40, 40, 40)), 6)
    b.turned_surface(foot, [(0.02, 0.2), (0.1, 0.16), (0.2, 0.0)], shade, 12, glowing=True)
    b.lamps.append((place.x, place.y, ceiling - drop - 0.05))


def bench(b: SceneBuilder, place: Place, width: float = 1.5) -> None:
    """A garden bench."""
    rng = b.generator()
    b.stand(place, width, 0.5)
    material = wood(rng)
    b.box(place.moved(up=0.4), width, 0.45, 0.05, material)
    b.box(place.moved(back=0.21, up=0.55), width, 0.04, 0.32, material)
    for sx in (-1, 1):
        b.box(place.moved(sx * 0.42 * width), 0.08, 0.45, 0.4, paint.plaster((80, 80, 85)))
        b.box(
            place.moved(sx * 0.42 * width, 0.21, 0.4), 0.06, 0.03, 0.45, paint.plaster((80, 80, 85))
        )


def planter(b: SceneBuilder, place: Place, width: float = 1.2, depth: float = 0.5) -> None:
    """A raised bed with bushes."""
    rng = b.generator()
    b.stand(place, width, depth)
    b.box(
        place,
        width,
        depth,
        0.45,
        paint.bricks((150, 110, 90), (24, 9)),
        top=paint.plaster((70, 50, 35), 0.4),
    )
    for right in np.linspace(
        -width / 2 + depth / 2, width / 2 - depth / 2, max(2, round(width / 0.45))
    ).tolist():
        tone = uniform(rng, (50, 90, 30), (130, 160, 90))
        b.ball(
            place.moved(right, 0.0, 0.4),
            0.45 * depth * uniform(rng, 0.7, 1.1),
            paint.leaves(tone.tolist()),
        )


def stall(b: SceneBuilder, place: Place, width: float = 1.8, depth: float = 0.9) -> None:
    """A market stall: a counter with goods under a striped awning."""
    rng = b.generator()
    b.stand(place, width, depth)
    b.box(
        place, width, depth, 0.8, wood(rng), front=paint.plaster(paint.bright_colour(rng), 0.2, 30)
    )
    clutter(b, place.moved(up=0.8), width - 0.1, depth - 0.2, 6)
    for sx in (-1, 1):
        for sy in (-1, 1):
            foot = place.moved(sx * (width / 2 - 0.03), sy * (depth / 2 - 0.03), 0.8)
            b.box(foot, 0.05, 0.05, 1.2 + 0.2 * sy, wood(rng))
    cloth = b.texture(
        paint.stripes([paint.bright_colour(rng, 60, 220), (235, 230, 215)], 22), width + 0.2, 1.2
    )
    left, front, rear = -width / 2 - 0.1, -depth / 2 - 0.2, depth / 2 + 0.1
    right_3, slope_3 = place.vector((width + 0.2, 0, 0)), place.vector((0, front - rear, -0.6))
    b.patch(place.point((left, rear, 2.3)), right_3, slope_3, cloth)
    b.patch(place.point((left, front, 1.7)), right_3, -slope_3, cloth)


def well(b: SceneBuilder, place: Place) -> None:
    """A round stone well with a roof on two posts."""
    rng = b.generator()
    b.stand(place, 1.2, 1.2)
    stone = paint.bricks((150, 145, 135), (30, 14))
    b.turned_surface(
        place, [(0.0, 0.45), (0.42, 0.45), (0.42, 0.7), (0.55, 0.7), (0.58, 0.0)], stone, 14
    )
    for sx in (-1, 1):
        b.box(place.moved(sx * 0.5, 0.0, 0.6), 0.09, 0.09, 1.1, wood(rng))
    roof = paint.bricks((150, 80, 60), (18, 12))
    for turn in (0.0, math.pi):
        half = place.moved(turn=turn)
        for sign in (1, -1):  # outside, then inside
            corner, right = half.point((-0.7 * sign, 0.0, 2.1)), half.vector((1.4 * sign, 0, 0))
            b.patch(corner, right, half.vector((0, -0.6, -0.4)), roof)


def hang(
    b: SceneBuilder,
    place: Place,
    width: float,
    height: float,
    surface: Painter,
    thick: float = 0.03,
    glowing: bool = False,
) -> None:
    """Hang something flat on a wall; `place` is the middle of its lower edge, on the wall."""
    b.box(
        place.moved(back=-thick / 2),
        width,
        thick,
        height,
        paint.plaster((70, 60, 50)),
        front=surface,
        bottom=True,
        glowing_front=glowing,
    )
