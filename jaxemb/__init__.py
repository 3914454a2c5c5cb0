"""jaxemb: train, adapt, evaluate and search embedding models with pure functions in JAX.

    embedder = jaxemb.load("sentence-transformers/all-MiniLM-L6-v2")
    vectors = embedder.encode(["a text", "another text"])  # [2, 384]

What is here is imported when it is first used, so `import jaxemb` is instant.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxemb import (
        aot,
        checkpoints,
        classifiers,
        continual,
        data,
        encoders,
        evaluate,
        interval,
        isotropy,
        losses,
        merging,
        nn,
        objectives,
        parallel,
        pooling,
        pretraining,
        prompting,
        recipes,
        retrieval,
        train,
        transforms,
    )
    from jaxemb.classifiers.linear import Classifier
    from jaxemb.embedder import Embedder
    from jaxemb.sentence_embedder import SentenceEmbedder, load, new
    from jaxemb.types import Tokens

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "Embedder",
    "SentenceEmbedder",
    "Tokens",
    "aot",
    "checkpoints",
    "classifiers",
    "continual",
    "data",
    "encoders",
    "evaluate",
    "interval",
    "isotropy",
    "load",
    "losses",
    "merging",
    "new",
    "nn",
    "objectives",
    "parallel",
    "pooling",
    "pretraining",
    "prompting",
    "recipes",
    "retrieval",
    "train",
    "transforms",
]

_HOMES = {
    "Classifier": "jaxemb.classifiers.linear",
    "Embedder": "jaxemb.embedder",
    "SentenceEmbedder": "jaxemb.sentence_embedder",
    "Tokens": "jaxemb.types",
    "load": "jaxemb.sentence_embedder",
    "new": "jaxemb.sentence_embedder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"jaxemb.{name}")
    raise AttributeError(f"module 'jaxemb' has no attribute {name!r}")


if "jax" in sys.modules:  # else it is seen to by what is used first
    importlib.import_module("jaxemb.backends").without_absent_tpu()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
