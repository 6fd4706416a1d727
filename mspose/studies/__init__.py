"""Studies over runs: ablations, tables, baselines, the paper."""
