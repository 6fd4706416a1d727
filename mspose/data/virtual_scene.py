"""Builds virtual scenes from flat patches, boxes, cylinders and balls.

World axes: x east, y north, z up, metres, floor at z = 0. A piece of furniture is built in the frame of its `Place`:
x to the right and y backwards as seen from its front, z up, the origin in the middle of its foot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mspose.data.virtual_render import Scene, pack_atlas
from mspose.data.virtual_textures import TEXELS_PER_METRE, Image, Painter

CELL_M = 0.5  # side of the squares into which surfaces are cut: light and texture sharpness vary from one to the next
WALL_YAW = {
    "north": 0.0,
    "east": -np.pi / 2,
    "south": np.pi,
    "west": np.pi / 2,
}  # of what stands against that wall


@dataclass(frozen=True)
class Place:
    """A position on (or above) the floor and a heading: yaw 0 has the front facing south."""

    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    def vector(self, local_3: ArrayLike) -> NDArray[np.float64]:
        """A direction from this place's frame into the world's."""
        x, y, z = np.asarray(local_3, np.float64)
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([cosine * x - sine * y, sine * x + cosine * y, z])

    def point(self, local_3: ArrayLike) -> NDArray[np.float64]:
        """A point from this place's frame into the world's."""
        return np.array([self.x, self.y, self.z]) + self.vector(local_3)

    def moved(
        self, right: float = 0.0, back: float = 0.0, up: float = 0.0, turn: float = 0.0
    ) -> "Place":
        """The place so much further right, back and up in this place's own frame, then turned (radians)."""
        x, y, z = self.point((right, back, up)).tolist()
        return Place(x, y, z, self.yaw + turn)


class SceneBuilder:
    """Collects surfaces and lamps; `finish` makes the scene of them."""

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        self.name, self.rng = name, rng
        self.textures: list[Image] = []
        self.quads: list[tuple[NDArray[np.float64], int, NDArray[np.float64], float, bool]] = []
        self.lamps: list[tuple[float, float, float]] = []
        self.footprints: list[
            tuple[Place, float, float]
        ] = []  # place, width, depth: to keep apart, and for shadows

    def texture(
        self, painter: Painter, width_m: float, height_m: float, density: float = TEXELS_PER_METRE
    ) -> int:
        """Paint a new texture for a surface of this size; returns its number."""
        height, width = (max(4, round(side * density)) for side in (height_m, width_m))
        self.textures.append(painter(self.rng, height, width))
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
        """A parallelogram from its top left corner and its edges to the right and down, as its viewer sees them."""
        corner, right, down = (np.asarray(v, np.float64) for v in (corner_3, right_3, down_3))
        width, height = float(np.linalg.norm(right)), float(np.linalg.norm(down))
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
        """A box standing on `place`: `front` on its front, `top` on its top, `side` elsewhere."""
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
        """A surface of revolution about the vertical: (radius, height) from top to bottom, one texture around it."""
        radii, heights = np.array(profile).T
        along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(radii), np.diff(heights)))])
        girth = 2.0 * np.pi * float(radii.max())
        number = self.texture(surface, girth, float(along[-1]))
        angles = np.linspace(0.0, 2.0 * np.pi, sides + 1)
        for i in range(len(radii) - 1):
            for j in range(sides):
                ring = [(i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j)]
                corners = [
                    place.point(
                        (radii[a] * np.cos(angles[b]), radii[a] * np.sin(angles[b]), heights[a])
                    )
                    for a, b in ring
                ]
                texture_42 = np.array([(b / sides, along[a] / along[-1]) for a, b in ring])
                self.quads.append(
                    (np.array(corners), number, texture_42, TEXELS_PER_METRE, glowing)
                )

    def ball(self, place: Place, radius: float, surface: Painter) -> None:
        """A ball resting on `place`."""
        angles = np.linspace(0.0, np.pi, 8).tolist()
        self.turned_surface(
            place, [(radius * np.sin(a), radius * (1 + np.cos(a))) for a in angles], surface
        )

    def stand(self, place: Place, width: float, depth: float) -> Place:
        """Note that something of this size stands at `place`; returns the place."""
        self.footprints.append((place, width, depth))
        return place

    def floor(self, width: float, depth: float, surface: Painter) -> None:
        """The floor of a width x depth metre space around the origin, dark below everything that stands on it."""
        base = surface

        def shaded(rng: np.random.Generator, height: int, wide: int) -> Image:
            shadow = np.ones((height, wide), np.float32)
            around = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            for place, w, d in self.footprints:
                if place.z > 0.1:
                    continue
                outline = [place.point((sx * w / 2, sy * d / 2, 0))[:2] for sx, sy in around]
                pixels = (np.array(outline) * (1, -1) + (width / 2, depth / 2)) * (
                    wide / width,
                    height / depth,
                )
                cv2.fillPoly(shadow, [pixels.astype(np.int32)], 0.45)
            soft = cv2.GaussianBlur(shadow, (0, 0), 0.1 * TEXELS_PER_METRE)
            return np.clip(base(rng, height, wide) * soft[..., None], 0, 255).astype(np.uint8)

        self.patch((-width / 2, depth / 2, 0), (width, 0, 0), (0, -depth, 0), shaded)

    def finish(
        self,
        lamp_reach_m: float,
        view: tuple[ArrayLike, ArrayLike],
        target: tuple[ArrayLike, ArrayLike],
    ) -> Scene:
        """The scene, with the boxes (low, high corner) in which cameras move and at which they look."""
        corners_Q43 = np.array([quad[0] for quad in self.quads])
        normals_Q3 = np.cross(
            corners_Q43[:, 3] - corners_Q43[:, 1], corners_Q43[:, 2] - corners_Q43[:, 0]
        )
        normals_Q3 /= np.maximum(np.linalg.norm(normals_Q3, axis=1, keepdims=True), 1e-12)
        atlas, origin_TM2, size_TM2 = pack_atlas(self.textures)
        return Scene(
            name=self.name,
            corners_Q43=corners_Q43.astype(np.float32),
            normals_Q3=normals_Q3.astype(np.float32),
            texture_Q=np.array([quad[1] for quad in self.quads]),
            texture_xy_Q42=np.array([quad[2] for quad in self.quads], np.float32),
            texels_per_metre_Q=np.array([quad[3] for quad in self.quads], np.float32),
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
