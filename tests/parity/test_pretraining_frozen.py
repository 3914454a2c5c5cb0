"""DefSent, DefSent+, masked language modelling, SMAE, SRL: what transformers gave, kept by make_pretraining.py."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxemb.checkpoints import save_weights
from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns, starbucks
from jaxemb.pooling import Cls
from jaxemb.pretraining import (
    EntryPredictor,
    MaskedAutoEncoder,
    MaskedLanguageModel,
    definition_to_entry,
    definition_to_word,
)
from jaxemb.sentence_embedder import load
from jaxemb.types import Tokens


@pytest.fixture(scope="module")
def kept(frozen):
    arrays, directory = frozen("pretraining")
    return arrays, load(directory / "model")


def batch_of(arrays) -> dict:
    targets = arrays["targets"]
    tokens = Tokens.from_mask(arrays["ids"], arrays["mask"])
    return {"definition": tokens, "word": targets, "entry": targets, "id": np.arange(3)}


def assert_same(arrays, name: str, value, found: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(value, arrays[f"{name}/loss"], rtol=1e-5)
    prefix = f"{name}/gradient/"
    expected = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    assert expected
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, atol=1e-5, rtol=1e-4, err_msg=key)


def value_and_gradient(loss, model):
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(model))


def test_defsent(kept):
    arrays, embedder = kept
    model, batch = MaskedLanguageModel.of(embedder, jax.random.key(0)), batch_of(arrays)
    value, gradient = value_and_gradient(lambda model: definition_to_word()(model, batch, None)[0].mean(), model)
    assert_same(arrays, "defsent", value, save_weights(gradient.embedder.encoder, embedder.format.encoder))
    still = (gradient.head, gradient.embedder.encoder.embeddings)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(still))


def test_defsent_plus(kept):
    arrays, embedder = kept
    embedder = embedder.replace(model=dataclasses.replace(embedder.model, pooling=Cls()))
    model, batch = EntryPredictor.of(embedder), batch_of(arrays) | {"entries": arrays["entries"]}
    objective = definition_to_entry(chunk=5)
    value, gradient = value_and_gradient(lambda model: objective(model, batch, None)[0].mean(), model)
    linear = gradient.pooler.linear
    of_pooler = {"bert.pooler.dense.weight": linear.kernel.T, "bert.pooler.dense.bias": linear.bias}
    found = save_weights(gradient.embedder.encoder, embedder.format.encoder) | of_pooler
    assert_same(arrays, "defsent_plus", value, found)


def test_masked_language_modelling(kept):
    arrays, embedder = kept
    model, tokens = (
        MaskedLanguageModel.of(embedder, jax.random.key(0)),
        Tokens.from_mask(arrays["seen"], np.ones((3, 7))),
    )

    def loss(model):
        states = model.embedder.encoder(tokens)
        whole = dataclasses.replace(tokens, ids=arrays["whole"])
        return model.losses(states, whole, arrays["hidden"], most=20).mean()

    value, gradient = value_and_gradient(loss, model)
    found = save_weights(gradient.embedder.encoder, gradient.into(embedder).format.encoder)
    assert_same(arrays, "masked_language_model", value, found)


CUT = ((1, 5), (2, 16))  # layers, dimensions


def test_masked_autoencoding_of_sizes(kept):
    arrays, embedder = kept
    model = MaskedAutoEncoder.of(MaskedLanguageModel.of(embedder, jax.random.key(0)))
    tokens, *views = (Tokens.from_mask(arrays[name], np.ones((3, 7))) for name in ("whole", "seen", "decoded"))
    pairs = list(zip(views, (arrays["hidden"], arrays["hidden_from_decoder"]), strict=True))
    value, gradient = value_and_gradient(lambda model: model.losses(tokens, CUT, *pairs).mean(), model)
    changed = gradient.language_model.into(embedder)
    assert_same(arrays, "masked_autoencoder", value, save_weights(changed.model.encoder, changed.format.encoder))


def test_starbucks_as_its_authors_have_it(kept):
    arrays, embedder = kept
    objective = starbucks(on_columns(info_nce, "query", "document"), CUT, kl_weight=0.3, detach_teacher=False)
    texts = {"query": "seen", "document": "whole"}
    batch = {column: Tokens.from_mask(arrays[name], np.ones((3, 7))) for column, name in texts.items()}
    loss = lambda model: objective(model, batch | {"id": np.arange(3)}, None)[0].mean()
    value, gradient = value_and_gradient(loss, embedder.model)
    assert_same(arrays, "starbucks", value, save_weights(gradient.encoder, embedder.format.encoder))


def test_a_head_is_written_and_read_again(kept, tmp_path):
    embedder = kept[1]
    model = MaskedLanguageModel.of(embedder, jax.random.key(0))
    changed = dataclasses.replace(model, head=jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1.5), model.head))
    changed.into(embedder).save(tmp_path / "ours")
    again = MaskedLanguageModel.of(load(tmp_path / "ours"), jax.random.key(1)).head
    jax.tree.map(np.testing.assert_array_equal, again, changed.head)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(again))


def test_where_the_projection_comes_from(kept):
    encoder = kept[1].format.encoder

    def of(model_type, **layers):
        unused = {
            f"{name}.{n}": encoder.unused[f"{source}.{n}"]
            for name, source in layers.items()
            for n in ("weight", "bias")
        }
        format = dataclasses.replace(encoder, config={"model_type": model_type}, unused=unused)
        embedder = kept[1].replace(format=dataclasses.replace(kept[1].format, encoder=format))
        return EntryPredictor.of(embedder).pooler

    pooler, transform = "bert.pooler.dense", "cls.predictions.transform.dense"
    kernel = {name: np.asarray(encoder.unused[f"{name}.weight"]).T for name in (pooler, transform)}
    bert, roberta = {pooler: pooler, transform: transform}, {"roberta.pooler.dense": pooler, "lm_head.dense": transform}
    for model_type, layers, expected in (
        ("bert", bert, (kernel[pooler], "tanh")),
        ("bert", {transform: transform}, (kernel[transform], "gelu")),
        ("roberta", roberta, (kernel[transform], "gelu")),
        ("roberta", {"roberta.pooler.dense": pooler}, (kernel[pooler], "tanh")),
        ("roberta", {}, (np.eye(16), "tanh")),
    ):
        found = of(model_type, **layers)
        np.testing.assert_array_equal(found.linear.kernel, expected[0])
        assert found.activation == expected[1]
