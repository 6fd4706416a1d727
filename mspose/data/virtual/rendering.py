"""Renders a textured scene of quadrilaterals: OpenCV's software rasteriser finds the triangle that
each pixel shows, texture coordinates, light and depth follow from that triangle's plane, and one
`remap` into the scene's texture atlas paints the image.

All but the rasteriser is exact (see `exact.py`): images are the same on every processor, except for
single pixels whose centres lie on the common edge of two surfaces, to within the rasteriser's
float32.

Conventions: poses are camera-to-world, camera axes x right, y down, z forward, metres. Pixel (0, 0)
is the centre of the top left pixel, so the principal point of a camera W pixels wide lies at (W -
1) / 2.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mspose.data.virtual.atlas import MIP_LEVELS
from mspose.data.virtual.exact import dot, length, median, uniform
from mspose.data.virtual.scene import Scene
from mspose.data.virtual.textures import Image

NEAR_M = 0.05  # what is nearer is clipped away
FAR_M = 200.0
BRIGHTEST = 4.0  # most light that a surface shows
MEDIAN_LIGHT = 0.82  # of the corners that do not glow
SHARPNESS = 0.5743491774985175  # 2 ** -0.8: a texture is halved from 2 ** 0.6 texels per pixel on
TEXEL_BITS = 5  # of positions between texels, the resolution of OpenCV's remap
TEXEL_PARTS = 2**TEXEL_BITS


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
        """Return pixels (N, 2) as (x, y) and depths along the optical axis (N,) in metres."""
        camera_N3 = to_camera(np.asarray(points_N3, np.float64), np.asarray(pose_44, np.float64))
        centre_2 = np.array([(self.width - 1) / 2, (self.height - 1) / 2])
        return self.focal_px * camera_N3[:, :2] / camera_N3[:, 2:] + centre_2, camera_N3[:, 2]


def to_camera(points_3: NDArray[np.float64], pose_44: NDArray[np.float64]) -> NDArray[np.float64]:
    """World points (..., 3) in the axes of a camera with this pose."""
    relative_3 = points_3 - pose_44[:3, 3]
    return np.stack([dot(relative_3, pose_44[:3, axis]) for axis in range(3)], axis=-1)


@dataclass(frozen=True)
class Lighting:
    """Light and exposure of one sequence."""

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
        """Draw the lighting of a new sequence: a little brighter or darker, warmer or colder, the
        lamps moved.
        """
        warmth, tint = uniform(rng, -0.08, 0.08), uniform(rng, -0.02, 0.02)
        x, y, z = uniform(rng, (-0.8, -0.8, -0.2), (0.8, 0.8, 0.1)).tolist()
        return cls(
            gain=uniform(rng, 0.85, 1.15),
            colour=(1 + warmth, 1 + tint, 1 - warmth),
            vignette=uniform(rng, 0.05, 0.3),
            ambient=uniform(rng, 0.48, 0.62),
            lamp_strength=uniform(rng, 0.8, 1.2),
            lamp_shift_m=(x, y, z),
        )


def light_at_corners(scene: Scene, lighting: Lighting) -> NDArray[np.float64]:
    """Light (Q, 4) at every corner: ambient, plus each lamp by angle and distance, exposed to
    `MEDIAN_LIGHT`.
    """
    light_Q4 = np.full(scene.corners_Q43.shape[:2], lighting.ambient)
    for lamp_3 in scene.lamps_L3 + np.asarray(lighting.lamp_shift_m):
        towards_Q43 = lamp_3 - scene.corners_Q43
        distance_Q4 = length(towards_Q43)
        cosine_Q4 = dot(towards_Q43, scene.normals_Q3[:, None]) / np.maximum(distance_Q4, 1e-3)
        facing_Q4 = np.maximum(0.25 + 0.75 * cosine_Q4, 0.0)
        reach_Q4 = distance_Q4 / scene.lamp_reach_m
        light_Q4 += lighting.lamp_strength * facing_Q4 / (1.0 + reach_Q4 * reach_Q4)
    if not scene.glowing_Q.all():
        light_Q4 *= MEDIAN_LIGHT / median(light_Q4[~scene.glowing_Q])
    light_Q4[scene.glowing_Q] = 1.0
    return np.clip(light_Q4, 0.0, BRIGHTEST)


class Renderer:
    """Renders one scene under one lighting through one camera; what does not depend on the pose is
    made once.
    """

    def __init__(self, scene: Scene, camera: Camera, lighting: Lighting) -> None:
        self.scene, self.camera = scene, camera
        corners_4Q3 = np.moveaxis(scene.corners_Q43, 1, 0)
        self.centres_Q3 = (corners_4Q3[0] + corners_4Q3[1] + corners_4Q3[2] + corners_4Q3[3]) / 4.0
        self.light_Q4 = light_at_corners(scene, lighting)
        self.ray_x_W = (np.arange(camera.width) - (camera.width - 1) / 2) / camera.focal_px
        self.ray_y_H1 = ((np.arange(camera.height) - (camera.height - 1) / 2) / camera.focal_px)[
            :, None
        ]
        x, y = np.linspace(-1.0, 1.0, camera.width), np.linspace(-1.0, 1.0, camera.height)[:, None]
        fall_off_HW = 1.0 - lighting.vignette * (x * x + y * y) / 2.0
        self.gain_HW3 = (
            fall_off_HW[..., None] * (lighting.gain * np.asarray(lighting.colour))
        ).astype(np.float32)
        self.work_6HW = np.empty(
            (6, camera.height, camera.width)
        )  # new memory for every image would cost time
        self.settings = cv2.TriangleRasterizeSettings()
        self.settings.setShadingType(cv2.RASTERIZE_SHADING_FLAT).setCullingMode(
            cv2.RASTERIZE_CULLING_NONE
        )

    def render(self, pose_44: ArrayLike) -> tuple[Image, NDArray[np.float64]]:
        """Camera-to-world pose (4, 4) -> (RGB image (H, W, 3), depth along the optical axis (H, W)
        in metres).

        Where nothing is hit the depth is infinite and the pixel black.
        """
        corners_N33, values_N33 = self._triangles_in_view(np.asarray(pose_44, np.float64))
        shown_HW = self._rasterise(corners_N33)
        values_3HW, depth_HW = self._interpolate(corners_N33, values_N33, shown_HW)
        if (shown_HW < 0).any():
            _close_pinholes(values_3HW, depth_HW, shown_HW >= 0)
        return self._paint(values_3HW), depth_HW

    def _paint(self, values_3HW: NDArray[np.float64]) -> Image:
        """Paint the image from x and y in the atlas, in parts of a texel, and light."""
        x_HW, y_HW = np.rint(values_3HW[:2]).astype(np.int32)
        texel_HW2 = np.empty((*x_HW.shape, 2), np.int16)
        texel_HW2[..., 0], texel_HW2[..., 1] = x_HW >> TEXEL_BITS, y_HW >> TEXEL_BITS
        part_HW = ((y_HW & TEXEL_PARTS - 1) << TEXEL_BITS | x_HW & TEXEL_PARTS - 1).astype(
            np.uint16
        )
        painted_HW3 = cv2.remap(self.scene.atlas, texel_HW2, part_HW, cv2.INTER_LINEAR)
        light_HW3 = self.gain_HW3 * values_3HW[2].astype(np.float32)[..., None]
        return cv2.multiply(painted_HW3, light_HW3, dtype=cv2.CV_8U).astype(np.uint8, copy=False)

    def _triangles_in_view(
        self, pose_44: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Triangles that face the camera and are not out of view: corners in camera axes (N, 3, 3),
        metres, and at every corner x and y in the atlas, in parts of a texel, and light (N, 3, 3).
        """
        scene, camera = self.scene, self.camera
        kept = np.flatnonzero(dot(pose_44[:3, 3] - self.centres_Q3, scene.normals_Q3) > 0)
        corners_K43 = to_camera(scene.corners_Q43[kept], pose_44)
        x, y, z = corners_K43[..., 0], corners_K43[..., 1], corners_K43[..., 2]
        wide, high = camera.width / 2 / camera.focal_px, camera.height / 2 / camera.focal_px
        outside_K = (z <= NEAR_M).all(axis=1)
        for beyond_K4 in (x > wide * z, -x > wide * z, y > high * z, -y > high * z):
            outside_K |= beyond_K4.all(axis=1)
        kept, corners_K43 = kept[~outside_K], corners_K43[~outside_K]

        texture_K, level_K = scene.texture_Q[kept], self._mip_level(corners_K43, kept)
        origin_K12 = scene.atlas_origin_TM2[texture_K, level_K][:, None]
        size_K12 = scene.atlas_size_TM2[texture_K, level_K][:, None]
        part_K42 = (origin_K12 + scene.texture_xy_Q42[kept] * size_K12 - 0.5) * TEXEL_PARTS
        values_K43 = np.concatenate([part_K42, self.light_Q4[kept][..., None]], axis=-1)
        halves = np.array([[0, 1, 2], [0, 2, 3]])
        return corners_K43[:, halves].reshape(-1, 3, 3), values_K43[:, halves].reshape(-1, 3, 3)

    def _mip_level(
        self, corners_K43: NDArray[np.float64], kept: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The halving of the texture at which a texel is about as large as a pixel, per
        quadrilateral.
        """
        corners_4K3 = np.moveaxis(corners_K43, 1, 0)
        centres_K3 = (corners_4K3[0] + corners_4K3[1] + corners_4K3[2] + corners_4K3[3]) / 4.0
        distance_K = np.maximum(length(centres_K3), NEAR_M)
        across_K3 = np.cross(corners_4K3[2] - corners_4K3[0], corners_4K3[3] - corners_4K3[1])
        slant_K = np.abs(dot(across_K3, centres_K3))
        cosine_K = np.clip(slant_K / np.maximum(length(across_K3) * distance_K, 1e-9), 0.05, 1.0)
        texels_K = self.scene.texels_per_metre_Q[kept] * distance_K / self.camera.focal_px
        squared_K = (
            texels_K * texels_K / cosine_K
        )  # texels per pixel, squared, so that no logarithm is needed
        level_K = np.zeros(len(kept), np.int64)
        for level in range(1, MIP_LEVELS):
            level_K += squared_K >= SHARPNESS * 4**level
        return level_K

    def _rasterise(self, corners_N33: NDArray[np.float64]) -> NDArray[np.int64]:
        """The triangle that each pixel (H, W) shows; -1 for none."""
        camera = self.camera
        number_N = np.arange(len(corners_N33))
        crossing_N = (corners_N33[..., 2] < NEAR_M).any(axis=1)
        if crossing_N.any():
            parts_M33, of_M = clip_near(corners_N33[crossing_N], NEAR_M)
            corners_N33 = np.concatenate([corners_N33[~crossing_N], parts_M33])
            number_N = np.concatenate([number_N[~crossing_N], number_N[crossing_N][of_M]])
        number_HW3 = np.full((camera.height, camera.width, 3), -1, np.float32)
        if len(corners_N33) == 0:
            return number_HW3[..., 0].astype(np.int64)
        # The rasteriser's axes are x right, y up, z towards the viewer. Its field of view is a
        # quarter turn, whose tangent is 1 everywhere: the focal length is in the vertices.
        stretch = camera.focal_px / (camera.height / 2)
        vertices = (
            (corners_N33 * np.array([stretch, -stretch, -1.0])).astype(np.float32).reshape(-1, 3)
        )
        cv2.triangleRasterize(
            vertices,
            np.arange(len(vertices), dtype=np.int32).reshape(-1, 3),
            np.repeat(number_N, 9).reshape(-1, 3).astype(np.float32),
            number_HW3,
            np.full((camera.height, camera.width), FAR_M, np.float32),
            np.eye(4),
            math.pi / 2,
            NEAR_M,
            FAR_M,
            self.settings,
        )
        return number_HW3[..., 0].astype(np.int64)

    def _interpolate(
        self,
        corners_N33: NDArray[np.float64],
        values_N33: NDArray[np.float64],
        shown_HW: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values (3, H, W) and depths (H, W) of the shown triangles where the pixels' rays meet
        their planes.

        A ray r meets the plane of corners a, b, c where the barycentric coordinates are in the
        ratio of r.(b x c), r.(c x a) and r.(a x b). Where nothing is shown the values are 0 and the
        depth is infinite.
        """
        a_N3, b_N3, c_N3 = np.moveaxis(corners_N33, 1, 0)
        bc_N3, ca_N3, ab_N3 = np.cross(b_N3, c_N3), np.cross(c_N3, a_N3), np.cross(a_N3, b_N3)
        planes_N3 = [bc_N3 + ca_N3 + ab_N3]
        for k in range(3):
            value_N31 = values_N33[..., k, None]
            planes_N3.append(
                value_N31[:, 0] * bc_N3 + value_N31[:, 1] * ca_N3 + value_N31[:, 2] * ab_N3
            )
        # what -1 points to, the last, is nothing
        volume_N = np.append(dot(a_N3, bc_N3), np.inf)
        planes_43N = np.zeros((4, 3, len(volume_N)))
        planes_43N[..., :-1] = np.stack(planes_N3).transpose(0, 2, 1)
        planes_43N[0, 2, -1] = 1.0

        result_5HW, spare_HW = self.work_6HW[:5], self.work_6HW[5]
        for (x_N, y_N, z_N), result_HW in zip(planes_43N, result_5HW, strict=False):
            x_N.take(shown_HW, out=result_HW, mode="wrap")
            result_HW *= self.ray_x_W
            y_N.take(shown_HW, out=spare_HW, mode="wrap")
            spare_HW *= self.ray_y_H1
            result_HW += spare_HW
            z_N.take(shown_HW, out=spare_HW, mode="wrap")
            result_HW += spare_HW
        volume_N.take(shown_HW, out=result_5HW[4], mode="wrap")
        result_5HW[1:] /= result_5HW[0]
        return result_5HW[1:4], result_5HW[4].copy()


def clip_near(
    triangles_N33: NDArray[np.float64], near: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The parts of triangles (N, 3, 3) with z >= near, and the number of the triangle that each is
    a part of.

    A triangle with one corner behind the plane becomes two, with two behind one, with three none.
    """

    def cut(inner_N3: NDArray[np.float64], outer_N3: NDArray[np.float64]) -> NDArray[np.float64]:
        share_N1 = (inner_N3[:, 2:] - near) / (inner_N3[:, 2:] - outer_N3[:, 2:])
        point_N3 = inner_N3 + share_N1 * (outer_N3 - inner_N3)
        point_N3[:, 2] = near
        return point_N3

    behind_N3 = triangles_N33[..., 2] < near
    whole_N = ~behind_N3.any(axis=1)
    pieces, numbers = [triangles_N33[whole_N]], [np.flatnonzero(whole_N)]
    for first in range(3):
        turned_N33 = np.roll(triangles_N33, -first, axis=1)
        behind = np.roll(behind_N3, -first, axis=1)
        one = np.flatnonzero(behind[:, 0] & ~behind[:, 1] & ~behind[:, 2])
        a, b, c = np.moveaxis(turned_N33[one], 1, 0)
        on_ab, on_ac = cut(b, a), cut(c, a)
        pieces += [np.stack([on_ab, b, c], axis=1), np.stack([on_ab, c, on_ac], axis=1)]
        two = np.flatnonzero(~behind[:, 0] & behind[:, 1] & behind[:, 2])
        a, b, c = np.moveaxis(turned_N33[two], 1, 0)
        pieces.append(np.stack([a, cut(a, b), cut(a, c)], axis=1))
        numbers += [one, one, two]
    return np.concatenate(pieces), np.concatenate(numbers)


def _close_pinholes(
    values_3HW: NDArray[np.floating], depth_HW: NDArray[np.floating], hit_HW: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Give single pixels that fell between two triangles, by rounding, the values of the neighbour
    beside; in place.

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
        values_3HW[:, y, x], depth_HW[y, x] = (
            values_3HW[:, y - down, x - right],
            depth_HW[y - down, x - right],
        )
        closed_HW |= between_HW
    return closed_HW


def render_frame(
    scene: Scene, pose_44: ArrayLike, camera: Camera, lighting: Lighting
) -> tuple[Image, NDArray[np.float64]]:
    """Render one frame: RGB image (H, W, 3) and depth (H, W) in metres."""
    return Renderer(scene, camera, lighting).render(pose_44)
