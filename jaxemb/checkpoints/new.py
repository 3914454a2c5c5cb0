"""Models from scratch: what a directory of a new one holds."""

import dataclasses
import difflib
import logging
from collections.abc import Sequence, Set
from typing import Any

import jax

from jaxemb.checkpoints.sentence_transformers import DirectoryFormat, ModelDirectory, check_vocabulary, mapped
from jaxemb.checkpoints.weights import ONE_DEVICE, Placement, new_format
from jaxemb.checks import checked
from jaxemb.data.tokenizer import Tokenizer
from jaxemb.embedder import Embedder, Head
from jaxemb.encoders.families import Family, HfConfig, family_of
from jaxemb.encoders.transformer import TransformerConfig
from jaxemb.nn.kernels import is_kernel, map_kernels
from jaxemb.pooling import Mean, Pooling
from jaxemb.settings import Settings

logger = logging.getLogger(__name__)

# Keys that transformers writes for every family, and that change nothing here.
_OF_TRANSFORMERS = {"architectures", "model_type", "pad_token_id", "vocab_size"}
# The fields of `TransformerConfig` that a directory need not say, as they do not change what a trained model gives.
_OF_COMPUTATION = (
    *("dropout", "attention_dropout", "initializer_range"),
    *("dtype", "remat", "unroll", "attention_implementation"),
)


@checked()
def new_directory(
    family: str,
    config: HfConfig,
    tokenizer: Tokenizer,
    *,
    key: jax.Array,
    pooling: Pooling | None = None,
    heads: Sequence[Head] = (),
    max_length: int | None = None,
    placement: Placement = ONE_DEVICE,
    **overrides: Any,
) -> ModelDirectory:
    """What a directory of a new model with random weights would hold; arguments as of `jaxemb.new`."""
    if unsaid := overrides.keys() - _OF_COMPUTATION:
        expected = f"overrides may be {', '.join(_OF_COMPUTATION)}; what else there is, `config` says, which is saved"
        raise ValueError(f"{expected}; got {', '.join(sorted(unsaid))}")
    of_family = family_of(Settings({"model_type": family}, "family", ValueError))
    hf_config = _complete(family, of_family, config, tokenizer)
    settings = Settings(hf_config, "config")
    model_config = mapped(settings, of_family, overrides)
    _check_spelling(config, settings.asked)
    check_vocabulary("config", tokenizer, model_config)
    longest = model_config.max_positions
    if max_length is not None and not 1 <= max_length <= longest:
        raise ValueError(f"max_length must be in 1..{longest}, the positions of the model; got {max_length}")
    shapes = jax.eval_shape(lambda key: of_family.init(key, model_config), key)
    model = Embedder(shapes, tuple(heads), Mean() if pooling is None else pooling)  # says what is wrong with it
    return ModelDirectory(
        model=dataclasses.replace(model, encoder=_initial(of_family, key, model_config, placement, shapes)),
        tokenizer=tokenizer,
        max_length=max_length or min(tokenizer.model_max_length or longest, longest),
        format=DirectoryFormat(new_format(model_config, of_family, hf_config)),
    )


def _check_spelling(config: HfConfig, known: Set[str]) -> None:
    """Raises ValueError for a key that the family does not read, but for one of nearly that name; warns of others."""
    for key in config.keys() - known - _OF_TRANSFORMERS:
        if near := difflib.get_close_matches(key, known - config.keys(), 1, 0.75):
            raise ValueError(f"config: key {key!r} is not known; did you mean {near[0]!r}?")
        logger.warning("config: key %r is saved, but changes nothing: this family does not read it", key)


def _initial(family: Family, key: jax.Array, config: TransformerConfig, placement: Placement, shapes: Any) -> Any:
    """The encoder, made where its weights belong: no device ever holds more than its share."""

    def init(key: jax.Array) -> Any:
        made = placement.quantized(family.init(key, config))
        return map_kernels(lambda _, leaf: leaf if is_kernel(leaf) else leaf.astype(placement.dtype), made)

    like = jax.eval_shape(init, key)
    where = list(placement.shardings("encoder", like).values())
    return jax.jit(init, out_shardings=jax.tree.unflatten(jax.tree.structure(like), where))(key)


def _complete(model_type: str, family: Family, config: HfConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The `config.json`, with what family and tokenizer say of it."""
    if config.get("model_type", model_type) != model_type:
        raise ValueError(f"config: model_type must be {model_type!r}, the family's; got {config['model_type']!r}")
    if "pad" not in tokenizer.special_ids:
        raise ValueError(
            "tokenizer must have a padding token, as other software pads; this one has none, or does not know it, as "
            "Tokenizer.of(backend) does"
        )
    pad_id = tokenizer.pad_id
    if config.get("pad_token_id", pad_id) != pad_id:
        raise ValueError(f"config: pad_token_id must be {pad_id}, the tokenizer's; got {config['pad_token_id']}")
    if family.pad_id not in (None, pad_id):
        raise ValueError(f"tokenizer: the padding of {model_type} must have the id {family.pad_id}; it has {pad_id}")
    of_tokenizer = {"vocab_size": tokenizer.vocab_size, "pad_token_id": pad_id}
    return {"model_type": model_type, **of_tokenizer, **config, "architectures": [family.model_types[model_type]]}
