"""Refuse binary COLMAP files that are cut off: COLMAP's own reader never ends on some of them.

The layout is that of https://colmap.github.io/format.html, little-endian. Only lengths are read,
and the poses of images.bin, which COLMAP replaces by those that it composes of rigs and frames.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

from mspose.errors import MsposeError
from mspose.tools.importing.camera_models import PARAMETERS

POSE = 7 * 8  # bytes: qw qx qy qz tx ty tz
PARAMETERS_OF = tuple(PARAMETERS.values())


class _Reader:
    """A position in a file's bytes, which moves on; IndexError at the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.offset = data, 0
        self.poses: dict[int, tuple[float, ...]] = {}
        """Number of an image -> its pose."""

    def skip(self, count: int) -> None:
        self.offset += count
        if self.offset > len(self.data):
            raise IndexError

    def number(self, layout: str) -> int:
        start = self.offset
        self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self.data, start)[0])

    def skip_name(self) -> None:
        end = self.data.find(b"\0", self.offset)
        if end < 0:
            raise IndexError
        self.offset = end + 1


def _skip_camera(reader: _Reader) -> None:
    reader.skip(4)
    model = reader.number("<i")
    if not 0 <= model < len(PARAMETERS_OF):
        raise IndexError
    reader.skip(8 + 8 + 8 * PARAMETERS_OF[model])  # width, height, parameters


def _skip_image(reader: _Reader) -> None:
    number, start = reader.number("<I"), reader.offset
    reader.skip(POSE + 4)  # pose, camera id
    reader.poses[number] = struct.unpack_from("<7d", reader.data, start)
    reader.skip_name()
    reader.skip(24 * reader.number("<Q"))  # x, y, id of the 3-D point


def _skip_frame(reader: _Reader) -> None:
    reader.skip(4 + 4 + POSE)  # frame id, rig id, pose
    reader.skip(16 * reader.number("<I"))  # sensor type, sensor id, id of the datum


def _skip_rig(reader: _Reader) -> None:
    reader.skip(4)
    sensors = reader.number("<I")
    if sensors:
        reader.skip(8)  # type and id of the reference sensor
    for _ in range(sensors - 1):
        reader.skip(8)
        if reader.number("<B"):
            reader.skip(POSE)


_RECORDS: dict[str, Callable[[_Reader], None]] = {
    "cameras": _skip_camera,
    "images": _skip_image,
    "frames": _skip_frame,
    "rigs": _skip_rig,
}


def image_count(model: Path) -> int:
    """Number of images that images.bin announces; 0 for an empty file."""
    with (model / "images.bin").open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def checked_poses(model: Path) -> dict[int, tuple[float, ...]]:
    """Number of an image -> its pose qw qx qy qz tx ty tz in images.bin, where there is one.

    Raises MsposeError where a file of the model ends too early or too late.
    """
    poses: dict[int, tuple[float, ...]] = {}
    for name, skip_record in _RECORDS.items():
        path = model / f"{name}.bin"
        if not path.is_file():
            continue
        if path.stat().st_size < 8:
            raise MsposeError(f"{path} is empty or cut off")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            try:
                for _ in range(reader.number("<Q")):
                    skip_record(reader)
            except IndexError as error:
                raise MsposeError(f"{path} is cut off or damaged") from error
            if reader.offset != len(data):
                raise MsposeError(f"{path} is damaged: it goes on after its last record")
            poses |= reader.poses
    return poses
