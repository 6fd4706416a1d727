"""The paper: every table and figure that finished runs allow, and a page that says what each is and
what is missing.
"""

from mspose.studies.paper.writing import make_paper, summary

__all__ = ["make_paper", "summary"]
