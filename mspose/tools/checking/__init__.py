"""Check a data set before training on it: findings, facts, a plot of the trajectories."""
