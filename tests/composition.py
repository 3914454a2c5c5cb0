"""What composes: every transform with every way of computing an objective, one task of two steps each.

python tests/composition.py > docs/composition.md
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tiny_run import in_batch_softmax, pair_batch, tiny_model

from jaxemb import Classifier, parallel, transforms
from jaxemb.embedder import Dense
from jaxemb.encoders import Mlp
from jaxemb.encoders.convolutional import ChannelNorm
from jaxemb.losses import info_nce, progressive_info_nce
from jaxemb.nn import Linear, Module
from jaxemb.objectives import classification, matryoshka_2d, on_columns
from jaxemb.pretraining import entry_cross_entropy
from jaxemb.train import begin_task, end_task, init_state, make_train_step, stack_batches
from jaxemb.transforms import Task, Transform

N, C, DIM, STEPS = 8, 4, 16, 2
QUICKLY: Any = {"xla_backend_optimization_level": 0}  # compiles in half of the time
SETTINGS = ("plain", "matryoshka_2d", "in chunks", "accumulated", "sharded")


@nnx.dataclass
class Normed(Module):
    """A layer with batch norm."""

    linear: Linear = nnx.data()
    norm: ChannelNorm = nnx.data()

    def __call__(self, x, *, key=None):
        return self.forward(x, key=key)[0]

    def forward(self, x, *, key=None):
        return self.norm(self.linear(x), key is not None)


@dataclasses.dataclass(frozen=True)
class Row:
    """A transform, and what it is tried with.

    Attributes:
      make: the transform, for an example of the batches.
      loss: of the embeddings of pairs of texts, and what else of the batch; None for `classification`.
      others: of the loss.
      batch_norm: whether the classifier has it.
    """

    make: Callable[[Mapping[str, Any]], Transform]
    loss: Callable[..., jax.Array] | None = in_batch_softmax
    others: tuple[str, ...] = ()
    batch_norm: bool = False


def entries_loss(query: jax.Array, document: jax.Array, label: jax.Array, entries: jax.Array) -> jax.Array:
    return entry_cross_entropy(query, label, entries)


def progressive_loss(query: jax.Array, document: jax.Array, alpha: jax.Array) -> jax.Array:
    return progressive_info_nce(query, document, alpha=alpha).losses


def shifted(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A synthetic augmentation: other scores; of inputs, other inputs."""
    name = "input" if "input" in batch else "score"
    return {**batch, name: batch[name] + jax.random.normal(key, batch[name].shape)}


PAIR_COLUMNS = ("query", "document", "id")
ROWS: Mapping[str, Row] = {
    "identity": Row(lambda batch: transforms.identity()),
    "frozen": Row(lambda batch: transforms.frozen(r"^encoder\.embeddings")),
    "lora": Row(lambda batch: transforms.lora(2)),
    "lora, DoRA": Row(lambda batch: transforms.lora(2, magnitudes=True, train=r"^heads")),
    "prompts": Row(lambda batch: transforms.prompts(2)),
    "ema": Row(lambda batch: transforms.ema()),
    "trained_temperature": Row(lambda batch: transforms.trained_temperature(), info_nce, ("temperature",)),
    "progressive_learning": Row(
        lambda batch: transforms.progressive_learning(optax.linear_schedule(-1.0, 1.0, STEPS)),
        progressive_loss,
        ("alpha",),
    ),
    "progressive_separate_training": Row(
        lambda batch: transforms.progressive_separate_training(lambda stage, model: np.eye(C, DIM), (C, DIM)),
        entries_loss,
        ("label", "entries"),
    ),
    "augmentation": Row(lambda batch: transforms.augmentation(shifted)),
    "cross_batch_memory": Row(lambda batch: transforms.cross_batch_memory(2 * N, DIM)),
    "merge_after_task": Row(lambda batch: transforms.merge_after_task(lambda models: models.current, first=True)),
    "l2": Row(lambda batch: transforms.l2(0.1)),
    "ewc": Row(lambda batch: transforms.ewc(0.1, where="^heads", independent=False)),
    "si": Row(lambda batch: transforms.si(0.1)),
    "mas": Row(lambda batch: transforms.mas(0.1, where="^heads", output="query", independent=False)),
    "lwf": Row(lambda batch: transforms.lwf(target="similarities", outputs=("query", "document"), temperature=0.1)),
    "prd": Row(lambda batch: transforms.prd(C, DIM, features="query")),
    "experience_replay": Row(lambda batch: transforms.experience_replay(2 * N, N, batch, columns=PAIR_COLUMNS)),
    "der": Row(lambda batch: transforms.der(2 * N, N, batch, DIM, output="query", columns=PAIR_COLUMNS)),
    "der_plus_plus": Row(
        lambda batch: transforms.der_plus_plus(2 * N, N, batch, DIM, output="query", columns=PAIR_COLUMNS)
    ),
    "agem": Row(lambda batch: transforms.agem(2 * N, N, batch, columns=PAIR_COLUMNS)),
    "gpm": Row(lambda batch: transforms.gpm()),
    "nmc": Row(lambda batch: transforms.nmc(C, DIM, output="query")),
    "nmc_head": Row(lambda batch: transforms.nmc_head(C, DIM, output="query", policy="drift")),
    "hypernetwork": Row(
        lambda batch: transforms.hypernetwork(
            transforms.HypernetworkConfig(tasks=2, hidden=(4,), embed_dim=3, where="^heads", residual=True)
        )
    ),
    "er_ace": Row(lambda batch: transforms.er_ace(2 * N, N, batch, C), None),
    "icarl": Row(lambda batch: transforms.icarl(2 * N, N, batch, C, DIM), None),
    "intercontinet": Row(
        lambda batch: transforms.intercontinet(transforms.InterContiNetConfig(contraction_steps=1)), None
    ),
    "hyper_interval": Row(
        lambda batch: transforms.hyper_interval(
            transforms.HyperIntervalConfig(tasks=2, hidden=(4,), embed_dim=3, where="^head")
        ),
        None,
    ),
    "running_statistics": Row(lambda batch: transforms.running_statistics(), None, batch_norm=True),
}


def batch_of(row: Row, step: int) -> dict[str, Any]:
    """The batch of a step: pairs of texts with labels, or inputs with labels."""
    ids = np.arange(N, dtype=np.int32) + N * step
    label = ids % C
    if row.loss is not None:
        return {**pair_batch(ids), "label": label}
    x = np.random.default_rng(step).normal(size=(N, 5)).astype(np.float32)
    return {"input": x, "label": label, "id": ids}


@functools.cache
def model_of(row: Row) -> Any:
    rng = np.random.default_rng(0)
    kernel = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32) / np.sqrt(shape[0]))
    linear = lambda *shape: Linear(kernel(*shape), jnp.zeros(shape[1]))
    if row.loss is not None:
        model = tiny_model(dropout=0.0, attention_dropout=0.0, position_table=24)
        return dataclasses.replace(model, heads=(Dense(linear=linear(DIM, DIM)),))
    if row.batch_norm:
        return Classifier(Normed(linear(5, DIM), ChannelNorm.init(DIM, "batch")), linear(DIM, C))
    return Classifier(Mlp((linear(5, DIM),)), linear(DIM, C))


def objective_of(row: Row, setting: str) -> Callable:
    chunk = N if setting == "in chunks" else None
    if row.loss is None:
        objective = classification(chunk=chunk)
    else:
        objective = on_columns(row.loss, "query", "document", others=row.others, chunk=chunk)
    targets = [name for name in row.others if name == "entries"]
    return matryoshka_2d(objective, (DIM // 2,), targets=targets) if setting == "matryoshka_2d" else objective


def losses(row: Row, setting: str) -> list[float]:
    """Those of the steps of a task.

    Raises:
      ValueError: where the transform and the setting do not compose, with the reason.
    """
    transform, optimizer = row.make(batch_of(row, 0)), optax.adam(1e-2)
    objective, data = objective_of(row, setting), [batch_of(row, step) for step in range(STEPS)]
    task = Task(0, lambda: iter(data), STEPS, np.ones(C, bool))
    mesh = parallel.make_mesh(2, 2, devices=jax.devices()[:4]) if setting == "sharded" else None
    accumulate = 2 if setting == "accumulated" else 1
    state = init_state(jax.random.key(0), model_of(row), optimizer, transform)
    state = begin_task(transform, objective, state, task)
    step = make_train_step(objective, optimizer, transform, accumulate=accumulate)
    step, found = jax.jit(step, compiler_options=QUICKLY), []
    if mesh is not None:
        state = parallel.place(state, mesh)
    for batch in data:
        if accumulate > 1:
            batch = stack_batches([batch] * accumulate)
        if mesh is not None:
            batch = parallel.shard_batch(batch, mesh)
        with parallel.in_force(mesh):
            state, metrics = step(state, batch)
        assert metrics["finite"]
        found.append(float(metrics["loss"]))
    end_task(transform, objective, state, task)
    return found


def reason(row: Row, setting: str) -> str | None:
    """Why they do not compose; None if they do."""
    try:
        losses(row, setting)
    except ValueError as error:
        return str(error)
    return None


def table(found: Mapping[tuple[str, str], str | None]) -> str:
    """`docs/composition.md`, of the `reason` of every row's name and setting."""
    notes = list(dict.fromkeys(why for why in found.values() if why is not None))
    cell = lambda why: "yes" if why is None else f"no ({notes.index(why) + 1})"
    lines = [f"| transform | {' | '.join(SETTINGS)} |", f"|---|{'---|' * len(SETTINGS)}"]
    for name in ROWS:
        lines.append(f"| `{name}` | {' | '.join(cell(found[name, setting]) for setting in SETTINGS)} |")
    numbered = [f"{number}. {why}" for number, why in enumerate(notes, 1)]
    return "\n".join([ABOUT, "", *lines, "", "What is refused, and with which words:", "", *numbered, ""])


ABOUT = """# Composition

You get which method goes with what: every transform of `jaxemb.transforms`, with the same transformer over pairs of
texts (from `er_ace` on: a classifier, as these are methods of classifiers), for a task of two steps: on its own, with
the objective of many sizes `matryoshka_2d`, with `chunk=` (cached gradients), with two micro-batches per step, and on
a mesh of 2 x 2 devices with sharded parameters. The table is made by `python tests/composition.py`, and a test
compares it."""


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    print(table({(name, setting): reason(ROWS[name], setting) for name in ROWS for setting in SETTINGS}), end="")
