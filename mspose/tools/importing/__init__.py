"""One's own data: what COLMAP, nerfstudio, TUM and kapture write becomes a label CSV and a card."""
