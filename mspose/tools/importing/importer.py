"""From foreign folders to one data set: read, find images, convert poses, split, write, and say
what was done.
"""

import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mspose.data.cards import PLAIN_NAME
from mspose.data.frames import frame_table, natural_order
from mspose.errors import MsposeError
from mspose.resources import CARDS, named_files
from mspose.tools.importing.capture import (
    Capture,
    View,
    existing_folder,
    image_size,
    listed,
    stacked,
    without_dots,
)
from mspose.tools.importing.colmap import read_colmap
from mspose.tools.importing.kapture import read_kapture
from mspose.tools.importing.nerfstudio import read_nerfstudio
from mspose.tools.importing.splits import DROPPED, SplitBy, describe_split, split_frames
from mspose.tools.importing.tum import TOLERANCE, read_tum
from mspose.tools.importing.writing import LEFT_OUT, free_folder, write_data_set

KINDS = ("colmap", "nerfstudio", "tum", "kapture")
STATED = {
    "colmap": "world-to-camera, quaternion w first",
    "nerfstudio": "camera-to-world matrices in OpenGL's camera axes (y up, z back)",
    "tum": "camera-to-world, quaternion w last",
    "kapture": "world-to-sensor, quaternion w first",
}
METRIC = ("tum", "kapture")
"""Formats whose poses are in metres; those of structure-from-motion have a unit of their own."""
IN_MARGIN = "margin between training and test block"
# folders that say nothing about the scene
NAMELESS = ("sparse", "dense", "colmap", "sensors", "text", "model")


def import_data(
    kind: str,
    paths: Sequence[str],
    out: str,
    *,
    images: Sequence[str] = (),
    scenes: Sequence[str] = (),
    scale: float = 1.0,
    focal_px: float | None = None,
    missing: str | None = None,
    on_bad_frame: str = "stop",
    copy: bool = False,
    split: SplitBy | None = None,
    trajectory: Sequence[str] = (),
    image_list: Sequence[str] = (),
    tolerance: float | None = None,
    progress: bool = False,
) -> str:
    """Write the folder `out`, a data set of one scene per path; returns what was done, as text.

    Args:
        kind: one of `KINDS`.
        paths: a folder (nerfstudio: or file) per scene.
        images, trajectory, image_list: one per path, in place of where the format looks; the latter
            two for `tum`.
        scenes: names of the scenes; by default those of the folders.
        scale: metres per unit of the poses.
        focal_px: of all images, in pixels, in place of what the files say.
        missing: images that are not on disk: `stop`, or `skip` to leave them out (the default for
            nerfstudio).
        on_bad_frame: broken poses: `stop`, or `skip` to leave them out.
        copy: whether images are copied into the folder, in place of a reference to where they lie.
        split: how to split into training and test frames.
        tolerance: seconds between an image and its pose, for `tum`.

    Raises MsposeError for bad input; then nothing is written.
    """
    if not math.isfinite(scale):
        raise MsposeError(f"--scale is a number of metres, not {scale}")
    split = split or SplitBy()
    split.refuse_idle_options()
    _refuse_idle_options(kind, trajectory=trajectory, image_list=image_list, tolerance=tolerance)
    for option, values in (
        ("images", images),
        ("scenes", scenes),
        ("trajectory", trajectory),
        ("image_list", image_list),
    ):
        if values and len(values) != len(paths):
            raise MsposeError(
                f"--{option}: {len(values)} given for {len(paths)} paths: one for each, in their"
                " order"
            )
    folder = free_folder(Path(out))
    _refuse_known_name(folder)
    names = list(scenes) or [_scene_name(path) for path in paths]
    _refuse_bad_scenes(names, paths, given=bool(scenes))
    captures = {
        name: _read(
            kind,
            Path(path),
            _nth(images, number),
            focal_px=focal_px,
            trajectory=_nth(trajectory, number),
            image_list=_nth(image_list, number),
            tolerance=TOLERANCE if tolerance is None else tolerance,
        )
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    }
    missing = missing or ("skip" if kind == "nerfstudio" else "stop")
    left_out = [
        (scene, image, why)
        for scene, capture in captures.items()
        for image, why in capture.unposed.items()
    ]
    views: list[tuple[str, View]] = []
    notes: dict[str, None] = {}
    for scene, capture in captures.items():
        there = _on_disk(capture, missing)
        left_out += [
            (scene, view.image, "no such image") for view in capture.views if view.file is None
        ]
        zoom, said = _zoom(there)
        notes |= dict.fromkeys(f"{scene}: {line}" for line in said)
        views += [(scene, view) for view in _in_order(there, zoom, focal_px)]
        notes |= dict.fromkeys(capture.notes)

    frames = _checked_frames(folder.name, kind, views, captures, scale, on_bad_frame)
    kept = set(frames["image"])
    bad = [(scene, view.image) for scene, view in views if str(view.file) not in kept]
    left_out += [
        (*of_view, f"bad pose: {fault}")
        for of_view, fault in zip(bad, frames.attrs["faults"], strict=True)
    ]
    described = describe_split(frames, split)
    frames["split"] = split_frames(frames, split, [image for _, image, _ in left_out])
    dropped = frames[frames["split"] == DROPPED]
    why = IN_MARGIN if split.how == "blocks" else "in no split"
    left_out += [
        (scene, name, why) for scene, name in zip(dropped["scene"], dropped["name"], strict=True)
    ]
    frames = frames[frames["split"] != DROPPED]
    if split.how != "given" and any(view.given_split for _, view in views):
        notes["the files have a split of their own: --split given takes it"] = None
    card = write_data_set(
        folder,
        frames,
        left_out,
        kind=kind,
        stated=STATED[kind],
        scale=scale,
        sources=[str(capture.source) for capture in captures.values()],
        bases={scene: capture.looked_in[0] for scene, capture in captures.items()},
        copy=copy,
        progress=progress,
    )
    return _summary(kind, card, frames, left_out, scale, described, list(notes))


def _read(
    kind: str, path: Path, images: Path | None, *, focal_px: float | None, **of_tum: Any
) -> Capture:
    images = existing_folder(images, "image") if images else None
    if kind == "colmap":
        return read_colmap(path, images)
    if kind == "nerfstudio":
        return read_nerfstudio(path, images, focal_px=focal_px)
    if kind == "tum":
        return read_tum(path, images, **of_tum)
    return read_kapture(path, images)


def _on_disk(capture: Capture, missing: str) -> list[View]:
    """The views whose image is there. Raises MsposeError where none is, or some are not and that is
    not allowed.
    """
    there = [view for view in capture.views if view.file is not None]
    gone = [view.image for view in capture.views if view.file is None]
    places = listed([str(folder) for folder in capture.looked_in])
    if not there:
        raise MsposeError(
            f"{capture.source}: none of its {len(gone)} images is on disk (looked for {gone[0]} in"
            f" {places}): say where they are with --images FOLDER"
        )
    if gone and missing == "stop":
        raise MsposeError(
            f"{capture.source}: {len(gone)} of its {len(capture.views)} images are not on disk"
            f" (looked for {gone[0]} in {places}): say where they are with --images FOLDER, or go"
            " on without them with --missing skip"
        )
    return there


def _zoom(views: Sequence[View]) -> tuple[dict[tuple[float, float], float], list[str]]:
    """How much larger than in the camera model the images are, by the model's size, and what there
    is to say about it.

    Models are often made from large images and used with smaller ones. One image of each size is
    looked at.
    """
    zoom, notes = {}, []
    for (width, height), view in {view.size_px: view for view in reversed(views)}.items():
        found_width, found_height = image_size(view.file) if view.file else (math.nan, math.nan)
        if (
            not width > 0
            or math.isnan(found_width)
            or (found_width, found_height) == (width, height)
        ):
            continue
        ratio = found_width / width
        its = (
            f"{found_width:g}x{found_height:g} pixels, their camera model is of"
            f" {width:g}x{height:g}"
        )
        # to a pixel and a half: smaller copies have whole sides too
        if math.isnan(height) or abs(found_height - ratio * height) <= 1.5 * max(ratio, 1):
            if ratio != 1:
                zoom[width, height] = ratio
                notes.append(f"images are {its}: focal lengths are scaled by {ratio:.4g}")
        else:
            notes.append(f"images are {its}, cropped or turned: focal lengths are left as they are")
    return zoom, notes


def _in_order(
    views: Sequence[View], zoom: Mapping[tuple[float, float], float], focal_px: float | None
) -> list[View]:
    return [
        replace(view, focal_px=focal_px or view.focal_px * zoom.get(view.size_px, 1.0))
        for view in sorted(views, key=_order)
    ]


def _order(view: View) -> tuple[Any, ...]:
    return natural_order(view.sequence), view.moment, natural_order(view.image)


def _checked_frames(
    dataset: str,
    kind: str,
    views: Sequence[tuple[str, View]],
    captures: Mapping[str, Capture],
    scale: float,
    on_bad_frame: str,
) -> pd.DataFrame:
    """The frame table of all views, in our convention and metres, with name, moment and given split
    of each.

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
        where=lambda row: views[row][1].place,
        source=", ".join(str(capture.source) for capture in captures.values()),
        focal_px=focal_B,
        faults={row: view.fault for row, (_, view) in enumerate(views) if view.fault},
        scenes=list(captures),
        on_bad_frame=on_bad_frame,
    )
    of_file = {str(view.file): view for _, view in views}
    kept = [of_file[image] for image in table["image"]]
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
    for scene, of_scene in frames.groupby("scene", sort=True):
        extent = np.ptp(of_scene[["tx", "ty", "tz"]].to_numpy(), axis=0)
        counts = of_scene["split"].value_counts()
        rows.append(
            {
                "scene": scene,
                **{
                    name: counts.get(name, 0)
                    for name in dict.fromkeys(["train", "test", *frames["split"]])
                },
                "left out": sum(scene == other for other, _, _ in left_out),
                "sequences": of_scene["sequence"].nunique(),
                "extent (m)": " x ".join(f"{length:.3g}" for length in extent),
            }
        )
    lines = [pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), ""]
    reasons: dict[str, list[str]] = {}
    for _, image, why in left_out:
        reasons.setdefault(why.partition(":")[0], []).append(image)
    for (
        why,
        names,
    ) in reasons.items():  # those of the margin are many, and nothing is wrong with them
        lines.append(
            f"left out, {why}: {len(names)}" + (f": {listed(names)}" if why != IN_MARGIN else "")
        )
    if left_out:
        lines.append(f"all that is left out, by name: {card.parent / LEFT_OUT}")
    unit = f"scale: {scale:g} metres per unit of the poses"
    if scale == 1 and kind not in METRIC:
        unit += f"; {kind} has no metres of its own: give --scale where its unit is another"
    lines += [
        unit,
        f"poses: {STATED[kind]} in the files; camera-to-world here, metres, quaternion w first",
    ]
    lines += [
        "images: as they are, with the distortion of their lens",
        f"split: {described}",
        *notes,
    ]
    lines += [
        "",
        f"check it with: mspose data check {card.parent}",
        (
            "train on it with: mspose train --config experiments/7scenes.yaml "
            f"--experiment {card.stem} --data.dataset {card}"
        ),
    ]
    return "\n".join(lines)


def _refuse_idle_options(kind: str, **of_tum: Any) -> None:
    for option, value in of_tum.items():
        if kind != "tum" and value not in (None, (), []):
            raise MsposeError(f"--{option} belongs to tum: with {kind} it is without effect")


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
    """A plain name from a folder: `kitchen/sparse/0` and `kitchen/dense/0/sparse` are kitchen,
    `Küche 2` Kuche-2.
    """
    place = Path(os.path.normpath(Path(path).expanduser().absolute()))
    place = place.parent if place.suffix == ".json" else place
    while place.name.lower() in NAMELESS or (
        place.name.isdecimal() and place.parent.name.lower() in NAMELESS
    ):
        place = place.parent
    plain = unicodedata.normalize("NFKD", place.name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")


def _nth(values: Sequence[str], number: int) -> Path | None:
    return without_dots(Path(values[number])) if values else None
