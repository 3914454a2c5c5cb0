import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxemb
from jaxemb.encoders import Mlp
from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.merging import apply_task_vectors, layer_groups, models_of, stacked_layers, task_vector, tensor_groups

RNG = np.random.default_rng(0)


def tree(*seeds):
    return [
        {"a": np.random.default_rng(s).normal(size=(2, 3)).astype(np.float32), "b": np.full(2, s, np.float32)}
        for s in seeds
    ]


def test_a_model_is_its_base_and_its_vector():
    base, one, two = tree(0, 1, 2)
    vectors = [task_vector(one, base), task_vector(two, base)]
    back = apply_task_vectors(base, vectors, [0.0, 1.0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), back, two)
    mixed = apply_task_vectors(base, vectors, [0.3, -0.5], 2.0)
    expected = base["a"] + 2 * (0.3 * (one["a"] - base["a"]) - 0.5 * (two["a"] - base["a"]))
    np.testing.assert_allclose(mixed["a"], expected, atol=1e-6)


def test_sums_are_not_rounded_to_a_narrow_dtype_on_the_way():
    base = {"a": jnp.full(4, 256, jnp.bfloat16)}  # whose neighbours are 2 away
    vector = task_vector({"a": jnp.full(4, 258, jnp.bfloat16)}, base)
    assert vector["a"].dtype == jnp.float32
    merged = apply_task_vectors(base, [vector] * 4, [0.25] * 4)["a"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged.astype(jnp.float32), 258)


def test_tensors_that_are_not_included_are_those_of_the_base():
    base, one = tree(0, 1)
    base["n"], one["n"] = np.arange(3), np.arange(3) + 7
    vector = task_vector(one, base, include="a")
    assert vector["b"] is None and vector["n"] is None
    merged = apply_task_vectors(base, [vector], [1.0])
    np.testing.assert_allclose(merged["a"], one["a"], atol=1e-6)
    np.testing.assert_array_equal(merged["b"], base["b"])
    np.testing.assert_array_equal(merged["n"], base["n"])


def test_stacked_layers_are_told_by_their_paths():
    assert stacked_layers("layers.mlp.up.kernel") and stacked_layers("encoder.layers.mlp.up.kernel")
    assert not stacked_layers("network.layers.0.kernel") and not stacked_layers("sublayers.kernel")


def test_groups_have_coefficients_of_their_own():
    config = TransformerConfig(vocab_size=5, dim=4, layers=2, heads=2, mlp_dim=8)
    shapes = jax.eval_shape(lambda key: Transformer.init(key, config), jax.random.key(0))
    base, model = (jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), shapes) for _ in range(2))
    vector = jax.jit(task_vector)(model, base)
    merge = jax.jit(lambda base, vector, w: apply_task_vectors(base, [vector], w, groups=layer_groups(base)))
    merged = merge(base, vector, jnp.array([[0.0], [1.0], [0.5]]))
    up, first, second = (m.layers.mlp.up.kernel for m in (merged, base, model))
    np.testing.assert_array_equal(up[0], first[0])
    np.testing.assert_allclose(up[1], second[1], atol=1e-6)
    half = (base.embeddings.tokens + model.embeddings.tokens) / 2
    np.testing.assert_allclose(merged.embeddings.tokens, half, atol=1e-6)

    base, model = tree(0, 1)
    merged = apply_task_vectors(base, [task_vector(model, base)], [[1.0], [0.0]], groups=tensor_groups(base))
    np.testing.assert_allclose(merged["a"], model["a"], atol=1e-6)
    np.testing.assert_array_equal(merged["b"], base["b"])


def test_shardings_are_preserved():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    base = {"a": jax.device_put(jnp.zeros((16, 3)), NamedSharding(mesh, PartitionSpec("fsdp")))}
    vector = task_vector({"a": base["a"] + 1}, base)
    merged = jax.jit(apply_task_vectors)(base, [vector, vector], jnp.ones(2))["a"]
    assert merged.sharding.is_equivalent_to(base["a"].sharding, 2)
    np.testing.assert_array_equal(merged, 2)


def _bad_trees():
    base, one = tree(0, 1)
    mlp = Mlp.init(jax.random.key(0), [2, 2])
    return {
        "structure": (base, {"a": one["a"]}, "params must have the structure of base; only one of them has 'b'"),
        "static": (mlp, dataclasses.replace(mlp, final_activation=False), "their static configurations differ"),
        "shape": (base, one | {"a": np.zeros((5, 3))}, r"a must have shape \(2, 3\), as base; got \(5, 3\)"),
        "integer": ({"n": np.arange(2)}, {"n": np.arange(2)}, r"n is int.*leave it out with include"),
        "absent": ({"a": None, "b": one["b"]}, {"a": np.zeros(2), "b": one["b"]}, "must all have a tensor at"),
    }  # fmt: skip


@pytest.mark.parametrize("what", ["structure", "static", "shape", "integer", "absent"])
def test_trees_that_do_not_match(what):
    base, model, message = _bad_trees()[what]
    with pytest.raises(ValueError, match=message):
        task_vector(model, base)


def test_bad_coefficients_and_groups():
    base, one = tree(0, 1)
    vector = task_vector(one, base)
    with pytest.raises(ValueError, match="vectors must be at least one; got 0"):
        apply_task_vectors(base, [], [])
    with pytest.raises(ValueError, match=r"coefficients must have shape \(2,\); got \(3,\)"):
        apply_task_vectors(base, [vector, vector], [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match=r"coefficients must be numbers; got list \['one'\]"):
        apply_task_vectors(base, [vector], ["one"])
    with pytest.raises(ValueError, match="coefficients must be finite"):
        apply_task_vectors(base, [vector], [np.nan])
    with pytest.raises(ValueError, match=r"must have shape \(2, 1\); got \(1, 1\)"):
        apply_task_vectors(base, [vector], [[1.0]], groups=tensor_groups(base))
    with pytest.raises(ValueError, match="groups must have the structure of the base"):
        apply_task_vectors(base, [vector], [[1.0]], groups={"a": 0})
    with pytest.raises(ValueError, match=r"groups of a must be of the first axes of \(2, 3\); got shape \(3,\)"):
        apply_task_vectors(base, [vector], [[1.0]], groups={"a": np.zeros(3, int), "b": 0})
    with pytest.raises(ValueError, match="one number of layers; got \\[\\]"):
        layer_groups(base)
    other = task_vector(one, base, include="a")
    with pytest.raises(ValueError, match=r"vectors\[1\] must have the tensors of vectors\[0\]; differs at b"):
        apply_task_vectors(base, [vector, other], [1.0, 1.0])


def test_embedders_must_have_one_tokenizer(tiny_minilm):
    embedder = jaxemb.load(str(tiny_minilm))
    assert models_of([embedder, embedder]) == [embedder.model] * 2
    import tokenizers

    lower = tokenizers.Tokenizer.from_str(embedder.tokenizer.backend.to_str())
    lower.add_tokens(["aword"])
    other = embedder.replace(tokenizer=dataclasses.replace(embedder.tokenizer, backend=lower))
    with pytest.raises(
        ValueError, match=r"number 1 differs from number 0's \(vocabularies of 30523 and 30522 tokens\)"
    ):
        models_of([embedder, other])
    with pytest.raises(ValueError, match="embedders must be at least one"):
        models_of([])
