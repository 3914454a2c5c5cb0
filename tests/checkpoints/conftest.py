"""A BERT of two layers as tensors and files, made without any framework."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from jaxemb.checkpoints import write_tensors

CONFIG = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
}
_VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##d", "e", "f")


def _shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the body of a BERT, `[out, in]`, by their names."""
    d, m = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    linear = lambda name, n_in, n_out: {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}
    norm = lambda name: {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], d),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (CONFIG["type_vocab_size"], d),
        **norm("embeddings.LayerNorm"),
    }
    for layer in (f"encoder.layer.{i}" for i in range(CONFIG["num_hidden_layers"])):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{name}", d, d)
        shapes |= norm(f"{layer}.attention.output.LayerNorm")
        shapes |= linear(f"{layer}.intermediate.dense", d, m) | linear(f"{layer}.output.dense", m, d)
        shapes |= norm(f"{layer}.output.LayerNorm")
    return shapes


@pytest.fixture
def config() -> dict:
    return dict(CONFIG)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """The tensors of the tiny BERT, f32, all different."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in _shapes().items()}


@pytest.fixture
def write_encoder(tmp_path, tensors) -> Callable[..., Path]:
    """Writes a Hugging Face directory of the tiny BERT with its tokenizer; by default with the fixture's tensors."""

    def write(content: Mapping[str, np.ndarray] | None = None, *, name: str = "encoder", **changes) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        write_tensors(path, tensors if content is None else content)
        (path / "config.json").write_text(json.dumps(CONFIG | changes))
        (path / "vocab.txt").write_text("\n".join(_VOCABULARY) + "\n")
        (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
        return path

    return write
