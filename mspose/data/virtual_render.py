"""Renders a textured scene of quadrilaterals: OpenCV's software rasteriser fills a map of texture coordinates, light
and depth, and one `remap` into the scene's texture atlas paints the image.

Conventions: poses are camera-to-world, camera axes x right, y down, z forward, metres. Pixel (0, 0) is the centre of
the top left pixel, so the principal point of a camera W pixels wide lies at (W - 1) / 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mspose.data.virtual_textures import Image

NEAR_M = 0.05  # what is nearer is clipped away
FAR_M = 200.0
MAX_SHADE = (
    4.0  # the rasteriser interpolates values in 0..1: light is divided by this on the way through
)
ATLAS_WIDTH = 4096
ATLAS_BORDER = (
    2  # texels repeated around each texture, so that interpolation never reads its neighbour
)
MIP_LEVELS = 6


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels and its principal point in the middle of the image."""

    width: int = 320
    height: int = 240
    focal_px: float = 292.5

    @property
    def intrinsics_33(self) -> NDArray[np.float64]:
        """[[f, 0, cx], [0, f, cy], [0, 0, 1]] in pixels, pixel centres at whole numbers."""
        return np.array(
            [
                [self.focal_px, 0.0, (self.width - 1) / 2],
                [0.0, self.focal_px, (self.height - 1) / 2],
                [0.0, 0.0, 1.0],
            ]
        )

    def project(
        self, points_N3: ArrayLike, pose_44: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """World points -> (pixels (N, 2) as (x, y), depth along the optical axis (N,) in metres)."""
        pose = np.asarray(pose_44, np.float64)
        camera_N3 = (np.asarray(points_N3, np.float64) - pose[:3, 3]) @ pose[:3, :3]
        image_N3 = camera_N3 @ self.intrinsics_33.T
        return image_N3[:, :2] / image_N3[:, 2:], camera_N3[:, 2]


@dataclass(frozen=True)
class Lighting:
    """How one sequence is lit and exposed."""

    gain: float = 1.0
    colour: tuple[float, float, float] = (
        1.0,
        1.0,
        1.0,
    )  # red, green, blue gains: the colour temperature
    vignette: float = 0.15  # loss of light in the image's corner
    ambient: float = 0.55
    lamp_strength: float = 1.0
    lamp_shift_m: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # added to the position of every lamp

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Lighting":
        """Lighting of a new sequence: a little brighter or darker, warmer or colder, the lamps moved."""
        warmth, tint = rng.uniform(-0.08, 0.08), rng.uniform(-0.02, 0.02)
        x, y, z = rng.uniform((-0.8, -0.8, -0.2), (0.8, 0.8, 0.1)).tolist()
        return cls(
            gain=float(rng.uniform(0.85, 1.15)),
            colour=(1 + warmth, 1 + tint, 1 - warmth),
            vignette=float(rng.uniform(0.05, 0.3)),
            ambient=float(rng.uniform(0.48, 0.62)),
            lamp_strength=float(rng.uniform(0.8, 1.2)),
            lamp_shift_m=(x, y, z),
        )


@dataclass(frozen=True)
class Scene:
    """A scene as flat quadrilaterals Q, each showing a part of one of T textures.

    A quadrilateral is seen from the side on which its corners (top left, top right, bottom right, bottom left of its
    part of the texture) run clockwise; from behind it is not drawn.
    """

    name: str
    corners_Q43: NDArray[np.float32]  # metres
    normals_Q3: NDArray[np.float32]  # unit length, towards the visible side
    texture_Q: NDArray[np.int64]
    texture_xy_Q42: NDArray[np.float32]  # 0..1 across the texture
    texels_per_metre_Q: NDArray[np.float32]  # in the full-size texture
    glowing_Q: NDArray[np.bool_]  # lit by itself: windows, sky, screens
    lamps_L3: NDArray[np.float64]  # metres
    lamp_reach_m: float  # distance at which a lamp's light has halved
    atlas: Image
    atlas_origin_TM2: NDArray[np.float32]  # of texture T at mip level M: left, top in texels
    atlas_size_TM2: NDArray[np.float32]  # width, height in texels
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

    def light_Q4(self, lighting: Lighting) -> NDArray[np.float32]:
        """Light at every corner: ambient, plus each lamp by angle and distance, exposed so that the median is 0.82."""
        light = np.full(self.corners_Q43.shape[:2], lighting.ambient)
        for lamp_3 in self.lamps_L3 + np.asarray(lighting.lamp_shift_m):
            towards_Q43 = lamp_3 - self.corners_Q43
            distance_Q4 = np.linalg.norm(towards_Q43, axis=-1)
            cosine_Q4 = np.einsum("qik,qk->qi", towards_Q43, self.normals_Q3) / np.maximum(
                distance_Q4, 1e-3
            )
            facing_Q4 = np.maximum(0.25 + 0.75 * cosine_Q4, 0.0)
            light += (
                lighting.lamp_strength * facing_Q4 / (1.0 + (distance_Q4 / self.lamp_reach_m) ** 2)
            )
        if not self.glowing_Q.all():
            light *= 0.82 / np.median(light[~self.glowing_Q])
        light[self.glowing_Q] = 1.0
        return np.clip(light, 0.0, MAX_SHADE).astype(np.float32)


def pack_atlas(textures: Sequence[Image]) -> tuple[Image, NDArray[np.float32], NDArray[np.float32]]:
    """Textures and their halved copies -> (atlas, origin (T, M, 2), size (T, M, 2)), both as (x, y) in texels.

    A level that would be smaller than two texels repeats the level before it.
    """
    images: list[Image] = []
    index_TM = np.zeros((len(textures), MIP_LEVELS), np.int64)
    for number, texture in enumerate(textures):
        for level in range(MIP_LEVELS):
            if level == 0:
                images.append(texture)
            elif min(images[-1].shape[:2]) >= 4:
                height, width = images[-1].shape[:2]
                halved = cv2.resize(
                    images[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA
                )
                images.append(halved.astype(np.uint8, copy=False))
            index_TM[number, level] = len(images) - 1

    width = max(ATLAS_WIDTH, max(image.shape[1] for image in images) + 2 * ATLAS_BORDER)
    origins = np.zeros((len(images), 2), np.float32)
    x = y = shelf = 0
    for i in sorted(range(len(images)), key=lambda i: (-images[i].shape[0], i)):
        high, wide = (side + 2 * ATLAS_BORDER for side in images[i].shape[:2])
        if x + wide > width:
            x, y, shelf = 0, y + shelf, 0
        origins[i] = x + ATLAS_BORDER, y + ATLAS_BORDER
        x, shelf = x + wide, max(shelf, high)
    atlas = np.zeros((y + shelf, width, 3), np.uint8)
    for (left, top), image in zip(origins.astype(int) - ATLAS_BORDER, images, strict=True):
        bordered = np.pad(image, ((ATLAS_BORDER,) * 2, (ATLAS_BORDER,) * 2, (0, 0)), mode="edge")
        atlas[top : top + bordered.shape[0], left : left + bordered.shape[1]] = bordered
    sizes = np.array([(image.shape[1], image.shape[0]) for image in images], np.float32)
    return atlas, origins[index_TM], sizes[index_TM]


class Renderer:
    """Renders one scene under one lighting through one camera; what does not depend on the pose is made once."""

    def __init__(self, scene: Scene, camera: Camera, lighting: Lighting) -> None:
        self.scene, self.camera = scene, camera
        self.centres_Q3 = scene.corners_Q43.mean(axis=1)
        self.light_Q4 = scene.light_Q4(lighting) / MAX_SHADE
        self.log_texels_Q = np.log2(scene.texels_per_metre_Q)
        self.atlas_size = np.array([scene.atlas.shape[1], scene.atlas.shape[0]], np.float32)
        y, x = np.mgrid[-1.0 : 1.0 : camera.height * 1j, -1.0 : 1.0 : camera.width * 1j]
        fall_off_HW = 1.0 - lighting.vignette * (x**2 + y**2) / 2.0
        gains_3 = MAX_SHADE * lighting.gain * np.asarray(lighting.colour)
        self.gain_HW3 = (fall_off_HW[..., None] * gains_3).astype(np.float32)
        self.settings = cv2.TriangleRasterizeSettings()
        self.settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED).setCullingMode(
            cv2.RASTERIZE_CULLING_NONE
        )

    def render(self, pose_44: ArrayLike) -> tuple[Image, NDArray[np.float32]]:
        """Camera-to-world pose (4, 4) -> (RGB image (H, W, 3), depth along the optical axis (H, W) in metres).

        Where nothing is hit the depth is infinite and the pixel black.
        """
        camera, scene = self.camera, self.scene
        triangles_N36 = self._visible_triangles(np.asarray(pose_44, np.float64))
        values_HW3 = np.zeros((camera.height, camera.width, 3), np.float32)
        depth_HW = np.full((camera.height, camera.width), FAR_M, np.float32)
        if len(triangles_N36):
            # The rasteriser's axes are x right, y up, z towards the viewer.
            vertices = np.ascontiguousarray(
                triangles_N36[..., :3] * np.array([1, -1, -1], np.float32)
            ).reshape(-1, 3)
            values = np.ascontiguousarray(triangles_N36[..., 3:]).reshape(-1, 3)
            numbers = np.arange(len(vertices), dtype=np.int32).reshape(-1, 3)
            field_of_view = 2.0 * np.arctan(camera.height / 2.0 / camera.focal_px)
            cv2.triangleRasterize(
                vertices,
                numbers,
                values,
                values_HW3,
                depth_HW,
                np.eye(4),
                float(field_of_view),
                NEAR_M,
                FAR_M,
                self.settings,
            )
        hit_HW = depth_HW < 0.999 * FAR_M
        if not hit_HW.all():
            hit_HW = _close_pinholes(values_HW3, depth_HW, hit_HW)
        atlas_x_HW = values_HW3[..., 0] * self.atlas_size[0] - 0.5
        atlas_y_HW = values_HW3[..., 1] * self.atlas_size[1] - 0.5
        painted_HW3 = cv2.remap(scene.atlas, atlas_x_HW, atlas_y_HW, cv2.INTER_LINEAR)
        image_HW3 = cv2.multiply(painted_HW3, self.gain_HW3 * values_HW3[..., 2:], dtype=cv2.CV_8U)
        depth_HW[~hit_HW] = np.inf
        return image_HW3.astype(np.uint8, copy=False), depth_HW

    def _visible_triangles(self, pose_44: NDArray[np.float64]) -> NDArray[np.float32]:
        """Triangles (N, 3 corners, 6): camera x, y, z in metres, atlas x, y in 0..1, light; in front and in view."""
        scene, camera = self.scene, self.camera
        position_3 = pose_44[:3, 3].astype(np.float32)
        rotation_33 = pose_44[:3, :3].astype(np.float32)
        facing_Q = np.einsum("qk,qk->q", position_3 - self.centres_Q3, scene.normals_Q3) > 0
        kept = np.flatnonzero(facing_Q)
        corners_K43 = (scene.corners_Q43[kept] - position_3) @ rotation_33
        x, y, z = corners_K43[..., 0], corners_K43[..., 1], corners_K43[..., 2]
        wide, high = camera.width / 2 / camera.focal_px, camera.height / 2 / camera.focal_px
        outside_K = (z <= NEAR_M).all(axis=1)
        for beyond_K4 in (x > wide * z, -x > wide * z, y > high * z, -y > high * z):
            outside_K |= beyond_K4.all(axis=1)
        kept, corners_K43 = kept[~outside_K], corners_K43[~outside_K]

        texture_K, level_K = scene.texture_Q[kept], self._mip_level(corners_K43, kept)
        origin_K12 = scene.atlas_origin_TM2[texture_K, level_K][:, None]
        size_K12 = scene.atlas_size_TM2[texture_K, level_K][:, None]
        atlas_K42 = (origin_K12 + scene.texture_xy_Q42[kept] * size_K12) / self.atlas_size
        quads_K46 = np.concatenate(
            [corners_K43, atlas_K42, self.light_Q4[kept][..., None]], axis=-1
        )
        triangles_N36 = quads_K46[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 6)
        crossing_N = (triangles_N36[..., 2] < NEAR_M).any(axis=1)
        if not crossing_N.any():
            return triangles_N36
        return np.concatenate(
            [triangles_N36[~crossing_N], clip_near(triangles_N36[crossing_N], NEAR_M)]
        )

    def _mip_level(
        self, corners_K43: NDArray[np.floating], kept: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The halving of the texture at which a texel is about as large as a pixel, per quadrilateral."""
        centres_K3 = corners_K43.mean(axis=1)
        distance_K = np.maximum(np.linalg.norm(centres_K3, axis=1), NEAR_M)
        across_K = np.cross(
            corners_K43[:, 2] - corners_K43[:, 0], corners_K43[:, 3] - corners_K43[:, 1]
        )
        slant_K = np.abs(np.einsum("kc,kc->k", across_K, centres_K3))
        cosine_K = slant_K / np.maximum(np.linalg.norm(across_K, axis=1) * distance_K, 1e-9)
        pixels_per_metre_K = (
            self.camera.focal_px / distance_K * np.sqrt(np.clip(cosine_K, 0.05, 1.0))
        )
        level_K = np.rint(self.log_texels_Q[kept] - np.log2(pixels_per_metre_K) - 0.1)
        return np.clip(level_K, 0, MIP_LEVELS - 1).astype(np.int64)


def clip_near(triangles_N3C: NDArray[np.float32], near: float) -> NDArray[np.float32]:
    """The parts of triangles (N, 3, C) with z >= near; z is value 2 of C, all values are interpolated along edges.

    A triangle with one corner behind the plane becomes two, with two behind one, with three none.
    """

    def cut(inner_NC: NDArray[np.float32], outer_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        share_N1 = (inner_NC[:, 2:3] - near) / (inner_NC[:, 2:3] - outer_NC[:, 2:3])
        point_NC = inner_NC + share_N1 * (outer_NC - inner_NC)
        point_NC[:, 2] = near
        return point_NC

    behind_N3 = triangles_N3C[..., 2] < near
    pieces = [triangles_N3C[~behind_N3.any(axis=1)]]
    for first in range(3):
        turned_N3C = np.roll(triangles_N3C, -first, axis=1)
        behind = np.roll(behind_N3, -first, axis=1)
        a, b, c = np.moveaxis(turned_N3C[behind[:, 0] & ~behind[:, 1] & ~behind[:, 2]], 1, 0)
        on_ab, on_ac = cut(b, a), cut(c, a)
        pieces += [np.stack([on_ab, b, c], axis=1), np.stack([on_ab, c, on_ac], axis=1)]
        a, b, c = np.moveaxis(turned_N3C[~behind[:, 0] & behind[:, 1] & behind[:, 2]], 1, 0)
        pieces.append(np.stack([a, cut(a, b), cut(a, c)], axis=1))
    return np.concatenate(pieces)


def _close_pinholes(
    values_HW3: NDArray[np.float32], depth_HW: NDArray[np.float32], hit_HW: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Give single pixels that fell between two triangles, by rounding, the values of the neighbour beside; in place.

    Returns where something was hit. Wider gaps are real and stay.
    """
    closed_HW = hit_HW.copy()
    for down, right in ((0, 1), (1, 0)):
        between_HW = np.zeros_like(hit_HW)
        inner_HW = between_HW[down : -down or None, right : -right or None]
        inner_HW[:] = (
            hit_HW[: -2 * down or None, : -2 * right or None] & hit_HW[2 * down :, 2 * right :]
        )
        y, x = np.nonzero(between_HW & ~closed_HW)
        values_HW3[y, x], depth_HW[y, x] = (
            values_HW3[y - down, x - right],
            depth_HW[y - down, x - right],
        )
        closed_HW |= between_HW
    return closed_HW


def render_frame(
    scene: Scene, pose_44: ArrayLike, camera: Camera, lighting: Lighting
) -> tuple[Image, NDArray[np.float32]]:
    """One frame: RGB image (H, W, 3) and depth (H, W) in metres. For many frames keep a `Renderer`."""
    return Renderer(scene, camera, lighting).render(pose_44)
