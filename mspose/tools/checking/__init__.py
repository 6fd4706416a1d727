"""What a careful person wants to know of a data set before training on it: findings, facts, a
picture.
"""
