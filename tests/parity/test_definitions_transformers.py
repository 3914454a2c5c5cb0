"""DefSent and DefSent+ written with transformers' modules: losses and gradients of all parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxemb.checkpoints import save_weights
from jaxemb.pretraining import EntryPredictor, MaskedLanguageModel, definition_to_entry, definition_to_word
from jaxemb.sentence_embedder import load
from jaxemb.types import Tokens

_SIZES = {"vocab_size": 11, "num_hidden_layers": 2, "initializer_range": 0.3, "max_position_embeddings": 20}
_SHAPES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
IDS = np.random.default_rng(0).integers(5, 11, (3, 7))
MASK = np.arange(7) < np.array([[7], [4], [5]])
TARGETS = np.array([6, 8, 10])
BATCH = {"definition": Tokens.from_mask(IDS, MASK), "word": TARGETS, "entry": TARGETS, "id": np.arange(3)}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**_SIZES, **_SHAPES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def embedder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]) + "\n")
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return load(path)


def pooled(theirs, pooling):
    mask = torch.tensor(MASK, dtype=torch.float32)
    states = theirs.bert(torch.tensor(IDS), attention_mask=mask).last_hidden_state
    return states[:, 0] if pooling == "cls" else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def compare(theirs, embedder, expected, objective, model):
    value, gradient = jax.jit(jax.value_and_grad(lambda model: objective(model, BATCH, None)[0].mean()))(model)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    theirs.zero_grad()
    expected.backward()
    found = save_weights(gradient.embedder.encoder, embedder.format.encoder)
    for name, parameter in theirs.bert.named_parameters():
        if parameter.requires_grad and not name.startswith("pooler"):
            np.testing.assert_allclose(found[f"bert.{name}"], parameter.grad, atol=1e-5, rtol=1e-4, err_msg=name)
    return gradient


def test_defsent(theirs, embedder):
    frozen = [*theirs.cls.predictions.parameters(), *theirs.bert.embeddings.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    logits = theirs.cls.predictions(pooled(theirs, "mean"))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS))
    model = MaskedLanguageModel.of(embedder, jax.random.key(0))
    gradient = compare(theirs, embedder, expected, definition_to_word(), model)
    still = (gradient.head, gradient.embedder.encoder.embeddings)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(still))
    for parameter in frozen:
        parameter.requires_grad_(True)


def test_defsent_plus(theirs, embedder):
    entries = np.random.default_rng(1).normal(size=(13, 16)).astype(np.float32)
    v = theirs.bert.pooler(pooled(theirs, "cls")[:, None])
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(v, torch.tensor(entries)), torch.tensor(TARGETS)
    )
    model = EntryPredictor.of(embedder.replace(model=dataclasses.replace(embedder.model, pooling=("cls",))))
    model = dataclasses.replace(model, entries=jnp.asarray(entries))
    gradient = compare(theirs, embedder, expected, definition_to_entry(chunk=5), model)
    dense = theirs.bert.pooler.dense
    np.testing.assert_allclose(gradient.pooler.linear.kernel, dense.weight.grad.T, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(gradient.pooler.linear.bias, dense.bias.grad, atol=1e-5, rtol=1e-4)


def test_where_the_projection_comes_from(theirs, embedder):
    encoder = embedder.format.encoder

    def of(**layers):
        aside = {name: encoder.aside[source] for name, source in layers.items()}
        format = dataclasses.replace(embedder.format, encoder=dataclasses.replace(encoder, aside=aside))
        return EntryPredictor.of(embedder.replace(format=format)).pooler

    pooler = {f"bert.pooler.dense.{n}": f"bert.pooler.dense.{n}" for n in ("weight", "bias")}
    head = {f"lm_head.dense.{n}": f"cls.predictions.transform.dense.{n}" for n in ("weight", "bias")}
    transform = theirs.cls.predictions.transform.dense.weight.detach().T
    assert (of(**pooler).activation, of(**pooler, **head).activation) == ("tanh", "gelu")
    np.testing.assert_array_equal(of(**pooler, **head).linear.kernel, transform)
    assert of().activation == "tanh" and np.array_equal(of().linear.kernel, np.eye(16))
