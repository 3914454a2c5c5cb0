"""Models from scratch: what a directory of a new one holds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxemb.checkpoints.sentence_transformers import DirectoryFormat, ModelDirectory, check_vocabulary, mapped
from jaxemb.checkpoints.weights import new_format
from jaxemb.data.tokenizer import Tokenizer
from jaxemb.embedder import Embedder, Head
from jaxemb.encoders.families import Family, HfConfig, family_of
from jaxemb.pooling import Mean, Pooling


def new_directory(
    family: str,
    config: HfConfig,
    tokenizer: Tokenizer,
    *,
    key: jax.Array,
    pooling: Pooling | None = None,
    heads: Sequence[Head] = (),
    max_length: int | None = None,
    **overrides: Any,
) -> ModelDirectory:
    """What a directory of a new model with random weights would hold; arguments as of `jaxemb.new`."""
    of_family = family_of({"model_type": family})
    hf_config = _complete(family, of_family, config, tokenizer)
    model_config = mapped("config", of_family, hf_config, overrides)
    check_vocabulary("config", tokenizer, model_config)
    longest = model_config.max_positions
    if max_length is not None and not 1 <= max_length <= longest:
        raise ValueError(f"max_length must be in 1..{longest}, the positions of the model; got {max_length}")
    shapes = jax.eval_shape(lambda key: of_family.init(key, model_config), key)
    model = Embedder(shapes, tuple(heads), Mean() if pooling is None else pooling)  # says what is wrong with it
    return ModelDirectory(
        model=dataclasses.replace(model, encoder=jax.jit(of_family.init, static_argnums=1)(key, model_config)),
        tokenizer=tokenizer,
        max_length=max_length or min(tokenizer.model_max_length or longest, longest),
        format=DirectoryFormat(new_format(model_config, of_family, hf_config)),
    )


def _complete(model_type: str, family: Family, config: HfConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The `config.json`, with what family and tokenizer say of it."""
    if "pad" not in tokenizer.special_ids:
        raise ValueError("tokenizer must have a padding token, as other software pads; this one has none")
    pad_id = tokenizer.pad_id
    if (stated := config.get("pad_token_id", pad_id)) != pad_id:
        raise ValueError(f"config: pad_token_id must be {pad_id}, the tokenizer's; got {stated}")
    if family.pad_id not in (None, pad_id):
        raise ValueError(f"tokenizer: the padding of {model_type} must have the id {family.pad_id}; it has {pad_id}")
    stated = {"vocab_size": tokenizer.vocab_size, "pad_token_id": pad_id, **config}
    return {"architectures": [family.model_types[model_type]], "model_type": model_type, **stated}
