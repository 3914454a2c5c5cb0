"""Evaluators for `run_stream`: `(state, experience, number, seen) -> score`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import at_least, checked
from jaxemb.classifiers.probes import Classify, Fit
from jaxemb.continual.loop import Evaluate
from jaxemb.continual.streams import COLLECTION, Columns, Experience, count, rows
from jaxemb.evaluate import RetrievalSet, StsSet, TextEncoder, retrieval, score_run, sts
from jaxemb.files import made_directory, replaced_file
from jaxemb.nn.classes import check_labels
from jaxemb.retrieval import topk_search
from jaxemb.text_encoder import encode_finite, stored_prompt
from jaxemb.train import TrainState, apply_transform
from jaxemb.transforms import Transform, identity
from jaxemb.trees import PyTree

Predict = Callable[[TrainState, PyTree, jax.Array], jax.Array]
Features = Callable[[TrainState, PyTree], jax.Array]


@checked(batch_size=at_least(1))
def accuracy(
    predict: Predict | None = None,
    scenario: Literal["task", "class", "domain"] = "class",
    *,
    transform: Transform | None = None,
    input: str = "input",
    batch_size: int = 1000,
) -> Evaluate:
    """The fraction of test records whose label has the largest logit among those that compete.

    The scenario says which compete: in "task" the classes of the experience, in "class" all classes seen so far, in
    "domain" all. The first of equal logits counts.

    Args:
      predict: `(state, inputs, number) -> logits [N, C]`, traced once for all tasks (number is an int32 scalar);
        None is the model as trained, `apply_transform(transform, state)(inputs)`.
      scenario: see above.
      transform: that of the run, if `predict` is None.
      input: the column of inputs; the labels are in "label".
      batch_size: largest number of records at once.

    Raises:
      ValueError: for another scenario or a batch size < 1; when called, for labels that are no numbers of classes, and
        if an experience has no classes and the scenario needs them.
    """
    if scenario not in ("task", "class", "domain"):
        raise ValueError(f"scenario must be 'task', 'class' or 'domain'; got {scenario!r}")
    logits = predict or _applied(transform)

    @jax.jit
    def hits(state, inputs, labels, number, compete):
        scores = logits(state, inputs, number)
        if compete is not None:
            scores = jnp.where(compete, scores, -jnp.inf)
        return jnp.sum(jnp.argmax(scores, axis=-1) == labels)

    def evaluate(state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        compete = {"task": experience.classes, "class": seen, "domain": None}[scenario]
        if compete is None and scenario != "domain":
            raise ValueError(f"task {experience.name!r} has no classes; the scenario {scenario!r} needs them")
        check_labels(experience.test["label"], np.iinfo(np.int32).max if compete is None else len(compete))
        found = 0
        # Rows added to the last batch have no label, so they are never hit.
        for batch in _batches({"input": experience.test[input], "label": experience.test["label"]}, batch_size):
            found += int(hits(state, batch["input"], batch["label"], np.int32(number), compete))
        return found / count(experience.test)

    return evaluate


@checked()
def mean_over(stream: Sequence[Experience], score: Evaluate) -> Evaluate:
    """The mean score over the tasks of a stream, whatever experience is asked for: for a run on `[joint(stream)]`.

    What the score remembers is of that run's one task, so that `index_compatibility` has no place in it.
    """

    def evaluate(state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        return float(np.mean([score(state, task, t, seen) for t, task in enumerate(stream)]))

    if hasattr(score, "remember"):
        evaluate.remember = score.remember  # type: ignore[attr-defined]
    return evaluate


def _applied(transform: Transform | None) -> Predict:
    used = identity() if transform is None else transform
    return lambda state, inputs, number: apply_transform(used, state)(inputs)


def _batches(columns: Columns, batch_size: int) -> Iterator[dict[str, Any]]:
    """The rows in order; the last batch is filled up with the first rows, whose "label" then is -1.

    Batches are of a power of two, so that few programs serve data of any size.
    """
    total = count(columns)
    size = min(batch_size, 1 << (total - 1).bit_length())
    for start in range(0, total, size):
        which = np.arange(start, start + size)
        batch = rows(columns, np.where(which < total, which, 0))
        if "label" in batch:
            batch["label"] = np.where(which < total, batch["label"], -1)
        yield batch


@checked(batch_size=at_least(1))
def probe(
    fit: Fit,
    features: Features | None = None,
    *,
    on: Literal["task", "seen"] = "task",
    transform: Transform | None = None,
    input: str = "input",
    batch_size: int = 1000,
) -> Evaluate:
    """Test accuracy of a classifier fitted to what the current encoder makes of training data, whatever the head does.

    Its matrix of scores P is what `metrics.probe_retention` and `metrics.representation_forgetting` are of. The
    training data of old tasks are used, which a continual learner does not have: it is a measure, no method.

    Args:
      fit: a classifier, such as `logistic_regression()`, `nearest_mean()` or `nearest_neighbours()`.
      features: `(state, inputs) -> [N, D]`, traced; None is `apply_transform(transform, state).features(inputs)`.
      on: fit to the training data of the "task" that is scored, or once to those of all tasks "seen" so far (at
        initialisation to all).
      transform: that of the run, if `features` is None.
      input: the column of inputs; the labels are in "label".
      batch_size: largest number of records at once.

    Raises:
      ValueError: for another `on` or a batch size < 1.

    Source: Davari et al. 2022, arXiv 2203.13381, section 3.
    """
    if on not in ("task", "seen"):
        raise ValueError(f"on must be 'task' or 'seen'; got {on!r}")
    used = identity() if transform is None else transform
    embed = jax.jit(features or (lambda state, inputs: apply_transform(used, state).features(inputs)))
    return _Probe(fit, embed, on == "seen", input, batch_size)


class _Probe:
    """See `probe`; remembers the classifier of all tasks seen so far."""

    def __init__(self, fit: Fit, embed: Features, on_seen: bool, input: str, batch_size: int):
        self._fit, self._embed, self._on_seen = fit, embed, on_seen
        self._input, self._batch_size = input, batch_size
        self._classify: Classify | None = None

    def remember(self, state: TrainState, experiences: Sequence[Experience], number: int) -> None:
        if self._on_seen:
            seen = experiences if number < 0 else experiences[: number + 1]
            self._classify = self._fitted(state, [experience.train for experience in seen])

    def __call__(self, state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        classify = self._classify or self._fitted(state, [experience.train])
        found = classify(self._features(state, experience.test))
        return float(np.mean(found == np.asarray(experience.test["label"])))

    def _fitted(self, state: TrainState, data: Sequence[Columns]) -> Classify:
        features = [self._features(state, columns) for columns in data]
        return self._fit(np.concatenate(features), np.concatenate([np.asarray(columns["label"]) for columns in data]))

    def _features(self, state: TrainState, columns: Columns) -> np.ndarray:
        inputs = {"input": columns[self._input]}
        found = [np.asarray(self._embed(state, b["input"])) for b in _batches(inputs, self._batch_size)]
        return np.concatenate(found)[: count(inputs)]


Embed = Callable[[TrainState], TextEncoder]


@checked()
def embedding_score(
    embed: Embed, *, retrieval_metric: str = "ndcg@10", sts_metric: str = "cosine_spearman"
) -> Evaluate:
    """How well the current model does on the collection of a task of `streams.embedding_stream`.

    Args:
      embed: the train state to what encodes texts, such as
        `lambda state: embedder.replace(model=apply_transform(transform, state))`.
      retrieval_metric, sts_metric: the number taken of `evaluate.retrieval` and of `evaluate.sts`.
    """

    def evaluate(state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        match experience.test.get(COLLECTION):
            case RetrievalSet(queries, corpus, qrels):
                ks = (_cutoff(retrieval_metric),)
                return retrieval(embed(state), queries, corpus, qrels, ks=ks)[retrieval_metric]
            case StsSet(first, second, scores):
                return sts(embed(state), first, second, scores)[sts_metric]
            case other:
                raise ValueError(f"test['collection'] must be a RetrievalSet or StsSet; got {type(other).__name__}")

    return evaluate


@checked()
def index_compatibility(embed: Embed, *, metric: str = "ndcg@10", directory: str | Path | None = None) -> Evaluate:
    """Retrieval by new queries from the index that the model built right after the task.

    Where a corpus is too large to be encoded again, this is what a user of the continually trained model gets:
    `R[i, j]` has the queries of task j encoded by the model after task i, its documents by the one after task j; so the
    diagonal is that of `embedding_score`, and the entries of tasks to come are NaN.

    Args:
      embed: the train state to what encodes texts.
      metric: "name@k", of `evaluate.retrieval`.
      directory: where the indices are kept, needed if the run is to be resumed; None keeps them in memory.

    Raises:
      ValueError: when called, if the index of a task that was trained is not there.
    """
    return _IndexCompatibility(embed, metric, None if directory is None else Path(directory))


class _IndexCompatibility:
    """See `index_compatibility`."""

    def __init__(self, embed: Embed, metric: str, directory: Path | None):
        self._embed, self._metric, self._k, self._directory = embed, metric, _cutoff(metric), directory
        self._trained, self._vectors = -1, dict[int, np.ndarray]()

    def remember(self, state: TrainState, experiences: Sequence[Experience], number: int) -> None:
        self._trained = number
        if number < 0:
            self._vectors = {}
            return
        encoder, texts = self._embed(state), list(_collection(experiences[number]).corpus.values())
        prompt = stored_prompt(encoder, "document", "passage", "corpus")
        vectors = encode_finite(encoder, texts, prompt, "corpus")
        if self._directory is None:
            self._vectors[number] = vectors
        else:
            made_directory(self._directory)
            with replaced_file(self._path(number)) as fresh, open(fresh, "wb") as file:
                np.save(file, vectors)

    def __call__(self, state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        if number > self._trained:
            return float("nan")
        encoder, data, vectors = self._embed(state), _collection(experience), self._index(number)
        asked = [query for query in data.queries if data.qrels.get(query)]
        prompt = stored_prompt(encoder, "query")
        queries = encode_finite(encoder, [data.queries[query] for query in asked], prompt, "queries")
        similarity = getattr(encoder, "similarity_fn_name", None) or "cosine"
        scores, found = topk_search(queries, vectors, self._k, metric=similarity)
        documents = list(data.corpus)
        ranked = {
            query: {documents[row]: float(score) for row, score in zip(*pair, strict=True)}
            for query, pair in zip(asked, zip(found.tolist(), scores.tolist(), strict=True), strict=True)
        }
        return score_run(ranked, data.qrels, ks=(self._k,)).means()[self._metric]

    def _index(self, number: int) -> np.ndarray:
        if self._directory is not None and self._path(number).exists():
            return np.load(self._path(number))
        if number not in self._vectors:
            raise ValueError(
                f"there is no index of task {number}; a resumed run needs the `directory` of the first one"
            )
        return self._vectors[number]

    def _path(self, number: int) -> Path:
        assert self._directory is not None
        return self._directory / f"index_{number:03d}.npy"


def _collection(experience: Experience) -> RetrievalSet:
    collection = experience.test.get(COLLECTION)
    if not isinstance(collection, RetrievalSet):
        raise ValueError(f"test['collection'] must be a RetrievalSet; got {type(collection).__name__}")
    return collection


def _cutoff(metric: str) -> int:
    name, _, k = metric.partition("@")
    if not (name and k.isdecimal()):
        raise ValueError(f"a retrieval metric is written name@k, such as 'ndcg@10'; got {metric!r}")
    return int(k)
