"""Checkpoint families: one file each, a config mapping and a weight table. `FAMILIES` is the one list of them."""

import functools
import importlib.metadata

from jaxemb.encoders.families import (
    bert,
    distilbert,
    gemma,
    gemma2,
    gemma3,
    llama,
    mistral,
    modernbert,
    mpnet,
    nomic_bert,
    phi3,
    qwen2,
    qwen3,
    roberta,
    yi,
)
from jaxemb.encoders.families.family import (
    Family,
    HeadKind,
    HfConfig,
    StoredHead,
    Weight,
    activation,
    array,
    linear,
    modern,
    norm,
    require,
    rope,
)
from jaxemb.settings import text

_ENCODERS = (bert, distilbert, modernbert, mpnet, nomic_bert, roberta)
_DECODERS = (gemma, gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3, yi)
FAMILIES: dict[str, Family] = {
    model_type: module.FAMILY for module in (*_ENCODERS, *_DECODERS) for model_type in module.FAMILY.model_types
}


def register(family: Family) -> Family:
    """Makes a family known to `jaxemb.load`, `jaxemb.new` and all commands of this process, and gives it back.

    A package makes its families known to every process, once it is installed, by entry points of the group
    "jaxemb.families", which name them: `megatron-bert = "my_package.megatron_bert:FAMILY"`.

    Raises:
      TypeError: it is no `Family`.
      ValueError: another one has one of its model types.
    """
    if not isinstance(family, Family):
        raise TypeError(f"family must be a Family; got {family!r:.60}")
    for model_type in family.model_types:
        if FAMILIES.setdefault(model_type, family) is not family:
            raise ValueError(f"another family has the model_type {model_type!r}")
    return family


@functools.cache
def _register_installed() -> None:
    for entry in importlib.metadata.entry_points(group="jaxemb.families"):
        try:
            register(entry.load())
        except Exception as error:  # whatever that package does when it is imported
            raise ValueError(f"the entry point jaxemb.families, {entry.name} = {entry.value}: {error}") from error


def family_of(config: HfConfig) -> Family:
    """The family of a `config.json`, by its `model_type`; raises ValueError for an unknown one."""
    model_type = text(config, "model_type")
    if model_type not in FAMILIES:
        _register_installed()
    return FAMILIES[text(config, "model_type", options=FAMILIES)]


__all__ = [
    "FAMILIES",
    "Family",
    "HeadKind",
    "HfConfig",
    "StoredHead",
    "Weight",
    "activation",
    "array",
    "family_of",
    "linear",
    "modern",
    "norm",
    "register",
    "require",
    "rope",
]
