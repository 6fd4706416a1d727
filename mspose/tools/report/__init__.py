"""The report: one self-contained HTML page about the results of runs."""
