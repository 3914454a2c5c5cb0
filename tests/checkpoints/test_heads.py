"""Heads that are added to a checkpoint."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.checkpoints.heads import add_head, read_head
from jaxemb.encoders.families import family_of
from jaxemb.sentence_embedder import load


@pytest.mark.parametrize(("change", "dtype"), [(0, "float16"), (1e-5, "float32")])
def test_a_head_is_of_the_encoders_type_unless_that_would_round_it(write_encoder, tensors, change, dtype):
    format = load(
        write_encoder({name: tensor.astype(np.float16) for name, tensor in tensors.items()}), pooling="mean"
    ).format.encoder
    leaves = {
        row.leaves[0]: jnp.full((2, 2) if row.transpose else 2, 0.5 + change)
        for row in family_of(format.config).heads["masked_language"].table
    }
    changed = add_head(format, "masked_language", leaves)
    assert {str(changed.unused[name].dtype) for name in changed.unused if name.startswith("cls.")} == {dtype}
    found = read_head(changed, "masked_language")
    assert found and all(np.array_equal(found[leaf], leaves[leaf]) for leaf in found)
