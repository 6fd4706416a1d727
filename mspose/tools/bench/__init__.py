"""The benchmark: training, prediction and loading, against the eager reference in `tests/` and
against the machine.
"""
