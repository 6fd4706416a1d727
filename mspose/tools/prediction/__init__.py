"""Poses of a user's own images and videos, as files."""
