import copy
import dataclasses
import pickle
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from jaxemb import pooling
from jaxemb.embedder import Dense, Embedder, Normalize
from jaxemb.encoders.hashed_bag import HashedBag
from jaxemb.nn import Linear, Norm

HEAD = Dense(Linear(np.ones((3, 2), np.float32), np.zeros(2, np.float32)), activation="tanh")


@pytest.mark.parametrize("name", ["linear", "activation", "unheard_of"])
def test_a_module_cannot_be_assigned_to(name):
    with pytest.raises(dataclasses.FrozenInstanceError, match=rf"assign to Dense\.{name}: .* dataclasses\.replace"):
        setattr(HEAD, name, "relu")
    assert HEAD.activation == "tanh" and not hasattr(HEAD, "unheard_of")


def test_nor_what_jax_or_pickle_made_of_it():
    for module in (jax.tree.map(np.negative, HEAD), pickle.loads(pickle.dumps(HEAD)), copy.copy(HEAD)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            module.linear.bias = None
        with pytest.raises(dataclasses.FrozenInstanceError, match=r"delete Dense\.linear"):
            del module.linear


def test_what_makes_copies_works():
    replaced = dataclasses.replace(HEAD, activation="relu")
    assert (replaced.activation, HEAD.activation) == ("relu", "tanh") and replaced.linear is HEAD.linear
    for made in (pickle.loads(pickle.dumps(HEAD)), copy.copy(HEAD), copy.deepcopy(HEAD), nnx.merge(*nnx.split(HEAD))):
        chex.assert_trees_all_equal(made, HEAD)
        assert jax.tree.structure(made) == jax.tree.structure(HEAD)
    assert jax.tree.leaves(Normalize()) == []


def test_what_modules_refuse():
    for make, message in {
        lambda: Norm(np.ones(2), kind="batch"): "kind must be 'layer' or 'rms'; got 'batch'",
        lambda: Norm(np.ones(2), eps=0.0): "eps must be > 0; got 0.0",
        lambda: dataclasses.replace(HEAD, activation="relo"): "activation must be one of .*; got 'relo'",
        lambda: pooling.named(()): r"names of a pooling must be one or several of .*; got \(\)",
        lambda: pooling.named(("mean", "men")): r"pooling must be .*; got \('mean', 'men'\)",
        lambda: pooling.Concatenation(()): "parts must be one pooling or several; got none",
        lambda: pooling.Attention.init(jax.random.key(0), 0): "dim and hidden must be at least 1; got 0 and 0",
        lambda: HashedBag.init(jax.random.key(0), dim=0): "dim must be at least 1 and std > 0; got 32768, 0 and 0.1",
    }.items():
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="names must be a sequence of strings; got str 'mean'"):
        pooling.named("mean")
    with pytest.raises(TypeError, match=r"pooling must be a jaxemb.pooling.Pooling, such as Mean\(\); got 'mean'"):
        Embedder(None, pooling="mean")


def test_every_module_of_the_library_is_frozen():
    root = Path(__file__).parents[2]
    for path in [*root.glob("jaxemb/**/*.py"), *root.glob("experiments/**/*.py")]:
        if path.name != "module.py":
            assert "(nnx.Module)" not in path.read_text(encoding="utf-8"), path
