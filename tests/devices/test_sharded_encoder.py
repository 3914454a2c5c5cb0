"""An encoder with split parameters: what travels between the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxemb
from jaxemb import parallel
from jaxemb.aot.hlo import Program
from jaxemb.encoders import Transformer, TransformerConfig
from jaxemb.types import Tokens

ROWS, LENGTH = 40, 24  # sizes that no parameter has


@pytest.fixture(scope="module")
def program() -> Program:
    """The gradient of an encoder whose parameters and rows are split over 8 devices."""
    mesh = parallel.make_mesh(data=1, fsdp=8, devices=jax.devices()[:8])
    config = TransformerConfig(
        vocab_size=64,
        dim=256,
        layers=2,
        heads=4,
        mlp_dim=1024,
        position_table=LENGTH,
        token_types=2,
        dropout=0,
        attention_dropout=0,
    )
    model = jax.eval_shape(lambda: Transformer.init(jax.random.key(0), config))
    shape = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    model = jax.tree.map(shape, model, parallel.shardings(model, mesh))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=rows)
    loss = lambda model, tokens: jnp.mean(model(tokens) ** 2)
    with parallel.in_force(mesh):
        return Program(jax.jit(jax.grad(loss)).lower(model, Tokens(ids, ids, ids)).compile().as_text())


def test_split_parameters_travel_and_activations_do_not(program):
    sent = {(c.kind, b.shape) for c in program.collectives for b in c.buffers}
    assert any(kind == "all-gather" and 1024 in shape for kind, shape in sent)  # the feed-forward kernels
    of_activations = {ROWS, ROWS * LENGTH, ROWS // 8 * LENGTH}
    assert not [(kind, shape) for kind, shape in sent if of_activations & set(shape)]


def test_a_model_that_is_split_encodes_as_it_lies(tiny_minilm, monkeypatch):
    mesh = parallel.make_mesh(2, 2, devices=jax.devices()[:4])
    texts = [" ".join(["a", "text", "of", "words"][:n]) for n in (1, 2, 3, 4)] * 3
    expected = jaxemb.load(tiny_minilm).encode(texts)
    split = jaxemb.load(tiny_minilm, mesh=mesh)
    monkeypatch.setattr(parallel, "place", None)  # nobody copies it
    np.testing.assert_allclose(split.encode(texts, mesh=mesh), expected, atol=1e-6)
