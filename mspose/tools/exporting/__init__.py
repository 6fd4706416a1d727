"""Export a model as one file that takes camera images and returns poses, without this package."""
