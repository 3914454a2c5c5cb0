"""Derivatives beyond gradients, through a whole model and a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxemb
from jaxemb.data import pad
from jaxemb.losses import info_nce

QUERIES = ["who wrote the tempest", "what is a kernel of an operating system", "how tall is mount everest", "tsunami"]
DOCUMENTS = [
    "The Tempest is a play by William Shakespeare, probably written in 1610 and 1611.",
    "The kernel is the part of an operating system that always has control over everything in it.",
    "Everest's height was last measured in 2020 and is 8,849 metres.",
    "A series of waves that the displacement of a large volume of water causes.",
]


@pytest.mark.slow
def test_hessian_vector_products_through_minilm_and_info_nce(minilm):
    """Against the difference of gradients at two models, along the gradient."""
    embedder = jaxemb.load(minilm)
    texts = [pad(embedder.tokenizer(texts, 24), length=24) for texts in (QUERIES, DOCUMENTS)]
    loss = lambda model: info_nce(*(model(tokens) for tokens in texts), temperature=0.1).mean()
    gradient = jax.grad(loss)

    @jax.jit
    def products(model):
        length = optax.tree.norm(slopes := gradient(model))
        direction = jax.tree.map(lambda d: d / length, slopes)
        changes = jax.jvp(lambda m: (loss(m), gradient(m)), (model,), (direction,))[1]
        return direction, length, *changes

    direction, length, slope, curvature = products(embedder.model)
    np.testing.assert_allclose(slope, length, rtol=1e-4)

    at = jax.jit(lambda model, step: gradient(jax.tree.map(lambda w, d: w + step * d, model, direction)))
    step = 1e-3
    ends = at(embedder.model, step), at(embedder.model, -step)
    difference = jax.tree.map(lambda a, b: (a - b) / (2 * step), *ends)
    error = optax.tree.norm(jax.tree.map(jnp.subtract, curvature, difference))
    assert error < 2e-3 * optax.tree.norm(difference)
