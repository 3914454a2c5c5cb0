"""Directories that sentence-transformers wrote, and what it made of them, kept by make_directories.py.

`test_directories_sentence_transformers`, `test_truncated_sentence_transformers` and
`test_matryoshka_sentence_transformers` compare with the library itself, and are slow.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxemb.checkpoints import read_tensors, save_weights
from jaxemb.data import pad
from jaxemb.losses import info_nce
from jaxemb.objectives import adaptive_layers, matryoshka, on_columns
from jaxemb.sentence_embedder import load

TEXTS = ["a", "b c a d", "e f", "c c c a b e f d e a b c"]
QUERIES, DOCUMENTS = ["a b", "c", "d e f a"], ["a", "c c b", "f e"]
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "cls+mean", "mean+cls")
HEADS = tuple(f"heads, {name}" for name in ("Tanh", "Identity", "GELU", "Sigmoid"))
DIMS = (8, 4, 3)


@pytest.fixture(scope="module")
def kept(frozen):
    """The arrays, and a function that gives the complete directory of a name."""
    arrays, directory = frozen("directories")

    def complete(name):
        if not (directory / name / "model.safetensors").exists():
            for file in ("model.safetensors", "tokenizer.json"):
                shutil.copy(directory / "mean" / file, directory / name / file)
        return directory / name

    return arrays, complete


_run = jax.jit(lambda model, tokens: model(tokens))


def embed(embedder) -> np.ndarray:
    return np.asarray(_run(embedder.model, pad(embedder.tokenizer(TEXTS, embedder.max_length), length=10)))


@pytest.mark.parametrize("name", [*POOLINGS, *HEADS])
def test_vectors_and_what_is_written_again(kept, tmp_path, name):
    arrays, complete = kept
    embedder = load(complete(name))
    np.testing.assert_allclose(embed(embedder), arrays[f"{name}/vectors"], atol=1e-5)
    embedder.save(tmp_path / "ours")
    for path in complete(name).rglob("*"):
        if path.suffix == ".safetensors":
            again = tmp_path / "ours" / path.relative_to(complete(name))
            ours, theirs = (read_tensors(file.parent) for file in (again, path))
            assert {n: t.tobytes() for n, t in ours.items()} == {n: t.tobytes() for n, t in theirs.items()}
    again = load(tmp_path / "ours")
    np.testing.assert_allclose(embed(again), arrays[f"{name}/vectors"], atol=1e-5)
    for what in ("prompts", "default_prompt_name", "similarity_fn_name", "max_length"):
        assert getattr(again, what) == getattr(embedder, what)


def test_prompts_similarity_and_length(kept):
    embedder = load(kept[1](HEADS[0]))
    assert (embedder.prompts, embedder.default_prompt_name) == ({"query": "a b ", "document": ""}, "document")
    assert embedder.similarity_fn_name == "dot" and embedder.max_length == 10


@pytest.mark.parametrize("name", ["mean", HEADS[0]])
def test_a_smaller_size(kept, tmp_path, name):
    arrays, complete = kept
    small = load(complete(name)).truncate(layers=2, dim=3)
    np.testing.assert_allclose(embed(small), arrays[f"{name}/truncated"], atol=1e-5)
    small.save(tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["num_hidden_layers"] == 2
    for other in (load(tmp_path / "small"), load(complete(name), layers=2, dim=3)):
        np.testing.assert_allclose(embed(other), arrays[f"{name}/truncated"], atol=1e-5)


BASE = on_columns(info_nce, "query", "document")
_aligned = lambda weighting: adaptive_layers(
    BASE, range(3), last_weight=0.5, prior_weight=2.0, kl_weight=0.7, kl_temperature=0.3, layer_weighting=weighting
)
OBJECTIVES = {
    "matryoshka": matryoshka(BASE, DIMS, [1.0, 0.5, 2.0]),
    **{f"adaptive-{weighting}": _aligned(weighting) for weighting in ("uniform", "log", "linear")},
    "2d": adaptive_layers(matryoshka(BASE, DIMS), range(3), kl_temperature=0.3),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("matryoshka", "2d") else pytest.mark.slow) for n in OBJECTIVES],
)
def test_losses_and_gradients_of_nested_objectives(kept, name):
    arrays, complete = kept
    embedder = load(complete("mean"))
    columns = {"query": QUERIES, "document": DOCUMENTS}
    batch = {column: pad(embedder.tokenizer(texts, 10), length=8) for column, texts in columns.items()}
    batch["id"] = np.arange(3)
    loss = lambda model: OBJECTIVES[name](model, batch, None)[0].mean()
    value, gradient = jax.jit(jax.value_and_grad(loss))(embedder.model)
    np.testing.assert_allclose(value, arrays[f"{name}/loss"], rtol=1e-5)
    found = save_weights(gradient.encoder, embedder.format.encoder)
    prefix = f"{name}/gradient/"
    expected = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    assert len(expected) > 50
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, atol=1e-5, rtol=1e-4, err_msg=key)
