"""EXIF tags of photos: orientation and focal length."""

import math
from pathlib import Path

from PIL import ExifTags

from mspose.data.images import opened_image


def read_exif(path: Path) -> tuple[int, float | None]:
    """(orientation tag, focal length in mm on 35 mm film); 1 and None where a photo has none.

    Orientations 2 to 8 ask viewers to turn or mirror the image.
    """
    try:
        with opened_image(path) as image:
            tags = image.getexif()
            # Pillow turns TIFF images by itself
            turn = 1 if image.format == "TIFF" else int(tags.get(ExifTags.Base.Orientation, 1))
            focal_mm = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
        focal_mm = math.nan if focal_mm is None else float(focal_mm)
    except Exception:  # tags may be broken in any way beside an image that is not
        return 1, None
    return turn if turn in range(1, 9) else 1, focal_mm if 0 < focal_mm < math.inf else None
