"""From the tensors of a checkpoint to a `Transformer` and back, as a family's weight table says."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, Sharding

from jaxemb import parallel
from jaxemb.checkpoints.tensors import CheckpointError, TensorParts
from jaxemb.checks import checked, described, instance, is_finite, one_of
from jaxemb.encoders.encoder import Encoder
from jaxemb.encoders.families import Family, Weight, modern
from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.nn import Quantized, dense_kernels, quantize_base, quantized
from jaxemb.nn.kernels import is_kernel
from jaxemb.parallel.mesh import ENCODER_RULES, Rules
from jaxemb.trees import PyTree, by_path

PARAM_DTYPES = ("float32", "bfloat16", *quantized.DTYPES)
_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))
_ROWS = 128
_SHOWN = 50  # problems that an error lists
_DEPTHS = ("num_hidden_layers", "n_layers", "n_layer")  # what families call the number of layers
_STATED_DTYPES = ("dtype", "torch_dtype")  # how a `config.json` calls the type of the tensors
_OF_LAYER = re.compile(r"\blayers?\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of the checkpoint that the model holds: its full name, its row of the weight table, layer and dtype."""

    name: str
    weight: Weight
    layer: int | None
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class CheckpointFormat:
    """What must be known of a checkpoint, beside the model, to write it back as it was.

    Attributes:
      config: its `config.json`.
      stored: the tensors that the model holds.
      unused: the tensors that the model does not use (pooler, heads, buffers), by name, as they were.
      shapes: the shapes of the model's leaves, by dotted path.
    """

    config: Mapping[str, Any]
    stored: tuple[StoredTensor, ...]
    unused: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the weights that are read go.

    Attributes:
      mesh: the devices that share them; None for the default device alone.
      rules: path rules, of paths in the whole model, such as "encoder.layers.mlp.up.kernel".
      param_dtype: of the weights at rest, "float32", "bfloat16", "int8" or "nf4": the last two of the kernels of layers
        (see `nn.quantize_base`), beside which all is bfloat16.

    Raises:
      ValueError: for another dtype.
      TypeError: for a mesh or rules that are none.
    """

    mesh: Mesh | None = None
    rules: Rules = ENCODER_RULES
    param_dtype: str = "float32"

    def __post_init__(self):
        one_of("param_dtype", self.param_dtype, PARAM_DTYPES)
        instance("mesh", self.mesh, Mesh | None)
        for rule in instance("rules", self.rules, Sequence):
            if not isinstance(rule, tuple) or len(rule) != 2 or not isinstance(rule[0], str):
                raise TypeError(f"rules must be pairs of a pattern of paths and a PartitionSpec; got {described(rule)}")

    @property
    def dtype(self) -> np.dtype:
        """That of the weights at rest that are not quantised."""
        return jnp.dtype("bfloat16" if self.param_dtype in quantized.DTYPES else self.param_dtype)

    def quantized(self, encoder: Encoder) -> Encoder:
        """The encoder with quantised kernels, if `param_dtype` says so."""
        return quantize_base(encoder, self.param_dtype) if self.param_dtype in quantized.DTYPES else encoder

    def shardings(self, part: str, tree: PyTree) -> dict[str, Sharding | None]:
        """Those of the leaves of `tree`, the model's attribute `part`, by path in `tree`."""
        if self.mesh is None:
            return dict.fromkeys(by_path(tree))
        return by_path(parallel.shardings({part: tree}, self.mesh, self.rules)[part])

    def put(self, part: str, tree: PyTree) -> PyTree:
        """`tree`, the model's attribute `part`, of arrays of the host, put where it belongs."""
        where = self.shardings(part, tree).values()
        leaves, structure = jax.tree.flatten(tree)
        cast = [np.asarray(leaf, self.dtype) for leaf in leaves]
        return jax.tree.unflatten(structure, map(parallel.put, cast, where))


ONE_DEVICE = Placement()
"""Everything on the default device, in f32."""


@checked()
def load_weights(
    config: TransformerConfig,
    tensors: Mapping[str, np.ndarray],
    family: Family,
    hf_config: Mapping[str, Any],
    placement: Placement = ONE_DEVICE,
) -> tuple[Transformer, CheckpointFormat]:
    """The `Transformer` of `config` with the weights `tensors`, and the format to save it in again.

    Of `read_tensors` each process reads what its own devices hold, one shard of one leaf at a time, which is all of
    them that the host ever holds (beside tensors that the model does not use).

    Raises:
      CheckpointError: naming every tensor that is missing, left over, mis-shaped or not f32, f16 or bf16, or one with
        values that are not finite.
      ValueError: naming the leaf that `placement` cannot split.
    """
    like = jax.eval_shape(lambda key: family.init(key, config), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in by_path(like).items()}
    names, table = _match(tensors, family)
    rows = _rows(table, shapes, config.layers)
    left = {short: name for short, name in names.items() if short not in rows}
    unused = {s: name for s, name in left.items() if family.leaves_unused(s)}
    problems = [f"missing: {short}" for short in rows if short not in names]
    problems += [f"not part of the model: {name}" for short, name in left.items() if short not in unused]

    sources: dict[str, dict[int | None, _Source]] = {path: {} for path in shapes}
    stored = []
    for short, (weight, layer) in rows.items():
        if short not in names:
            continue
        tensor = getattr(tensors, "parts", tensors.__getitem__)(names[short])  # of a file, only what is indexed is read
        targets = [shapes[leaf] if layer is None else shapes[leaf][1:] for leaf in weight.leaves]
        if problem := _misfit(targets, tensor, weight.transpose):
            problems.append(f"{problem}: {names[short]}")
        starts = np.cumsum([0, *(shape[-1] for shape in targets)])
        for leaf, start in zip(weight.leaves, starts, strict=False):
            sources[leaf][layer] = _Source(names[short], tensor, int(start), weight.transpose)
        stored.append(StoredTensor(names[short], weight, layer, tensor.dtype))
    if problems:
        raise CheckpointError(
            f"the tensors do not fit config.json (model_type {hf_config.get('model_type')!r}):\n  "
            + "\n  ".join([*problems[:_SHOWN], *([f"and {more} more"] if (more := len(problems) - _SHOWN) > 0 else [])])
        )
    model = _placed(like, sources, placement)
    format = CheckpointFormat(dict(hf_config), tuple(stored), {name: tensors[name] for name in unused.values()}, shapes)
    return model, format


def new_format(config: TransformerConfig, family: Family, hf_config: Mapping[str, Any]) -> CheckpointFormat:
    """The format to save a new encoder in: all tensors f32, under the names of the family's first table."""
    like = jax.eval_shape(lambda key: family.init(key, config), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in by_path(like).items()}
    rows = _rows(family.tables[0], shapes, config.layers)
    stored = (StoredTensor(name, weight, layer, np.dtype(np.float32)) for name, (weight, layer) in rows.items())
    return CheckpointFormat(dict(hf_config), tuple(stored), {}, shapes)


@checked()
def save_weights(model: Encoder, format: CheckpointFormat) -> dict[str, np.ndarray]:
    """The tensors of the checkpoint that `model` came from, with its present values; the inverse of `load_weights`.

    An untouched model gives the bytes that were read; quantised kernels come as floats, with the adapters beside them
    merged. A gradient, or any other tree of the model's structure, comes
    out under the checkpoint's names in the same way.

    Raises:
      ValueError: as `check_shapes`.
    """
    model = dense_kernels(model)
    check_shapes(model, format)
    leaves = {path: np.asarray(leaf) for path, leaf in by_path(model).items()}
    tensors = {}
    for tensor in format.stored:
        parts = [leaves[leaf] if tensor.layer is None else leaves[leaf][tensor.layer] for leaf in tensor.weight.leaves]
        whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
        tensors[tensor.name] = np.ascontiguousarray(whole.T if tensor.weight.transpose else whole, tensor.dtype)
    return tensors | dict(format.unused)


def lossless(model: Encoder, format: CheckpointFormat) -> CheckpointFormat:
    """The format, but float32 in place of narrower types if these would round what the model holds, as training does.

    All tensors then become float32, as does the type that `config.json` states: other software reads all in that type.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in by_path(model).items()}
    of_layer = lambda leaf, layer: leaf if layer is None else leaf[layer]
    parts = ((of_layer(leaves[path], t.layer), t.dtype) for t in format.stored for path in t.weight.leaves)
    if all(is_exact(*part) for part in parts):
        return format
    config = {**format.config, **{key: "float32" for key in _STATED_DTYPES if key in format.config}}
    stored = tuple(dataclasses.replace(tensor, dtype=np.dtype(np.float32)) for tensor in format.stored)
    return dataclasses.replace(format, config=config, stored=stored)


def is_exact(array: np.ndarray, dtype: np.dtype | str) -> bool:
    """Whether all values of a floating-point array, NaN or not, are in that type as they are."""
    with np.errstate(over="ignore"):
        return array.dtype == dtype or np.array_equal(array.astype(dtype).astype(array.dtype), array, equal_nan=True)


def check_shapes(model: PyTree, format: CheckpointFormat) -> None:
    """Raises a ValueError for a leaf that the checkpoint has no place for, or another shape (layers dropped)."""
    leaves = {path: np.shape(leaf) for path, leaf in by_path(model).items()}
    if unlike := sorted(leaves.keys() ^ format.shapes.keys()):
        raise ValueError(f"the model's arrays are not those of its checkpoint: {', '.join(unlike[:5])}")
    for path, shape in format.shapes.items():
        if leaves[path] != shape:
            raise ValueError(f"model.{path}: shape {list(leaves[path])}, but its checkpoint has {list(shape)}")


def truncate(format: CheckpointFormat, layers: int | None) -> CheckpointFormat:
    """The format of the checkpoint without the layers after the first `layers`; None keeps all."""
    if layers is None:
        return format
    config = dict(format.config)
    config |= {name: layers for name in _DEPTHS if name in config}
    if config.get("layer_types") is not None:
        config["layer_types"] = list(config["layer_types"])[:layers]
    return dataclasses.replace(
        format,
        config=config,
        stored=tuple(tensor for tensor in format.stored if tensor.layer is None or tensor.layer < layers),
        # What belongs to a layer (the frequencies of rotary positions) goes with the layer.
        unused={
            name: tensor
            for name, tensor in format.unused.items()
            if (of_layer := _OF_LAYER.search(name)) is None or int(of_layer[1]) < layers
        },
        shapes={
            path: (layers, *shape[1:]) if path.startswith("layers.") else shape for path, shape in format.shapes.items()
        },
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """The tensor that holds a leaf, or one layer of it: as its last dimension from `start` on."""

    name: str
    tensor: np.ndarray | TensorParts
    start: int
    is_transposed: bool

    def read(self, index: tuple[slice, ...], into: np.ndarray) -> None:
        """Raises CheckpointError for values that are not finite."""
        self._copy(index, into)
        if not is_finite(into):
            raise CheckpointError(f"{self.name}: has values that are not finite; fetch or write the checkpoint again")

    def _copy(self, index: tuple[slice, ...], into: np.ndarray) -> None:
        *lead, last = index
        index = (*lead, slice(last.start + self.start, last.stop + self.start))
        if not self.is_transposed:
            into[...] = self.tensor[index]
            return
        part = self.tensor[index[::-1]].T
        # A few rows of the file at a time stay in the processor's cache while they become columns: four times faster.
        for start in range(0, into.shape[-1], _ROWS):
            some = (..., slice(start, start + _ROWS))
            into[some] = part[some].astype(into.dtype)


_Read = Callable[[_Source, tuple[slice, ...], np.ndarray], None]


def _placed(like: PyTree, sources: Mapping[str, Mapping[int | None, _Source]], placement: Placement) -> PyTree:
    """The tree of `like` with what lies in `sources`, by path and layer, where it belongs."""
    as_placed = jax.eval_shape(placement.quantized, like)
    shardings = placement.shardings("encoder", as_placed)

    def leaf(path: str, like: Any) -> Any:
        if not isinstance(like, Quantized):
            return _leaf(like.shape, sources[path], placement.dtype, shardings[path])
        codes, scales = _quantized_reads(like)
        arrays = [("codes", like.codes, codes), ("scales", cast(jax.Array, like.scales), scales)]
        return Quantized(
            *(_leaf(a.shape, sources[path], a.dtype, shardings[f"{path}.{name}"], read) for name, a, read in arrays)
        )

    leaves = [leaf(path, node) for path, node in by_path(as_placed, is_kernel).items()]
    return jax.tree.unflatten(jax.tree.structure(as_placed, is_leaf=is_kernel), leaves)


def _quantized_reads(like: Quantized) -> tuple[_Read, _Read]:
    """How a part of the codes, and one of the scales, is made of floats: of one layer at a time, in whole blocks."""
    inputs, rows, blocks = like.shape[-2], like.codes.shape[-2], cast(jax.Array, like.scales).shape[-2]

    def read(source: _Source, index: tuple[slice, ...], into: np.ndarray, of: int) -> tuple[np.ndarray, slice]:
        """The whole blocks of floats that `index`, with `of` numbers for all inputs, is about, and which they are."""
        *lead, some, outputs = index
        whole = slice(some.start * blocks // of, -(-some.stop * blocks // of))
        per_block = inputs // blocks
        shape = (*into.shape[:-2], (whole.stop - whole.start) * per_block, into.shape[-1])
        floats = np.empty(shape, np.float32)
        source.read((*lead, slice(whole.start * per_block, whole.stop * per_block), outputs), floats)
        return floats, whole

    def scales(source: _Source, index: tuple[slice, ...], into: np.ndarray) -> None:
        floats, whole = read(source, index, into, blocks)
        into[...] = quantized.scales_of(floats, like.kind, whole.stop - whole.start, np)

    def codes(source: _Source, index: tuple[slice, ...], into: np.ndarray) -> None:
        floats, whole = read(source, index, into, rows)
        steps = quantized.scales_of(floats, like.kind, whole.stop - whole.start, np)
        before = index[-2].start - whole.start * rows // blocks
        made = quantized.codes_of(floats, steps, like.kind, np)
        into[...] = made[..., before : before + into.shape[-2], :]

    return codes, scales


def _leaf(
    shape: tuple[int, ...],
    sources: Mapping[int | None, _Source],
    dtype: np.dtype,
    sharding: Sharding | None,
    read: _Read = _Source.read,
) -> jax.Array:
    """The leaf that `read` makes of `sources`, by layer (None: it has none); it is 1 in layers that have no tensor."""

    def part(index: tuple[slice, ...]) -> np.ndarray:
        block = np.empty([s.stop - s.start for s in index], dtype)
        if None in sources:
            read(sources[None], index, block)
            return block
        for row, layer in zip(block, range(index[0].start, index[0].stop), strict=True):
            if layer in sources:
                read(sources[layer], index[1:], row)
            else:
                row[...] = 1
        return block

    return parallel.from_parts(shape, dtype, sharding, part)


def _misfit(targets: Sequence[tuple[int, ...]], tensor: np.ndarray | TensorParts, is_transposed: bool) -> str | None:
    """Why `tensor` is not what leaves of the shapes `targets` are along the last axis, if it is not."""
    shape = (*targets[0][:-1], sum(target[-1] for target in targets))
    expected = shape[::-1] if is_transposed else shape
    if tensor.shape != expected:
        return f"shape {list(tensor.shape)}, expected {list(expected)}"
    if tensor.dtype not in _DTYPES:
        return f"dtype {tensor.dtype}, expected float32, float16 or bfloat16"
    return None


def _match(tensors: Mapping[str, np.ndarray], family: Family) -> tuple[dict[str, str], tuple[Weight, ...]]:
    """The checkpoint's names by short form (no prefix, no legacy suffix), and the table that knows most of them."""

    def known(candidate) -> int:
        names, table = candidate
        patterns = {weight.name for weight in table}
        return sum(re.sub(r"(?<=\.)\d+(?=\.)", "{}", name) in patterns for name in names)

    readings = [{modern(name.removeprefix(prefix)): name for name in tensors} for prefix in ("", *family.prefixes)]
    readings = [names for names in readings if len(names) == len(tensors)]  # else two names became one
    return max(((names, table) for names in readings for table in family.tables), key=known)


def names_of_tensors(family: Family, format: CheckpointFormat) -> dict[str, tuple[Weight, int | None]]:
    """The tensors of an encoder under any of the family's names, short: the row that each stands in, and its layer."""
    layers = next((shape[0] for path, shape in format.shapes.items() if path.startswith("layers.")), 0)
    return {name: row for table in family.tables[::-1] for name, row in _rows(table, format.shapes, layers).items()}


def _rows(
    table: Sequence[Weight], shapes: Mapping[str, tuple[int, ...]], layers: int
) -> dict[str, tuple[Weight, int | None]]:
    """The tensors of a checkpoint by short name: the row that each stands in, and its layer."""
    if missing := shapes.keys() - {leaf for weight in table for leaf in weight.leaves}:
        raise ValueError(f"the family's table has no row for {', '.join(sorted(missing))} of its model")
    return {
        short: (weight, layer)
        for weight in table
        if all(leaf in shapes for leaf in weight.leaves)
        for short, layer in _instances(weight, layers)
    }


def _instances(weight: Weight, layers: int) -> list[tuple[str, int | None]]:
    """The names that a row of the table stands for, with their layers."""
    if "{}" not in weight.name:
        return [(weight.name, None)]
    return [(weight.name.format(i), i) for i in range(layers) if i not in weight.absent_in_layers]
