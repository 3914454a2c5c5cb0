import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxemb.checkpoints import CheckpointError, Parameters, read_tensors
from jaxemb.encoders import Mlp

MODEL = {"mlp": Mlp.init(jax.random.key(0), (3, 2, 1)), "step": np.int32(5), "half": np.ones(2, ml_dtypes.bfloat16)}


def test_what_is_saved_is_what_is_loaded(tmp_path):
    Parameters(MODEL).save(tmp_path / "runs" / "model")
    assert set(read_tensors(tmp_path / "runs" / "model")) > {"mlp.layers.0.kernel", "mlp.layers.1.bias", "step", "half"}
    empty = jax.tree.map(jnp.zeros_like, MODEL)
    again = Parameters(empty).load(tmp_path / "runs" / "model").model
    jax.tree.map(np.testing.assert_array_equal, again, MODEL)
    assert [leaf.dtype for leaf in jax.tree.leaves(again)] == [leaf.dtype for leaf in jax.tree.leaves(MODEL)]
    assert jax.tree.structure(again) == jax.tree.structure(MODEL)


@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_a_model_of_another_kind_is_not_made_half_of_this_one(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match=f"holds another kind of model \\({name}\\); give another path"):
        Parameters(MODEL).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_all_that_does_not_fit_is_named(tmp_path):
    Parameters(MODEL).save(tmp_path)
    other = {"mlp": MODEL["mlp"], "step": np.float32(5), "half": np.ones(3, ml_dtypes.bfloat16), "more": np.ones(1)}
    del other["mlp"]
    with pytest.raises(CheckpointError) as error:
        Parameters(other).load(tmp_path)
    for line in (
        "missing: more",
        "not part of the model: mlp.layers.0.bias",
        "int32[], expected float32[]: step",
        "bfloat16[2], expected bfloat16[3]: half",
    ):
        assert re.search(rf"^  {re.escape(line)}$", str(error.value), re.MULTILINE), line
