"""What search and evaluation ask of a model: texts in, vectors out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class TextEncoder(Protocol):
    """Anything that encodes texts as `SentenceEmbedder` does."""

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Configured:
    """A `SentenceEmbedder` as evaluators see it, with other options of its `encode`, such as `{"dim": 128}`."""

    embedder: Any
    options: Mapping[str, Any]

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.embedder.prompts

    @property
    def similarity_fn_name(self) -> str:
        return self.embedder.similarity_fn_name

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> np.ndarray:
        return self.embedder.encode(texts, prompt_name=prompt_name, **self.options)


Evaluator = Callable[[TextEncoder], dict[str, float]]
"""A measurement of a model: named numbers, such as `{"cosine_spearman": 0.867}`. What `Run.evaluators` holds."""


def encode_finite(encoder: TextEncoder, texts: Sequence[str], prompt_name: str | None, what: str) -> np.ndarray:
    """The embeddings `[N, D]` of `texts`, checked.

    Raises:
      ValueError: if they have another shape, or hold values that are not finite; says where the first is.
    """
    embeddings = np.asarray(encoder.encode(texts, prompt_name=prompt_name))
    if embeddings.ndim != 2 or len(embeddings) != len(texts):
        raise ValueError(f"encode must give [{len(texts)}, D] for the {what}; got {embeddings.shape}")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(texts)} embeddings of the {what} are not finite, the first that of number {bad[0]}: "
            f"{texts[bad[0]][:80]!r}"
        )
    return embeddings


def stored_prompt(encoder: TextEncoder, *names: str, given: str | None = None, argument: str = "") -> str | None:
    """The name of a prompt: the one `given`, else the first of `names` that the encoder has a prompt for.

    Raises:
      ValueError: naming the `argument`, if the encoder says which prompts it has and the one given is none of them.
    """
    prompts = getattr(encoder, "prompts", None)
    if given is not None and prompts is not None and given not in prompts:
        raise ValueError(f"{argument} must be a prompt of the model, one of {sorted(prompts)}; got {given!r}")
    return next((name for name in names if name in (prompts or ())), None) if given is None else given
