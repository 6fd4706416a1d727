"""Check image files by reading each to its end: sizes, faults, blank and repeated images."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from mspose.data.images import find_image, read_image
from mspose.errors import MsposeError
from mspose.tools.checking.findings import Finding, Level, equal_images, share
from mspose.tools.exif import read_exif

# share of the test frames that may be training images too, as a film that stood still makes them
MOST_KNOWN = 0.01
BLANK = 2.0  # standard deviation of the pixels of a blank image
SAME_PROPORTIONS = 1.02
# focal length over the image's long side: fields of view from 118 down to 11 degrees
LEAST_FOCAL, MOST_FOCAL = 0.3, 5.0


@dataclass(frozen=True)
class ImageFacts:
    """Facts about one image file; `fault` is the reason why it could not be read."""

    fault: str = ""
    height: int = 0
    width: int = 0
    digest: bytes = b""
    blank: bool = False
    turned: bool = False
    """EXIF asks viewers to turn it, which loaders of this field do not do."""


def read_images(frames: pd.DataFrame, root: Path, *, progress: bool) -> pd.DataFrame:
    """A row of `ImageFacts` per frame, with the frames' index; reads every image, in threads."""
    images = frames["image"].tolist()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(max_workers=cores) as pool:
        try:
            found = pool.map(lambda image: _read(root, image), images)
            bar = tqdm(found, "images", len(images), unit="image", disable=not progress)
            facts = list(bar)
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
    digest = hashlib.blake2b(image_HW3.data, digest_size=16, key=f"{width}x{height}".encode())
    sample = image_HW3[:: max(1, height // 64), :: max(1, width // 64)]
    blank = bool(sample.std() < BLANK)
    return ImageFacts("", height, width, digest.digest(), blank, read_exif(path)[0] != 1)


def image_findings(frames: pd.DataFrame, facts: pd.DataFrame) -> list[Finding]:
    """Unreadable, blank, turned and repeated images; several sizes; odd focal lengths."""
    findings = []
    unreadable = facts["fault"] != ""
    if unreadable.any():
        text = f"missing or unreadable images: {share(int(unreadable.sum()), len(facts))}"
        if unreadable.all():
            text += "; is the folder of the images the right one (the card's root, or --root)?"
        examples = frames.loc[unreadable, "image"] + ": " + facts.loc[unreadable, "fault"]
        findings.append(Finding("error", "unreadable-image", text, tuple(examples)))
    facts = facts[~unreadable]
    frames = frames.loc[facts.index]
    for column, kind, text in (
        ("blank", "blank-image", "images of a single colour"),
        (
            "turned",
            "exif-orientation",
            "images with an EXIF tag that asks to turn them, which are used as they are stored"
            " (are the poses those of the unturned images?)",
        ),
    ):
        if facts[column].any():
            text = f"{text}: {share(int(facts[column].sum()), len(facts))}"
            examples = frames["image"][facts[column]]
            findings.append(Finding("warning", kind, text, tuple(examples)))
    return [
        *findings,
        *_size_findings(facts),
        *_focal_findings(frames, facts),
        *_repeated_images(frames, facts),
    ]


def size_counts(facts: pd.DataFrame) -> list[tuple[int, int, int]]:
    """(width, height, images) of each size, the most frequent first."""
    counts = facts[facts["fault"] == ""].groupby(["width", "height"]).size().reset_index(name="n")
    counts = counts.sort_values("n", ascending=False, kind="stable")
    return [(int(width), int(height), int(n)) for width, height, n in counts.to_numpy()]


def _size_findings(facts: pd.DataFrame) -> list[Finding]:
    sizes = size_counts(facts)
    if len(sizes) < 2:
        return []
    examples = tuple(f"{width}x{height}: {count} images" for width, height, count in sizes)
    ratios = [width / height for width, height, _ in sizes]
    text = f"{len(sizes)} image sizes"
    if max(ratios) / min(ratios) > SAME_PROPORTIONS:
        text += ", of different proportions: a square crop shows different parts of their views"
        return [Finding("note", "image-proportions", text, examples)]
    return [Finding("note", "image-sizes", f"{text}, all of the same proportions", examples)]


def _focal_findings(frames: pd.DataFrame, facts: pd.DataFrame) -> list[Finding]:
    findings = []
    relative = frames["focal_px"] / facts[["width", "height"]].max(axis=1)
    odd = (relative < LEAST_FOCAL) | (relative > MOST_FOCAL)
    if odd.any():
        text = (
            f"focal lengths that do not suit the image size: {share(int(odd.sum()), len(frames))}"
            " (they are in pixels of the images as they are stored here)"
        )
        columns = frames["image"], frames["focal_px"], facts["width"], facts["height"]
        examples = (
            f"{image}: {focal:g} px, {width}x{height}"
            for image, focal, width, height in zip(*(c[odd] for c in columns), strict=True)
        )
        findings.append(Finding("warning", "odd-focal-length", text, tuple(examples)))
    unknown = int(frames["focal_px"].isna().sum())
    if unknown:
        text = f"focal length unknown: {share(unknown, len(frames))} images; training needs none"
        findings.append(Finding("note", "unknown-focal-length", text))
    return findings


def _repeated_images(frames: pd.DataFrame, facts: pd.DataFrame) -> list[Finding]:
    """Equal pixels under several names; an error where many test images are training images."""
    repeated = facts.duplicated("digest", keep=False) & ~facts["blank"]
    across: list[str] = []
    within: list[str] = []
    superfluous = known = 0
    digests = facts.loc[repeated, "digest"].map(bytes.hex)
    for _, part in frames[repeated].groupby(digests, sort=False):
        line = equal_images((part["image"] + " (" + part["split"] + ")").tolist())
        if {"train", "test"} <= set(part["split"]):
            across.append(line)
            known += int((part["split"] == "test").sum())
        else:
            within.append(line)
            superfluous += len(part) - 1
    findings = []
    if across:
        tests = int((frames["split"] == "test").sum())
        text = f"test images that are training images, pixel for pixel: {share(known, tests)}"
        level: Level = "error" if known > MOST_KNOWN * tests else "warning"
        findings.append(Finding(level, "picture-in-both-splits", text, tuple(across)))
    if within:
        text = f"the same image under several names: {superfluous} superfluous images"
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
