"""Text files of values in rows, as TUM, EuRoC, ROS, COLMAP and kapture write them.

Empty lines and comments (# or %) are no rows. Columns are taken by their names where a file names
them.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mspose.data.frames import read_lines
from mspose.errors import MsposeError
from mspose.tools.timestamps import UNITS

NUMBER = r"[-+]?\.?\d"  # begins one
COMMENT = ("#", "%")
BLANKS, COMMAS, EITHER = r"\s+", r"\s*,\s*", r"\s*[,;]\s*|\s+"
AXES = ("x", "y", "z")
QUATERNION = ("qw", "qx", "qy", "qz")
TIME = ("stamp", "timestamp", "timestamps", "time", "times", "t", *UNITS)
FILE = ("file", "filename", "image", "img", "path", "name", "rgb", "color", "colour")
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
SPELLINGS = {
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("msec", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("usec", "µs", "μs", "microsecond", "microseconds"), "us"),
    **dict.fromkeys(("nsec", "nsecs", "nanosecond", "nanoseconds"), "ns"),
    **dict.fromkeys(("metre", "metres", "meter", "meters"), "m"),
}
"""Other words for units."""
_KINDS = {
    "position": ("p", "t", "pos", "position", "trans", "translation", "loc", "location", "tvec"),
    "quaternion": ("q", "quat", "quaternion", "r", "rot", "rotation", "ori", "orientation"),
    # velocities, biases and the like have axes too
    "other": (
        *("v", "vel", "velocity", "b", "bias", "a", "acc", "linear", "angular", "twist", "w"),
        *("omega", "gyr", "gyro", "cov", "covariance", "std", "sigma", "mag"),
    ),
}
_KIND = {word: kind for kind, words in _KINDS.items() for word in words}


@dataclass(frozen=True)
class Columns:
    """The columns of a file as its header names them."""

    names: list[str]
    """Names of all columns, as written."""
    of: Mapping[str, int]
    """Meaning, as `pose_column` or `image_column` gives it -> column."""
    units: Mapping[str, str]
    """Meaning -> unit, where it is stated."""


def read_rows(
    path: Path,
    columns: str,
    separator: str,
    *,
    more: bool = False,
    rest: bool = False,
    has_header: bool = False,
) -> Iterator[tuple[str, list[str]]]:
    """(file and line, values) of each row.

    Args:
        columns: the expected columns, with `,` or blanks between them.
        separator: `BLANKS`, `COMMAS` or `EITHER`.
        more: further values may follow.
        rest: the last column takes the rest of the line.
        has_header: lines before the first that begins with a number are no rows.

    Raises MsposeError for a file that is not text, and for a row with another number of values.
    """
    expected = len(re.split(EITHER, columns))
    for number, line in enumerate(read_lines(path), 1):
        if not line or line.startswith(COMMENT):
            continue
        if has_header and not re.match(NUMBER, line):
            continue
        has_header = False
        line = line.rstrip(",; ") if separator == EITHER else line
        values = re.split(separator, line, maxsplit=expected - 1 if rest else 0)
        if len(values) < expected or (len(values) > expected and not more):
            raise MsposeError(
                f"{path}, line {number}: expected {columns}, found {len(values)} values"
            )
        yield f"{path}, line {number}", values


def header(
    path: Path, meaning_of: Callable[[str], tuple[str, int] | None], needed: Sequence[str]
) -> tuple[Columns | None, list[str]]:
    """(the columns as a line before the numbers names them, if one does; names that were known).

    A line names the columns where each meaning in `needed` has one column. Of several such lines
    the last counts.

    Args:
        meaning_of: name of a column -> (its meaning, rank), of which the lowest rank counts.
    """
    found: Columns | None = None
    known: list[str] = []
    for line in read_lines(path):
        if re.match(NUMBER, line):
            break
        for cells in _readings(line.lstrip("".join(COMMENT))):
            columns = _columns(cells, meaning_of)
            if all(meaning in columns.of for meaning in needed):
                found = columns
                break
            if len(columns.of) > len(known):
                known = [columns.names[column] for column in sorted(columns.of.values())]
    return found, known


def _readings(line: str) -> Iterator[list[tuple[str, str]]]:
    """(name, unit) of the columns of a line, with commas between them, and with blanks as well."""
    if re.search(r"[,;\t]", line):
        cells = [
            re.fullmatch(r"(.*?)(?:[\[(](.*)[\])])?", cell) for cell in re.split(r"[,;\t]", line)
        ]
        yield [(cell[1].strip(' "'), cell[2] or "") if cell else ("", "") for cell in cells]
    yield re.findall(r"([^\s,;\[\]()]+)\s*(?:[\[(]([^\])]*)[\])])?", line)


def _columns(
    cells: Sequence[tuple[str, str]], meaning_of: Callable[[str], tuple[str, int] | None]
) -> Columns:
    best: dict[str, tuple[int, list[int]]] = {}
    units = {}
    for column, (name, unit) in enumerate(cells):
        if (meant := meaning_of(name)) is not None:
            meaning, rank = meant
            known_rank, columns = best.get(meaning, (rank, []))
            if rank <= known_rank:
                best[meaning] = (rank, [column] if rank < known_rank else [*columns, column])
                word = _unit(unit) or _unit(_words(name)[-1])
                units[meaning] = word if word in (UNITS if meaning == "time" else METRES) else ""
    of = {meaning: columns[0] for meaning, (_, columns) in best.items() if len(columns) == 1}
    names = ["_".join(name.split()) or "_" for name, _ in cells]
    return Columns(names, of, {key: unit for key, unit in units.items() if unit})


def _unit(word: str) -> str:
    word = word.strip().lower()
    word = SPELLINGS.get(word, word)
    return word if word in UNITS or word in METRES else ""


def _words(name: str) -> list[str]:
    """`p_RS_R_x` and `Position.X` in lower-case words."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_]+", name.lower()) if word] or [""]


def pose_column(name: str) -> tuple[str, int] | None:
    """(`time`, one of `AXES` or of `QUATERNION`; rank) of a column by its name, as trajectories of
    TUM, EuRoC, TUM-VI, ROS and others call it.
    """
    if (time := _time_column(name)) is not None:
        return time
    words = _words(name)
    if len(words) > 1 and _unit(words[-1]):
        words = words[:-1]
    if (number := re.fullmatch(r"q_?([0-3])", "_".join(words))) is not None:
        return QUATERNION[int(number[1])], 1
    if words[0] in AXES and len(words) > 1:  # x_position
        words = [*words[1:], words[0]]
    axis = re.fullmatch(r"([a-z]*)([wxyz])", words[-1])
    if axis is None or (axis[1] and axis[1] not in _KIND):
        return None
    kind = next((_KIND[word] for word in [*words[:-1], axis[1]] if word in _KIND), "")
    if kind == "quaternion":
        return f"q{axis[2]}", 0
    if kind == "other" or axis[2] == "w":
        return None
    return axis[2], 0 if kind == "position" else 1


def image_column(name: str) -> tuple[str, int] | None:
    """(`time` or `file`, rank) of a column of a list of images."""
    if (time := _time_column(name)) is not None:
        return time
    words = _words(name)
    return ("file", 0) if words[-1] in FILE and words[0] not in ("depth", "mask") else None


def _time_column(name: str) -> tuple[str, int] | None:
    words = [SPELLINGS.get(word, word) for word in _words(name)]
    words = words[:-1] if len(words) > 1 and words[-1] in UNITS else words
    if words[-1] not in TIME or (words[-1] not in TIME[:5] and len(words) > 1):
        return None
    return "time", TIME.index(words[-1])
