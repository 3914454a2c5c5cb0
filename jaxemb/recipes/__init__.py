"""Whole jobs made of the library: the quickstart, its report, and the model that they start from."""
