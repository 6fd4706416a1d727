"""Text of unknown origin, such as names of scenes and methods, in Markdown and CSV tables."""

import re

_SIGNS = str.maketrans({sign: "\\" + sign for sign in "\\|*`<>"})


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    # a link is a text in square brackets before an address in round ones
    return re.sub(r"[\r\n]+", " ", text).translate(_SIGNS).replace("](", "]\\(")


def csv_text(text: str) -> str:
    """Return text that spreadsheets show as it is: one that would begin a formula after a `'`."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
