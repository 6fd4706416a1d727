"""Writes what every virtual scene is made of, and some of its images, to a file: `python
snapshot.py FILE`.

Run by tests under other settings of the libraries, to compare. Textures are coarse, which saves
time and changes no decision that is made in building a scene.
"""

import os
import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mspose.data.virtual import scene
from mspose.data.virtual.rendering import Camera, Lighting, Renderer, light_at_corners
from mspose.data.virtual.rooms import SCENE_NAMES, build_scene
from mspose.data.virtual.sequences import ENCODINGS
from mspose.data.virtual.trajectory import trajectory

TEXELS_PER_METRE = 50.0
EXACT = (
    "corners_Q43",
    "normals_Q3",
    "texture_Q",
    "texture_xy_Q42",
    "texels_per_metre_Q",
    "glowing_Q",
    "lamps_L3",
    "atlas_origin_TM2",
    "atlas_size_TM2",
    "view_low_3",
    "view_high_3",
    "target_low_3",
    "target_high_3",
)


def snapshot(frames: int = 3) -> dict[str, NDArray[Any]]:
    """By name: what must be equal to the bit (`poses/...`, `light/...`, ...), and `image/...`,
    which may be rounded.
    """
    scene.TEXELS_PER_METRE = TEXELS_PER_METRE
    scene.SceneBuilder.patch.__kwdefaults__["density"] = TEXELS_PER_METRE
    scene.SceneBuilder.texture.__defaults__ = (TEXELS_PER_METRE,)
    found: dict[str, NDArray[Any]] = {}
    for name in SCENE_NAMES:
        built = build_scene(name)
        rng = np.random.default_rng([0, scene.scene_key(name), 0, 0])
        lighting = Lighting.draw(rng)
        poses = trajectory(built, rng, 50)
        renderer = Renderer(built, Camera(160, 120, 146.25), lighting)
        images = [renderer.render(poses[i])[0] for i in np.linspace(0, 49, frames).astype(int)]
        jpeg, quality = ENCODINGS["jpg"]
        files = [
            cv2.imdecode(cv2.imencode(jpeg, image, quality)[1], cv2.IMREAD_COLOR)
            for image in images
        ]
        found |= {f"{part}/{name}": np.asarray(getattr(built, part)) for part in EXACT}
        found |= {f"poses/{name}": poses, f"light/{name}": light_at_corners(built, lighting)}
        found |= {f"image/{name}": np.array(images), f"image/file/{name}": np.array(files)}
    return found


if __name__ == "__main__":
    cv2.setNumThreads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    np.savez(sys.argv[1], **snapshot())  # type: ignore[arg-type]
