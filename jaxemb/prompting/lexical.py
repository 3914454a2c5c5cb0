"""Sparse vectors of a causal language model: the words that it would say next (PromptReps)."""

import functools
import inspect
import re
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array

from jaxemb.checks import at_least, checked, shapes, size
from jaxemb.data.tokenizer import Tokenizer

_WORD = re.compile(r"\w+")


@checked(shapes(logits="N V", allowed="N V"), most=size)
def top_words(logits: jax.Array, allowed: jax.Array | None = None, *, most: int = 128) -> tuple[jax.Array, jax.Array]:
    """The largest `w_v = log(1 + relu(z_v))` of each row.

    Args:
      logits: z, of the next token, `[N, V]`.
      allowed: which tokens may have a weight, bool `[N, V]`; None is all.
      most: k, how many have one.

    Returns:
      Token ids int32 `[N, k]` and weights f32 `[N, k]`, largest first; weights are 0 where there are fewer.

    References:
      Zhuang et al. 2024 (PromptReps), arXiv 2404.18424; Formal et al. 2021 (SPLADE).
    """
    weights = jnp.log1p(jax.nn.relu(logits.astype(jnp.float32)))
    weights = weights if allowed is None else jnp.where(allowed, weights, 0.0)
    found, ids = jax.lax.top_k(weights, min(most, logits.shape[1]))
    return ids.astype(jnp.int32), found


@checked()
def words_of(tokenizer: Tokenizer, texts: Sequence[str], stop_words: Collection[str] = ()) -> list[np.ndarray]:
    """The different tokens of each text's lower-cased words but stop words, each word tokenised on its own.

    Words are runs of letters, digits and underscores.

    Returns:
      Of each text, int32 ids in ascending order.
    """
    words = [[word for word in _WORD.findall(text.lower()) if word not in stop_words] for text in texts]
    every = list(dict.fromkeys(word for own in words for word in own))
    ids = dict(zip(every, tokenizer.encode(every, special_tokens=False).ids, strict=True))
    none = np.zeros(0, np.int32)
    return [np.unique(np.concatenate([none, *(ids[word] for word in own)])) for own in words]


def _as_tree(head: Callable) -> Callable:
    """The head, its arrays being data of a program: those of the module that it is a method of."""
    if inspect.ismethod(head):
        return jax.tree_util.Partial(head.__func__, head.__self__)
    return jax.tree_util.Partial(head) if jax.tree_util.all_leaves([head]) else head


@functools.partial(jax.jit, static_argnames="most")
def _of_states(head, states, allowed, *, most: int):
    return top_words(head(states), allowed, most=most)


@checked(most=size, without_words=at_least(0), batch=size)
def lexical_vectors(
    head: Callable[[jax.Array], jax.Array],
    states: np.ndarray,
    words: Sequence[np.ndarray],
    vocabulary: int,
    *,
    most: int = 128,
    without_words: int = 10,
    batch: int = 64,
) -> csr_array:
    """Sparse vectors of texts, of the words that a model would say and that the text has.

        model = LanguageModel.of(decoder)
        states = Prompted(decoder, prompt_reps(decoder.tokenizer)).encode(texts)  # the dense vectors
        words = words_of(decoder.tokenizer, texts, stop_words)
        sparse = lexical_vectors(model.logits, states, words, decoder.tokenizer.vocab_size)

    Args:
      head: from states `[n, D]` to logits `[n, V]`: a method of a module, a module, or a function.
      states: of the last token of each text's prompt, `[N, D]`.
      words: `words_of` the texts, N of them.
      vocabulary: V.
      most: how many words of a text have a weight.
      without_words: of a text that has no words, so many of the whole vocabulary.
      batch: texts whose logits exist at a time.

    Returns:
      `round(100 log(1 + relu(z)))`, f32 `[N, V]`, sparse.

    Raises:
      ValueError: for another number of words than of states.
    """
    if len(words) != len(states):
        raise ValueError(f"words must be those of each of the {len(states)} states; got {len(words)}")
    data, columns, starts, tree = [], [], [0], _as_tree(head)
    for first in range(0, len(states), batch):
        own = words[first : first + batch]
        allowed = np.zeros((batch, vocabulary), bool)  # always as many rows, for one program
        for row, ids in enumerate(own):
            allowed[row, ids if len(ids) else slice(None)] = True
        padded = np.zeros((batch, states.shape[1]), states.dtype)
        padded[: len(own)] = states[first : first + batch]
        ids, weights = map(np.asarray, _of_states(tree, padded, allowed, most=max(most, without_words)))
        for row, own_words in enumerate(own):
            rounded = np.round(100 * weights[row, : most if len(own_words) else without_words])
            kept = np.flatnonzero(rounded)
            columns.append(ids[row, kept])
            data.append(rounded[kept])
            starts.append(starts[-1] + len(kept))
    joined = [np.concatenate(parts) if parts else np.zeros(0) for parts in (data, columns)]
    return csr_array((joined[0].astype(np.float32), joined[1].astype(np.int32), starts), (len(states), vocabulary))
