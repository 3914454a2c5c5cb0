"""Decoder families against what transformers gave for tiny random models, kept by make_decoders.py.

`test_decoders_transformers` compares with transformers itself, in more ways, and is slow.
"""

import jax
import numpy as np
import pytest

from jaxemb.checkpoints import load_encoder, read_tensors, save_weights
from jaxemb.types import Tokens

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")

_all_states = jax.jit(lambda model, *batches: [model(tokens, all_states=True) for tokens in batches])


@pytest.fixture(scope="module")
def decoders(frozen):
    return frozen("decoders")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_hidden_state_packed_and_padded_on_either_side(decoders, name):
    arrays, directory = decoders
    model, format = load_encoder(directory / name)
    ids, lengths, expected = arrays["ids"], arrays["lengths"], arrays[f"{name}/states"]
    places = np.arange(14)
    masks = {"right": places < lengths[:, None], "left": places >= 14 - lengths[:, None]}
    padded = {}
    for side, mask in masks.items():
        padded[side] = np.zeros(mask.shape, int)
        padded[side][mask] = ids
    numbers, positions = np.repeat(np.arange(1, 5), lengths), np.concatenate([np.arange(n) for n in lengths])
    packed = Tokens(ids[None], numbers[None], positions[None], texts_per_row=4)
    batches = [Tokens.from_mask(padded[side], masks[side]) for side in masks]
    right, left, row = map(np.asarray, _all_states(model, *batches, packed))
    for found in (right[:, masks["right"]], left[:, masks["left"]], row[:, 0]):
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)

    original, saved = read_tensors(directory / name), save_weights(model, format)
    assert {n: (t.dtype, t.tobytes()) for n, t in saved.items()} == {
        n: (t.dtype, t.tobytes()) for n, t in original.items()
    }
