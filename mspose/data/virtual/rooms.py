"""The seven virtual scenes: how each room or courtyard is laid out and furnished.

Everything in a scene is drawn from the data set's seed and the scene's name, so that a scene does
not depend on which other scenes are rendered. None of the names is one of 7Scenes'.
"""

from collections.abc import Callable

import numpy as np

from mspose.data.virtual import furniture
from mspose.data.virtual import textures as paint
from mspose.data.virtual.exact import uniform
from mspose.data.virtual.furniture import wood
from mspose.data.virtual.scene import WALL_YAW, Place, Scene, SceneBuilder
from mspose.data.virtual.space import BENCH, CRATES, PLANT, PLANTER, TABLE, Piece, Space
from mspose.data.virtual.textures import Colour, Painter
from mspose.errors import MsposeError


def _bookcase(width: float, depth: float, height: float) -> Piece:
    return width, depth, height, lambda b, place: furniture.bookcase(b, place, width, depth, height)


def _cupboard(width: float, depth: float, height: float, colour: Colour = (150, 120, 90)) -> Piece:
    return (
        width,
        depth,
        height,
        lambda b, place: furniture.cupboard(b, place, width, depth, height, colour),
    )


def _atelier(b: SceneBuilder) -> Scene:
    room = Space(
        b,
        5.6,
        6.0,
        3.1,
        [
            paint.plaster((205, 195, 175), 0.15, 25),
            paint.bricks((175, 95, 75)),
            paint.plaster((120, 150, 165)),
            paint.plaster((215, 180, 120), 0.2, 15),
        ],
    )
    room.ceiling(paint.boards((205, 200, 190), 26), beams=4)
    room.opening("west", 0.8, 1.0, 1.6, 1.5, paint.window(), glowing=True)
    room.opening("north", -1.6, 0.0, 0.95, 2.1, paint.door((150, 60, 50)))
    room.line_up(
        "north", [(0.95, 0.1, 0.0, None), _cupboard(1.2, 0.5, 0.9), _bookcase(1.1, 0.32, 2.1)]
    )
    room.line_up("east", [TABLE, CRATES, PLANT, _bookcase(1.0, 0.32, 1.6)])
    room.line_up("west", [_cupboard(1.2, 0.45, 0.9), CRATES, TABLE])
    for x, y, turn in ((-1.1, 1.5, 0.5), (0.4, 2.0, -0.3), (1.5, 1.3, -0.8)):
        _easel(b, Place(x, y, 0.0, turn))
    furniture.table(b, Place(-0.2, 0.6, 0.0, 0.2), 1.3, 0.7)
    furniture.chair(b, Place(1.0, 0.4, 0.0, 2.4))
    for side, count in (("north", 3), ("east", 5), ("west", 3), ("south", 4)):
        room.hang_up(side, count, [paint.picture(), paint.picture((200, 170, 90)), paint.poster()])
    furniture.hanging_lamp(b, Place(-1.2, 1.7), 3.1)
    furniture.hanging_lamp(b, Place(1.2, -1.9), 3.1)
    b.floor(5.6, 6.0, paint.boards((165, 120, 80), 22))
    return room.finish()


def _easel(b: SceneBuilder, place: Place) -> None:
    b.stand(place, 0.7, 0.6)
    rng = b.generator()
    size = uniform(rng, 0.6, 0.95)
    canvas, edge = paint.picture((225, 220, 205)), paint.plaster((210, 200, 180))
    b.box(place.moved(up=0.65), size, 0.04, 1.1 * size, edge, front=canvas, bottom=True)
    b.box(place.moved(back=-0.02, up=0.6), 0.8 * size, 0.12, 0.05, wood(rng), bottom=True)
    for right, back in ((-0.3 * size, 0.06), (0.3 * size, 0.06), (0.0, 0.35)):
        b.box(place.moved(right, back), 0.05, 0.05, 1.7, wood(rng))


def _library(b: SceneBuilder) -> Scene:
    room = Space(
        b,
        6.0,
        6.2,
        3.2,
        [
            paint.plaster((120, 60, 55), 0.2),
            paint.plaster((75, 95, 80), 0.2, 20),
            paint.boards((130, 90, 60), 40, False),
            paint.plaster((70, 80, 110), 0.2),
        ],
    )
    room.ceiling(paint.tiles([(215, 205, 185), (200, 185, 160), (225, 220, 205)], 90))
    tall = [_bookcase(w, 0.35, h) for w, h in ((1.3, 2.5), (1.0, 2.2), (1.2, 2.4), (0.9, 1.9))]
    room.opening("north", 0.3, 1.0, 1.0, 1.6, paint.window((230, 215, 190)), glowing=True)
    room.line_up("east", [tall[2], PLANT, tall[1], _cupboard(1.0, 0.45, 0.9)])
    room.line_up("west", [tall[3], (1.8, 0.8, 0.9, furniture.sofa), tall[0]])
    room.stand("north", -1.9, tall[0])
    room.stand("north", 2.2, tall[3])
    furniture.table(b, Place(0.5, 1.9, 0.0, 0.1), 1.6, 0.7, things=5)
    furniture.table(b, Place(-0.9, 0.5, 0.0, -0.4), 1.2, 0.7)
    for x, y, yaw in ((0.3, 1.3, 3.0), (1.9, 0.6, -1.2), (-1.8, 0.9, 1.2)):
        furniture.chair(b, Place(x, y, 0.0, yaw))
    furniture.bookcase(b, Place(1.9, 1.9, 0.0, -0.9), 0.8, 0.3, 1.4)
    for side, count in (("north", 2), ("east", 3), ("west", 3), ("south", 5)):
        room.hang_up(side, count, [paint.picture((190, 155, 70)), paint.poster()])
    furniture.hanging_lamp(b, Place(-0.9, 1.9), 3.2, 0.9)
    furniture.hanging_lamp(b, Place(1.3, -2.1), 3.2, 0.9)
    b.floor(6.0, 6.2, paint.tiles([(90, 60, 45), (180, 150, 110), (120, 85, 60)], 60))
    b.patch((-1.5, 2.5, 0.012), (2.6, 0, 0), (0, -1.8, 0), paint.rug())
    return room.finish()


def _workshop(b: SceneBuilder) -> Scene:
    room = Space(
        b,
        6.2,
        5.8,
        3.3,
        [
            paint.bricks((190, 180, 165), (40, 18)),
            paint.plaster((95, 115, 105), 0.3, 20),
            paint.bricks((140, 120, 110)),
            paint.boards((170, 160, 140), 30, False),
        ],
    )
    room.ceiling(paint.plaster((120, 125, 130), 0.3, 30), beams=5)
    room.opening("north", 1.7, 0.0, 1.1, 2.2, paint.door((60, 80, 130)))
    room.opening("west", -1.2, 1.3, 1.5, 1.1, paint.window(frame=(60, 60, 65)), glowing=True)
    bench: Piece = (1.9, 0.7, 1.0, lambda b, p: furniture.table(b, p, 1.9, 0.7, 0.85, 6))
    room.line_up("north", [CRATES, bench, (1.1, 0.1, 0.0, None)])
    room.line_up("east", [bench, _cupboard(0.9, 0.5, 1.9, (70, 110, 150)), CRATES])
    room.line_up(
        "west", [_bookcase(1.2, 0.35, 1.8), CRATES, _cupboard(1.0, 0.45, 0.9, (190, 70, 50))]
    )
    for x, y, colour in ((-1.6, 1.75, (225, 185, 40)), (2.1, 0.9, (190, 60, 50))):
        post = paint.stripes([colour, (40, 40, 40)], 14)
        b.box(b.stand(Place(x, y, 0.0, 0.3), 0.25, 0.25), 0.22, 0.22, 3.3, post)
    furniture.table(b, Place(0.2, 1.0, 0.0, -0.15), 1.5, 0.8, things=5)
    furniture.crates(b, Place(1.3, 1.6), 3, 0.5)
    furniture.crates(b, Place(-1.3, 0.5), 1, 0.6)
    pipe = paint.stripes([(160, 60, 50), (190, 190, 190), (60, 90, 150)], 40)
    b.turned_surface(
        Place(2.9, 2.6),
        [(0.07, 2.95), (0.07, 0.0)],
        paint.stripes([(180, 90, 50), (150, 70, 40)], 9),
        8,
    )
    for z in (2.75, 2.95):
        b.box(Place(0.0, 2.75, z), 6.0, 0.09, 0.09, pipe, bottom=True)
    for side, count in (("north", 4), ("east", 4), ("west", 2), ("south", 4)):
        room.hang_up(
            side,
            count,
            [paint.poster(), paint.poster((220, 215, 130)), paint.picture((50, 50, 55))],
        )
    furniture.hanging_lamp(b, Place(0.0, 2.0), 3.3, 0.6)
    furniture.hanging_lamp(b, Place(-1.5, -1.9), 3.3, 0.6)
    b.floor(6.2, 5.8, paint.plaster((135, 130, 125), 0.35, 60))
    return room.finish()


def _gallery(b: SceneBuilder) -> Scene:
    room = Space(
        b,
        6.4,
        6.2,
        3.4,
        [
            paint.plaster((200, 196, 188), 0.12, 12),
            paint.plaster((150, 55, 60), 0.15),
            paint.plaster((210, 205, 195), 0.1),
            paint.plaster((55, 90, 120), 0.15),
        ],
    )
    room.ceiling(paint.tiles([(235, 235, 235), (215, 215, 220)], 100, (170, 170, 175)))
    for x, y, height in (
        (-1.4, 1.3, 1.0),
        (0.5, 2.0, 1.1),
        (1.9, 1.0, 0.9),
        (-2.4, 2.2, 1.0),
        (0.3, 1.25, 0.7),
    ):
        rng = b.generator()
        place = b.stand(Place(x, y, 0.0, uniform(rng, -0.6, 0.6)), 0.5, 0.5)
        plinth = paint.plaster(paint.bright_colour(rng, 110, 230), 0.12)
        b.box(place, 0.45, 0.45, height, plinth, front=paint.poster())
        r = uniform(rng, 0.12, 0.2)
        profile = [(uniform(rng, 0.3, 1.0) * r, z) for z in np.linspace(4 * r, 0.0, 6).tolist()]
        sculpture = paint.plaster(paint.bright_colour(rng), 0.3, 30)
        b.turned_surface(place.moved(up=height), [(0.0, 4 * r), *profile], sculpture, 12)
    furniture.column(b, Place(-1.9, 0.9), 3.4, paint.plaster((190, 170, 150), 0.3))
    furniture.column(b, Place(2.3, 2.0), 3.4, paint.tiles([(60, 90, 90), (190, 170, 110)], 22), 0.2)
    furniture.bench(b, Place(-0.6, 1.9, 0.0, 0.2), 1.4)
    pictures = [
        paint.picture(frame)
        for frame in ((60, 40, 25), (200, 165, 80), (25, 25, 25), (230, 230, 225))
    ]
    room.opening("north", 2.3, 0.0, 1.0, 2.2, paint.door((70, 70, 75)))
    for side, count in (("north", 6), ("east", 6), ("west", 6), ("south", 6)):
        room.hang_up(side, count, pictures, (0.5, 1.5), (0.7, 2.9))
    for x, y in ((-1.6, 2.0), (1.6, 2.0), (0.0, -2.3)):
        furniture.hanging_lamp(b, Place(x, y), 3.4, 0.5)
    b.floor(6.4, 6.2, paint.boards((120, 80, 55), 34, False))
    return room.finish(reach=2.6)


def _kitchenette(b: SceneBuilder) -> Scene:
    room = Space(
        b,
        5.2,
        5.4,
        2.8,
        [
            paint.tiles([(225, 225, 215), (90, 140, 150), (215, 190, 120)], 30),
            paint.plaster((225, 205, 150), 0.15, 20),
            paint.plaster((170, 190, 160)),
            paint.stripes([(215, 225, 205), (150, 180, 165), (205, 215, 190)], 26),
        ],
    )
    room.ceiling(paint.plaster((228, 225, 218), 0.12, 18))
    unit: Colour = (70, 120, 125)
    room.opening("north", 0.1, 1.15, 1.3, 1.0, paint.window(), glowing=True)
    for along, things in ((-1.75, 2), (-0.85, 2), (0.05, 3), (0.95, 2)):
        furniture.cupboard(b, room.at_wall("north", along, 0.3), 0.9, 0.6, 0.88, unit, things)
    for along in (-1.75, 1.25):
        shelf = room.at_wall("north", along, 0.18).moved(up=1.6)
        b.box(
            shelf, 0.9, 0.34, 0.7, paint.plaster(unit), front=paint.cabinet(unit, 2, 1), bottom=True
        )
    room.taken["north"] += [(-2.2, -1.3, 2.8), (0.8, 1.7, 2.8)]
    fridge = b.stand(room.at_wall("north", 2.05, 0.33), 0.7, 0.65)
    b.box(
        fridge,
        0.7,
        0.65,
        1.75,
        paint.plaster((200, 70, 60), 0.1, 8),
        front=paint.cabinet((205, 75, 65), 1, 2),
    )
    room.line_up(
        "east", [PLANT, _bookcase(1.1, 0.35, 1.9), _cupboard(1.0, 0.45, 0.9, (205, 170, 110))]
    )
    room.opening("west", -0.9, 0.0, 0.95, 2.1, paint.door((225, 220, 205)))
    room.line_up("west", [_cupboard(1.1, 0.45, 0.9, (150, 90, 60))], margin=0.2)
    furniture.table(b, Place(0.1, 1.0, 0.0, 0.25), 1.3, 0.8, things=5)
    for x, y, yaw in ((-0.9, 1.0, -1.4), (1.1, 1.2, 1.7), (0.3, 0.2, 3.3), (-0.1, 1.75, 0.2)):
        furniture.chair(b, Place(x, y, 0.0, yaw))
    sheets = [paint.poster(), paint.picture((220, 215, 205)), paint.poster((240, 205, 180))]
    for side, count in (("north", 2), ("east", 4), ("west", 4), ("south", 4)):
        room.hang_up(side, count, sheets, (0.3, 0.7))
    furniture.hanging_lamp(b, Place(0.1, 1.1), 2.8, 0.6)
    furniture.hanging_lamp(b, Place(0.5, -1.9), 2.8, 0.5)
    b.floor(5.2, 5.4, paint.tiles([(215, 205, 190), (60, 65, 75)], 50))
    return room.finish((2.7, 2.4, 0.95), 2.8)


def _facade(ground: Colour, upper: Colour) -> Painter:
    """Stone below, plaster above, a painted band between them."""

    def surface(rng: np.random.Generator, height: int, width: int) -> paint.Image:
        split = int(0.55 * height)
        image = np.concatenate(
            [
                paint.plaster(upper, 0.25, 15)(rng, split, width),
                paint.bricks(ground, (60, 26))(rng, height - split, width),
            ]
        )
        image[split - 14 : split + 14] = paint.tiles(
            [paint.bright_colour(rng, 90, 200), upper], 28
        )(rng, 28, width)
        return image

    return surface


def _courtyard(b: SceneBuilder) -> Scene:
    yard = Space(
        b,
        7.6,
        7.2,
        3.6,
        [
            _facade((165, 150, 130), (220, 190, 130)),
            _facade((150, 120, 105), (190, 110, 85)),
            _facade((140, 140, 140), (170, 185, 190)),
            paint.bricks((175, 105, 80)),
        ],
    )
    yard.open_sky()
    b.lamps.append((9.0, -7.0, 12.0))
    yard.opening("north", -0.4, 0.0, 1.3, 2.3, paint.door((60, 95, 70)))
    for side, alongs in (
        ("north", (-2.4, 1.6)),
        ("east", (-1.8, 1.4)),
        ("west", (-1.5, 1.6)),
        ("south", (-1.8, 1.8)),
    ):
        for along in alongs:
            for bottom, height in ((1.0, 1.1), (2.5, 0.85)):
                rng = b.generator()
                pane = paint.window((120, 140, 170), paint.bright_colour(rng))
                yard.opening(side, along, bottom, 1.0, height, pane)
                if rng.random() < 0.6:
                    furniture.planter(
                        b, yard.at_wall(side, along, 0.2).moved(up=bottom - 0.45), 0.9, 0.3
                    )
    yard.line_up("east", [PLANTER, CRATES, BENCH])
    yard.line_up("west", [BENCH, (0.5, 0.5, 1.6, lambda b, p: furniture.plant(b, p, 1.6)), PLANTER])
    furniture.well(b, Place(0.9, 1.6, 0.0, 0.5))
    for x, y, height in ((-2.2, 2.2, 2.6), (2.5, 2.6, 2.9), (-2.6, -0.1, 2.3)):
        furniture.plant(b, Place(x, y), height)
    furniture.bench(b, Place(-0.9, 1.9, 0.0, -0.3))
    furniture.crates(b, Place(2.3, 0.7), 2, 0.55)
    furniture.table(b, Place(-0.7, 0.7, 0.0, 0.4), 1.1, 0.7)
    for side in WALL_YAW:
        yard.hang_up(side, 3, [paint.poster(), paint.picture()], (0.3, 0.7))
    b.floor(7.6, 7.2, paint.paving((160, 150, 140)))
    return yard.finish((3.2, 2.7, 1.0), 25.0)


def _arcade(b: SceneBuilder) -> Scene:
    yard = Space(
        b,
        7.4,
        7.4,
        3.3,
        [
            paint.bricks((200, 170, 120), (70, 30)),
            _facade((150, 145, 140), (120, 145, 120)),
            paint.plaster((190, 180, 165)),
            _facade((175, 150, 120), (205, 160, 150)),
        ],
    )
    yard.open_sky()
    b.lamps.append((-8.0, -6.0, 11.0))
    surfaces = [
        paint.tiles([(190, 80, 60), (225, 215, 190)], 24),
        paint.bricks((90, 120, 130), (20, 12)),
        paint.stripes([(230, 225, 205), (70, 110, 90)], 12),
        paint.plaster((215, 170, 90), 0.3, 40),
    ]
    for x, surface in zip((-2.7, -0.9, 0.9, 2.7), surfaces, strict=True):
        furniture.column(b, Place(x, 2.5), 2.5, surface)
    frieze = paint.tiles([(200, 160, 90), (70, 100, 130), (225, 220, 205)], 30)
    b.box(Place(0.0, 2.5, 2.48), 7.3, 0.5, 0.4, frieze, bottom=True)
    b.patch((-3.7, 2.3, 2.86), (7.4, 0, 0), (0, 1.4, 0), paint.boards((120, 85, 60), 24))
    for along, colour in ((-2.3, (150, 60, 50)), (0.1, (55, 85, 120)), (2.2, (110, 120, 60))):
        yard.opening("north", along, 0.0, 1.1, 2.1, paint.door(colour))
    for side, alongs in (("east", (-1.6, 0.6)), ("west", (-1.4, 1.2)), ("south", (-1.5, 1.5))):
        for along in alongs:
            frame = paint.bright_colour(b.generator())
            yard.opening(side, along, 2.1, 0.9, 0.95, paint.window((140, 160, 190), frame))
    furniture.stall(b, yard.at_wall("east", -0.2, 0.7), 1.7, 0.9)
    furniture.stall(b, yard.at_wall("west", 0.9, 0.7), 1.7, 0.9)
    yard.line_up("south", [BENCH, PLANTER])
    furniture.plant(b, Place(1.7, 1.5), 1.9)
    furniture.planter(b, Place(-0.3, 1.5, 0.0, 0.2), 1.3, 0.5)
    furniture.crates(b, Place(-1.6, 1.3), 2, 0.5)
    furniture.table(b, Place(0.7, 0.5, 0.0, -0.5), 1.0, 0.6)
    furniture.bench(b, Place(-0.9, 0.3, 0.0, 2.7))
    for side in WALL_YAW:
        yard.hang_up(
            side,
            4,
            [paint.poster(), paint.poster((225, 190, 120)), paint.picture()],
            (0.3, 0.8),
            (0.9, 2.2),
        )
    b.floor(7.4, 7.4, paint.bricks((170, 130, 110), (28, 14), (120, 110, 100)))
    return yard.finish((3.2, 2.7, 1.0), 25.0)


_BUILDERS: dict[str, Callable[[SceneBuilder], Scene]] = {
    "atelier": _atelier,
    "library": _library,
    "courtyard": _courtyard,
    "workshop": _workshop,
    "gallery": _gallery,
    "kitchenette": _kitchenette,
    "arcade": _arcade,
}
SCENE_NAMES = tuple(_BUILDERS)


def build_scene(name: str, seed: int = 0) -> Scene:
    """Build the scene of that name, the same for the same seed. Raises MsposeError for a name that
    does not exist.
    """
    if name not in _BUILDERS:
        raise MsposeError(
            f"there is no virtual scene {name!r}; there are: {', '.join(SCENE_NAMES)}"
        )
    return _BUILDERS[name](SceneBuilder(name, seed))
