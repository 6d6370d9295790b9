"""Weights that a checkpoint holds quantised, as the numbers they stand for: what a server multiplies with."""
