"""Checkpoint families: one file each, a config mapping and a weight table. `FAMILIES` is the one list of them."""

from jaxemb.encoders.families import bert, distilbert, modernbert, mpnet, nomic_bert, roberta
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

FAMILIES: dict[str, Family] = {
    model_type: module.FAMILY
    for module in (bert, distilbert, modernbert, mpnet, nomic_bert, roberta)
    for model_type in module.FAMILY.model_types
}


def family_of(config: HfConfig) -> Family:
    """The family of a `config.json`, by its `model_type`; raises ValueError for an unknown one."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"config.json: model_type {model_type!r} is not known; expected one of {sorted(FAMILIES)}")
    return FAMILIES[model_type]


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
    "require",
    "rope",
]
