"""The room or courtyard of a virtual scene: its walls, and where furniture may stand."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mspose.data.virtual import furniture
from mspose.data.virtual import textures as paint
from mspose.data.virtual.exact import uniform
from mspose.data.virtual.furniture import wood
from mspose.data.virtual.scene import WALL_YAW, Place, Scene, SceneBuilder
from mspose.data.virtual.textures import Painter

# width, depth, height in metres, how to build it; None keeps the place free
Piece = tuple[float, float, float, Callable[[SceneBuilder, Place], None] | None]
PLANT: Piece = (0.5, 0.5, 1.3, furniture.plant)
CRATES: Piece = (0.5, 0.5, 1.3, furniture.crates)
TABLE: Piece = (1.4, 0.7, 1.0, furniture.table)
BENCH: Piece = (1.5, 0.5, 1.0, furniture.bench)
PLANTER: Piece = (1.2, 0.5, 0.9, furniture.planter)
OVERLAP_M = (
    0.04  # walls reach this far past their corners, so that no ray slips between two surfaces
)


class Space:
    """A room or a courtyard of a width and depth around the origin, with walls to stand and hang
    things on.
    """

    def __init__(
        self, b: SceneBuilder, width: float, depth: float, height: float, walls: Sequence[Painter]
    ) -> None:
        self.b, self.width, self.depth, self.height = b, width, depth, height
        self.taken: dict[str, list[tuple[float, float, float]]] = {
            side: [] for side in WALL_YAW
        }  # from, to, up to
        for side, painter in zip(WALL_YAW, walls, strict=True):
            length = self.length(side) + 2 * OVERLAP_M
            place = self.at_wall(side, 0.0)
            b.patch(
                place.point((-length / 2, 0, height + OVERLAP_M)),
                place.vector((length, 0, 0)),
                (0, 0, -height - 2 * OVERLAP_M),
                painter,
            )

    def length(self, side: str) -> float:
        return self.width if side in ("north", "south") else self.depth

    def at_wall(self, side: str, along: float, out: float = 0.0) -> Place:
        """Find the place at a wall, `along` metres right of its middle and `out` metres out of it,
        facing the room.
        """
        distance = self.depth / 2 if side in ("north", "south") else self.width / 2
        return Place(0.0, 0.0, 0.0, WALL_YAW[side]).moved(along, distance - out)

    def line_up(self, side: str, pieces: Sequence[Piece], margin: float = 0.4) -> None:
        """Stand pieces along a wall in this order, the rest of its length shared out at random
        between them.
        """
        free = self.length(side) - 2 * margin - math.fsum(piece[0] for piece in pieces)
        if free < 0:
            raise ValueError(
                f"{self.b.name}: the {side} wall is {-free:.2f} m too short for its furniture"
            )
        weights = uniform(self.b.generator(), 0.3, 1.7, len(pieces) + 1).tolist()
        # `sum` differs between Pythons
        gaps = [weight / math.fsum(weights) * free for weight in weights]
        left = -self.length(side) / 2 + margin
        for (width, depth, height, build), gap in zip(pieces, gaps[:-1], strict=True):
            self.stand(side, left + gap + width / 2, (width, depth, height, build))
            left += gap + width

    def stand(self, side: str, along: float, piece: Piece) -> None:
        """Stand a piece against a wall, its middle `along` metres right of the wall's."""
        width, depth, height, build = piece
        if build is not None:
            build(self.b, self.at_wall(side, along, depth / 2 + 0.02))
        self.taken[side].append((along - width / 2, along + width / 2, height))

    def hang_up(
        self,
        side: str,
        count: int,
        surfaces: Sequence[Painter],
        sizes: tuple[float, float] = (0.35, 0.9),
        heights: tuple[float, float] = (1.2, 2.4),
    ) -> None:
        """Hang pictures, posters and the like where the wall is free."""
        half, rng = self.length(side) / 2 - 0.3, self.b.generator()
        for _ in range(40 * count):
            width, height = uniform(rng, *sizes, 2).tolist()
            along = uniform(rng, -half + width / 2, half - width / 2)
            bottom = uniform(rng, heights[0], max(heights[0], heights[1] - height))
            low, high = along - width / 2 - 0.08, along + width / 2 + 0.08
            if any(
                low < end and high > start and top > bottom - 0.25
                for start, end, top in self.taken[side]
            ):
                continue
            surface = surfaces[int(rng.integers(len(surfaces)))]
            furniture.hang(
                self.b, self.at_wall(side, along).moved(up=bottom), width, height, surface
            )
            self.taken[side].append((low, high, self.height))
            count -= 1
            if count == 0:
                return

    def opening(
        self,
        side: str,
        along: float,
        bottom: float,
        width: float,
        height: float,
        surface: Painter,
        glowing: bool = False,
    ) -> None:
        """A window or door with a sill, at a given place."""
        spot = self.at_wall(side, along).moved(up=bottom)
        furniture.hang(self.b, spot, width, height, surface, 0.05, glowing)
        if bottom > 0.3:
            sill = spot.moved(back=-0.1, up=-0.06)
            self.b.box(sill, width + 0.2, 0.2, 0.06, paint.plaster((210, 205, 195)), bottom=True)
        self.taken[side].append((along - width / 2, along + width / 2, self.height))

    def ceiling(self, surface: Painter, beams: int = 0) -> None:
        """A ceiling, with wooden beams below it."""
        self.b.patch(
            (-self.width / 2, -self.depth / 2, self.height),
            (self.width, 0, 0),
            (0, self.depth, 0),
            surface,
        )
        rng = self.b.generator()
        for y in np.linspace(-self.depth / 2, self.depth / 2, beams + 2)[1:-1].tolist():
            self.b.box(
                Place(0.0, y, self.height - 0.18), self.width, 0.15, 0.2, wood(rng), bottom=True
            )

    def open_sky(self, far: float = 30.0, high: float = 25.0) -> None:
        """Sky on all sides and above, far behind the walls, and a sun."""
        for side, yaw in WALL_YAW.items():
            place = Place(0.0, 0.0, 0.0, yaw)
            self.b.patch(
                place.point((-1.02 * far, far, high)),
                place.vector((2.04 * far, 0, 0)),
                (0, 0, -1.04 * high),
                paint.sky(zenith=(100, 140, 200) if side in ("north", "east") else (130, 165, 215)),
                cell=10.0,
                density=12.0,
                glowing=True,
            )
        self.b.patch(
            (-far, -far, 0.98 * high),
            (2 * far, 0, 0),
            (0, 2 * far, 0),
            paint.sky((110, 150, 215)),
            cell=10.0,
            density=8.0,
            glowing=True,
        )

    def finish(
        self, view: tuple[float, float, float] = (2.9, 2.5, 0.95), reach: float = 3.2
    ) -> Scene:
        """Make the scene; cameras move in a box `view` in its southern half and look north."""
        x, y, z = view
        south = -0.1 * self.depth
        return self.b.finish(
            reach,
            ((-x / 2, south - y / 2, 1.15), (x / 2, south + y / 2, 1.15 + z)),
            (
                (-0.8 * self.width, south + y / 2 + 0.7, 0.4),
                (0.8 * self.width, 0.5 * self.depth, 1.9),
            ),
        )
