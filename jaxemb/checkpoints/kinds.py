"""What kind of model a checkpoint is: a plain encoder, or one whose outputs are made by a head on top."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxemb.checkpoints.heads import tensors_of
from jaxemb.checkpoints.weights import CheckpointFormat
from jaxemb.encoders.families import HeadKind

REMEDY = "To train its encoder as an embedding model, drop the rest: jaxemb.load(..., encoder_only=True)"

# Heads that make a model's outputs, and what such a model is. The other heads (that of the masked language model, the
# pooler) only served pre-training.
_TASKS: Mapping[HeadKind, str] = {
    "classification": "a classifier, such as a cross-encoder that scores pairs of texts",
    "question_answering": "a model that answers questions",
    "projection": "a model of late interaction (ColBERT) that projects the vectors of tokens",
}
_TASK_NAME = re.compile(
    r"For(\w+Classification|QuestionAnswering|MultipleChoice|NextSentencePrediction|Retrieval)$|ColBERT|RewardModel$"
)


def refuse_parts(path: Path, format: CheckpointFormat) -> None:
    """Sees that the encoder is all that there is of the model.

    Raises:
      ValueError: if `architectures` of its `config.json`, or a tensor, is that of a model that does more.
    """
    named = [name for name in architectures(format.config) if _TASK_NAME.search(str(name))]
    kinds = [what for kind, what in _TASKS.items() if tensors_of(format, kind)]
    if named or kinds:
        trained = ", ".join(tensors_of(format, *_TASKS)) or "a head that its files do not hold"
        raise ValueError(
            f"{path}: holds {kinds[0] if kinds else 'a model'} (architectures {architectures(format.config)}). "
            f"Vectors of its encoder would lack what was trained on top: {trained}. "
            f"{REMEDY}"
        )


def architectures(config: Mapping[str, Any]) -> list[Any]:
    """The classes of transformers that a `config.json` says its model is of."""
    named = config.get("architectures") or ()
    return [named] if isinstance(named, str) else list(named)
