"""HTML pages that hold everything in themselves: templates, and pictures as data URIs."""

import base64
from pathlib import Path

import jinja2


def environment(folder: Path) -> jinja2.Environment:
    """Load the templates of a folder; values are escaped in `.html`, a missing one is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=lambda name: bool(name and name.endswith(".html")),
    )


def data_uri(picture: bytes, kind: str) -> str:
    """Encode a picture for the `src` of an image; kind: `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
