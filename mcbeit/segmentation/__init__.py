"""Semantic segmentation: a class for every pixel. `training.py` is the way through it."""
