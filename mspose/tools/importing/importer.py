"""Make one data set of folders that other programs wrote: read, find images, split, write."""

import math
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from mspose.config import dashed
from mspose.data.cards import PLAIN_NAME, AtLeastTwo
from mspose.data.frames import frame_table, natural_order
from mspose.errors import MsposeError
from mspose.resources import CARDS, named_files
from mspose.tools.importing.colmap import read_colmap
from mspose.tools.importing.data_set_folder import LEFT_OUT, free_folder, write_data_set
from mspose.tools.importing.image_paths import (
    FORMAT_FILES,
    existing_folder,
    image_size,
    images_in,
    renamed_note,
    without_dots,
)
from mspose.tools.importing.kapture import read_kapture
from mspose.tools.importing.kitti import read_kitti
from mspose.tools.importing.nerfstudio import read_nerfstudio
from mspose.tools.importing.seven_scenes import read_cambridge, read_seven_scenes
from mspose.tools.importing.splits import DROPPED, SplitBy, describe_split, split_frames
from mspose.tools.importing.tum import TOLERANCE, read_tum
from mspose.tools.importing.views import Capture, View, listed, stacked

CONVENTIONS = {
    "colmap": "world-to-camera, quaternion w first",
    "nerfstudio": "camera-to-world matrices in OpenGL's camera axes (y up, z back)",
    "tum": "camera-to-world",
    "kapture": "world-to-sensor, quaternion w first",
    "7scenes": "camera-to-world matrices",
    "cambridge": "camera centres and world-to-camera quaternions",
    "kitti": "camera-to-world matrices of camera 0",
}
"""Format -> how it states poses."""
KINDS = tuple(CONVENTIONS)
READERS: dict[str, Callable[..., Capture]] = {
    "colmap": read_colmap,
    "nerfstudio": read_nerfstudio,
    "tum": read_tum,
    "kapture": read_kapture,
    "7scenes": read_seven_scenes,
    "cambridge": read_cambridge,
    "kitti": read_kitti,
}
"""Format -> function of a scene's folder and the folder of its images, None for the scene's own."""
WITHOUT_METRES = ("colmap", "nerfstudio")
"""Formats of structure from motion, whose poses have a unit of their own; others are in metres."""
WITH_SPLIT = ("7scenes", "cambridge")
"""Formats whose own split is taken unless another is asked for."""
OPTIONS_OF = {"trajectory": ("tum", "kitti"), "image_list": ("tum",), "tolerance": ("tum",)}
"""Option -> the formats that it belongs to."""
IN_MARGIN = "margin between training and test block"
UNNAMED_FOLDERS = ("sparse", "dense", "colmap", "sensors", "text", "model", "mav0")
"""Folders after which no scene is named."""


def import_data(
    kind: Literal["colmap", "nerfstudio", "tum", "kapture", "7scenes", "cambridge", "kitti"],
    paths: list[str],
    *,
    out: str,
    images: list[str] | None = None,
    scenes: list[str] | None = None,
    scale: PositiveFloat = 1.0,
    focal_px: PositiveFloat | None = None,
    missing: Literal["stop", "skip"] | None = None,
    on_bad_frame: Literal["stop", "skip"] = "stop",
    copy: bool = False,
    split: Literal["blocks", "sequence", "list", "given"] | None = None,
    block: PositiveInt | None = None,
    test_every: AtLeastTwo | None = None,
    margin: NonNegativeInt | None = None,
    test_sequences: list[str] | None = None,
    test_list: Path | None = None,
    train_list: Path | None = None,
    trajectory: list[str] | None = None,
    image_list: list[str] | None = None,
    tolerance: PositiveFloat | None = None,
    progress: bool = True,
) -> str:
    """Make a data set of your own of poses from COLMAP, nerfstudio, TUM, EuRoC, KITTI and others.

    Folders in the layouts of 7Scenes and Cambridge Landmarks are taken too.

    Args:
        kind: format of the folders (EuRoC: tum).
        paths: one folder per scene (nerfstudio: or transforms.json), or the folder of all scenes of
            7Scenes, Cambridge Landmarks or KITTI.
        out: folder to make; its name is the data set's.
        images: folder of the images, one per path.
        scenes: names of the scenes, one per path.
        scale: metres per unit of the poses.
        focal_px: focal length in pixels, in place of the files'.
        missing: images that are not on disk (default: stop; nerfstudio: skip).
        on_bad_frame: broken poses: stop, or leave them out.
        copy: copy the images too, so that the folder can travel.
        split: how to choose test frames (default: blocks; 7scenes and cambridge: given).
        block: with blocks, frames per block (default: 50, or fewer).
        test_every: with blocks, every how many-th is for testing (default: 5).
        margin: with blocks, training frames dropped beside a test block.
        test_sequences: with sequence, those for testing.
        test_list: with list, file with a test image per line.
        train_list: with list, file with a training image per line (default: the rest).
        trajectory: with tum and kitti, file of poses, one per path.
        image_list: with tum, file of images, one per path.
        tolerance: with tum, seconds between image and pose (default: 0.02).

    Returns:
        A summary: frames per scene and split, what was left out, and what was noticed.

    Raises:
        MsposeError: bad input; then nothing is written.
    """
    by = SplitBy(
        split or "blocks", block, test_every, margin, test_sequences or (), test_list, train_list
    )
    by.refuse_idle_options()
    paths = [scene for path in paths for scene in _scene_folders(kind, path)]
    given = {"images": images, "scenes": scenes, "trajectory": trajectory}
    _check_options(kind, paths, scale, {**given, "image_list": image_list, "tolerance": tolerance})
    folder = free_folder(Path(out))
    _refuse_known_name(folder)
    names = scenes or [_scene_name(path) for path in paths]
    _refuse_bad_scenes(names, paths, given=bool(scenes))
    captures = {}
    for number, (name, path) in enumerate(zip(names, map(Path, paths), strict=True)):
        own_images, poses_file, list_file = (
            without_dots(Path(values[number])) if values else None
            for values in (images, trajectory, image_list)
        )
        if own_images:
            own_images = existing_folder(own_images, "image")
        options = {
            "nerfstudio": {"focal_px": focal_px},
            "kitti": {"trajectory": poses_file},
            "tum": {
                "trajectory": poses_file,
                "image_list": list_file,
                "tolerance": tolerance or TOLERANCE,
            },
        }
        captures[name] = READERS[kind](path, own_images, **options.get(kind, {}))

    missing = missing or ("skip" if kind == "nerfstudio" else "stop")
    left_out: list[tuple[str, str, str]] = []
    views: list[tuple[str, View]] = []
    notes: dict[str, None] = {}  # in order, without repetition
    for scene, capture in captures.items():
        left_out += [(scene, image, why) for image, why in capture.unposed.items()]
        on_disk, absent = _on_disk(capture, missing, given=bool(images))
        left_out += [(scene, view.image, "no such image") for view in absent]
        zoom, zoom_notes = _zoom(on_disk)
        views += [(scene, view) for view in _in_order(on_disk, zoom, focal_px)]
        notes |= dict.fromkeys(f"{scene}: {line}" for line in [*renamed_note(on_disk), *zoom_notes])
        notes |= dict.fromkeys(capture.notes)

    frames = _frame_table(folder.name, kind, views, captures, scale, on_bad_frame)
    kept = set(frames["image"])
    bad = [(scene, view.image) for scene, view in views if str(view.file) not in kept]
    left_out += [
        (scene, image, f"bad pose: {fault}")
        for (scene, image), fault in zip(bad, frames.attrs["faults"], strict=True)
    ]
    if kind in WITH_SPLIT and split is None and by == SplitBy():
        stated = (any(view.given_split for view in capture.views) for capture in captures.values())
        by = SplitBy("given" if all(stated) else "blocks")
    described = describe_split(frames, by)
    frames["split"] = split_frames(frames, by, [image for _, image, _ in left_out])
    reason = IN_MARGIN if by.how == "blocks" else "in no split"
    dropped = frames[frames["split"] == DROPPED]
    left_out += [(scene, name, reason) for scene, name in dropped[["scene", "name"]].to_numpy()]
    frames = frames[frames["split"] != DROPPED]
    if by.how != "given" and any(view.given_split for _, view in views):
        notes["the files have a split of their own: --split given takes it"] = None
    sources = ", ".join(str(capture.source) for capture in captures.values())
    if copy:
        _refuse_others_files(
            frames["image"],
            [folder for capture in captures.values() for folder in capture.image_folders],
        )
    card = write_data_set(
        folder,
        frames,
        left_out,
        {scene: capture.image_folders[0] for scene, capture in captures.items()},
        card={
            "ground_truths": [kind],
            "source": f"mspose data import {kind}: {sources}",
            "pose_convention": (
                "label CSV, camera-to-world, quaternion w first, metres; from"
                f" {kind}: {CONVENTIONS[kind]}; {scale:g} metres per unit there; images as they"
                " are, with the distortion of their lens"
            ),
            "how_to_get": "import it again: "
            f"mspose data import {kind} ... --out {shlex.quote(str(folder))}",
        },
        copy=copy,
        progress=progress,
    )
    return _summary(kind, card, frames, left_out, scale, described, list(notes))


def _scene_folders(kind: str, path: str) -> list[str]:
    """`path`, or the folders of scenes in it where it has no sign of a scene itself."""
    folder = Path(path).expanduser()
    if kind == "kitti" and (folder / "sequences").is_dir():
        poses = (folder / "poses").glob("*.txt")
        named = [folder / "sequences" / file.stem for file in poses]
    elif kind in WITH_SPLIT and folder.is_dir():
        signs = FORMAT_FILES[kind]
        if any((folder / sign).exists() for sign in signs):
            return [path]
        named = [
            scene for scene in folder.iterdir() if any((scene / sign).exists() for sign in signs)
        ]
    else:
        return [path]
    scenes = sorted(
        (scene for scene in named if scene.is_dir()), key=lambda scene: natural_order(scene.name)
    )
    return [str(scene) for scene in scenes] or [path]


def _check_options(
    kind: str, paths: Sequence[str], scale: float, options: Mapping[str, Any]
) -> None:
    """Raise MsposeError for an option of another format, and a list without a value per path."""
    if not math.isfinite(scale):
        raise MsposeError(f"--scale is a number of metres, not {scale}")
    for option, values in options.items():
        kinds = OPTIONS_OF.get(option, KINDS)
        if kind not in kinds and values not in (None, (), []):
            raise MsposeError(
                f"--{dashed(option)} belongs to {' and '.join(kinds)}: with {kind} it is without"
                " effect"
            )
        if isinstance(values, Sequence) and values and len(values) != len(paths):
            raise MsposeError(
                f"--{dashed(option)}: {len(values)} given for {len(paths)} paths: one for each, in"
                " their order"
            )


def _on_disk(capture: Capture, missing: str, *, given: bool) -> tuple[list[View], list[View]]:
    """(views whose image is on disk, the others).

    `given`: the folder of images was named by the user. Raises MsposeError where none is there, or
    some are not and `missing` is `stop`.
    """
    there = [view for view in capture.views if view.file is not None]
    absent = [view for view in capture.views if view.file is None]
    if not there or (absent and missing == "stop"):
        if there:
            count = f"{len(absent)} of its {len(capture.views)} images are not"
            advice = ", or go on without them with --missing skip"
        else:
            count, advice = f"none of its {len(absent)} images is", ""
        folders = listed([str(folder) for folder in capture.image_folders])
        where = "say where they are with --images FOLDER"
        if given:
            folder = capture.image_folders[0]
            inside = images_in(folder)
            holds = f"{len(inside)} images, such as {min(inside)}" if inside else "no image itself"
            where = (
                f"{folder} holds {holds}: name its files as the poses do, or give another folder"
            )
        raise MsposeError(
            f"{capture.source}: {count} on disk (searched {absent[0].image} in {folders}):"
            f" {where}{advice}"
        )
    return there, absent


def _zoom(views: Sequence[View]) -> tuple[dict[tuple[float, float], float], list[str]]:
    """Size of the images over that in the camera model, by the model's size; and lines about it.

    Models are often made from large images and used with smaller ones. One image of each size is
    read.
    """
    zoom, notes = {}, []
    for (width, height), view in {view.size_px: view for view in reversed(views)}.items():
        found_width, found_height = image_size(view.file) if view.file else (math.nan, math.nan)
        if not width > 0 or not found_width > 0 or (found_width, found_height) == (width, height):
            continue
        ratio = found_width / width
        sizes = (
            f"images are {found_width:g}x{found_height:g} pixels, their camera model is of"
            f" {width:g}x{height:g}"
        )
        # to a pixel and a half, since the sides of smaller copies are rounded
        if not abs(found_height - ratio * height) > 1.5 * max(ratio, 1):
            if ratio != 1:
                zoom[width, height] = ratio
                notes.append(f"{sizes}: focal lengths are scaled by {ratio:.4g}")
        else:
            notes.append(f"{sizes}, cropped or turned: focal lengths are left as they are")
    return zoom, notes


def _in_order(
    views: Sequence[View], zoom: Mapping[tuple[float, float], float], focal_px: float | None
) -> list[View]:
    def order(view: View) -> tuple[Any, ...]:
        return natural_order(view.sequence), view.moment, natural_order(view.image)

    return [
        replace(view, focal_px=focal_px or view.focal_px * zoom.get(view.size_px, 1.0))
        for view in sorted(views, key=order)
    ]


def _frame_table(
    dataset: str,
    kind: str,
    views: Sequence[tuple[str, View]],
    captures: Mapping[str, Capture],
    scale: float,
    on_bad_frame: str,
) -> pd.DataFrame:
    """The frame table of all views in metres, with columns name, moment and given split.

    `image` is the absolute path of the file.
    """
    position_B3, orientation, focal_B = stacked([view for _, view in views])
    with np.errstate(over="ignore"):  # infinity is refused, with its line
        position_B3 = position_B3 * scale
    table = frame_table(
        dataset=dataset,
        ground_truth=kind,
        split="usable",
        scene=[scene for scene, _ in views],
        sequence=[view.sequence for _, view in views],
        image=[str(view.file) for _, view in views],
        position_B3=position_B3,
        orientation=orientation,
        convention=next(iter(captures.values())).convention,
        where=lambda row: views[row][1].where,
        source=", ".join(str(capture.source) for capture in captures.values()),
        focal_px=focal_B,
        faults={row: view.fault for row, (_, view) in enumerate(views) if view.fault},
        scenes=list(captures),
        on_bad_frame=on_bad_frame,
    )
    view_of_file = {str(view.file): view for _, view in views}
    kept = [view_of_file[image] for image in table["image"]]
    table["name"] = [view.image for view in kept]
    table["given"] = [view.given_split for view in kept]
    return table.assign(moment=pd.Series([view.moment for view in kept], dtype=object))


def _summary(
    kind: str,
    card: Path,
    frames: pd.DataFrame,
    left_out: Sequence[tuple[str, str, str]],
    scale: float,
    described: str,
    notes: Sequence[str],
) -> str:
    rows = []
    for scene, part in frames.groupby("scene", sort=True):
        extent = np.ptp(part[["tx", "ty", "tz"]].to_numpy(), axis=0)
        counts = part["split"].value_counts()
        splits = dict.fromkeys(["train", "test", *frames["split"]])
        rows.append(
            {
                "scene": scene,
                **{split: counts.get(split, 0) for split in splits},
                "left out": sum(scene == other for other, _, _ in left_out),
                "sequences": part["sequence"].nunique(),
                "extent (m)": " x ".join(f"{length:.3g}" for length in extent),
            }
        )
    lines = [pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), ""]
    reasons: dict[str, list[str]] = {}
    for _, image, why in left_out:
        reasons.setdefault(why.partition(":")[0], []).append(image)
    for why, names in reasons.items():
        # those of the margin are many, and nothing is wrong with them
        shown = "" if why == IN_MARGIN else f": {listed(names)}"
        lines.append(f"left out, {why}: {len(names)}{shown}")
    if left_out:
        lines.append(f"all that is left out, by name: {card.parent / LEFT_OUT}")
    unit = f"scale: {scale:g} metres per unit of the poses"
    if scale == 1 and kind in WITHOUT_METRES:
        unit += f"; {kind} has no metres of its own: give --scale where its unit is another"
    lines += [
        unit,
        f"poses: {CONVENTIONS[kind]} there; camera-to-world here, metres, quaternion w first",
        "images: as they are, with the distortion of their lens",
        f"split: {described}",
        *notes,
        "",
        f"check it with: mspose data check {shlex.quote(str(card.parent))}",
        "train on it with: mspose train --config experiments/7scenes.yaml"
        f" --experiment {card.stem} --data.dataset {shlex.quote(str(card))}",
        "without a network add --model.backbone efficientnet_lite0, whose weights were installed"
        " with mspose",
    ]
    return "\n".join(lines)


def _refuse_known_name(folder: Path) -> None:
    if PLAIN_NAME.fullmatch(folder.name) is None:
        raise MsposeError(
            f"--out: the folder's name is the data set's, and {folder.name!r} is not plain"
            " (letters, digits, - _ .)"
        )
    if folder.name in named_files(CARDS):
        raise MsposeError(
            f"--out: there is a data set {folder.name} already: call the folder otherwise"
        )


def _refuse_others_files(files: Iterable[str], folders: Iterable[Path]) -> None:
    """Refuse to copy images from anywhere else than the folders, which a path in the files or a
    link could name.
    """
    real = [folder.resolve() for folder in folders]
    for file in files:
        if not any(Path(file).resolve().is_relative_to(folder) for folder in real):
            raise MsposeError(
                f"{file} is not copied, as it lies outside of the images' folder: give the folder"
                " that it lies in with --images, or leave out --copy"
            )


def _refuse_bad_scenes(names: Sequence[str], paths: Sequence[str], given: bool) -> None:
    for number, name in enumerate(names):
        if PLAIN_NAME.fullmatch(name) is None:
            what = f"--scenes: {name!r} is not a" if given else f"{paths[number]} does not end in a"
            raise MsposeError(
                f"{what} plain name (letters, digits, - _ .); name the scenes with --scenes"
            )
        if name in names[:number]:
            first = paths[names.index(name)]
            raise MsposeError(
                f"{first} and {paths[number]} would both be scene {name}; name the scenes with"
                " --scenes"
            )


def _scene_name(path: str) -> str:
    """A plain name from a folder: `kitchen` for `kitchen/sparse/0` and `kitchen/dense/0/sparse`,
    `Kuche-2` for `Küche 2`.
    """
    folder = Path(os.path.normpath(Path(path).expanduser().absolute()))
    folder = folder.parent if folder.suffix == ".json" else folder
    while folder.name.lower() in UNNAMED_FOLDERS or (
        folder.name.isdecimal() and folder.parent.name.lower() in UNNAMED_FOLDERS
    ):
        folder = folder.parent
    plain = unicodedata.normalize("NFKD", folder.name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")
