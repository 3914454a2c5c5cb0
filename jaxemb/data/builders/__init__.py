"""TFDS builders of jaxemb's own. Importing this package registers them, so that `tfds.builder(name)` finds them.

They write ArrayRecord files and need no TensorFlow.
"""

from jaxemb.data.builders.code_search import CodeSearch
from jaxemb.data.builders.stsb import Stsb

OWN = (CodeSearch, Stsb)

__all__ = ["OWN", "CodeSearch", "Stsb"]
