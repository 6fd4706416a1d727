"""Whether the files of a binary COLMAP model are whole: COLMAP's own reader never ends on some that
were cut off.

The layout is that of https://colmap.github.io/format.html, little-endian; numbers in the files are
not looked at.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

from mspose.errors import MsposeError
from mspose.tools.importing.camera_models import PARAMETERS

POSE_BYTES = 7 * 8
PARAMETERS_OF = tuple(PARAMETERS.values())
"""How many a camera has, by the number of its model."""


class _Cursor:
    """A place in a file's bytes, which moves on; IndexError at the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise IndexError

    def number(self, layout: str) -> int:
        start = self.at
        self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self.data, start)[0])

    def word(self) -> None:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise IndexError
        self.at = end + 1


def _camera(cursor: _Cursor) -> None:
    cursor.skip(4)
    model = cursor.number("<i")
    if not 0 <= model < len(PARAMETERS_OF):
        raise IndexError
    cursor.skip(8 + 8 + 8 * PARAMETERS_OF[model])  # width, height, parameters


def _image(cursor: _Cursor) -> None:
    cursor.skip(4 + POSE_BYTES + 4)  # image id, pose, camera id
    cursor.word()
    cursor.skip(24 * cursor.number("<Q"))  # x, y, id of the 3-D point


def _frame(cursor: _Cursor) -> None:
    cursor.skip(4 + 4 + POSE_BYTES)  # frame id, rig id, pose
    cursor.skip(16 * cursor.number("<I"))  # sensor type, sensor id, id of the datum


def _rig(cursor: _Cursor) -> None:
    cursor.skip(4)
    sensors = cursor.number("<I")
    if sensors:
        cursor.skip(8)  # type and id of the reference sensor
    for _ in range(sensors - 1):
        cursor.skip(8)
        cursor.skip(POSE_BYTES * (cursor.number("<B") > 0))


_RECORDS: dict[str, Callable[[_Cursor], None]] = {
    "cameras": _camera,
    "images": _image,
    "frames": _frame,
    "rigs": _rig,
}


def refuse_cut_off(model: Path) -> None:
    """Raises MsposeError where a file of the model ends too early or goes on after its last record."""
    for name, pass_over in _RECORDS.items():
        path = model / f"{name}.bin"
        if not path.is_file():
            continue
        if path.stat().st_size < 8:
            raise MsposeError(f"{path} is empty or cut off")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data)
            try:
                for _ in range(cursor.number("<Q")):
                    pass_over(cursor)
            except IndexError as error:
                raise MsposeError(
                    f"{path} is cut off or damaged: it is not made of whole records"
                ) from error
            if cursor.at != len(data):
                raise MsposeError(f"{path} is damaged: it goes on after its last record")
