"""Scenes as textured surfaces, and their builder, which makes them of flat patches, boxes,
cylinders and balls.

World axes: x east, y north, z up, metres, floor at z = 0. A piece of furniture is built in the
frame of its `Place`: x to the right and y backwards as seen from its front, z up, the origin in the
middle of its foot.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mspose.data.virtual.atlas import pack_atlas
from mspose.data.virtual.exact import cosine_sine, length
from mspose.data.virtual.textures import TEXELS_PER_METRE, Image, Painter

# side of the squares into which surfaces are cut: light and texture sharpness vary from one to the
# next
CELL_M = 0.5
SHADOW_M = 0.1  # how far the edges of shadows on the floor are blurred, to each side
WALL_YAW = {
    "north": 0.0,
    "east": -math.pi / 2,
    "south": math.pi,
    "west": math.pi / 2,
}  # of what stands against it


def scene_key(name: str) -> int:
    """A number for a scene's name, the same on every machine, to seed generators with."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True)
class Scene:
    """A scene as flat quadrilaterals Q, each showing a part of one of T textures.

    A quadrilateral is seen from the side on which its corners (top left, top right, bottom right,
    bottom left of its part of the texture) run clockwise; from behind it is not drawn.
    """

    name: str
    corners_Q43: NDArray[np.float64]  # metres
    normals_Q3: NDArray[np.float64]  # unit length, towards the visible side
    texture_Q: NDArray[np.int64]
    texture_xy_Q42: NDArray[np.float64]  # 0..1 across the texture
    texels_per_metre_Q: NDArray[np.float64]  # in the full-size texture
    glowing_Q: NDArray[np.bool_]  # lit by itself: windows, sky, screens
    lamps_L3: NDArray[np.float64]  # metres
    lamp_reach_m: float  # distance at which a lamp's light has halved
    atlas: Image
    atlas_origin_TM2: NDArray[np.int64]  # of texture T at mip level M: left, top in texels
    atlas_size_TM2: NDArray[np.int64]  # width, height in texels
    view_low_3: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros(3)
    )  # box in which cameras move, free of
    view_high_3: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros(3)
    )  # everything else, metres
    target_low_3: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros(3)
    )  # box at which they look
    target_high_3: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True)
class Place:
    """A position on (or above) the floor and a heading: yaw 0 has the front facing south."""

    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    @cached_property
    def heading(self) -> tuple[float, float]:
        """Cosine and sine of the yaw."""
        cosine, sine = cosine_sine(self.yaw)
        return float(cosine), float(sine)

    def vector(self, local_3: Sequence[float]) -> NDArray[np.float64]:
        """A direction from this place's frame into the world's."""
        (x, y, z), (cosine, sine) = local_3, self.heading
        return np.array([cosine * x - sine * y, sine * x + cosine * y, z])

    def point(self, local_3: Sequence[float]) -> NDArray[np.float64]:
        """A point from this place's frame into the world's."""
        return np.array([self.x, self.y, self.z]) + self.vector(local_3)

    def moved(
        self, right: float = 0.0, back: float = 0.0, up: float = 0.0, turn: float = 0.0
    ) -> "Place":
        """The place so much further right, back and up in this place's own frame, then turned
        (radians).
        """
        x, y, z = self.point((right, back, up)).tolist()
        return Place(x, y, z, self.yaw + turn)


class SceneBuilder:
    """Collects surfaces and lamps; `finish` makes the scene of them.

    Every texture, and everything else that draws random numbers, has a generator of its own.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name, self.seed, self.generators = name, seed, 0
        self.textures: list[Image] = []
        self.quads: list[tuple[NDArray[np.float64], int, NDArray[np.float64], float, bool]] = []
        self.lamps: list[tuple[float, float, float]] = []
        self.footprints: list[
            tuple[Place, float, float]
        ] = []  # place, width, depth: against overlaps, and for shadows

    def generator(self) -> np.random.Generator:
        """Make a new generator, for one object: how much is drawn from it changes nothing
        elsewhere.
        """
        self.generators += 1
        return np.random.default_rng([self.seed, scene_key(self.name), self.generators])

    def texture(
        self, painter: Painter, width_m: float, height_m: float, density: float = TEXELS_PER_METRE
    ) -> int:
        """Paint a new texture for a surface of this size; returns its number."""
        height, width = (max(4, round(side * density)) for side in (height_m, width_m))
        rng = np.random.default_rng([self.seed, scene_key(self.name), 0, len(self.textures)])
        self.textures.append(painter(rng, height, width))
        return len(self.textures) - 1

    def patch(
        self,
        corner_3: ArrayLike,
        right_3: ArrayLike,
        down_3: ArrayLike,
        surface: Painter | int,
        *,
        cell: float = CELL_M,
        density: float = TEXELS_PER_METRE,
        glowing: bool = False,
    ) -> None:
        """Add a parallelogram from its top left corner and its edges to the right and down, as its
        viewer sees them.
        """
        corner, right, down = (np.asarray(v, np.float64) for v in (corner_3, right_3, down_3))
        width, height = float(length(right)), float(length(down))
        number = (
            surface if isinstance(surface, int) else self.texture(surface, width, height, density)
        )
        columns, rows = max(1, round(width / cell)), max(1, round(height / cell))
        for row in range(rows):
            for column in range(columns):
                low = np.array([column / columns, row / rows])
                high = np.array([(column + 1) / columns, (row + 1) / rows])
                texture_42 = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
                corners_43 = corner + texture_42[:, :1] * right + texture_42[:, 1:] * down
                self.quads.append((corners_43, number, texture_42, density, glowing))

    def box(
        self,
        place: Place,
        width: float,
        depth: float,
        height: float,
        side: Painter,
        *,
        front: Painter | None = None,
        top: Painter | None = None,
        bottom: bool = False,
        glowing_front: bool = False,
    ) -> None:
        """Add a box on `place`: `front` on its front, `top` on its top, `side` elsewhere."""
        w, d = width / 2, depth / 2
        faces = [
            ((-w, -d, height), (width, 0, 0), (0, 0, -height), front or side),
            ((w, d, height), (-width, 0, 0), (0, 0, -height), side),
            ((w, -d, height), (0, depth, 0), (0, 0, -height), side),
            ((-w, d, height), (0, -depth, 0), (0, 0, -height), side),
            ((-w, d, height), (width, 0, 0), (0, -depth, 0), top or side),
        ]
        if bottom:
            faces.append(((-w, -d, 0), (width, 0, 0), (0, depth, 0), side))
        for number, (corner, right, down, painter) in enumerate(faces):
            self.patch(
                place.point(corner),
                place.vector(right),
                place.vector(down),
                painter,
                glowing=glowing_front and number == 0,
            )

    def turned_surface(
        self,
        place: Place,
        profile: Sequence[tuple[float, float]],
        surface: Painter,
        sides: int = 12,
        glowing: bool = False,
    ) -> None:
        """Add a surface of revolution about the vertical: (radius, height) from top to bottom, one
        texture around.
        """
        along = [0.0]
        for (inner, high), (outer, low) in pairwise(profile):
            along.append(
                along[-1]
                + math.sqrt((outer - inner) * (outer - inner) + (low - high) * (low - high))
            )
        girth = 2.0 * math.pi * max(radius for radius, _ in profile)
        number = self.texture(surface, girth, along[-1])
        cosines, sines = (
            values.tolist() for values in cosine_sine(np.linspace(0.0, 2.0 * math.pi, sides + 1))
        )
        for i in range(len(profile) - 1):
            for j in range(sides):
                ring = [(i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j)]
                corners = [
                    place.point(
                        (profile[a][0] * cosines[b], profile[a][0] * sines[b], profile[a][1])
                    )
                    for a, b in ring
                ]
                texture_42 = np.array([(b / sides, along[a] / along[-1]) for a, b in ring])
                self.quads.append(
                    (np.array(corners), number, texture_42, TEXELS_PER_METRE, glowing)
                )

    def ball(self, place: Place, radius: float, surface: Painter) -> None:
        """Add a ball resting on `place`."""
        cosines, sines = (values.tolist() for values in cosine_sine(np.linspace(0.0, math.pi, 8)))
        profile = [
            (radius * sine, radius * (1 + cosine))
            for cosine, sine in zip(cosines, sines, strict=True)
        ]
        self.turned_surface(place, profile, surface)

    def stand(self, place: Place, width: float, depth: float) -> Place:
        """Note that something of this size stands at `place`; returns the place."""
        self.footprints.append((place, width, depth))
        return place

    def floor(self, width: float, depth: float, surface: Painter) -> None:
        """Add the floor of a width x depth metre space around the origin, dark below everything
        that stands on it.
        """

        def shaded(rng: np.random.Generator, height: int, wide: int) -> Image:
            light = np.full((height, wide), 255, np.uint8)
            around = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            for place, w, d in self.footprints:
                if place.z > 0.1:
                    continue
                outline = [place.point((sx * w / 2, sy * d / 2, 0))[:2] for sx, sy in around]
                pixels = (np.array(outline) * (1, -1) + (width / 2, depth / 2)) * (
                    wide / width,
                    height / depth,
                )
                cv2.fillPoly(light, [pixels.astype(np.int32)], 115)
            soft = blurred(
                blurred(light, round(SHADOW_M * TEXELS_PER_METRE)),
                round(SHADOW_M * TEXELS_PER_METRE),
            )
            return (surface(rng, height, wide) * soft[..., None] // 255).astype(np.uint8)

        self.patch((-width / 2, depth / 2, 0), (width, 0, 0), (0, -depth, 0), shaded)

    def finish(
        self,
        lamp_reach_m: float,
        view: tuple[ArrayLike, ArrayLike],
        target: tuple[ArrayLike, ArrayLike],
    ) -> Scene:
        """Make the scene, with the boxes (low, high corner) in which cameras move and at which they
        look.
        """
        corners_Q43 = np.array([quad[0] for quad in self.quads])
        normals_Q3 = np.cross(
            corners_Q43[:, 3] - corners_Q43[:, 1], corners_Q43[:, 2] - corners_Q43[:, 0]
        )
        normals_Q3 = normals_Q3 / np.maximum(length(normals_Q3), 1e-12)[:, None]
        atlas, origin_TM2, size_TM2 = pack_atlas(self.textures)
        return Scene(
            name=self.name,
            corners_Q43=corners_Q43,
            normals_Q3=normals_Q3,
            texture_Q=np.array([quad[1] for quad in self.quads]),
            texture_xy_Q42=np.array([quad[2] for quad in self.quads], np.float64),
            texels_per_metre_Q=np.array([quad[3] for quad in self.quads], np.float64),
            glowing_Q=np.array([quad[4] for quad in self.quads]),
            lamps_L3=np.array(self.lamps, np.float64).reshape(-1, 3),
            lamp_reach_m=lamp_reach_m,
            atlas=atlas,
            atlas_origin_TM2=origin_TM2,
            atlas_size_TM2=size_TM2,
            view_low_3=np.asarray(view[0], np.float64),
            view_high_3=np.asarray(view[1], np.float64),
            target_low_3=np.asarray(target[0], np.float64),
            target_high_3=np.asarray(target[1], np.float64),
        )


def blurred(grey_HW: NDArray[np.integer], reach: int) -> NDArray[np.int64]:
    """Means over squares that reach so many pixels to each side, in whole numbers; the border is
    repeated outwards.
    """
    sums_HW = np.asarray(grey_HW, np.int64)
    for _ in range(2):  # along columns, then (transposed) along rows
        padded = np.pad(sums_HW, ((reach + 1, reach), (0, 0)), mode="edge").cumsum(axis=0)
        sums_HW = (padded[2 * reach + 1 :] - padded[: -2 * reach - 1]).T
    return sums_HW // ((2 * reach + 1) * (2 * reach + 1))
