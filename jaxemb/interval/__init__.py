"""Interval arithmetic as a transformation of functions: `bound(f)` maps boxes as `f` maps points."""

from jaxemb.interval import bilinear, control, elementwise, indexed, monotone, normalised, shapes  # noqa: F401  (each registers its rules)
from jaxemb.interval.bound import bound
from jaxemb.interval.box import CentredBox, UnsupportedPrimitiveError
from jaxemb.interval.logits import worst_case_logits

__all__ = ["CentredBox", "UnsupportedPrimitiveError", "bound", "worst_case_logits"]
