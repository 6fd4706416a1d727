"""Ablations: an experiment and variants of it that each change a few settings, over several seeds,
and the table of their differences.
"""
