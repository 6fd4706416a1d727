"""Text files of values in rows, as TUM, EuRoC, COLMAP and kapture write them.

Empty lines and comments (#) are no rows. Columns are taken by their names where a file names them.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mspose.data.frames import read_lines
from mspose.errors import MsposeError

NUMBER = r"[-+.\d]"  # begins one
BLANKS, COMMAS, EITHER = r"\s+", r"\s*,\s*", r"\s*,\s*|\s+"


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
        has_header: lines before the first that begins with a number are no rows, see `header`.

    Raises MsposeError for a file that is not text, and for a row with another number of values.
    """
    expected = len(re.split(EITHER, columns))
    for number, line in enumerate(read_lines(path), 1):
        if not line or line.startswith("#"):
            continue
        if has_header and not re.match(NUMBER, line):
            continue
        has_header = False
        line = line.rstrip(", ") if separator == EITHER else line
        values = re.split(separator, line, maxsplit=expected - 1 if rest else 0)
        if len(values) < expected or (len(values) > expected and not more):
            raise MsposeError(
                f"{path}, line {number}: expected {columns}, found {len(values)} values"
            )
        yield f"{path}, line {number}", values


def header(path: Path) -> list[str]:
    """Names of the columns: a first line that is neither a number nor a comment, or else the words
    of the last comment before the numbers.

    Units in brackets are left out. No names where no line stands before the numbers.
    """
    above = ""
    for line in read_lines(path):
        if re.match(NUMBER, line):
            break
        above = line or above
        if line and not line.startswith("#"):
            break
    words = re.sub(r"\[[^]]*\]", "", above.lstrip("#").strip())
    names = words.split(",") if "," in words else words.split()
    return ["_".join(name.split()) for name in names]


def columns_by_name(names: Sequence[str], patterns: Sequence[str]) -> list[int] | None:
    """The column that each regular expression names, in their order; None unless all do, once."""
    found = []
    for pattern in patterns:
        hits = [
            column
            for column, name in enumerate(names)
            if re.fullmatch(pattern, name, re.IGNORECASE)
        ]
        if len(hits) != 1:
            return None
        found += hits
    return found
