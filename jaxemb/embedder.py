"""Encoder, pooling and heads as one module (`Embedder`), and that module with its tokenizer (`SentenceEmbedder`)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxemb import pooling
from jaxemb.encoders.transformer import Linear, Norm, Transformer
from jaxemb.types import Tokens

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxemb.checkpoints import DirectoryFormat
    from jaxemb.data import Tokenizer

# The names that sentence-transformers gives them in a model directory.
POOLINGS: Mapping[str, pooling.Pooling] = {
    "cls": pooling.cls,
    "mean": pooling.mean,
    "max": pooling.max,
    "mean_sqrt_len_tokens": pooling.mean_sqrt_length,
    "weightedmean": pooling.weighted_mean,
    "lasttoken": pooling.last_token,
}
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}


def normalize(x: jax.Array) -> jax.Array:
    """`x / max(|x|, 1e-12)` along the last axis, with a finite gradient at 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


@nnx.dataclass
class Dense(nnx.Module):
    """Head `activation(x W + b)`."""

    linear: Linear = nnx.data()
    activation: str = nnx.static(default="identity")

    def __call__(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.activation](self.linear(x))


@nnx.dataclass
class Normalize(nnx.Module):
    """Head that gives embeddings unit length."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return normalize(x)


Head = Dense | Normalize | Norm


@nnx.dataclass
class Embedder(nnx.Module):
    """Tokens to one vector per text: encoder, then pooling (several are concatenated), then heads in order."""

    encoder: Transformer = nnx.data()
    heads: tuple[Head, ...] = nnx.data(default=())
    pooling: tuple[str, ...] = nnx.static(default=("mean",))

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None, dim: int | None = None) -> jax.Array:
        """Embeddings of the texts, f32 `[N, D]`.

        Args:
          tokens: N texts, one or several per row.
          key: dropout key; None turns dropout off.
          dim: keep the first `dim` dimensions (Matryoshka); re-normalised if the model normalises.

        Raises:
          ValueError: if `dim` is not in 1..D.
        """
        return self._cut(self._through_heads(self._pool(self.encoder(tokens, key=key), tokens)), dim)

    def at_layers(self, tokens: Tokens, layers: Sequence[int], *, key: jax.Array | None = None) -> jax.Array:
        """The embeddings that this model cut to each of several depths gives, of one pass, f32 `[N, len(layers), D]`.

        Args:
          tokens: N texts, one or several per row.
          layers: numbers of layers, in any order; 0 is the encoder's embedding layer alone.
          key: dropout key; None turns dropout off.

        Raises:
          ValueError: if a number of layers is not in 0..L.
        """
        pooled = self.encoder.at_layers(tokens, layers, lambda states: self._pool(states, tokens), key=key)
        return self._through_heads(pooled).swapaxes(0, 1)

    def at_sizes(
        self, tokens: Tokens, sizes: Sequence[tuple[int, int]], *, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """The embeddings at each of `sizes` = ((layers, dim), ...), of one pass: a tuple of f32 `[N, dim]`.

        Each is what `self.truncate(layers, dim)` gives. Raises ValueError for a size that the model does not have.
        """
        layers = sorted({n for n, _ in sizes})
        x = self.at_layers(tokens, layers, key=key)
        return tuple(self._cut(x[:, layers.index(n)], dim) for n, dim in sizes)

    def truncate(self, layers: int | None = None, dim: int | None = None) -> "Embedder":
        """The model with the first `layers` layers only, and the first `dim` dimensions of its embeddings.

        As a model directory cannot say that embeddings are cut, a `Dense` head does it: the last one, if embeddings
        are its outputs, or else a new one, `x I[:, :dim]`. It stands before a final `Normalize`.

        Raises:
          ValueError: if `layers` is not in 1..L or `dim` not in 1..D.
        """
        encoder = self.encoder if layers is None else self.encoder.truncate(layers)
        if dim is None or dim == self.dim:
            return dataclasses.replace(self, encoder=encoder)
        self._check_dim(dim, self.dim)
        end = len(self.heads) - self.normalizes
        before, after = self.heads[:end], self.heads[end:]
        if before and isinstance(before[-1], Dense):
            linear = jax.tree.map(lambda leaf: leaf[..., :dim], before[-1].linear)
            before = (*before[:-1], dataclasses.replace(before[-1], linear=linear))
        else:
            before = (*before, Dense(linear=Linear(jnp.eye(self.dim, dim))))
        return dataclasses.replace(self, encoder=encoder, heads=(*before, *after))

    def _pool(self, states: jax.Array, tokens: Tokens) -> jax.Array:
        """States `[B, T, D]` to `[N, D * poolings]`."""
        x = jnp.concatenate([POOLINGS[name](states, tokens) for name in self.pooling], axis=-1)
        x = x.reshape(-1, x.shape[-1])
        return x if tokens.slots is None else x[tokens.slots]

    def _through_heads(self, x: jax.Array) -> jax.Array:
        for head in self.heads:
            x = head(x)
        return x

    def _cut(self, x: jax.Array, dim: int | None) -> jax.Array:
        if dim is None or dim == x.shape[-1]:
            return x
        self._check_dim(dim, x.shape[-1])
        return normalize(x[..., :dim]) if self.normalizes else x[..., :dim]

    @staticmethod
    def _check_dim(dim: int, most: int) -> None:
        if not 1 <= dim <= most:
            raise ValueError(f"dim must be in 1..{most}, the dimension of the embeddings; got {dim}")

    @property
    def normalizes(self) -> bool:
        """Whether the embeddings have unit length."""
        return bool(self.heads) and isinstance(self.heads[-1], Normalize)

    @property
    def dim(self) -> int:
        """Dimension D of the embeddings."""
        kernels = [head.linear.kernel for head in self.heads if isinstance(head, Dense)]
        return kernels[-1].shape[-1] if kernels else self.encoder.config.dim * len(self.pooling)


def similarity(a, b, kind: str = "cosine") -> np.ndarray:
    """Similarity of every row of `a` `[N, D]` with every row of `b` `[M, D]`, f32 `[N, M]`; larger is more alike.

    Kinds: `cosine` <a,b>/(|a||b|), `dot` <a,b>, `euclidean` -|a - b|_2, `manhattan` -|a - b|_1.

    Raises:
      ValueError: for an unknown kind or vectors of different dimension.
    """
    a, b = (np.atleast_2d(np.asarray(x, np.float32)) for x in (a, b))
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must have the same dimension; got {a.shape} and {b.shape}")
    if kind in ("cosine", "dot"):
        if kind == "cosine":
            a, b = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b))
        return a @ b.T
    from scipy.spatial.distance import cdist

    metric = {"euclidean": "euclidean", "manhattan": "cityblock"}.get(kind)
    if metric is None:
        raise ValueError(f"kind must be cosine, dot, euclidean or manhattan; got {kind!r}")
    return -cdist(a, b, metric).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SentenceEmbedder:
    """A model as people use it: texts in, vectors out. `jaxemb.load` returns one.

    Attributes:
      model: the pytree; `model(tokens) -> [N, D]`.
      tokenizer: texts to token ids.
      max_length: longest text in tokens, special tokens included; longer ones are cut.
      prompts: texts to put in front, by name (such as "query" and "document").
      default_prompt_name: the prompt used when none is asked for.
      similarity_fn_name: how vectors of this model are compared.
      format: where the weights came from and how to write them back.
    """

    model: Embedder
    tokenizer: "Tokenizer"
    max_length: int
    format: "DirectoryFormat"
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"

    def save(self, path: str | Path) -> None:
        """Writes a sentence-transformers directory, which other software loads; all or nothing."""
        from jaxemb.checkpoints import sentence_transformers

        sentence_transformers.save(self, path)

    def truncate(self, *, layers: int | None = None, dim: int | None = None) -> "SentenceEmbedder":
        """A smaller model: the first `layers` layers, the first `dim` dimensions of the embeddings; None keeps all.

            embedder.truncate(layers=6, dim=128).save("small")  # loads at that size everywhere

        Raises:
          ValueError: if `layers` is not in 1..L or `dim` not in 1..D.
        """
        from jaxemb.checkpoints import weights

        model = self.model.truncate(layers, dim)
        format = dataclasses.replace(self.format, encoder=weights.truncate(self.format.encoder, layers))
        return self.replace(model=model, format=format)

    def replace(self, **changes: Any) -> "SentenceEmbedder":
        """A copy with some attributes replaced, such as `model`."""
        return dataclasses.replace(self, **changes)

    def prompt(self, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """The text to put in front: `prompt`, or the stored prompt called `prompt_name`, or the default one.

        Raises:
          ValueError: if no prompt has that name.
        """
        name = prompt_name or self.default_prompt_name
        if prompt is not None or name is None:
            return prompt or ""
        if name not in self.prompts:
            raise ValueError(f"prompt_name must be one of {sorted(self.prompts)}; got {name!r}")
        return self.prompts[name]

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dim: int | None = None,
        normalize: bool = False,
        batch_tokens: int | None = None,
        dtype: str = "float32",
        out: str | Path | None = None,
        mesh: "Mesh | None" = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Embeddings of `texts` in their order, `[N, D]` (`[D]` for a single string).

        Args:
          texts: the texts; an empty string is a text, and longer ones than `max_length` are cut with one warning.
          prompt: text to put in front of each.
          prompt_name: or the name of a stored prompt; by default the model's default prompt, if it has one.
          dim: keep the first `dim` dimensions.
          normalize: give the vectors unit length, also where the model does not.
          batch_tokens: tokens per compiled batch; by default what suits the platform.
          dtype: of the result, `float32` or `float16`.
          out: write to this memory-mapped `.npy` file and return it; for results larger than memory.
          mesh: split every batch over the devices of this mesh. Where it has devices of several processes, each calls
            with the same arguments and gets the whole result; process 0 writes `out`, which all must be able to read.
          show_progress: show a bar with texts/s and the time left.

        Raises:
          TypeError: naming the index of the first element that is not a string.
          ValueError: for a bad `dim`, `prompt_name`, `batch_tokens` or `dtype`.
        """
        from jaxemb.encode import encode

        return encode(
            self,
            texts,
            prompt=self.prompt(prompt, prompt_name),
            dim=dim,
            normalize=normalize,
            batch_tokens=batch_tokens,
            dtype=dtype,
            out=out,
            mesh=mesh,
            show_progress=show_progress,
        )

    def similarity(self, a, b) -> np.ndarray:
        """Similarity of every row of `a` `[N, D]` with every row of `b` `[M, D]`, by the model's own measure."""
        return similarity(a, b, self.similarity_fn_name)
