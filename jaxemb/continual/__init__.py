"""Continual learning: streams of tasks, the loop over them, and the measures of what is kept and forgotten."""

from jaxemb.continual.streams import Experience

__all__ = ["Experience"]
