"""Learning from a dictionary: an embedding of a definition must say what is defined (DefSent, DefSent+).

    model = MaskedLanguageModel.of(embedder, jax.random.key(0))                       # DefSent
    objective = definition_to_word("definition", "word")

    model = EntryPredictor.of(embedder)                                               # DefSent+
    objective = definition_to_entry("definition", "entry")
    transform = progressive_separate_training(
        lambda stage, model: entry_embeddings(embedder.replace(model=model.embedder), definitions),
        (len(definitions.entries), model.pooler.linear.kernel.shape[1]),
    )

`jaxemb.data.Definitions` reads dictionaries. DefSent can use words of one token only, as its targets are the embeddings
of tokens; those of DefSent+ are made from the definitions themselves, so that an entry may be anything.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import nnx

from jaxemb import isotropy
from jaxemb.checkpoints.heads import read_head
from jaxemb.checks import at_least, check_finite, checked, having, positive, shapes
from jaxemb.embedder import Dense, Embedder, transformer_of
from jaxemb.encoders.families import family_of
from jaxemb.nn import Linear, Module
from jaxemb.nn.classes import check_labels, class_cross_entropy
from jaxemb.objectives.columns import Batch, Objective
from jaxemb.pretraining.masked_language_model import MaskedLanguageModel
from jaxemb.types import Tokens

if TYPE_CHECKING:
    from jaxemb.data import Definitions
    from jaxemb.sentence_embedder import SentenceEmbedder


@checked()
def definition_to_word(column: str = "definition", word: str = "word") -> Objective:
    """DefSent: the language model's head must find the word w in the embedding h of its definition.

        loss = -log softmax(norm(gelu(h W + b)) E^T + c)_w

    The head and the embeddings of tokens, positions and types, which give E, get no gradient. An optimiser with weight
    decay moves them all the same; `frozen(r"^head|^embedder\\.encoder\\.embeddings")` keeps them.

    Args:
      column: of definitions, one per record.
      word: of the token of the word, int `[N]`; see `Definitions.words`.

    Returns:
      The objective of a `MaskedLanguageModel`; its output are the embeddings `[N, D]` by column name.

    Raises:
      TypeError: when called with another kind of model.
      ValueError: when called, if the batch lacks a column or the embeddings have not the dimension of the states.

    References:
      Tsukagoshi et al. 2021, https://arxiv.org/abs/2105.04339.
    """

    def objective(model: MaskedLanguageModel, batch: Batch, key: jax.Array | None):
        if not isinstance(model, MaskedLanguageModel):
            raise TypeError(f"definition_to_word trains a MaskedLanguageModel; got {type(model).__name__}")
        _require(batch, column, word)
        encoder = transformer_of(model.embedder)
        if model.embedder.dim != encoder.dim:
            raise ValueError(f"embeddings must have the states' {encoder.dim} dims; got {model.embedder.dim}")
        embeddings = jax.lax.stop_gradient(encoder.embeddings)
        embedder = dataclasses.replace(model.embedder, encoder=dataclasses.replace(encoder, embeddings=embeddings))
        h = embedder(batch[column], key=key)
        logits = jax.lax.stop_gradient(model.head)(h, embeddings.tokens)
        return class_cross_entropy(logits, batch[word]), {column: h}

    return objective


@nnx.dataclass
class EntryPredictor(Module):
    """An embedder u with the projection `v = act(u W + b)` that is compared with the embeddings of a dictionary's
    entries; called, it is the embedder, as the projection serves training only.
    """

    embedder: Embedder = nnx.data()
    pooler: Dense = nnx.data()

    @classmethod
    def of(cls, embedder: "SentenceEmbedder") -> "EntryPredictor":
        """The model of `embedder` with the projection that its checkpoint has: BERT's pooler (tanh), or the dense layer
        of the language model's head (GELU, as for RoBERTa); where there is neither, the identity and tanh.

        Raises:
          ValueError: if its embeddings have not the dimension that the layer takes.
        """
        dim, format = embedder.model.dim, embedder.format.encoder
        layers = [
            (read_head(format, "masked_language"), "transform", "gelu"),
            (read_head(format, "pooler"), "dense", "tanh"),
        ]
        # RoBERTa has no pre-trained pooler, so that the head of its language model comes first.
        for stored, layer, activation in reversed(layers) if family_of(format.config).pooler_is_trained else layers:
            if (kernel := stored.get(f"{layer}.kernel")) is None:
                continue
            if kernel.shape[0] != dim:
                raise ValueError(
                    f"the checkpoint's {layer} layer takes {kernel.shape[0]} dims; the embeddings have {dim}"
                )
            bias = stored.get(f"{layer}.bias")
            linear = Linear(jnp.asarray(kernel), None if bias is None else jnp.asarray(bias))
            return cls(embedder.model, Dense(linear=linear, activation=activation))
        return cls(embedder.model, Dense(linear=Linear(jnp.eye(dim), jnp.zeros(dim)), activation="tanh"))

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        return self.embedder(tokens, key=key)


@checked(chunk=at_least(1))
def definition_to_entry(
    column: str = "definition", entry: str = "entry", entries: str = "entries", *, chunk: int | None = None
) -> Objective:
    """DefSent+: the projection v of a definition's embedding must find its entry e among the embeddings of all.

        loss = -log softmax(E v)_e

    without temperature and normalisation. E gets no gradient.

    Args:
      column: of definitions, one per record.
      entry: of the number of the entry, int `[N]`, in 0..V-1.
      entries: of E, f32 `[V, D]`, which `progressive_separate_training` provides.
      chunk: see `entry_cross_entropy`.

    Returns:
      The objective of an `EntryPredictor`; its output are the embeddings `[N, D]` by column name.

    Raises:
      TypeError: when called with another kind of model.
      ValueError: when called, if the batch lacks a column, or the entries do not fit.

    References:
      Liu 2024, https://arxiv.org/abs/2405.16153.
    """

    def objective(model: EntryPredictor, batch: Batch, key: jax.Array | None):
        if not isinstance(model, EntryPredictor):
            raise TypeError(f"definition_to_entry trains an EntryPredictor; got {type(model).__name__}")
        _require(batch, column, entry, entries)
        u = model.embedder(batch[column], key=key)
        losses = entry_cross_entropy(model.pooler(u), batch[entry], jax.lax.stop_gradient(batch[entries]), chunk=chunk)
        return losses, {column: u}

    return objective


@checked(shapes(projected="N D", entry="N", entries="V D"), chunk=at_least(1))
def entry_cross_entropy(
    projected: jax.Array, entry: jax.Array, entries: jax.Array, *, chunk: int | None = None
) -> jax.Array:
    """`logsumexp(E v) - <E_e, v>`, f32 `[N]`.

    Args:
      projected: v, `[N, D]`.
      entry: e, int `[N]`; in traced code one outside of 0..V-1 gives NaN, which ends training.
      entries: E, `[V, D]`; may be split over devices.
      chunk: logits exist of so many entries at a time, in the gradient too, which computes them again; None for all.

    Raises:
      ValueError: if D or N do not agree, the chunk is below 1, or, outside of traced code, for an entry out of range.
    """
    check_labels(entry, len(entries), name="entry")
    count = entries.shape[0]
    size = count if chunk is None else min(chunk, count)

    @jax.checkpoint
    def add(total: jax.Array, start: jax.Array):
        begin = jnp.minimum(start, count - size)  # the last chunk repeats some entries, which do not count again
        part = jax.lax.dynamic_slice_in_dim(entries, begin, size)
        logits = jnp.matmul(projected, part.T, preferred_element_type=jnp.float32)
        logits = jnp.where(begin + jnp.arange(size) >= start, logits, -jnp.inf)
        return jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=-1)), None

    if size == count:
        normaliser = jax.nn.logsumexp(jnp.matmul(projected, entries.T, preferred_element_type=jnp.float32), axis=-1)
    else:
        normaliser, _ = jax.lax.scan(add, jnp.full(entry.shape, -jnp.inf), jnp.arange(0, count, size))
    own = jnp.asarray(entries).at[entry].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return normaliser - jnp.einsum("nd,nd->n", projected, own, preferred_element_type=jnp.float32)


@checked(embedder=having("encode", "model"), definitions=having("entries", "entry", "texts"), at_a_time=at_least(1))
def entry_embeddings(
    embedder: "SentenceEmbedder", definitions: "Definitions", *, at_a_time: int = 65_536
) -> np.ndarray:
    """The embedding of each entry: the mean of its definitions' embeddings, f32 `[V, D]`.

    With CLS pooling it is the paper's AC, with mean pooling AMP.

    Args:
      embedder: what encodes the definitions; give it no `Normalize` head, as the paper does not.
      definitions: of V entries.
      at_a_time: definitions whose embeddings are in memory together.
    """
    sums = np.zeros((len(definitions.entries), embedder.model.dim))
    for start in range(0, len(definitions), at_a_time):
        part = slice(start, start + at_a_time)
        np.add.at(sums, definitions.entry[part], embedder.encode(definitions.texts[part]))
    counts = np.bincount(definitions.entry, minlength=len(sums))
    return (sums / counts[:, None]).astype(np.float32)


@checked(shapes(entries="V D"), entries=check_finite, scale=positive, max_iterations=at_least(1))
def isotropic_entries(
    entries: np.ndarray, *, scale: float | None = 100.0, seed: int = 42, max_iterations: int = 1000
) -> np.ndarray:
    """The independent components of entries E, times `scale`, f32 `[V, D]`; in the paper those of the last stage.

    The last layer of a BERT ends in a norm `w x + b`, x of mean 0: its states, and their means, all lie in the
    hyperplane `sum_i (y_i - b_i) / w_i = 0` and vary in D - 1 directions only. Components are taken in as many
    directions as E varies in; what is left of the D columns is 0. (Whitening all D would make one of rounding errors.)

    Args:
      entries: E, `[V, D]`.
      scale: standard deviation of the components; None keeps the mean length of the entries. The loss of the first step
        should be near ln V; with 100 it can be far above.
      seed, max_iterations: as of `isotropy.ica`.

    Raises:
      ValueError: if there are no more rows than such directions.
    """
    variances = np.square(
        scipy.linalg.svdvals(entries - entries.mean(axis=0, dtype=np.float64)) if len(entries) else []
    )
    if not variances.max(initial=0) > 0:
        raise ValueError("entries must be rows that differ")
    rank = int((variances > 2e-10 * variances[0]).sum())
    reduced = isotropy.whiten(entries, rank)(entries)
    components = isotropy.ica(reduced, seed=seed, max_iterations=max_iterations)(reduced)
    length = lambda x: np.linalg.norm(x, axis=1).mean()
    components = components * (length(entries) / length(components) if scale is None else scale)
    return np.pad(components, ((0, 0), (0, entries.shape[1] - rank))).astype(np.float32)


@checked()
def prompted(texts: Sequence[str], mask: str = "[MASK]") -> list[str]:
    """`This sentence : "<text>" means [MASK] . `, of which `pooling.AtToken` takes the state at the mask token.

    Raises ValueError for a text that has a mask token itself.
    """
    if not mask:
        raise ValueError("mask must be a token; got ''")
    if (found := next((text for text in texts if mask in text), None)) is not None:
        raise ValueError(f"texts must not contain {mask}; got {found!r}")
    return [f'This sentence : "{text}" means {mask} . ' for text in texts]


def _require(batch: dict[str, Any], column: str, target: str, *others: str) -> None:
    if missing := [name for name in (column, target, *others) if name not in batch]:
        raise ValueError(f"the batch has no {', '.join(missing)}; it has {', '.join(sorted(batch))}")
    if batch[column].count != len(batch[target]):
        raise ValueError(f"column {column!r} must have one text per record; got {batch[column].count} texts")
