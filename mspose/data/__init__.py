"""From disk to device: data-set cards, the frame table and its loaders, images, downloads, caches
and batches.
"""
