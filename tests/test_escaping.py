"""Names of any kind in tables."""

import pytest

from mspose.escaping import csv_text, markdown_text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_that_would_begin_a_formula_is_text(start):
    assert csv_text(f"{start}1+1") == f"'{start}1+1"


def test_other_cells_stay():
    for text in ("a=1", "", "virtual/all", "1-2", "–"):
        assert csv_text(text) == text


def test_markdown_shows_a_name_as_it_is():
    assert markdown_text("<b>|`a`[b](c)*\\\n| e") == r"\<b\>\|\`a\`[b]\(c)\*\\ \| e"
    assert markdown_text("virtual/all_2 (3 seeds)") == "virtual/all_2 (3 seeds)"
