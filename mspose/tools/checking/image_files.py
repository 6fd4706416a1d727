"""Every image read to its last byte: sizes, faults, blank and repeated pictures."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from mspose.data.images import find_image, read_image
from mspose.errors import MsposeError
from mspose.tools.checking.findings import Finding, Level, share

# share of the test frames that may be training images too, as a film that stood still makes them
MOST_KNOWN = 0.01
BLANK = 2.0  # standard deviation of the pixels of a picture that shows nothing
EXIF_ORIENTATION = 0x0112
PLAUSIBLE_FOCAL = (
    0.3,
    5.0,
)  # in long sides of the image: fields of view from 118 down to 11 degrees


@dataclass(frozen=True)
class ImageFacts:
    """What one image file holds; `fault` says why it could not be read."""

    fault: str = ""
    height: int = 0
    width: int = 0
    digest: bytes = b""
    blank: bool = False
    turned: bool = False


def read_images(frames: pd.DataFrame, root: Path, *, progress: bool) -> pd.DataFrame:
    """A row of `ImageFacts` per frame, with the frames' index. Reads every image fully, in threads."""
    images = frames["image"].tolist()
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with ThreadPoolExecutor(max_workers=cores) as pool:
        try:
            found = pool.map(lambda image: _read(root, image), images)
            facts = list(
                tqdm(found, total=len(images), desc="images", unit="image", disable=not progress)
            )
        except BaseException:  # ctrl-C: the thousands of images that wait are not read first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pd.DataFrame([vars(fact) for fact in facts], index=frames.index)


def _read(root: Path, image: str) -> ImageFacts:
    try:
        path = find_image(root, image)
        image_HW3 = read_image(path)
    except MsposeError as error:
        return ImageFacts(fault=str(error))
    except MemoryError:
        return ImageFacts(fault=f"image {path} is too large for the memory of this machine")
    height, width, _ = image_HW3.shape
    content = hashlib.blake2b(
        image_HW3.data, digest_size=16, key=f"{width}x{height}".encode()
    ).digest()
    sample = image_HW3[:: max(1, height // 64), :: max(1, width // 64)]
    return ImageFacts("", height, width, content, bool(sample.std() < BLANK), _is_turned(path))


def _is_turned(path: Path) -> bool:
    """Whether the file asks viewers to turn it, which loaders of this field do not do."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1) not in (0, 1)
    except (
        OSError,
        SyntaxError,
        ValueError,
    ):  # the picture itself was read: its notes alone are broken
        return False


def image_findings(frames: pd.DataFrame, facts: pd.DataFrame) -> list[Finding]:
    """Images that cannot be read, are blank, turned or of several sizes; odd focal lengths;
    repeated pictures.
    """
    findings = []
    unreadable = facts["fault"] != ""
    if unreadable.any():
        text = f"missing or unreadable images: {share(int(unreadable.sum()), len(facts))}"
        if unreadable.all():
            text += "; is the folder of the images the right one (the card's root, or --root)?"
        examples = frames.loc[unreadable, "image"] + ": " + facts.loc[unreadable, "fault"]
        findings.append(Finding("error", "unreadable-image", text, tuple(examples)))
    read = facts[~unreadable]
    images = frames.loc[read.index, "image"]
    if read["blank"].any():
        text = f"pictures of a single colour: {share(int(read['blank'].sum()), len(read))}"
        findings.append(Finding("warning", "blank-image", text, tuple(images[read["blank"]])))
    if read["turned"].any():
        text = (
            f"{share(int(read['turned'].sum()), len(read))} images carry a note (EXIF) that asks to"
            " turn them; they are used as they are stored: make sure that the poses are those of"
            " the unturned images"
        )
        findings.append(Finding("warning", "exif-orientation", text, tuple(images[read["turned"]])))
    findings += _size_findings(read)
    findings += _focal_findings(frames.loc[read.index], read)
    findings += _repeated_pictures(frames.loc[read.index], read)
    return findings


def size_counts(facts: pd.DataFrame) -> list[tuple[int, int, int]]:
    """(width, height, images) of each size, the most frequent first."""
    read = facts[facts["fault"] == ""]
    counts = read.groupby(["width", "height"]).size().sort_values(ascending=False, kind="stable")
    sizes = zip(
        counts.index.get_level_values(0), counts.index.get_level_values(1), counts, strict=True
    )
    return [(int(width), int(height), int(count)) for width, height, count in sizes]


def _size_findings(read: pd.DataFrame) -> list[Finding]:
    sizes = size_counts(read)
    if len(sizes) < 2:
        return []
    listed = tuple(f"{width}x{height}: {count} images" for width, height, count in sizes)
    ratios = [width / height for width, height, _ in sizes]
    if max(ratios) / min(ratios) > 1.02:
        text = (
            f"{len(sizes)} image sizes, of different proportions: a square crop shows different"
            " parts of their views"
        )
        return [Finding("note", "image-proportions", text, listed)]
    return [
        Finding(
            "note", "image-sizes", f"{len(sizes)} image sizes, all of the same proportions", listed
        )
    ]


def _focal_findings(frames: pd.DataFrame, read: pd.DataFrame) -> list[Finding]:
    long_side = read[["width", "height"]].max(axis=1)
    relative = frames["focal_px"] / long_side
    unknown = frames["focal_px"].isna()
    findings = []
    odd = (relative < PLAUSIBLE_FOCAL[0]) | (relative > PLAUSIBLE_FOCAL[1])
    if odd.any():
        text = (
            "focal lengths that do not go with the image size:"
            f" {share(int(odd.sum()), len(frames))} (they are in pixels of the images as they are"
            " stored here)"
        )
        examples = (
            f"{image}: {focal:g} px, {width}x{height}"
            for image, focal, width, height in zip(
                frames["image"][odd],
                frames["focal_px"][odd],
                read["width"][odd],
                read["height"][odd],
                strict=True,
            )
        )
        findings.append(Finding("warning", "odd-focal-length", text, tuple(examples)))
    if unknown.any():
        which = (
            "of no image"
            if unknown.all()
            else f"unknown for {share(int(unknown.sum()), len(frames))} images"
        )
        text = f"focal length: {'known ' * bool(unknown.all())}{which}; training needs none"
        findings.append(Finding("note", "unknown-focal-length", text))
    return findings


def _repeated_pictures(frames: pd.DataFrame, read: pd.DataFrame) -> list[Finding]:
    """The same pixels under several names: where many test frames are known by heart from training,
    an error.
    """
    repeated = read.duplicated("digest", keep=False) & ~read["blank"]
    across: list[str] = []
    within: list[str] = []
    superfluous = known = 0
    for _, part in frames[repeated].groupby(
        read.loc[repeated, "digest"].map(bytes.hex), sort=False
    ):
        names = (part["image"] + " (" + part["split"] + ")").tolist()
        line = " = ".join(names[:3]) + (f" = {len(names) - 3} more" if len(names) > 3 else "")
        if {"train", "test"} <= set(part["split"]):
            across.append(line)
            known += int((part["split"] == "test").sum())
        else:
            within.append(line)
            superfluous += len(part) - 1
    findings = []
    if across:
        tests = int((frames["split"] == "test").sum())
        text = (
            f"test images that are training images as well, pixel for pixel: {share(known, tests)}"
        )
        level: Level = "error" if known > MOST_KNOWN * tests else "warning"
        findings.append(Finding(level, "picture-in-both-splits", text, tuple(across)))
    if within:
        text = f"the same picture under several names: {superfluous} superfluous images"
        findings.append(Finding("warning", "repeated-picture", text, tuple(within)))
    return findings


def focal_text(frames: pd.DataFrame) -> str:
    """`585 px`, `520 to 1044 px (3 values)`, `unknown`."""
    known = np.unique(frames["focal_px"].dropna())
    if not known.size:
        return "unknown"
    if known.size == 1:
        return f"{known[0]:.6g} px"
    return f"{known[0]:.6g} to {known[-1]:.6g} px ({known.size} values)"
