"""The same run on 1, 2 and 8 devices."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tiny_run import pair_batch, tiny_model, tiny_run, toy_objective, toy_run

from jaxemb import Classifier, parallel
from jaxemb.checkpoints import Parameters
from jaxemb.continual import accuracy, run_stream, split_by_class
from jaxemb.data.tokenizer import Encoded
from jaxemb.encode import encode
from jaxemb.encoders import Mlp
from jaxemb.losses import info_nce
from jaxemb.objectives import classification, on_columns
from jaxemb.parallel import ENCODER_RULES, REPLICATED, lies_on, make_mesh, mesh_in_force
from jaxemb.parallel.mesh import default_mesh
from jaxemb.train import fit, read_metrics, train
from jaxemb.transforms import chain, ewc, experience_replay
from jaxemb.trees import by_path


def losses(run, out):
    fit(run, out, progress=False)
    return [line["train/loss"] for line in read_metrics(out) if "train/loss" in line]


def mesh(data: int, fsdp: int = 1):
    return make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])


SETTINGS = {"steps": 4, "log_every": 1, "checkpoint_every": 4, "evaluators": {}}


def encoder_run(**changes):
    """Without dropout, which takes as long to compile as the rest; the toy runs below have noise of their own."""
    model = tiny_model(dropout=0.0, attention_dropout=0.0)
    return tiny_run(embedder=lambda: Parameters(model), **SETTINGS | changes)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return losses(encoder_run(mesh=mesh(1)), tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_data_parallel_training_gives_the_same_losses(tmp_path, one_device, devices):
    """In-batch negatives from all devices, clipping and AdamW included."""
    np.testing.assert_allclose(losses(encoder_run(mesh=mesh(devices)), tmp_path), one_device, atol=1e-5)


def test_a_run_without_a_mesh_is_shared_by_all_devices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "default_mesh", default_mesh)
    result = fit(toy_run(**SETTINGS), tmp_path / "run")
    assert capsys.readouterr().err.startswith("training on 8 devices, mesh data=8\n")
    assert len(result.state.model["w"].devices()) == 8
    with parallel.default_devices(jax.devices()[:1]):
        assert default_mesh() is None


class Numbers:
    """A tokenizer of texts that are numbers."""

    def encode(self, texts, max_length):
        return Encoded([np.arange(2, 3 + int(text), dtype=np.int32) for text in texts], 0)


def test_sharded_parameters_give_the_same_losses_and_stay_sharded(tmp_path, one_device):
    """An evaluator encodes on the mesh of the run, with the model spread as it is trained."""
    on_mesh, texts = mesh(2, 2), [str(n) for n in range(7)]
    embed = lambda embedder: encode(embedder.model, Numbers(), 8, texts, batch_tokens=16)

    def evaluator(embedder):
        assert mesh_in_force() == on_mesh and lies_on(embedder.model, on_mesh)
        kernel = embedder.model.encoder.layers.mlp.up.kernel
        return {"share": kernel.addressable_shards[0].data.size / kernel.size, "first": embed(embedder)[0, 0]}

    evaluators = {"seen": evaluator}
    run = encoder_run(mesh=on_mesh, rules=ENCODER_RULES, evaluators=evaluators)
    result = fit(run, tmp_path, progress=False)
    found = [line["train/loss"] for line in read_metrics(tmp_path) if "train/loss" in line]
    np.testing.assert_allclose(found, one_device, atol=1e-5)
    kernel = result.state.model.encoder.layers.mlp.up.kernel
    assert kernel.addressable_shards[0].data.size * 2 == kernel.size
    assert result.metrics["seen/share"] == 0.5
    alone = Parameters(jax.device_put(jax.device_get(result.embedder.model), jax.devices()[0]))
    np.testing.assert_allclose(result.metrics["seen/first"], embed(alone)[0, 0], atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 2), *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(1, 1), (2, 1), (8, 1)])]
)
def test_tiles_and_chunks_give_the_same_losses(tmp_path, one_device, shape):
    """A tile of 2 rows and chunks of 8 on every mesh; the loss is that of `one_device`, written with tiles."""
    tiled = functools.partial(info_nce, temperature=0.1, tile=2)
    run = encoder_run(mesh=mesh(*shape), rules=ENCODER_RULES, objective=on_columns(tiled, "query", "document", chunk=8))
    np.testing.assert_allclose(losses(run, tmp_path), one_device, atol=1e-5)


def test_noise_and_micro_batches_are_split_over_the_devices(tmp_path):
    one, eight = (toy_run(**SETTINGS, accumulate=2, mesh=m) for m in (None, mesh(8)))
    np.testing.assert_allclose(losses(eight, tmp_path / "eight"), losses(one, tmp_path / "one"), rtol=1e-6)


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    whole = fit(toy_run(mesh=mesh(2)), tmp_path / "whole", progress=False)
    fit(toy_run(mesh=mesh(2)), tmp_path / "moved", progress=False)
    for newest in (tmp_path / "moved" / "checkpoints").glob("step_00000012"):
        (newest / "manifest.json").unlink()
    moved = fit(toy_run(mesh=mesh(8)), tmp_path / "moved", progress=False)
    np.testing.assert_allclose(moved.state.model["w"], whole.state.model["w"], rtol=1e-6)
    assert len(moved.state.model["w"].devices()) == 8


def test_refuses_a_batch_that_does_not_divide(tmp_path):
    with pytest.raises(ValueError, match=r"of shape \(8,.* does not split over 3 local shards; let batch_size"):
        fit(toy_run(mesh=mesh(3)), tmp_path, progress=False)


def blobs(seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 8).astype(np.int32)
    return {"input": (labels[:, None] + rng.normal(size=(32, 4))).astype(np.float32), "label": labels}


SPLIT = ((r"encoder.*kernel", PartitionSpec(None, "fsdp")), (r".*", PartitionSpec()))


@pytest.mark.parametrize("rules", [SPLIT, pytest.param(REPLICATED, marks=pytest.mark.slow)])
def test_a_stream_gives_the_same_on_a_mesh(rules):
    """With replay and hooks at the ends of tasks, and evaluators that see the state as it lies."""
    stream = split_by_class(blobs(0), blobs(1), 2)
    model = Classifier.init(jax.random.key(0), Mlp.init(jax.random.key(1), (4, 8)), 8, 4)
    method = chain(experience_replay(8, 4, blobs(0)), ewc(1.0))
    learn = functools.partial(
        run_stream,
        *(stream, model, classification(), optax.sgd(0.1, momentum=0.9), method),
        epochs=2,
        batch_size=4,
        evaluate={"acc": accuracy(scenario="task", transform=method)},
        reset_optimizer=True,
    )
    alone, shared = learn(), learn(mesh=mesh(2, 2), rules=rules)
    np.testing.assert_array_equal(shared.R["acc"], alone.R["acc"])
    np.testing.assert_allclose(np.concatenate(shared.losses), np.concatenate(alone.losses), rtol=1e-5)
    kernels = [leaf for name, leaf in by_path(shared.state.model).items() if "encoder" in name and "kernel" in name]
    assert kernels and all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(shared.state.model))
    assert all(kernel.is_fully_replicated == (rules is REPLICATED) for kernel in kernels)
    with pytest.raises(ValueError, match="batch_size must divide by the 4 shards of the mesh; got 6"):
        learn(mesh=mesh(2, 2), batch_size=6)


def test_a_task_in_memory_gives_the_same_on_a_mesh():
    data = [pair_batch(range(n, n + 8)) for n in (0, 8, 16)]
    model = {"w": np.full(5, 0.5, np.float32)}
    learn = functools.partial(train, model, toy_objective, optax.adam(0.1), data)
    np.testing.assert_allclose(learn(mesh=mesh(4)).model["w"], learn().model["w"], rtol=1e-5)
