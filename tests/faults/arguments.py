"""Every argument of every public function: a good call of each, and what can be wrong with each of its arguments."""

import collections.abc
import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import re
import tempfile
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import places
from mutations import WRONG
from outcomes import Case
from tiny_run import PAIRWISE, in_batch_softmax, pair_batch, tiny_model, toy_objective, toy_run

import jaxemb
from jaxemb import data, encoders, evaluate, nn, objectives, retrieval, train, transforms
from jaxemb.checkpoints import Placement
from jaxemb.data import Tokenizer
from jaxemb.encoders import TransformerConfig
from jaxemb.nn import StackConfig
from jaxemb.prompting import PROMPT_EOL
from jaxemb.types import Tokens

PACKAGES = (
    *("checkpoints", "classifiers", "continual", "data", "encoders", "evaluate", "interval", "isotropy", "losses"),
    *("merging", "nn", "objectives", "parallel", "pooling", "pretraining", "prompting", "retrieval"),
    *("train", "transforms"),
)
_RNG = np.random.default_rng(0)
_N, _D, _K, _T = 4, 8, 2, 3


def _drawn(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape).astype(np.float32)


_VECTORS, _OTHERS, _LISTS, _WORDS = _drawn(_N, _D), _drawn(_N, _D), _drawn(_N, _K, _D), _drawn(_N, _T, _D)
_LABELS = np.array([0, 1, 0, 1])
_SQUARE = np.abs(_drawn(_N, _N))
_BATCH = pair_batch(range(4))
_MODEL = {"w": jnp.full(5, 0.5)}
_CLASSES = {"input": _drawn(12, 4), "label": np.arange(12) % 4}
_CLASSES_BY_ID = _CLASSES | {"id": np.arange(12, dtype=np.int32)}
_IMAGES = {"input": _drawn(12, 4, 4), "label": np.arange(12) % 4}
_RECORDS = [
    {"query": "1 2", "positive": "3", "text": "4 5", "score": 1.0},
    {"query": "6", "positive": "7 8", "text": "9", "score": 0.5},
]


@functools.cache
def _folder() -> Path:
    """A place for what the functions read and write."""
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    for name, kind in {"model": "model", "index": "index", "pairs.csv": "csv", "beir": "retrieval data"}.items():
        places.PLACES[kind][0].make(root / name)
    places.PLACES["jsonl"][0].make(root / "words.jsonl")
    (root / "synsets.jsonl").write_text('{"words": ["a"], "definitions": ["b c"]}\n')
    (root / "run").mkdir()
    (root / "run" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n')
    (root / "config.py").write_text(
        "from tiny_run import toy_run\n\ndef run(steps=2):\n    return toy_run(steps=steps)\n"
    )
    return root


def _fresh(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix="faults-")) / name


@functools.cache
def _state() -> train.TrainState:
    return train.init_state(jax.random.key(0), _MODEL, optax.sgd(0.1), transforms.identity())


@functools.cache
def _tokens() -> Tokens:
    return Tokens.from_mask(np.array([[2, 5, 3], [2, 6, 3]], np.int32), np.ones((2, 3)))


_BOXES = transforms.HyperIntervalConfig(tasks=2, embed_dim=4, hidden=(4,), gamma=0.5, normalisation="once", records=12)


@functools.cache
def _with_boxes() -> tuple[transforms.Transform, train.TrainState]:
    """HyperInterval, and a state that has learnt a task."""
    key, transform, objective = jax.random.key(0), transforms.hyper_interval(_BOXES), objectives.classification()
    model = jaxemb.Classifier.init(key, encoders.Mlp.init(key, (4, 3)), 3, 4)
    state = train.init_state(key, model, optax.sgd(0.1), transform)
    task = transforms.Task(0, batches=lambda: [_CLASSES_BY_ID], steps=1)
    state = train.begin_task(transform, objective, state, task)
    return transform, train.end_task(transform, objective, state, task)


def _chatting() -> Tokenizer:
    return dataclasses.replace(
        places.tokenizer(), files={"chat_template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}"}
    )


class Made:
    """A good argument that is made when it is used, and for every call anew if it is consumed."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make


def _good(value: Any) -> Any:
    return value.make() if isinstance(value, Made) else value


_EMBEDDER = Made(lambda: places.embedder())
_TOKENIZER = Made(places.tokenizer)

#: Good arguments by their names.
COMMON: dict[str, Any] = {
    **dict.fromkeys(
        ("queries", "first", "anchors", "a", "q2", "student", "locked", "embeddings", "guide_queries"), _VECTORS
    ),
    **dict.fromkeys(
        ("documents", "second", "positives", "b", "learned", "guide_documents", "reconstructions"), _OTHERS
    ),
    **dict.fromkeys(("teacher", "targets", "features", "teacher_queries", "x", "latents", "activations"), _VECTORS + 1),
    **dict.fromkeys(("teacher_documents", "old_features", "from_k", "from_4k", "states_of_texts"), _OTHERS + 1),
    **dict.fromkeys(("negatives", "guide_negatives"), _LISTS),
    **dict.fromkeys(("labels", "ids", "query_ids"), _LABELS),
    **dict.fromkeys(("document_ids", "memory_ids"), np.arange(_N)),
    "scores": np.array([0.1, 0.9, 0.4, 0.6], np.float32),
    "similarities": np.array([0.1, 0.9, 0.4, 0.6], np.float32),
    "temperature": 0.5,
    "teacher_temperature": 0.5,
    "memory": _OTHERS,
    "prototypes": _drawn(2, _D),
    "old_prototypes": _drawn(2, _D),
    "groups": np.array([0, 1]),
    "alpha": 0.5,
    "key": Made(lambda: jax.random.key(0)),
    "path": Made(lambda: _folder() / "pairs.csv"),
    "paths": Made(lambda: _folder() / "pairs.csv"),
    "directory": Made(lambda: _folder() / "model"),
    "root": Made(lambda: _folder() / "model"),
    "path_or_id": Made(lambda: _folder() / "model"),
    "out": Made(lambda: _folder() / "run"),
    "embedder": _EMBEDDER,
    "contents": _EMBEDDER,
    "tokenizer": _TOKENIZER,
    "model": _MODEL,
    "params": _MODEL,
    "base": _MODEL,
    "tree": _MODEL,
    "transform": Made(transforms.identity),
    "optimizer": optax.sgd(0.1),
    "objective": toy_objective,
    "batches": Made(lambda: [pair_batch(range(4))] * 2),
    "state": Made(_state),
    "config": Made(lambda: places.CONFIGS["bert"]),
    "family": "bert",
    "task": transforms.Task(0),
    "classes": 4,
    "dim": 4,
    "capacity": 8,
    "minibatch": 2,
    "example": {"input": np.zeros(4, np.float32), "label": np.int32(0)},
    "weight": 1.0,
    "where": "w",
    "train": _CLASSES,
    "test": _CLASSES,
    "tasks": 2,
    "overlap": 0.5,
    "records": _RECORDS,
    "sources": Made(lambda: [data.from_list(_RECORDS), data.from_list(_RECORDS)]),
    "source": Made(lambda: data.from_list(_RECORDS)),
    "sequences": [np.array([2, 5, 3], np.int32), np.array([2, 6, 7, 3], np.int32)],
    "tokens": Made(_tokens),
    "pieces": np.arange(15) > 4,
    "mask_id": 4,
    "column": "input",
    "vectors": [_MODEL, {"w": jnp.arange(5.0)}],
    "models": [_MODEL, {"w": jnp.arange(5.0)}],
    "corpus": {"a": "1 2", "b": "3"},
    "qrels": {"q": {"a": 1}},
    "k": 2,
    "metric": "cosine",
    "layers": [1],
    "dims": [4, 8],
    "texts": ["1 2", "3"],
    "size": 8,
    "length": 2,
    "rank": 2,
    "n": 5,
    "R": np.array([[0.9, 0.0], [0.7, 0.8]]),
    "P": np.array([[0.9, 0.0], [0.7, 0.8]]),
    "values": [0.1, 0.4, 0.5],
    "gains": np.array([[1.0, 0.0, 1.0]]),
    "judged": np.array([[1.0, 1.0]]),
    "mesh": Made(lambda: jaxemb.parallel.make_mesh(data=8)),
    "mask": None,
    "step": 1,
}
_PAIRWISE = Made(lambda: PAIRWISE)
_STREAM = Made(lambda: jaxemb.continual.split_by_class(_CLASSES, _CLASSES, 2))
_NMC = Made(lambda: jaxemb.classifiers.nmc_update(jaxemb.classifiers.nmc_init(2, _D), _VECTORS, _LABELS))
_HYPERNETWORK = transforms.hypernetwork(transforms.HypernetworkConfig(tasks=2))
_ENCODER = Made(lambda: places.embedder().model.encoder)
_FORMAT = Made(lambda: places.embedder().format.encoder)
_STATES = _drawn(2, 3, 8)
_OF_BOXES = {
    "config": _BOXES,
    "transform": Made(lambda: _with_boxes()[0]),
    "state": Made(lambda: _with_boxes()[1]),
    "records": _CLASSES_BY_ID,
    "inputs": [_CLASSES["input"]],
    "samples": 2,
}
_RANKED = {
    "scores": _SQUARE,
    "labels": np.round(_SQUARE),
    "gains": _SQUARE,
    "discounts": np.arange(1, 5, dtype=np.float32),
}
_MULTI = {
    **dict.fromkeys(("queries", "documents"), _WORDS),
    **dict.fromkeys(("query_mask", "document_mask"), np.ones((_N, _T), bool)),
    "candidates": _drawn(_N, _K, _T, _D),
    "candidate_mask": np.ones((_N, _K, _T), bool),
    "negatives": None,
}

#: Good arguments of single functions, or of all of a module: what `COMMON` does not have, or has otherwise.
OWN: dict[str, dict[str, Any]] = {
    "new": {"config": places.CONFIGS["bert"]},
    "checkpoints.load_encoder": {"path": COMMON["directory"]},
    "checkpoints.load_weights": {
        "config": Made(lambda: places.embedder().model.encoder.config),
        "tensors": Made(lambda: jaxemb.checkpoints.read_tensors(_folder() / "model")),
        "family": Made(lambda: encoders.families.FAMILIES["bert"]),
        "hf_config": Made(lambda: places.embedder().format.encoder.config),
    },
    "checkpoints.read_head": {"format": _FORMAT, "kind": "pooler"},
    "checkpoints.write_head": {"format": _FORMAT, "kind": "pooler", "leaves": {}},
    "checkpoints.save_weights": {"model": _ENCODER, "format": _FORMAT},
    "checkpoints.write_directory": {"path": Made(lambda: _fresh("model"))},
    "checkpoints.write_tensors": {"directory": Made(lambda: _fresh("").parent), "tensors": {"a": _VECTORS}},
    "classifiers": {"state": _NMC, "a": _NMC, "b": _NMC, "metric": "cosine", "classes": 2, "dim": _D},
    "classifiers.nmc_prequential": {"features": _VECTORS[:, None], "labels": _LABELS[:, None]},
    "classifiers.slda": {
        "state": Made(lambda: jaxemb.classifiers.slda_update(jaxemb.classifiers.slda_init(2, _D), _VECTORS, _LABELS))
    },
    "continual": {"stream": _STREAM, "domains": {"one": (_CLASSES, _CLASSES), "two": (_CLASSES, _CLASSES)}},
    "continual.accuracy": {"transform": None},
    "continual.embedding_score": {"embed": lambda state: None},
    "continual.index_compatibility": {"embed": lambda state: None, "metric": "ndcg@10", "directory": None},
    "continual.embedding_stream": {
        "domains": dict.fromkeys(("one", "two"), (_CLASSES, evaluate.StsSet(["1"], ["2"], np.ones(1))))
    },
    "continual.mean_over": {"score": lambda state, experience, number, seen: 1.0},
    "continual.probe": {"fit": jaxemb.classifiers.nearest_mean(), "transform": None, "features": None},
    "continual.rotated": {"train": _IMAGES, "test": _IMAGES},
    "continual.run_stream": {
        "evaluate": {},
        "experiences": _STREAM,
        "model": {"w": jnp.zeros((4, 4))},
        "objective": lambda model, batch, key: (jnp.sum(batch["input"] @ model["w"], -1), {}),
        "batch_size": 3,
        "steps": 2,
    },
    "continual.metrics": {"b": [0.5, 0.5], "joint": [0.9, 0.9]},
    "continual.plots.scores_over_tasks": {"methods": {"a": [[0.9, 0.0], [0.7, 0.8]]}},
    "data.batches": {"columns": ["query", "positive"], "batch_size": 2, "max_length": 8},
    "data.from_iterable": {"rows": _RECORDS},
    "data.length_buckets": {"per_octave": 2, "shortest": 16, "longest": 64},
    "data.class_examples": {"texts": ["a", "b", "c", "d"]},
    "data.marked": {"tokens": Made(_tokens), "lengths": np.array([1, 2])},
    "data.similar_pairs": {"first": ["a", "b"], "second": ["c", "d"], "scores": [4.5, 1.0]},
    "data.merge_small": {"small_threshold": 3},
    "data.pack": {"row_length": 8},
    "data.read_dictionary": {"path": Made(lambda: _folder() / "words.jsonl"), "word": "first", "definition": "second"},
    "data.tfds": None,
    "data.huggingface": None,
    "data.read_wordnet": {"path": Made(lambda: _folder() / "synsets.jsonl")},
    "data.row_bucket": {"multiple": 2},
    "encoders.hashed_ngrams": {"buckets": 64},
    "evaluate.grid": {
        "evaluator": lambda encoder: {"a": float(encoder.encode(["1"]).sum())},
        "metric": "a",
        "mesh": None,
    },
    "evaluate.holm": {"p": [0.01, 0.5]},
    "evaluate.paired_significance": {
        "first": {"STS": dict(zip("abcdef", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], strict=True))},
        "second": {"STS": dict.fromkeys("abcdef", 0.0)},
        "level": 0.05,
    },
    "evaluate.metrics": {"x": [1.0, 2.0, 4.0], "y": [1.0, 3.0, 2.0], "k": 2},
    "evaluate.read_beir": {"directory": Made(lambda: _folder() / "beir"), "qrels": None},
    "evaluate.read_sts": {"columns": ("first", "second", "score")},
    "evaluate.retrieval": {"queries": {"q": "1"}},
    "evaluate.retrieval_evaluator": {"data": Made(lambda: evaluate.read_beir(_folder() / "beir"))},
    "evaluate.score_run": {"run": {"q": {"a": 0.5, "b": 0.1}}},
    "evaluate.sts": {
        "first": ["1", "2", "3"],
        "second": ["1", "5", "3 4"],
        "scores": [1.0, 0.0, 0.5],
        "similarities": ["cosine"],
        "data": Made(lambda: evaluate.StsSet(["1", "2"], ["1", "5"], np.array([1.0, 0.0]))),
    },
    "interval.bound": {"f": jnp.tanh},
    "interval.worst_case_logits": {"lo": _VECTORS, "hi": _VECTORS + 1},
    "isotropy": {"x": _drawn(40, 4), "dim": 2},
    "losses.contrastive": {"labels": _LABELS},
    "losses.cwcl": {"features": _VECTORS, "targets": None},
    "losses.distill_kl": {"teacher_scores": _drawn(_N, 1 + _K)},
    "losses.distill_kl_scores": {"student_scores": _SQUARE, "teacher_scores": _SQUARE + 1},
    "losses.flops_ramp": {"peak": 0.1, "total_steps": 10},
    "losses.k_sparse": {"k": 2},
    "losses.m3_kd": {"teacher_scores": _drawn(_N, 1 + _K)},
    "losses.m3_unified": {"dense": _SQUARE, "sparse": _SQUARE + 1, "multi_vector": _SQUARE + 2},
    "losses.margin_mse": {"teacher_scores": _drawn(_N, 1 + _K)},
    "losses.margin_mse_scores": {"student_scores": _SQUARE, "teacher_scores": _SQUARE + 1},
    "losses.masks.dense": {"allowed": np.eye(_N, dtype=bool)},
    "losses.masks.above": {"threshold": 0.5},
    "losses.masks.other_records": {"alone": np.array([True, False, True, True]), "negatives": 2},
    "losses.masks.same_label": {"negative_labels": None},
    "losses.masks.guided": {"negatives": None},
    "losses.maxsim": _MULTI,
    "losses.xtr": _MULTI,
    "losses.orthogonal_regularization": {"columns": Made(lambda: (_VECTORS, _OTHERS))},
    "losses.prototype_logits": {"classes": np.array([False, True])},
    "losses.progressive_weights": {"difficulty": np.array([0.1, 0.5, 0.9, 0.2], np.float32)},
    "losses.ranking": _RANKED,
    "losses.ranking.bce": {"labels": np.round(np.clip(_SQUARE, 0, 1))},
    "losses.ranking.random_negatives": {"n": 4, "count": 2},
    "losses.ranking.multiple_negatives": {"scores": np.abs(_drawn(_N, 5))},
    "losses.soft_target_contrastive": {"targets": np.eye(_N, dtype=np.float32)},
    "losses.soft_targets.soft_target_contrastive": {"targets": np.eye(_N, dtype=np.float32)},
    "losses.soft_targets.given": {"weights": np.eye(_N, dtype=np.float32)},
    "losses.soft_targets.cwcl": {"features": _VECTORS, "targets": None},
    "losses.softmax_nli": {"kernel": _drawn(3 * _D, 2), "bias": _drawn(2)},
    "losses.triplet": {"negatives": _LISTS},
    "merging": {
        "coefficients": [0.5, 0.5],
        "scale": 1.0,
        "groups": None,
        "first": _MODEL,
        "second": {"w": jnp.arange(5.0)},
    },
    "merging.collect_grams": {
        "model": Made(lambda: jaxemb.pretraining.EntryPredictor.of(places.embedder())),
        "forward": lambda model, batch: model.pooler.linear(jnp.ones((2, 8))),
    },
    "merging.layer_groups": {"params": {"layers": {"w": jnp.ones((2, 3))}}},
    "merging.collect_fisher": {"key": Made(lambda: jax.random.key(0))},
    "merging.dare": {"vector": _MODEL, "drop_rate": 0.5},
    "merging.gradient_conflict": {
        "objectives": {"a": toy_objective, "b": toy_objective},
        "batches": {"a": _BATCH, "b": _BATCH},
        "key": Made(lambda: jax.random.key(0)),
    },
    "merging.merge_fisher": {"fishers": [_MODEL, _MODEL]},
    "merging.merge_regmean": {"grams": [{}, {}]},
    "merging.models_of": {"embedders": Made(lambda: [places.embedder()] * 2)},
    "merging.self_position": {
        "objectives": {"a": toy_objective},
        "vectors": {"a": _MODEL},
        "probes": {"a": [_BATCH, _BATCH]},
        "config": jaxemb.merging.SelfPositioning(steps=1),
        "key": Made(lambda: jax.random.key(0)),
    },
    "merging.stacked_layers": {"path": "layers.a"},
    "nn.attention": {
        **dict.fromkeys(("q", "k", "v"), _drawn(2, 3, 2, 4)),
        "segments": np.ones((2, 3), np.int32),
        "key": None,
    },
    "nn.dropout": {"rate": 0.5},
    "nn.make_norm": {"config": StackConfig(dim=8, layers=1, heads=2, mlp_dim=8)},
    "nn.paired": {"similarity": nn.cosine},
    "nn.rope_scaling": {
        "base": 10_000.0,
        "dim": 8,
        "factor": 4.0,
        "trained_length": 64,
        "low_factor": 1.0,
        "high_factor": 4.0,
        **dict.fromkeys(("short_factors", "long_factors"), (1.0, 1.5, 2.0, 3.0)),
    },
    "nn.rotate": {"x": _drawn(2, 3, 2, 4), "tables": (np.ones((2, 3, 1, 4), np.float32),) * 2},
    "nn.uniform_linear": {"inputs": 3, "outputs": 4},
    "objectives": {"objective": _PAIRWISE},
    "objectives.alignment_kl": {"student": _SQUARE, "teacher": _SQUARE + 1},
    "objectives.by_source": {"objectives": {"a": toy_objective}},
    "objectives.classification": {"input": "input", "label": "label", "classes": "classes"},
    "objectives.competing": {"logits": _SQUARE, "classes": np.array([True, False] * 2)},
    "objectives.compressed": {"dim": 2},
    "objectives.espresso": {"dim": 4, "layers": [1]},
    "objectives.in_chunks": {"encode": lambda model, batch, key: batch, "size": 2},
    "objectives.on_columns": {"loss": in_batch_softmax, "columns": Made(lambda: ("query", "document"))},
    "objectives.starbucks": {"sizes": [(1, 4), (2, 8)]},
    "objectives.supervised_contrastive": {"views": ("input", "view"), "label": "label"},
    "parallel.default_devices": {"devices": Made(jax.devices)},
    "parallel.from_parts": {
        "shape": (4,),
        "dtype": np.dtype("float32"),
        "sharding": None,
        "part": lambda index: np.zeros(4, np.float32),
    },
    "parallel.put": {"sharding": None},
    "parallel.shard_batch": {"batch": {"a": np.zeros((8, 2), np.float32)}},
    "parallel.sharded_init": {"init": lambda: _MODEL, "args": Made(tuple)},
    "pooling.named": {"names": ("mean",)},
    "pooling.names_of": {"pooling": Made(lambda: places.embedder().model.pooling)},
    "pooling.of_texts": {"by_slot": _drawn(2, 1, 8)},
    "pooling.to_slots": {"by_text": _drawn(2, 8)},
    "pooling.pooling_design": {"number": 5, "dim": 4, "layers": 2},
    "pooling.splade": {"states": _STATES},
    "pooling.weighted_sum": {"states": _STATES, "weights": np.ones((2, 1, 3), np.float32)},
    "pretraining.delete_words": {"ratio": 0.5},
    "pretraining.definition": {"column": "definition"},
    "pretraining.entry_cross_entropy": {"projected": _VECTORS, "entry": np.array([0, 1, 2, 3]), "entries": _OTHERS},
    "pretraining.entry_embeddings": {
        "definitions": Made(lambda: data.Definitions(["1"], ["2 3"], np.zeros(1, np.int32)))
    },
    "pretraining.embed_and_write": {"embedding": Made(lambda: toy_objective), "column": "text"},
    "pretraining.seeing_both_ways": {"model": Made(lambda: tiny_model())},
    "pretraining.isotropic_entries": {"entries": _drawn(60, 4)},
    "pretraining.mask_words": {"ratios": (0.2, 0.4)},
    "pretraining.masked_autoencoding": {"sizes": [(1, 8)]},
    "prompting.bge_icl": {"task": "find"},
    "prompting.clean": {"text": "a dog"},
    "prompting.lexical_vectors": {
        "head": lambda states: states,
        "states": _VECTORS,
        "words": Made(lambda: [np.array([1, 2])] * _N),
        "vocabulary": _D,
    },
    "prompting.mean_of_variants": {"encoder": _EMBEDDER, "texts": ["1", "2"], "variants": lambda text: [text]},
    "prompting.of_chat": {"tokenizer": Made(lambda: _chatting()), "messages": [{"role": "user", "content": "{text}"}]},
    "prompting.prepended": {"template": PROMPT_EOL},
    "prompting.prompt_reps": {"tokenizer": Made(lambda: _chatting())},
    "prompting.states_at": {"transformer": Made(lambda: tiny_model().encoder), "layer": 1},
    "prompting.top_words": {"logits": _VECTORS, "allowed": None},
    "prompting.words_of": {"texts": ["1 2", "3"]},
    "retrieval.min_max_fusion": {"first": {"q": {"a": 1.0}}, "second": {"q": {"b": 1.0}}},
    "retrieval.build_index": {
        "path": Made(lambda: _fresh("index")),
        "records": ["1 2", "3"],
        "model": "models/tiny",
        "vectors": None,
    },
    "retrieval.hard_negatives": {
        "queries": _VECTORS,
        "corpus": np.concatenate([_OTHERS, _VECTORS]),
        "positives": np.stack([np.arange(_N)] * 2, 1),
        "num_negatives": 2,
        "metric": "cosine",
    },
    "retrieval.mine_hard_negatives": {"corpus": ["1", "2", "3 4"], "metric": None},
    "retrieval.open_index": {"path": Made(lambda: _folder() / "index")},
    "retrieval.topk_search": {"corpus": _OTHERS, "mesh": None},
    "train.adamw": {"learning_rate": 0.1, "steps": 10},
    "train.fit": {"run": Made(lambda: toy_run(steps=1)), "out": Made(lambda: _fresh("run")), "progress": False},
    "train.init_state": {"mesh": None},
    "train.load_run": {"path": Made(lambda: _folder() / "config.py")},
    "train.train": {"transform": None},
    "train.make_train_step": {"transform": None},
    "train.stack_batches": {"batches": [_BATCH, _BATCH]},
    "transforms.at_task": {
        "state": Made(lambda: train.train(_MODEL, toy_objective, optax.sgd(0.1), [_BATCH], transform=_HYPERNETWORK)),
        "number": 0,
    },
    "transforms.at_universal": _OF_BOXES,
    "transforms.broken_bounds": _OF_BOXES,
    "transforms.promise_report": _OF_BOXES,
    "transforms.worst_case_accuracy": _OF_BOXES,
    "transforms.lwf": {"classes": 4},
    "transforms.augmentation": {"augment": lambda key, batch: batch},
    "transforms.chain": {"transforms": Made(lambda: (transforms.identity(), transforms.ema(0.9)))},
    "transforms.ema": {"decay": 0.9},
    "transforms.ema_model": {
        "state": Made(lambda: train.init_state(jax.random.key(0), _MODEL, optax.sgd(0.1), transforms.ema(0.9)))
    },
    "transforms.find_state": {
        "tree": Made(lambda: train.init_state(jax.random.key(0), _MODEL, optax.sgd(0.1), transforms.ema(0.9))),
        "kind": transforms.EmaState,
    },
    "transforms.herding": {"features": _VECTORS, "count": 2},
    "transforms.hyper_interval": {"config": transforms.HyperIntervalConfig(tasks=2)},
    "transforms.hypernetwork": {"config": transforms.HypernetworkConfig(tasks=2)},
    "transforms.intercontinet": {"config": transforms.InterContiNetConfig()},
    "transforms.lora": {"alpha": None},
    "transforms.merge_after_task": {"merge": lambda models: models.current, "first": False},
    "nn.merge_lora": {"model": Made(lambda: tiny_model()), "adapters": {}},
    "transforms.progressive_learning": {"alpha": lambda step: 0.5},
    "transforms.progressive_separate_training": {
        "make_entries": lambda number, model: np.zeros((4, 8)),
        "shape": (4, 8),
    },
    "transforms.prototype_prediction": {"transform": Made(lambda: transforms.prd(2, 4))},
    "transforms.task_predictor": {
        "transform": Made(lambda: transforms.hypernetwork(transforms.HypernetworkConfig(tasks=2)))
    },
    "transforms.nmc": {"metric": "euclidean"},
}

#: Methods and classes of values that users make, beside the functions that packages export.
MORE: dict[str, tuple[Callable[[], Callable], dict[str, Any]]] = {
    "SentenceEmbedder.encode": (lambda: places.embedder().encode, {"out": None, "mesh": None, "dim": None}),
    "SentenceEmbedder.save": (lambda: places.embedder().save, {"path": Made(lambda: _fresh("model"))}),
    "SentenceEmbedder.truncate": (lambda: places.embedder().truncate, {"layers": 1, "dim": 4}),
    "SentenceEmbedder.prompt": (lambda: places.embedder(heads=True).prompt, {}),
    "SentenceEmbedder.similarity": (lambda: places.embedder().similarity, {}),
    "Tokenizer.encode": (lambda: places.tokenizer().encode, {}),
    "Tokenizer.chat": (
        lambda: dataclasses.replace(places.tokenizer(), files={"chat_template.jinja": b"{{ messages }}"}).chat,
        {"messages": [{"role": "user", "content": "1 2"}]},
    ),
    "Tokenizer.prompt_length": (lambda: places.tokenizer().prompt_length, {"prompt": "1 2"}),
    "Tokenizer.encode_pairs": (lambda: places.tokenizer().encode_pairs, {"pairs": [("1", "2")]}),
    "Tokenizer.train": (lambda: Tokenizer.train, {"vocab_size": 40}),
    "Tokenizer.word_piece": (lambda: Tokenizer.word_piece, {"vocabulary": [*data.SPECIAL_TOKENS, "a"]}),
    "Tokenizer.from_directory": (lambda: Tokenizer.from_directory, {}),
    "Tokenizer.save": (lambda: places.tokenizer().save, {"directory": Made(lambda: _fresh("model"))}),
    "SearchIndex.search": (
        lambda: retrieval.open_index(_folder() / "index").search,
        {"queries": ["1", "2"]},
    ),
    "SearchIndex.record": (lambda: retrieval.open_index(_folder() / "index").record, {"id": 1}),
    "Source.select": (lambda: data.from_list(_RECORDS).select, {"indices": [0, 1]}),
    "Source.with_columns": (lambda: data.from_list(_RECORDS).with_columns, {"columns": ["query"]}),
    "Source.map": (lambda: data.from_list(_RECORDS).map, {"function": dict}),
    "Number": (lambda: data.Number, {}),
    "Vector": (lambda: data.Vector, {"size": 2}),
    "Text": (lambda: data.Text, {}),
    "TextPair": (lambda: data.TextPair, {}),
    "GroupByLabel": (lambda: data.GroupByLabel, {"column": "label"}),
    "GroupByLength": (lambda: data.GroupByLength, {"batches": 5}),
    "NoDuplicates": (lambda: data.NoDuplicates, {}),
    "TransformerConfig": (
        lambda: TransformerConfig,
        {"dim": 8, "layers": 1, "heads": 2, "mlp_dim": 8, "vocab_size": 15, "position_table": 16, "token_types": 2},
    ),
    "StackConfig": (lambda: StackConfig, {"dim": 8, "layers": 1, "heads": 2, "mlp_dim": 8}),
    "RopeConfig": (lambda: nn.RopeConfig, {"base": 10000.0}),
    "Placement": (lambda: Placement, {"mesh": None}),
    "SelfPositioning": (lambda: jaxemb.merging.SelfPositioning, {}),
    "HypernetworkConfig": (lambda: transforms.HypernetworkConfig, {}),
    "HyperIntervalConfig": (lambda: transforms.HyperIntervalConfig, {}),
    "InterContiNetConfig": (lambda: transforms.InterContiNetConfig, {}),
    "Run": (
        lambda: train.Run,
        {
            "embedder": lambda: None,
            "data": lambda embedder: [],
            "steps": 2,
            "mesh": None,
            "transform": Made(transforms.identity),
        },
    ),
    "make_mesh": (lambda: jaxemb.parallel.make_mesh, {"data": 8}),
    "Classifier.init": (lambda: jaxemb.Classifier.init, {"encoder": _ENCODER}),
}


#: What must be accepted though it is of another shape or range than the good argument, and why.
LAWFUL: dict[str, str] = {
    r"nn\.(dot|cosine|euclidean): [ab] = (a row less|no rows)": "both sides have as many rows as they like",
    r"nn\.(dot|cosine|euclidean): [ab] = an axis more": "leading axes broadcast",
    r"SentenceEmbedder\.similarity: [ab] = (a row less|no rows|an axis less)": "so they have, and one vector is a row",
    r"retrieval\.topk_search: (queries|corpus) = (a row less|no rows)": "so they have",
    r"retrieval\.hard_negatives: (corpus|positives) = (a row less|no rows)": "so they have",
    r"losses\.prototype_logits: features = a row less": "so they have",
    r"evaluate\.metrics\..*: judged = (a column less|a ragged list)": "of any number of documents",
    r"losses\.margin_mse(_scores)?: teacher_scores = a column less": "these are the teacher's margins, [N, K]",
    r"losses\.(soft_targets\.)?cwcl: features = a column less": "features are of any dimension",
    r"pooling\.weighted_sum: states = a column less": "states are of any dimension",
    r"losses\..*: .*ids = (negative numbers|numbers out of range|fractions)": "ids are compared, whatever they are",
    r"losses\.(soft_targets\.equal|(masks\.)?same_label): labels = .*(numbers|out of range|fractions)": "so are labels",
    r"losses\.supcon: labels = negative numbers": "a label of -1 is unknown",
    r"losses\.orthogonal_regularization: \*columns = a nested list": "it is one text of one dimension",
    r"losses\.ranking\.(ndcg_loss.*|lambda_rank): gains = (a row less|no rows)": "those of any number of queries",
    r"objectives\.competing: logits = (a row less|no rows)": "those of any number of records",
    r"losses\.online_contrastive: labels = .*": "a pair of any other label is ignored",
    r"continual\.plots\.score_matrix: R = NaN within": "it is drawn as a gap",
}
_ANY = math.inf
#: The numbers that an argument may be, by "function: argument", and why; the first that fits counts. All others are
#: numbers > 0 (sizes, temperatures, steps), as large as one likes.
RANGES: dict[str, tuple[float, float, str]] = {
    r".*make_mesh: (data|fsdp|tensor)": (-1, _ANY, "-1 is the rest of the devices"),
    r"merging\..*: scale": (-_ANY, _ANY, "a task is also subtracted"),
    r"nn\.merge_lora: scale": (-_ANY, _ANY, "an adapter is also subtracted"),
    r"Hyper.*Config: scale": (-_ANY, _ANY, "a factor of weights of either sign"),
    r"InterContiNetConfig: scale_init": (-_ANY, _ANY, "a logit"),
    r"losses\.siglip: bias": (-_ANY, _ANY, "a logit"),
    r"losses\.mega_batch_margin: .*_margin": (-_ANY, _ANY, "similarities"),
    r"losses\.masks\.(above|near_positive): (threshold|margin)": (-_ANY, _ANY, "similarities"),
    r"losses\.progressive.*: alpha": (-_ANY, _ANY, "below 0 easy records count more"),
    r"retrieval\.hard_negatives: (m.._score|.*_margin)": (-_ANY, _ANY, "similarities, and how far they may be above"),
    r"nn\.rope_scaling\.yarn: mscale.*": (-_ANY, _ANY, "as a config.json says"),
    r".*Config: norm_weight_offset": (-_ANY, _ANY, "as a config.json says"),
    r"evaluate\.metrics\.bootstrap_interval: confidence": (0, 1, "a probability"),
    r".*: (overlap|warmup|b1|b2|t|.*dropout|rate|drop_rate)": (0, 1, "a share"),
    r"pretraining\..*: (.*ratio|random|kept)": (0, 1, "a share"),
    r"(transforms\.ema|SelfPositioning): (decay|momentum)": (0, 1, "a share"),
    r"merging\.merge_regmean: alpha": (0, 1, "a share"),
    r"retrieval\.hard_negatives: percentile": (0, 100, "per cent"),
    r".*: (.*weight|beta|gamma|kappa|mu|pull|distill|ridge|peak|hardness_strength)": (0, _ANY, "0 leaves a term out"),
    r".*: (weight_decay|decay|learning_rate)": (0, _ANY, "0 leaves it out"),
    r".*: (.*margin|threshold|initializer_range|tolerance|max_ratio|checkpoint_minutes)": (0, _ANY, "0 is the least"),
    r".*: (seed|number|id|mask_id|axis|process_index|range_min|start)": (0, _ANY, "counted from 0"),
    r".*: (.*_threshold|count|records|workers|prefetch|contraction_steps|n)": (0, _ANY, "there may be none"),
    r".*Config: (relative_buckets|position_table|position_offset|token_types)": (0, _ANY, "there may be none"),
    r"data\.batches: pack": (0, _ANY, "0 is False"),
    r"nn\.attention: window": (0, _ANY, "a token sees at least itself"),
}


def functions() -> Iterator[tuple[str, Callable, dict[str, Any] | None]]:
    """Every public function by name, and its good arguments; None for one of which there is no good call here."""
    for name in ("load", "new"):
        yield name, getattr(jaxemb, name), {**COMMON, **OWN.get(name, {})}
    for package in PACKAGES:
        module = importlib.import_module(f"jaxemb.{package}")
        exported = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        for name in exported:
            value = getattr(module, name)
            inner = {f"{name}.{k}": f for k, f in vars(value).items()} if inspect.ismodule(value) else {name: value}
            for path, function in inner.items():
                home = value.__name__ if inspect.ismodule(value) else f"jaxemb.{package}"
                if _is_public_function_of(home, function):
                    yield (full := f"{package}.{path}"), function, _good_arguments(full)
    for name, (get, own) in MORE.items():
        yield name, get(), {**COMMON, **own}


def _is_public_function_of(home: str, value: Any) -> bool:
    is_ours = inspect.isfunction(value) and value.__module__.startswith(home) and home.startswith("jaxemb")
    return is_ours and not value.__name__.startswith("_")


def _good_arguments(name: str) -> dict[str, Any] | None:
    found: dict[str, Any] = dict(COMMON)
    for key in sorted(OWN, key=len):
        if name == key or (name.startswith(key) and name[len(key)] in "._"):
            if (own := OWN[key]) is None:
                if name == key:
                    return None
                continue
            found |= own
            found["*own"] = (*found.get("*own", ()), *own)
    return found


class Call:
    """A function with its good arguments."""

    def __init__(self, name: str, function: Callable, good: Mapping[str, Any], own: Iterable[str] = ()):
        self.name, self.function, self.good = name, function, good
        self.parameters = dict(inspect.signature(function).parameters)
        self.hints = _hints(function)
        own = {*own, *good.get("*own", ())}
        self.given = {
            name: good[name]
            for name, parameter in self.parameters.items()
            if name in good and parameter.kind is not parameter.VAR_KEYWORD
            if parameter.default is parameter.empty or name in own
        }

    def __call__(self, **changes: Any) -> Any:
        values = {name: _good(value) for name, value in {**self.given, **changes}.items()}
        positional: list[Any] = []
        for name, parameter in self.parameters.items():
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(values.pop(name))
            elif parameter.kind is parameter.VAR_POSITIONAL and name in values:
                before = list(self.parameters)[: list(self.parameters).index(name)]
                positional += [values.pop(n) for n in before if n in values]
                positional += values.pop(name)
        return _used(self.function(*positional, **values))

    @functools.cached_property
    def expected(self) -> Any:
        result = self()
        comparable = (str, int, float, np.ndarray, np.generic, jax.Array)
        return result if all(isinstance(leaf, comparable) for leaf in jax.tree.leaves(result)) else None

    def cases(self) -> Iterator[Case]:
        names = tuple(self.parameters)
        for name, parameter in self.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            hint = self.hints.get(name, Any)
            good = _good(self.given.get(name, self.good.get(name) if parameter.default is None else parameter.default))
            if parameter.kind is parameter.VAR_POSITIONAL:
                for what, value in [*WRONG.items(), ("an object", object())]:
                    yield self._case(f"*{name} = {what}", {name: (value,)}, (name,), _fits(value, hint))
                continue
            for what, value in [*WRONG.items(), ("no value of any type", object()), ("a list of texts", ["text"])]:
                if isinstance(value, str) and isinstance(good, str) and value == good:
                    continue
                lawful = _fits(value, hint) and not _is_suspicious(value, hint) and self._in_range(name, value, hint)
                if what == "a nested list" and not [n for n in self._arrays() if n != name]:
                    lawful |= _takes_arrays(hint)
                shown = (value, repr(value).strip("'")) if isinstance(value, str) and value else ()
                shown += (repr(value), *value) if what == "a list of texts" else ()
                yield self._case(f"{name} = {what}", {name: value}, (name, name.rstrip("s"), *shown), lawful)
            if isinstance(good, np.ndarray | jax.Array) and good.ndim:
                others = [np.asarray(self.given[n]) for n in self._arrays() if n != name]
                for what, value, lawful in _wrong_arrays(np.asarray(good), others):
                    case = self._case(f"{name} = {what}", {name: value}, names, lawful)
                    yield dataclasses.replace(case, gives_nan=what == "NaN within")
        if arrays := self._arrays():
            empty = {n: np.zeros((0, *a.shape[1:]), a.dtype) for n in arrays for a in [np.asarray(self.given[n])]}
            yield self._case("all arrays empty", empty, names, True)

    def _arrays(self) -> list[str]:
        return [name for name, value in self.given.items() if isinstance(value, np.ndarray) and value.ndim]

    def _in_range(self, name: str, value: Any, hint: Any) -> bool:
        """Whether a value is no number, where one is wanted, or one that the argument may be."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not {int, float} & {*_parts(hint)}:
            return True
        found = (r for pattern, r in RANGES.items() if re.fullmatch(pattern, f"{self.name}: {name}"))
        low, high, _ = next(found, (math.ulp(0.0), _ANY, ""))
        return low <= value <= high

    def _case(self, what: str, changes: dict[str, Any], names: tuple[str, ...], lawful: bool) -> Case:
        case = f"{self.name}: {what}"
        lawful |= any(re.fullmatch(pattern, case) is not None for pattern in LAWFUL)
        return Case(case, functools.partial(self, **changes), names, self.expected, lawful)


def calls() -> Iterator[Call]:
    """Every public function of which there is a good call."""
    for name, function, good in functions():
        if good is not None:
            own = MORE[name][1] if name in MORE else OWN.get(name) or ()
            yield Call(name, function, good, own)


def _used(result: Any) -> Any:
    """The result once it is there: of batches and generators the first, of a context what is in it."""
    if isinstance(result, Iterator) or type(result).__name__ in ("DataLoader", "PackedBatches"):
        result = next(iter(result), None)
    if isinstance(result, contextlib.AbstractContextManager) and not hasattr(result, "shape"):
        with result:
            result = None
    return jax.block_until_ready(result)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation has the choice of."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _takes_arrays(hint: Any) -> bool:
    """Whether an annotation is that of an array, for which losses take lists of numbers."""
    return hint in (jax.Array, np.ndarray) or any(map(_takes_arrays, typing.get_args(hint)))


def _is_suspicious(value: Any, hint: Any) -> bool:
    """Whether a value of the right type is still one that an argument hardly ever has."""
    if isinstance(value, float) and not np.isfinite(value):
        return hint is not Any
    return isinstance(value, str) and value == "" and "Path" in str(hint)


def _wrong_arrays(good: np.ndarray, others: Sequence[np.ndarray]) -> Iterator[tuple[str, Any, bool]]:
    """What is wrong, the array, and whether a function may take it beside others that are as they were."""
    alone = not others
    yield "an array of texts", np.full(good.shape, "a"), False
    yield "an array of objects", np.full(good.shape, None), False
    yield "the numbers in lists", good.tolist(), True
    yield "a row less", good[:-1], alone
    yield "no rows", good[:0], alone
    yield "one number", good.flat[0], alone
    yield "an axis more", good[None], alone
    yield "an axis less", good[0], alone
    if good.ndim > 1:
        yield "a column less", good[..., :-1], all(other.ndim == 1 for other in others)
        yield "a ragged list", [*good.tolist()[:-1], good.tolist()[-1][:-1]], False
    yield "complex numbers", good.astype(np.complex64), False
    if good.dtype.kind == "f":
        yield "NaN within", np.where(np.arange(good.size).reshape(good.shape) == 0, np.nan, good), False
        yield "whole numbers", np.ones(good.shape, np.int32), True
    elif good.dtype.kind == "i":
        yield "negative numbers", -1 - good, False
        yield "numbers out of range", good + 1000, False
        yield "fractions", good + 0.5, False


def _hints(function: Callable) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else inspect.unwrap(function)
    try:
        return typing.get_type_hints(target)
    except Exception:  # a name that only type checkers import
        found = getattr(target, "__annotations__", {})
        return {name: Any if isinstance(hint, str) else hint for name, hint in found.items()}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that an annotation says."""
    if "_NestedSequence" in str(hint):  # numpy's ArrayLike, which allows texts
        is_left_out = value is None and type(None) in typing.get_args(hint)
        return (isinstance(value, int | float | list | np.ndarray) and not isinstance(value, bool)) or is_left_out
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar) or hint is inspect.Parameter.empty:
        return True
    if origin is typing.Literal:
        return value in arguments if isinstance(value, str | int | None) else False
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is jax.Array:
        return isinstance(value, np.ndarray | jax.Array)
    if origin in (collections.abc.Sequence, collections.abc.Iterable, list, tuple, collections.abc.Collection):
        if not isinstance(value, list | tuple) and not (origin is collections.abc.Iterable and isinstance(value, dict)):
            return False
        inner = [argument for argument in arguments if argument is not ...]
        return not inner or all(any(_fits(item, argument) for argument in inner) for item in value)
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return callable(value)
    if isinstance(origin, type):
        return isinstance(value, origin)
    return isinstance(value, hint) if isinstance(hint, type) and not getattr(hint, "_is_protocol", False) else True
