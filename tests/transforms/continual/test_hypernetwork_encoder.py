"""Hypernetworks that make the adapters and the head of a sentence encoder."""

import chex
import jax
import numpy as np
import optax
import pytest
from tiny_run import text_batch, tiny_model

import jaxemb
from jaxemb.classifiers.linear import Classifier
from jaxemb.data.packing import pad
from jaxemb.objectives import classification
from jaxemb.train import apply_transform, begin_task, init_state, make_train_step
from jaxemb.transforms import HyperIntervalConfig, HypernetworkConfig, Task, hyper_interval, hypernetwork
from jaxemb.transforms.adapters.adapted import Adapted
from jaxemb.transforms.continual.hyper_interval import make_interval_logits
from jaxemb.transforms.continual.hypernetwork import at_task

TEXTS = ["a cat", "a kitten sleeps", "shares fell", "bonds rose on Monday"]


@pytest.fixture
def minilm_classifier(tiny_minilm):
    sentences = jaxemb.load(str(tiny_minilm))
    model = Classifier.init(jax.random.key(0), sentences.model, 384, 3)
    return model, pad(sentences.tokenizer(TEXTS, 16), length=16)


def test_new_adapters_change_nothing():
    encoder, tokens = tiny_model(), text_batch(range(3))
    model = Classifier.init(jax.random.key(0), encoder, 16, 3)
    adapted = Adapted.init(jax.random.key(1), model, 2)
    assert len(adapted.adapters) == 2
    logits = jax.jit(lambda model: model(tokens))
    np.testing.assert_array_equal(logits(adapted), logits(model))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hypernetwork", "relaxed", "interval"])
def test_it_makes_the_adapters_and_the_head_of_minilm(minilm_classifier, kind):
    model, tokens = minilm_classifier
    model = Adapted.init(jax.random.key(1), model, 2)
    fields = {"tasks": 2, "embed_dim": 4, "hidden": (8,), "where": r"^adapters|head\.", "residual": True}
    fields |= {"scale": 0.03, "beta": 0.1}
    if kind == "hypernetwork":
        transform = hypernetwork(HypernetworkConfig(**fields))
    else:
        config = HyperIntervalConfig(**fields, gamma=1e-3, target=kind)
        transform = hyper_interval(config)
    batch = {"input": tokens, "label": np.array([0, 0, 1, 2], np.int32)}
    optimizer = optax.adam(1e-2)
    state = init_state(jax.random.key(1), model, optimizer, transform)
    step = jax.jit(make_train_step(classification(), optimizer, transform))
    losses = []
    for number in range(2):
        state = begin_task(transform, classification(), state, Task(number, steps=4))
        for _ in range(4):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert bool(state.finite)
    if kind != "interval":  # whose bound grows with gamma in these steps
        assert losses[2] < losses[0]
    first, second = (apply_transform(transform, at_task(state, number)) for number in (0, 1))
    chex.assert_trees_all_equal(first.model.encoder, model.model.encoder)
    for one, other in ((first, second), (first, model)):
        changed = jax.tree.map(
            lambda a, b: bool((a != b).any()), (one.adapters, one.head), (other.adapters, other.head)
        )
        assert all(jax.tree.leaves(changed))
    if kind != "hypernetwork":
        lower, middle, upper = make_interval_logits(config, transform)(state, tokens)
        assert (lower <= middle).all()
        assert (middle <= upper).all()
        assert (lower < upper).all()
