"""Where arrays lie: rules, and arrays that are made where they belong. Eight virtual devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_run import CONFIG

from jaxemb import parallel
from jaxemb.encoders import Transformer
from jaxemb.trees import by_path


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    return parallel.make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def specs(tree, mesh: Mesh, rules=parallel.ENCODER_RULES) -> dict[str, PartitionSpec]:
    return {path: sharding.spec for path, sharding in by_path(parallel.shardings(tree, mesh, rules)).items()}


def init(key):
    return Transformer.init(key, CONFIG)


def test_the_encoder_s_rules_split_its_parameters_and_their_copies():
    model = jax.eval_shape(init, jax.random.key(0))
    state = jax.eval_shape(optax.adam(0.1).init, model)
    found = specs(state, mesh_of(fsdp=2, tensor=2))
    for moments in ("0.mu", "0.nu"):
        assert found[f"{moments}.layers.mlp.up.kernel"] == PartitionSpec(None, "fsdp", "tensor")
        assert found[f"{moments}.layers.mlp.down.kernel"] == PartitionSpec(None, "tensor", "fsdp")
        assert found[f"{moments}.layers.mlp.up.bias"] == PartitionSpec(None, "tensor")
        assert found[f"{moments}.layers.mlp.down.bias"] == PartitionSpec()
    assert found["0.count"] == PartitionSpec()


def test_the_means_that_adafactor_keeps_of_parameters_are_whole():
    model = jax.eval_shape(init, jax.random.key(0))
    found = specs(jax.eval_shape(optax.adafactor(0.1, min_dim_size_to_factor=16).init, model), mesh_of(fsdp=4))
    assert found["0.v_row.layers.mlp.up.kernel"] == PartitionSpec()
    assert found["0.v.layers.mlp.up.bias"] == PartitionSpec(None, "tensor")


def test_of_several_specs_the_first_that_divides_is_taken():
    tables = {"embeddings": {"tokens": shape(30_522, 384)}}
    assert specs(tables, mesh_of(fsdp=2, tensor=2)) == {"embeddings.tokens": PartitionSpec("tensor", "fsdp")}
    assert specs(tables, mesh_of(fsdp=2, tensor=4)) == {"embeddings.tokens": PartitionSpec(None, ("fsdp", "tensor"))}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (parallel.ENCODER_RULES, "mlp.up.kernel of shape [3, 6, 11] does not lie as the rule '(query|key|value|up|"),
        (parallel.ENCODER_RULES, "says: dimension 1, 6, does not divide by the 4 devices of fsdp. Change the mesh, or"),
        ([("up", PartitionSpec(("data", "fsdp")))], "dimension 2, 11, does not divide by the 8 devices of data x fsdp"),
        ([("up", PartitionSpec("rows"))], "the mesh has the axes ('data', 'fsdp', 'tensor'), not ['rows']"),
        ([("up", (PartitionSpec("data"), PartitionSpec("fsdp")))], "devices of data; dimension 2, 11, does not"),
        ([("down", PartitionSpec())], "no rule says where mlp.up.kernel of shape [3, 6, 11] lies"),
        ([("up", PartitionSpec(*"abcd"))], "no rule says where mlp.up.kernel"),  # none of a rule for more dimensions
    ],
)
def test_what_cannot_lie_as_its_rule_says_is_named(rules, message):
    mesh = mesh_of(data=2, fsdp=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        parallel.shardings({"mlp": {"up": {"kernel": shape(3, 6, 11)}}}, mesh, rules)


def test_what_is_made_on_a_mesh_is_what_is_made_on_one_device():
    mesh, key = mesh_of(fsdp=4, tensor=2), jax.random.key(0)
    model, whole = (parallel.sharded_init(init, key, mesh=m) for m in (mesh, None))
    jax.tree.map(np.testing.assert_array_equal, model, whole)
    kernel = model.layers.mlp.up.kernel
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 8}


def test_what_lies_where_it_belongs_is_not_moved():
    mesh = mesh_of(fsdp=2)
    tree = {"up.kernel": np.arange(8.0).reshape(2, 4), "key": jax.random.key(0)}
    placed = parallel.place(tree, mesh)
    again = parallel.place(placed, mesh)
    address = lambda tree: [shard.data.unsafe_buffer_pointer() for shard in tree["up.kernel"].addressable_shards]
    assert address(again) == address(placed)
    np.testing.assert_array_equal(placed["up.kernel"], tree["up.kernel"])


def test_a_part_that_several_devices_hold_is_asked_for_once():
    array = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    asked = []

    def part(index):
        asked.append(index)
        return array[index]

    sharding = NamedSharding(mesh_of(data=2, fsdp=2, tensor=2), PartitionSpec("tensor", "fsdp"))
    made = parallel.from_parts(array.shape, array.dtype, sharding, part)
    np.testing.assert_array_equal(made, array)
    assert made.sharding == sharding
    assert sorted((rows.start, columns.start) for rows, columns in asked) == [(0, 0), (0, 3), (2, 0), (2, 3)]


def test_nothing_is_read_where_only_shapes_are_asked_for():
    read = lambda: parallel.from_parts((4, 6), np.dtype("float32"), None, lambda index: 1 / 0)
    assert jax.eval_shape(read) == shape(4, 6)
