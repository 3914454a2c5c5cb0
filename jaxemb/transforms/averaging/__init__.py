"""Averages of a model over its training."""
