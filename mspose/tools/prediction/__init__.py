"""Predict poses of a user's own images and videos, written to files."""
