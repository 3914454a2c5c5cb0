"""Writes pooling.npz: sentence-transformers' Pooling of random states."""

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from storing import store

MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def values() -> dict[str, np.ndarray]:
    states = np.random.default_rng(0).normal(size=(4, 7, 6)).astype(np.float32)
    mask = np.array([[1] * 7, [1] * 3 + [0] * 4, [1] + [0] * 6, [1] * 5 + [0] * 2])
    features = {"token_embeddings": torch.from_numpy(states), "attention_mask": torch.from_numpy(mask)}
    of = lambda mode: Pooling(6, pooling_mode=mode)(dict(features))["sentence_embedding"].numpy()
    return {"states": states, "mask": mask} | {mode: of(mode) for mode in MODES}


if __name__ == "__main__":
    store(__file__, values())
