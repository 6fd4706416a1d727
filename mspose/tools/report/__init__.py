"""The report: one self-contained HTML page about the results of runs."""

from mspose.tools.report.page import make_report

__all__ = ["make_report"]
