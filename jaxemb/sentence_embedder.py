"""A model as people use it (`SentenceEmbedder`): load or make, encode, compare, save."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxemb.backends import without_absent_tpu
from jaxemb.checkpoints.adapters import LoraAdapter, load_adapter, with_adapters
from jaxemb.checkpoints.gguf import read_gguf
from jaxemb.checkpoints.hub import GGUF, resolve
from jaxemb.checkpoints.new import new_directory
from jaxemb.checkpoints.sentence_transformers import (
    CONTENTS,
    ModelDirectory,
    check_writable,
    read_directory,
    write_directory,
)
from jaxemb.checkpoints.weights import Placement
from jaxemb.checkpoints.weights import truncate as truncate_format
from jaxemb.checks import at_least, checked
from jaxemb.data.tokenizer import Tokenizer
from jaxemb.embedder import Head
from jaxemb.encode import encode
from jaxemb.files import read_whole
from jaxemb.parallel.mesh import ENCODER_RULES, Rules
from jaxemb.pooling import Pooling
from jaxemb.similarity import similarity


@checked(layers=at_least(1), dim=at_least(1))
def load(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    layers: int | None = None,
    dim: int | None = None,
    pooling: str | Sequence[str] | Pooling | None = None,
    encoder_only: bool = False,
    mesh: Mesh | None = None,
    rules: Rules = ENCODER_RULES,
    param_dtype: str = "float32",
    adapters: str | Path | Sequence[str | Path] | Mapping[str, float] = (),
    **overrides: Any,
) -> "SentenceEmbedder":
    """Loads a sentence-transformers directory, or a bare Hugging Face encoder, which is pooled as there.

    A bare encoder does not say how its states are pooled, so a warning says that it is by their mean, or by the last
    token of a causal language model, unless `pooling` names one.

    Args:
      path_or_id: a local directory, a GGUF file of a decoder (needs the package `gguf`), or a hub id.
      revision: branch, tag or commit of a hub id.
      layers: keep the first layers of the encoder only.
      dim: keep the first dimensions of the embeddings only.
      pooling: in place of what the directory says: one or several names of `pooling.POOLINGS`, or a module.
      encoder_only: of a checkpoint of another kind of model, such as a cross-encoder, take the encoder to be trained as
        an embedding model, with mean pooling unless `pooling` is given, and drop the rest.
      mesh: share the weights among the devices of this mesh: each shard is read from the files by its own device's
        process, and no device or host ever holds the whole model. None for the default device.
      rules: path rules that say how.
      param_dtype: of the weights at rest, "float32" or "bfloat16"; the latter halves their memory, and is for weights
        that are not trained, or were stored so. "int8" and "nf4" are for weights that are not trained: the kernels of
        the layers are quantised while they are read (see `nn.quantize_base`), all else is bfloat16. What is saved of
        such a model is float32.
      adapters: directories or hub ids of LoRA adapters that PEFT wrote, one or several, or a mapping of them to
        weights; they are merged, or kept beside kernels that are quantised (see `SentenceEmbedder.with_adapters`).
      **overrides: fields of `TransformerConfig` to set, such as `dtype="bfloat16"` (that of the computation) or
        `remat="full"`. `causal=False` makes a decoder see both ways, which is saved with it (as `is_causal`).

    Raises:
      FileNotFoundError: if there is neither such a directory nor such a model on the hub.
      NotADirectoryError: if it is a file.
      CheckpointError: if a file is missing or damaged, or tensors do not fit the configuration; all are named.
      ValueError: if the directory asks for what jaxemb does not have: a model type, a module, an activation; if it
        holds another kind of model, of which its encoder is only a part; for an unknown pooling; if the model has less
        layers or dimensions than are to be kept; or if an array does not split as `rules` say.
    """
    without_absent_tpu()
    placement = Placement(mesh, rules, param_dtype)
    path = resolve(path_or_id, revision=revision)
    if path.suffix == GGUF:
        contents = read_gguf(path, placement, pooling=pooling, **overrides)
    else:
        options: dict[str, Any] = {"pooling": pooling, "encoder_only": encoder_only, **overrides}
        contents = read_whole(path, CONTENTS, functools.partial(read_directory, path, placement, **options))
    embedder = SentenceEmbedder(**vars(contents))
    directories = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    weights = list(adapters.values()) if isinstance(adapters, Mapping) else None
    if directories:
        read = [load_adapter(directory, embedder.format.encoder) for directory in directories]
        embedder = embedder.with_adapters(*read, weights=weights)
    return embedder.truncate(layers=layers, dim=dim)


@checked(max_length=at_least(1))
def new(
    family: str,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    key: jax.Array,
    pooling: Pooling | None = None,
    heads: Sequence[Head] = (),
    max_length: int | None = None,
    mesh: Mesh | None = None,
    rules: Rules = ENCODER_RULES,
    param_dtype: str = "float32",
    **overrides: Any,
) -> "SentenceEmbedder":
    """A model with random weights, to be trained, saved and loaded as any other, here and by other software.

        tokenizer = Tokenizer.train(texts, 8000)
        sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
        embedder = jaxemb.new("bert", sizes, tokenizer, key=jax.random.key(0))

    Args:
      family: a `model_type` of `jaxemb.encoders.families.FAMILIES`.
      config: what its `config.json` is to say, in the names of that family. Vocabulary and padding are the tokenizer's;
        what is left out has the family's defaults.
      tokenizer: texts to token ids; of the `tokenizers` library's own, `Tokenizer.of(backend)`.
      key: random key of the weights.
      pooling: None for `pooling.Mean()`.
      heads: what follows the pooling, such as `(Normalize(),)`.
      max_length: longest text in tokens; None for what tokenizer and positions allow.
      mesh, rules, param_dtype: as of `load`: the encoder's weights are made on the devices that share them.
      **overrides: fields of `TransformerConfig` that say how to compute, such as `dtype="bfloat16"` or `remat="full"`.

    Raises:
      CheckpointError: if `config` lacks a key that the family needs, or has less embeddings than the tokenizer tokens.
      ValueError: for an unknown family, an option that it cannot honour, an override that `config` should say, or a
        max_length above the positions of the model; for a tokenizer without padding, or with one that is not where
        family or `config` have it.
    """
    without_absent_tpu()
    placement = Placement(mesh, rules, param_dtype)
    options: dict[str, Any] = {"pooling": pooling, "heads": heads, "max_length": max_length, **overrides}
    contents = new_directory(family, config, tokenizer, key=key, placement=placement, **options)
    return SentenceEmbedder(**vars(contents))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SentenceEmbedder(ModelDirectory):
    """A model as people use it: texts in, vectors out. `jaxemb.load` returns one; the attributes are its files'."""

    def __repr__(self) -> str:
        kind, prompts = self.format.encoder.config["model_type"], f", prompts={[*self.prompts]}" if self.prompts else ""
        return f"SentenceEmbedder({kind!r}, max_length={self.max_length}{prompts}, {self.model})"

    def save(self, path: str | Path) -> None:
        """Writes a sentence-transformers directory, which other software loads; all or nothing.

        A `pooling.Attention` is written as a module of jaxemb's own, which no other software has.

        Raises:
          FileExistsError: if `path` is a file, or a directory of something else.
          ValueError: for a model that a directory cannot hold: with another pooling, a head that is a norm other than
            LayerNorm, or other shapes than its checkpoint.
        """
        write_directory(path, self)

    def check_savable(self) -> None:
        """Raises a ValueError if the model is not one that `save` can write; of it shapes are enough."""
        check_writable(self)

    @checked()
    def truncate(self, *, layers: int | None = None, dim: int | None = None) -> "SentenceEmbedder":
        """A smaller model: the first `layers` layers, the first `dim` dimensions of the embeddings; None keeps all.

            embedder.truncate(layers=6, dim=128).save("small")  # loads at that size everywhere

        Raises:
          ValueError: if `layers` is not in 1..L or `dim` not in 1..D.
        """
        model = self.model.truncate(layers, dim)
        format = dataclasses.replace(self.format, encoder=truncate_format(self.format.encoder, layers))
        return self.replace(model=model, format=format)

    def with_adapters(
        self, *adapters: LoraAdapter, weights: Sequence[float] | None = None, beside: bool = False
    ) -> "SentenceEmbedder":
        """The model with LoRA adapters of it, one or several, see `checkpoints.with_adapters`.

            adapters = {name: load_adapter(name, embedder.format.encoder) for name in ("nli", "code")}
            embedder.with_adapters(adapters["nli"])
            embedder.with_adapters(*adapters.values(), weights=[0.7, 0.3])

        Raises:
          ValueError: as there.
        """
        return self.replace(model=with_adapters(self.model, adapters, weights, beside=beside))

    def replace(self, **changes: Any) -> "SentenceEmbedder":
        """A copy with some attributes replaced, such as `model`."""
        return dataclasses.replace(self, **changes)

    @checked()
    def prompt(self, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """The text to put in front: `prompt`, or the stored prompt called `prompt_name`, or the default one.

        Raises:
          ValueError: if no prompt has that name, or both a prompt and a name are given.
        """
        if prompt is not None and prompt_name is not None:
            raise ValueError(f"prompt and prompt_name exclude each other; got {prompt!r} and {prompt_name!r}")
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if prompt is not None or name is None:
            return prompt or ""
        if name not in self.prompts:
            there = (
                f"must be one of {sorted(self.prompts)}" if self.prompts else "is not known: the model has no prompts"
            )
            raise ValueError(f"prompt_name {there}; got {name!r}")
        return self.prompts[name]

    @checked()
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
        mesh: Mesh | None = None,
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
          out: write to this memory-mapped `.npy` file and return it; for results larger than memory. The file is
            `[N, D]` also for a single string, of which its one row is returned.
          mesh: split every batch over the devices of this mesh; by default that in force (`jax.set_mesh`), if any. A
            model that lies on it stays as it is split, another one is copied to every device. Where it has devices of
            several processes, each calls with the same arguments and gets the whole result; process 0 writes `out`,
            which all must be able to read.
          show_progress: show a bar with texts/s and the time left.

        Raises:
          TypeError: naming the index of the first element that is not a string, or another argument of a wrong type.
          ValueError: for a bad `dim`, `prompt_name`, `batch_tokens` or `dtype`, for both a prompt and a name of one;
            naming a text that has a lone surrogate, or texts whose embeddings are not finite, as the weights are not
            or float16 cannot hold them.
        """
        several = [texts] if isinstance(texts, str) else texts
        vectors = encode(
            self.model,
            self.tokenizer,
            self.max_length,
            several,
            prompt=self.prompt(prompt, prompt_name),
            dim=dim,
            normalize=normalize,
            batch_tokens=batch_tokens,
            dtype=dtype,
            out=out,
            mesh=mesh,
            show_progress=show_progress,
        )
        return vectors if several is texts else vectors[0]

    def similarity(self, a, b) -> np.ndarray:
        """`jaxemb.similarity.similarity` of every row of `a` with every row of `b`, by the model's own measure."""
        return similarity(a, b, self.similarity_fn_name)
