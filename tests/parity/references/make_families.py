"""Writes families.npz: tiny random models of every encoder family, their states and gradients by transformers."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from storing import files, store

VOCABULARY = 29
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
_BERT = _SIZES | {"intermediate_size": 12}
_OFFSET = {"max_position_embeddings": 20, "pad_token_id": 1}
_MODERN = _BERT | {"max_position_embeddings": 18, "pad_token_id": 0, "global_attn_every_n_layers": 2}
CONFIGS = {
    "bert": transformers.BertConfig(**_BERT, max_position_embeddings=18),
    "roberta": transformers.RobertaConfig(**_BERT, **_OFFSET, type_vocab_size=1, layer_norm_eps=1e-5),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=8, n_layers=2, n_heads=2, hidden_dim=12, max_position_embeddings=18
    ),
    "mpnet": transformers.MPNetConfig(**_BERT, **_OFFSET, layer_norm_eps=1e-5),
    "modernbert": transformers.ModernBertConfig(**_MODERN, local_attention=4),
    "nomic_bert": transformers.NomicBertConfig(**_BERT, max_position_embeddings=18),
}
_COUNTS_PADDING = ("roberta", "mpnet")  # these find positions from the padding id


def random_model(config, make=transformers.AutoModel) -> torch.nn.Module:
    """With norms and biases that differ from their defaults, which would hide swapped tensors."""
    torch.manual_seed(0)
    model = make.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(pad_id: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of four texts, `[4, 15]`, three columns of them padding alone."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, VOCABULARY, n) for n in (12, 4, 9, 1)]
    place = lambda text, fill: np.pad(
        text, (0, 15 - len(text)) if side == "right" else (15 - len(text), 0), constant_values=fill
    )
    return np.stack([place(text, pad_id) for text in texts]), np.stack([place(np.ones_like(t), 0) for t in texts])


def saved(model: torch.nn.Module, name: str, **options) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as directory:
        model.save_pretrained(directory, **options)
        return files(Path(directory), name)


def of_family(name: str) -> dict[str, np.ndarray]:
    """Hidden states after every layer for padding on the right, the last ones on the left, and gradients.

    The gradients are those of the last states' inner product with a random probe, as a model of their own.
    """
    config = CONFIGS[name]
    model = random_model(config)
    result = saved(model, name)
    if name == "nomic_bert":  # as it is published, and in transformers' names
        result |= saved(model, f"{name}-native", save_original_format=False)
    for side in ("left", "right"):
        ids, mask = batch(config.pad_token_id, side)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if config.model_type not in _COUNTS_PADDING:  # the others count from the start of the row
            inputs["position_ids"] = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
        output = model(**inputs, output_hidden_states=True)
        result |= {f"{name}/{side}/ids": ids, f"{name}/{side}/mask": mask}
        result[f"{name}/{side}/states"] = np.stack([state.detach().numpy() for state in output.hidden_states])
    probe = np.random.default_rng(1).normal(size=(*ids.shape, 8)) * mask[..., None]
    (output.last_hidden_state * torch.tensor(probe, dtype=torch.float32)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return result | {f"{name}/probe": probe.astype(np.float32)} | saved(model, f"{name}-gradient")


def token_types() -> dict[str, np.ndarray]:
    """States of a BERT whose text has two types of tokens."""
    ids, types = np.arange(5, 15)[None], np.array([[0] * 4 + [1] * 6])
    with torch.no_grad():
        states = random_model(CONFIGS["bert"])(torch.tensor(ids), token_type_ids=torch.tensor(types))
    return {"types/ids": ids, "types/types": types, "types/last": states.last_hidden_state.numpy()}


def values() -> dict[str, np.ndarray]:
    return {n: a for name in CONFIGS for n, a in of_family(name).items()} | token_types()


if __name__ == "__main__":
    store(__file__, values())
