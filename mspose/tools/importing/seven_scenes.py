"""Read scenes in the layouts of 7Scenes and of Cambridge Landmarks (see `mspose.data.seven_scenes`
and `mspose.data.cambridge`), with images and folders of any name.
"""

import math
from pathlib import Path

import numpy as np

from mspose.data import cambridge, seven_scenes
from mspose.data.frames import (
    CAMERA_TO_WORLD,
    WORLD_TO_CAMERA_POSITION,
    last_row_fault,
    natural_order,
)
from mspose.data.images import same_image
from mspose.errors import MsposeError
from mspose.tools.importing.image_paths import existing_folder, find_images, wrong_layout
from mspose.tools.importing.views import Capture, View, plain_name, sequence_of

POSE = ".pose.txt"


def read_seven_scenes(path: Path, images: Path | None) -> Capture:
    """The views of a scene of 7Scenes' layout: `frame.color.png` or `frame.png` beside each
    `frame.pose.txt`, in folders of sequences.

    `images` is a folder with the same folders of images, in place of the scene's own. Sequences are
    of the split whose file names them, where there are such files. A sequence without
    `camera-intrinsics.txt` has that of the scene. Raises MsposeError for a folder without poses,
    and for files that are damaged.
    """
    scene = existing_folder(path, "7Scenes")
    # unlike `**`, these go into folders that are links
    found = [file for depth in ("", "*/", "*/*/") for file in scene.glob(f"{depth}*{POSE}")]
    pose_files = sorted(found, key=lambda file: natural_order(str(file)))
    if not pose_files:
        raise wrong_layout(scene, "7scenes", f"it holds no files *{POSE}")
    splits: dict[Path, str] = {}
    for split, name in seven_scenes.SPLIT_FILES.items():
        if (scene / name).is_file():
            for folder in seven_scenes.split_sequences(scene, split):
                if folder in splits:
                    raise MsposeError(
                        f"{scene / name}: {folder.name} is in both splits: correct it"
                    )
                splits[folder] = split
    scene_focal = seven_scenes.read_focal(scene / seven_scenes.INTRINSICS, math.nan)
    focal_of: dict[Path, float] = {}
    views = []
    for pose_file in pose_files:
        folder, frame = pose_file.parent, pose_file.name.removesuffix(POSE)
        if folder not in focal_of:
            focal_of[folder] = seven_scenes.read_focal(
                folder / seven_scenes.INTRINSICS, scene_focal
            )
        beside = folder if images is None else images / folder.relative_to(scene)
        file = same_image(beside / f"{frame}.color.png") or same_image(beside / f"{frame}.png")
        values, fault = seven_scenes.read_matrix(str(pose_file))
        pose_44 = np.reshape(values, (4, 4))
        image = f"{frame}.color.png" if file is None else file.name
        sequence = folder.relative_to(scene).as_posix()
        views.append(
            View(
                image=plain_name(f"{sequence}/{image}"),
                file=file,
                position=pose_44[:3, 3].tolist(),
                orientation=pose_44[:3, :3],
                sequence=sequence,
                moment=natural_order(frame),
                where=str(pose_file),
                focal_px=focal_of[folder],
                fault=fault or last_row_fault(pose_44),
                given_split=splits.get(folder, ""),
            )
        )
    return Capture(scene, CAMERA_TO_WORLD, views, [images or scene])


def read_cambridge(path: Path, images: Path | None) -> Capture:
    """The views of a scene of Cambridge Landmarks' layout: `dataset_train.txt`, `dataset_test.txt`.

    Images are named relative to the scene's folder, or to `images`. A `camera-intrinsics.txt`, a
    3x3 camera matrix, may be in the folder of a sequence or of the scene. Raises MsposeError for a
    folder without both files, and for files that are damaged.
    """
    scene = existing_folder(path, "Cambridge")
    files = {split: scene / name for split, name in cambridge.SPLIT_FILES.items()}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise wrong_layout(scene, "cambridge", f"there is no {' and no '.join(missing)}")
    lines, orders = [], {}
    for split, file in files.items():
        found, order = cambridge.read_split_file(file)
        lines += [(split, line) for line in found]
        orders[file.name] = order
    names = [plain_name(line.image) for _, line in lines]
    folders, found_files = find_images(names, [images or scene], images or scene)
    scene_focal = seven_scenes.read_focal(scene / seven_scenes.INTRINSICS, math.nan)
    views = []
    for (split, line), name, image_file in zip(lines, names, found_files, strict=True):
        sequence = sequence_of(name)
        views.append(
            View(
                image=name,
                file=image_file,
                position=line.numbers[:3],
                orientation=line.numbers[3:],
                sequence=sequence,
                moment=natural_order(name),
                where=line.where,
                focal_px=seven_scenes.read_focal(
                    scene / sequence / seven_scenes.INTRINSICS, scene_focal
                ),
                fault=line.fault,
                given_split=split,
            )
        )
    notes = [f"quaternion order: {order} in {name}" for name, order in orders.items()]
    return Capture(scene, WORLD_TO_CAMERA_POSITION, views, folders, notes=notes)
