"""Deployment: one file that takes camera images and answers with poses, without this package."""
