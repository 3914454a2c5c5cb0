"""What a pooling is, and how it reads rows that several texts share."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxemb.checks import checked, shapes
from jaxemb.nn import Module
from jaxemb.types import Tokens


@nnx.dataclass
class Pooling(Module):
    """From states `[B, T, D]` of tokens to one vector per text, `[N, output_dim(D)]`; texts may share rows.

    A subclass defines `__call__`, and `output_dim` if its vectors have another size than states; weights of its own are
    trained with the model. `of_texts` and `members` do the bookkeeping of packed rows.

        @nnx.dataclass
        class Sum(Pooling):
            def __call__(self, states, tokens):
                return of_texts(jnp.einsum("bst,btd->bsd", members(tokens), states), tokens)
    """

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        """Vectors f32 `[N, output_dim(D)]` of the states `[B, T, D]`; zeros for a text without tokens."""
        raise NotImplementedError

    def output_dim(self, dim: int) -> int:
        """The size of the vectors that states of `dim` dimensions give."""
        return dim

    @property
    def reads_prompt(self) -> bool:
        """Whether it asks which tokens are of a prompt, `Tokens.prompt`."""
        return False


@nnx.dataclass
class Concatenation(Pooling):
    """The vectors of several poolings, one after the other, `[N, sum of their sizes]`. Raises ValueError for none."""

    parts: tuple[Pooling, ...] = nnx.data()

    def __post_init__(self):
        if not self.parts:
            raise ValueError("parts must be one pooling or several; got none")

    def __call__(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        return jnp.concatenate([part(states, tokens) for part in self.parts], axis=-1)

    def output_dim(self, dim: int) -> int:
        return sum(part.output_dim(dim) for part in self.parts)

    @property
    def reads_prompt(self) -> bool:
        return any(part.reads_prompt for part in self.parts)


@checked()
def members(tokens: Tokens, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """1 where token t belongs to text s of its row, `[B, S, T]`, S = `tokens.texts_per_row`."""
    slots = jnp.arange(1, tokens.texts_per_row + 1)
    return (tokens.segment_ids[:, None, :] == slots[None, :, None]).astype(dtype)


@checked(shapes(states="B T D", weights="B S T"))
def weighted_sum(states: jax.Array, weights: jax.Array) -> jax.Array:
    """`sum_t w_st x_t`, f32 `[B, S, D]`, of states `[B, T, D]` and weights `[B, S, T]`."""
    return jnp.einsum("bst,btd->bsd", weights, states, preferred_element_type=jnp.float32)


@checked()
def of_texts(by_slot: jax.Array, tokens: Tokens) -> jax.Array:
    """What is in the text slots of rows, `[B, S, ...]`, by text, `[N, ...]`."""
    flat = by_slot.reshape(-1, *by_slot.shape[2:])
    return flat if tokens.slots is None else flat[tokens.slots]


@checked()
def to_slots(by_text: jax.Array, tokens: Tokens) -> jax.Array:
    """What belongs to texts, `[N, ...]`, by the text slots of rows, `[B, S, ...]`; zeros where no text is."""
    rows, per_row = tokens.ids.shape[0], tokens.texts_per_row
    if by_text.shape[:1] != (tokens.count,):
        raise ValueError(f"by_text must be [N, ...] with N = {tokens.count}, the texts of tokens; got {by_text.shape}")
    if tokens.slots is not None:
        empty = jnp.zeros((rows * per_row, *by_text.shape[1:]), by_text.dtype)
        by_text = empty.at[tokens.slots].set(by_text)
    return by_text.reshape(rows, per_row, *by_text.shape[1:])
