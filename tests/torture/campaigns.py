"""Campaigns of faults and attacks against the command line, drawn from a seed.

    make torture SEED=0 ARGS="--kills 100 --mutations 250 --malformed 1000 --escapes 100"

- kills: a training that renders its data is killed at random moments, by SIGKILL, SIGTERM, SIGHUP
  or SIGINT, from its start to its end, until it is done. Data, model and checkpoint have to be
  bit-identical to those of a training that nobody killed.
- mutations: bytes of a stored file are changed. Results that differ need an error or a warning.
- malformed: input of every kind is made wrong. It ends in one line, within `LONGEST` seconds.
- escapes: archives, pickles, YAML and paths try to run code, or to read and write elsewhere.

Prints the counts of each campaign and what went wrong; exits 1 where anything did.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import yaml
from conftest import settings_for, write_small_data
from PIL import Image

from mspose import cli
from mspose.config import Settings, write_settings
from mspose.run import load_checkpoint

REPOSITORY = Path(__file__).parents[2]
LONGEST = 20
"""Seconds that a command may take to refuse its input."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Report:
    """Counts of a campaign, and its failures."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def add(self, outcome: str, failure: str = "") -> None:
        self.counts[outcome] += 1
        if failure:
            self.failures.append(f"{outcome}: {failure}")

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        head = f"{self.name}: {sum(self.counts.values())} tried; {counts}"
        return "\n".join([f"{head}; failures {len(self.failures)}", *self.failures])


class TooLong(BaseException):
    """A command took more than `LONGEST` seconds."""


def call(*words: object) -> tuple[int, str, str]:
    """Run a command in this process: exit status, standard output, standard error."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    out, err, status = io.StringIO(), io.StringIO(), 0
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main([str(word) for word in words])
            except SystemExit as ended:
                status = int(ended.code or 0)
    except TooLong:
        status = 124
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, out.getvalue(), err.getvalue()


# kills


def kills(rng: random.Random, count: int, folder: Path) -> Report:
    """Kill a training `count` times, over as many trainings as that takes."""
    report = Report("kills")
    began = time.monotonic()
    train_killed(None, folder / "whole", report, 0)
    seconds = time.monotonic() - began
    expected = results(folder / "whole")
    left, number = count, 0
    while left > 0:
        number += 1
        place = folder / f"killed-{number}"
        left -= train_killed(rng, place, report, left, seconds)
        found = results(place)
        if wrong := sorted(k for k in expected | found if expected.get(k) != found.get(k)):
            report.add("not identical", f"{place}: {', '.join(wrong)}")
        if parts := list(place.rglob("*.part")):
            report.add("parts left", f"{place}: {parts[0]}")
        if not wrong:
            shutil.rmtree(place)
    return report


def train_killed(
    rng: random.Random | None, folder: Path, report: Report, most: int, seconds: float = 0.0
) -> int:
    """Train in `folder` until it is done; returns how often it was killed, `most` times at most."""
    folder.mkdir(parents=True)
    card = {
        "name": "rooms", "format": "virtual", "root": "rooms",
        "scenes": {name: {"frames": {"train": 24, "test": 4}} for name in ("atelier", "library")},
        "render": {"width": 160, "height": 120, "focal_px": 140, "frames_per_sequence": 8},
    }  # fmt: skip
    (folder / "rooms.yaml").write_text(yaml.safe_dump(card))
    settings = settings_for(folder / "rooms.yaml", folder)
    data = replace(settings.data, holdout=0.0)
    write_settings(folder / "small.yaml", replace(settings, data=data))
    command = [sys.executable, "-m", "mspose", "train", "--config", folder / "small.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    killed = 0
    while True:
        process = subprocess.Popen(
            [*command, "--quiet"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        number = None
        if rng is not None and killed < most:
            number = rng.choice(SIGNALS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, seconds))
            process.send_signal(number)
        _, err = process.communicate(timeout=300)
        if process.returncode == 0:
            return killed
        name = "none" if number is None else signal.Signals(number).name
        allowed = {number: [-int(number)] if number else []}
        allowed |= {signal.SIGINT: [130, -2], signal.SIGTERM: [75, -15]}
        killed += 1
        report.add(name)
        if process.returncode not in allowed[number] or "Traceback" in err:
            report.add("wrong end", f"{name}: status {process.returncode}: {err}")
        if number is None or killed > most + 3:
            return killed


def results(folder: Path) -> dict[str, object]:
    """Content of everything that has to be identical: data, model, checkpoint."""
    found: dict[str, object] = {}
    for file in sorted(path for path in (folder / "rooms").rglob("*") if path.is_file()):
        if not file.name.startswith("."):
            found[str(file.relative_to(folder))] = file.read_bytes()
    run = folder / "runs/small/all/seed-0"
    for name in ("model.safetensors", "model.json"):
        found[name] = (run / name).read_bytes() if (run / name).is_file() else None
    checkpoint = load_checkpoint(run)
    if checkpoint is not None:
        checkpoint.pop("config_hash")  # of the path of the card as well
        found["checkpoint.pt"] = str(flat_bytes(checkpoint))
        model = json.loads(str((run / "model.json").read_text()))
        found["model.json"] = {
            k: v for k, v in model.items() if k not in ("config_hash", "checksum")
        }
    return found


def flat_bytes(value: object) -> object:
    """The same nested values, tensors as bytes."""
    if isinstance(value, dict):
        return {key: flat_bytes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat_bytes(item) for item in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


# mutations


STORED = (
    "model.safetensors",
    "model.json",
    "config.yaml",
    "checkpoint.pt",
    "predictions/test.csv",
    "predictions/test.json",
    "metrics.json",
    "frames.u8",
    "index.npy",
    "about.json",
)


def mutations(rng: random.Random, count: int, folder: Path) -> Report:
    """Change stored files of a finished and of an interrupted run, `count` times."""
    report = Report("mutations")
    settings = settings_for(write_small_data(folder / "data"), folder)
    settings = replace(settings, training=replace(settings.training, epochs=1))
    write_settings(folder / "small.yaml", settings)
    train = ("train", "--config", folder / "small.yaml", "--quiet")
    assert call(*train)[0] == 0
    run = folder / "runs/small/all/seed-0"
    assert call("evaluate", run, "--quiet")[0] == 0
    shutil.copytree(folder / "runs", folder / "whole-runs")
    shutil.copytree(folder / "cache", folder / "whole-cache")
    expected = consumed(folder, settings, "")
    for number in range(count):
        name = STORED[number % len(STORED)]
        for part in ("runs", "cache"):
            shutil.rmtree(folder / part)
            shutil.copytree(folder / f"whole-{part}", folder / part)
        file = rng.choice(sorted((folder / "cache").rglob(name)) or [run / name])
        data = file.read_bytes()
        how, changed = mutate(rng, data)
        file.write_bytes(changed)
        found = consumed(folder, settings, name)
        what = f"{name}, {how} (number {number})"
        if any("Traceback" in text for _, text in found.values()):
            report.add("traceback", f"{what}: {found}")
        elif silent := [
            k for k, (value, text) in found.items() if value != expected[k][0] and not text
        ]:
            report.add("silent", f"{what}: {', '.join(silent)} differs")
        else:
            noticed = any(text for _, text in found.values())
            report.add("noticed" if noticed else "without effect")
    return report


def mutate(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Damage the bytes of a file, as disks, programs and people do."""
    start = rng.randrange(len(data))
    digits = [index for index, byte in enumerate(data) if 48 <= byte <= 57]
    kind = rng.choice(["bit", "byte", "zeros", "cut", "digit", "half", "swap", "repeat"])
    new = bytearray(data)
    if kind == "bit":
        new[start] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        new[start] = rng.randrange(256)
    elif kind == "zeros":
        new[start : start + 64] = bytes(len(new[start : start + 64]))
    elif kind == "cut":
        del new[start:]
    elif kind == "digit":
        index = rng.choice(digits or [start])
        new[index] = rng.choice([byte for byte in b"0123456789" if byte != new[index]])
    elif kind == "half":
        new[len(new) // 2 :] = bytes(len(new) - len(new) // 2)
    elif kind == "swap":
        other = rng.randrange(len(data))
        new[start], new[other] = new[other], new[start]
    else:
        new[start:start] = data[start : start + rng.randrange(1, 32)]
    return f"{kind} at {start} of {len(data)}", bytes(new)


def consumed(folder: Path, settings: Settings, name: str) -> dict[str, tuple[object, str]]:
    """What a person gets from the stored files: by command, (results, what was said)."""
    run = folder / "runs/small/all/seed-0"
    found: dict[str, tuple[object, str]] = {}

    def numbers(path: Path) -> object:
        try:
            metrics = json.loads(path.read_text())
            return metrics["scenes"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    if name in ("", "metrics.json", "predictions/test.csv", "predictions/test.json"):
        status, out, err = call("table", folder / "runs", "--format", "csv")
        found["table"] = (out if status == 0 else status, err)
        status, _, err = call("evaluate", "--predictions", run / "predictions/test.csv")
        found["evaluate --predictions"] = (numbers(run / "metrics.json"), err)
    if name in ("", "checkpoint.pt", "config.yaml"):
        longer = replace(settings, training=replace(settings.training, epochs=1))
        write_settings(folder / "small.yaml", longer)
        (run / "model.safetensors").unlink()
        status, _, err = call("train", "--config", folder / "small.yaml", "--quiet")
        said = err.replace(f"mspose: {run} is trained already (1 epochs)\n", "")
        found["train"] = (load_state(run), said)
        shutil.copy(folder / "whole-runs/small/all/seed-0/model.safetensors", run)
    if name not in ("metrics.json", "predictions/test.csv", "predictions/test.json"):
        status, _, err = call("evaluate", run, "--quiet")
        found["evaluate"] = (numbers(run / "metrics.json") if status == 0 else status, err)
    return found


def load_state(run: Path) -> object:
    """The weights of a checkpoint as text; None where it is refused."""
    from mspose.errors import MsposeError

    try:
        checkpoint = load_checkpoint(run)
    except MsposeError:
        return None
    return None if checkpoint is None else str(flat_bytes(checkpoint["network"]))


# malformed input


ODD_YAML = (
    "!!python/object/apply:os.system ['true']", "!!python/name:os.system", "2020-01-01",
    "!!binary aGk=", "!!timestamp 2020-01-01", "!!set {a, b}", "&a [*a]", "&a {b: *a}",
    "[[[[[[]]]]]]", "{}", "[]", "null", "yes", "0x1F", "1e999", "-1", "1.5", "9" * 5000, '"\\0"',
    '"\\ud800"', "'\\xff'", "~", "!!omap [a: 1]", "? [a]\n: b", "<<: 1", "1_000", "１２", "nan",
    ".inf", "text", "'a\nb'", "../../etc", "/dev/zero",
)  # fmt: skip
ODD_CELLS = (
    "", "nan", "inf", "-inf", "1e400", "1e8", "１２", "1_0", "0x1", "\0", "a,b", "'", "../../x.png",
    "/etc/passwd", "\udcff", "9" * 400, "=1+1", "<b>", "\u202e", "1,5", "-",
)  # fmt: skip
ODD_FILES: tuple[bytes, ...] = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"[", b"null", b"[]", b"{}", b"\x80\x02.",
    b"PK\x03\x04", b"%!PS-Adobe-3.0\n", b"\x93NUMPY", b"a: b: c", b"[" * 5000, b'{"a":' * 5000,
    b"\0" * 4096, b"GIF89a", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0",
    b"P6 99999 99999 255\n",
)  # fmt: skip


def malformed(rng: random.Random, count: int, folder: Path) -> Report:
    """Give `count` commands input that is wrong somewhere."""
    report = Report("malformed")
    settings = settings_for(write_small_data(folder / "data"), folder)
    settings = replace(settings, training=replace(settings.training, epochs=1))
    write_settings(folder / "small.yaml", settings)
    assert call("train", "--config", folder / "small.yaml", "--quiet")[0] == 0
    assert call("evaluate", folder / "runs/small/all/seed-0", "--quiet")[0] == 0
    shutil.copytree(folder, folder.parent / "whole", dirs_exist_ok=True)
    makers = (bad_settings, bad_card, bad_labels, bad_stored, bad_predictions, bad_words, bad_image)
    for number in range(count):
        make = makers[number % len(makers)]
        shutil.rmtree(folder)
        shutil.copytree(folder.parent / "whole", folder, symlinks=True)
        what, words = make(rng, folder)
        began = time.monotonic()
        status, _, err = call(*words)
        seconds = time.monotonic() - began
        said = (
            f"{make.__name__}, {what} (number {number}): mspose {' '.join(map(str, words))}: {err}"
        )
        said = said.encode("utf-8", "backslashreplace").decode()
        if "Traceback" in err:
            report.add("traceback", said)
        elif status == 124 or seconds > LONGEST:
            report.add("too long", said)
        elif status == 0:
            report.add("taken")
        elif (status, err.count("mspose: error: ")) != (2, 1) and (
            (status, words[1]) != (1, "check")  # whose table says what is wrong
        ):
            report.add("refused without a line", said)
        else:
            report.add("refused")
    return report


Case = tuple[str, tuple[object, ...]]


def odd_leaf(rng: random.Random, tree: dict) -> str:
    """YAML of the tree with one value made odd; returns the text."""
    path, node = [], tree
    while isinstance(node, dict) and node and (not path or rng.random() < 0.8):
        path.append(rng.choice(list(node)))
        node = node[path[-1]]
    text, mark = yaml.safe_dump(tree, sort_keys=False), "ODD-VALUE"
    copy = json.loads(json.dumps(tree))
    place = copy
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = mark
    text = yaml.safe_dump(copy, sort_keys=False)
    return text.replace(mark, rng.choice(ODD_YAML))


def bad_settings(rng: random.Random, folder: Path) -> Case:
    file = folder / "small.yaml"
    tree = yaml.safe_load(file.read_text())
    if rng.random() < 0.2:
        group = rng.choice(["model", "training", "data"])
        name = rng.choice([k for k, v in tree[group].items() if type(v) is int])
        tree[group][name] = rng.choice([10**9, 2**63, 2**31, 10**6, 0, -3, 7])
        text = yaml.safe_dump(tree)
    else:
        text = odd_leaf(rng, tree)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    if rng.random() < 0.1:
        shutil.copy(folder / "data/small.yaml", file)
    if rng.random() < 0.1:
        file.write_bytes(rng.choice(ODD_FILES))
    return "settings", ("train", "--config", file, "--quiet", "--training.epochs=1", "--seed=3")


def bad_card(rng: random.Random, folder: Path) -> Case:
    file = folder / "data/small.yaml"
    tree = yaml.safe_load(file.read_text()) | {
        "scenes": {"attic": {"frames": {"train": 12}}, "cellar": {}}, "focal_px": 50.0,
    }  # fmt: skip
    file.write_bytes(odd_leaf(rng, tree).encode("utf-8", "surrogateescape"))
    if rng.random() < 0.1:
        file.write_bytes(rng.choice(ODD_FILES))
    words: tuple[object, ...] = rng.choice(
        [
            ("data", "check", file, "--quiet"),
            ("data", "cache", "--dataset", file, "--resize=24", "--cache", folder / "c", "--quiet"),
            ("data", "get", "--dataset", file, "--quiet"),
        ]
    )
    return "card", words


def odd_csv(rng: random.Random, file: Path) -> None:
    lines = [line.split(",") for line in file.read_text().split("\n")]
    row = rng.randrange(len(lines) - 1)
    kind = rng.randrange(5)
    if kind == 0:
        lines[row][rng.randrange(len(lines[row]))] = rng.choice(ODD_CELLS)
    elif kind == 1:
        del lines[row][rng.randrange(len(lines[row]))]
    elif kind == 2:
        lines.insert(row, lines[row])
    elif kind == 3:
        del lines[row:]
    else:
        lines[row] = [rng.choice(ODD_CELLS) for _ in lines[row]]
    text = "\n".join(",".join(cells) for cells in lines)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    if rng.random() < 0.1:
        file.unlink()
        rng.choice([lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), file.mkdir])()
    elif rng.random() < 0.1:
        file.write_bytes(rng.choice(ODD_FILES))


def bad_labels(rng: random.Random, folder: Path) -> Case:
    odd_csv(rng, folder / "data/labels.csv")
    skip = rng.choice([(), ("--on-bad-frame", "skip")])
    words = ("data", "cache", "--dataset", folder / "data/small.yaml", "--resize=24", "--quiet")
    if rng.random() < 0.3:
        return "labels", ("data", "check", folder / "data", "--quiet")
    return "labels", (*words, "--cache", folder / "c", *skip)


def bad_predictions(rng: random.Random, folder: Path) -> Case:
    file = folder / "theirs/theirs.csv"
    file.parent.mkdir()
    shutil.copy(folder / "runs/small/all/seed-0/predictions/test.csv", file)
    odd_csv(rng, file)
    return "predictions", ("evaluate", "--predictions", file)


def bad_stored(rng: random.Random, folder: Path) -> Case:
    run = folder / "runs/small/all/seed-0"
    name = rng.choice([*STORED[:7], "index.npy", "about.json", "frames.u8"])
    file = rng.choice(sorted((folder / "cache").rglob(name)) or [run / name])
    if file.suffix == ".json" and rng.random() < 0.7:
        tree = json.loads(file.read_text())
        tree.pop("checksum", None)  # as another program may write it
        value = rng.choice(
            [None, [], {}, "x", -1, 10**12, 1e300, True, [[]], {"a": 1}, 2**70, "\0"]
        )
        node = tree
        while True:
            key = rng.choice(list(node) or ["x"])
            if not isinstance(node.get(key), dict) or rng.random() < 0.4:
                break
            node = node[key]
        node[key] = value
        file.write_text(json.dumps(tree))
    elif name == "index.npy" and rng.random() < 0.5:
        np.save(file, rng.choice([np.zeros(0), np.zeros((0, 5), np.int64), np.zeros((3, 2))]))
    elif rng.random() < 0.3:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    else:
        file.write_bytes(rng.choice(ODD_FILES))
    words: tuple[object, ...] = rng.choice(
        [
            ("evaluate", run, "--quiet"),
            ("table", folder / "runs"),
            ("report", run, "--out", folder / "report.html"),
            ("train", "--config", folder / "small.yaml", "--quiet"),
            ("predict", run, folder / "data/attic", "--quiet"),
            ("attention", run, "--pictures", "false", "--frames", "2", "--quiet"),
        ]
    )
    return f"stored {name}", words


def bad_words(rng: random.Random, folder: Path) -> Case:
    word = rng.choice([*ODD_YAML, *ODD_CELLS]).replace("\0", "0")
    name = rng.choice(
        [
            "model.dim",
            "training.epochs",
            "data.scenes",
            "data.root",
            "experiment",
            "variant",
            "seed",
        ]
    )
    words: tuple[object, ...] = rng.choice(
        [
            ("train", "--config", folder / "small.yaml", f"--{name}={word}", "--quiet", "--seed=3"),
            ("evaluate", word),
            ("table", word),
            ("train", "--config", word),
            ("predict", folder / "runs/small/all/seed-0", word),
            ("data", "check", word),
            ("data", "get", "--dataset", folder / "data/small.yaml", "--scenes", word),
            ("evaluate", folder / "runs/small/all/seed-0", "--thresholds", word),
            (word,),
        ]
    )
    return "words", words


def bad_image(rng: random.Random, folder: Path) -> Case:
    file = rng.choice(sorted((folder / "data/attic").rglob("*.png")))
    image = Image.open(file)
    image.load()
    kind = rng.choice(["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "PDF", "EPS"])
    data = io.BytesIO()
    image.save(data, kind)
    content = data.getvalue()
    how = rng.randrange(4)
    if how == 0:
        content = content[: rng.randrange(len(content))] + rng.choice([b"", b"\xff\xd9", b"\xff"])
    elif how == 1:
        content = mutate(rng, content)[1]
    elif how == 2:
        content = rng.choice(ODD_FILES)
    file.write_bytes(content)
    if how == 3:
        file.unlink()
        rng.choice([lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), file.mkdir])()
    words: tuple[object, ...] = rng.choice(
        [
            ("predict", folder / "runs/small/all/seed-0", file.parent, "--quiet"),
            ("predict", folder / "runs/small/all/seed-0", file, "--quiet"),
            ("data", "check", folder / "data", "--quiet"),
            ("data", "cache", "--dataset", folder / "data/small.yaml", "--cache", folder / "c",
             "--quiet"),
        ]
    )  # fmt: skip
    return f"image {kind} {how}", words


# escapes


class Code:
    """Unpickled, it would make the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.marker}",)


def escapes(rng: random.Random, count: int, folder: Path) -> Report:
    """Try `count` times to run code, or to write or read outside of the folder."""
    report = Report("escapes")
    inside, outside = folder / "inside", folder / "outside"
    outside.mkdir(parents=True)
    Image.new("RGB", (80, 60), (1, 2, 3)).save(outside / "secret.png")
    programs = outside / "bin"
    programs.mkdir()
    marker = outside / "marker"
    for name in ("gs", "gswin64c", "inkscape", "dvips"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    settings = settings_for(write_small_data(inside / "data"), inside)
    settings = replace(settings, training=replace(settings.training, epochs=1))
    write_settings(inside / "small.yaml", settings)
    assert call("train", "--config", inside / "small.yaml", "--quiet")[0] == 0
    shutil.copytree(inside, folder / "whole")
    before = snapshot(outside)
    makers = (escape_archive, escape_pickle, escape_yaml, escape_label, escape_image, escape_import)
    for number in range(count):
        make = makers[number % len(makers)]
        shutil.rmtree(inside)
        shutil.copytree(folder / "whole", inside, symlinks=True)
        what, words = make(rng, inside, outside)
        status, out, err = call(*words)
        said = (
            f"{make.__name__}, {what} (number {number}): mspose {' '.join(map(str, words))}: {err}"
        )
        if snapshot(outside) != before:
            report.add("escaped", said)
            marker.unlink(missing_ok=True)
        elif any(
            file.read_bytes() == (outside / "secret.png").read_bytes()
            for file in inside.rglob("*.png")
            if file.is_file() and not file.is_symlink()
        ):
            report.add("read", said)
        elif "Traceback" in err or status == 124:
            report.add("traceback", said)
        elif status == 0 and make is not escape_import:
            report.add("taken", said)
        else:
            report.add("refused" if status else "left out")
    return report


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def escape_archive(rng: random.Random, inside: Path, outside: Path) -> Case:
    (inside / "zips").mkdir()
    archive = inside / "zips/chess.zip"
    names = [
        "../evil.txt", "chess/../../evil.txt", str(outside / "evil.txt"), "..\\evil.txt",
        "C:\\evil.txt", "chess/../../../outside/evil.txt", "//server/evil",
        "chess/seq-01/..//../../../outside/evil",
    ]  # fmt: skip
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("chess/TrainSplit.txt", "sequence1\n")
        kind = rng.choice(["name", "link", "inner", "bomb"])
        if kind == "name":
            content.writestr(zipfile.ZipInfo(rng.choice(names)), "evil")
        elif kind == "link":
            link = zipfile.ZipInfo("chess/seq-01")
            link.external_attr = (0o120777) << 16
            content.writestr(link, str(outside))
            content.writestr("chess/seq-01/evil.txt", "evil")
        elif kind == "inner":
            data = io.BytesIO()
            with zipfile.ZipFile(data, "w") as inner:
                inner.writestr(zipfile.ZipInfo(rng.choice(names)), "evil")
            content.writestr("chess/seq-01.zip", data.getvalue())
        else:
            content.writestr("chess/zeros", bytes(2**26))
    return kind, ("data", "get", "--dataset", "7scenes", "--scenes", "chess", "--archive", archive,
                  "--root", inside / "root", "--quiet")  # fmt: skip


def escape_pickle(rng: random.Random, inside: Path, outside: Path) -> Case:
    import pickle

    import torch

    code = Code(outside / "marker")
    run = inside / "runs/small/all/seed-0"
    target = rng.choice([run / "checkpoint.pt", inside / "theirs.pth"])
    content = rng.choice([code, {"model": code}, {"network": {"a": code}}, [code]])
    if rng.random() < 0.5:
        torch.save(content, target)
    else:
        target.write_bytes(pickle.dumps(content, protocol=rng.choice([0, 2, 4])))
    if rng.random() < 0.3:
        index = next((inside / "cache").rglob("index.npy"))
        np.save(index, np.array([code], dtype=object), allow_pickle=True)
    if target.name == "theirs.pth":
        return "pickle", ("convert", target, "--out", inside / "converted")
    return "checkpoint", ("train", "--config", inside / "small.yaml", "--quiet")


def escape_yaml(rng: random.Random, inside: Path, outside: Path) -> Case:
    command = f"touch {outside / 'marker'}"
    value = rng.choice(
        [
            f"!!python/object/apply:os.system ['{command}']",
            f"!!python/object/new:os.system ['{command}']",
            f"!!python/object/apply:subprocess.run [[touch, '{outside / 'marker'}']]",
            "!!python/module:antigravity",
            "!!python/name:os.system",
        ]
    )
    file = inside / rng.choice(["small.yaml", "data/small.yaml"])
    file.write_text(f"{rng.choice(['experiment', 'name', 'seed'])}: {value}\n")
    words = ("train", "--config", inside / "small.yaml", "--quiet", "--seed=4")
    return "tag", words if file.parent == inside else ("data", "check", file, "--quiet")


def escape_label(rng: random.Random, inside: Path, outside: Path) -> Case:
    file = inside / "data/labels.csv"
    lines = file.read_text().split("\n")
    row = rng.randrange(1, len(lines) - 1)
    cells = lines[row].split(",")
    cells[3] = rng.choice(
        ["../../outside/secret.png", str(outside / "secret.png"),
         "attic/../../../outside/secret.png", "..\\..\\outside\\secret.png"]
    )  # fmt: skip
    lines[row] = ",".join(cells)
    file.write_text("\n".join(lines))
    return cells[3], ("data", "cache", "--dataset", inside / "data/small.yaml", "--cache",
                      inside / "c", "--quiet", "--resize=24")  # fmt: skip


def escape_image(rng: random.Random, inside: Path, outside: Path) -> Case:
    file = rng.choice(sorted((inside / "data/attic").rglob("*.png")))
    file.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n%%EOF\n"
    )
    named = file.rename(file.with_suffix(rng.choice([".jpg", ".png", ".tif"])))
    words = ("data", "cache", "--dataset", inside / "data/small.yaml", "--cache", inside / "c")
    predict = ("predict", inside / "runs/small/all/seed-0", named)
    return "PostScript", (*(predict if named.suffix == ".tif" else rng.choice([predict, words])),
                          "--quiet")  # fmt: skip


def escape_import(rng: random.Random, inside: Path, outside: Path) -> Case:
    images = inside / "scan/images"
    images.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (80, 60), (50 * number % 255, 9, 9)).save(images / f"{number}.png")
    name = rng.choice(
        [
            "../../outside/secret.png",
            str(outside / "secret.png"),
            "images/link.png",
            "images/dir/secret.png",
        ]
    )
    (images / "link.png").symlink_to(outside / "secret.png")
    (images / "dir").symlink_to(outside)
    frames = [
        {"file_path": f"images/{number}.png", "transform_matrix": np.eye(4).tolist()}
        for number in range(6)
    ]
    for frame, offset in zip(frames, range(6), strict=True):
        frame["transform_matrix"][0][3] = float(offset)
    frames[rng.randrange(6)]["file_path"] = name
    content = {"fl_x": 50.0, "fl_y": 50.0, "w": 80, "h": 60, "frames": frames}
    (inside / "scan/transforms.json").write_text(json.dumps(content))
    words = ("data", "import", "nerfstudio", inside / "scan", "--out", inside / "own", "--copy")
    return name, (*words, "--quiet", "--missing", rng.choice(["stop", "skip"]))


CAMPAIGNS: dict[str, tuple[Callable[[random.Random, int, Path], Report], int]] = {
    "kills": (kills, 100),
    "mutations": (mutations, 250),
    "malformed": (malformed, 1000),
    "escapes": (escapes, 100),
}


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    """A folder that is deleted afterwards, and an environment that is put back."""
    before = dict(os.environ)
    # names that are taken for relative folders land in a temporary one
    with tempfile.TemporaryDirectory(prefix="mspose-torture-") as name, contextlib.chdir(name):
        try:
            yield Path(name)
        finally:
            os.environ.clear()
            os.environ.update(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    for name, (_, count) in CAMPAIGNS.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    chosen = vars(parser.parse_args())
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # beneath nohup the trainings would ignore it
    failures = 0
    for name, (campaign, _) in CAMPAIGNS.items():
        if chosen[name]:
            with prepared() as folder:
                began = time.monotonic()
                report = campaign(random.Random(chosen["seed"]), chosen[name], folder / "work")
                seconds = time.monotonic() - began
                print(
                    f"{report}\n{name} took {seconds:.0f} s with seed {chosen['seed']}", flush=True
                )
                failures += len(report.failures)
    sys.exit(int(failures > 0))


if __name__ == "__main__":
    main()
