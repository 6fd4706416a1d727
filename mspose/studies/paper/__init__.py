"""The paper: every table and figure that finished runs allow, and an index of what is missing."""

from mspose.studies.paper.writing import make_paper, summary

__all__ = ["make_paper", "summary"]
