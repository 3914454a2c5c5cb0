"""The quickstart: fine-tune all-MiniLM-L6-v2 to find functions of Python's standard library by what they do.

`run` is the recipe, a training run like any other, to read and to copy; `quickstart` is the whole job around it:
measure, train, measure again, and leave a model, a search index and a report.
"""

import dataclasses
import functools
import itertools
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxemb
from jaxemb import parallel
from jaxemb.data import batches, from_list, mixture, python_code
from jaxemb.evaluate import (
    RetrievalScores,
    RetrievalSet,
    TextEncoder,
    metrics,
    retrieval_per_query,
)
from jaxemb.files import write_json
from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.recipes.offline_model import default_model
from jaxemb.recipes.report import Example, Hit, Point, Report, principal_components
from jaxemb.retrieval import SearchIndex, build_index, topk_search
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import Run, adamw, fit, read_metrics

_KS = (1, 3, 5, 10, 20, 50)
_N_EXAMPLES, _N_HITS = 5, 5

Pair = dict[str, Any]


def run(
    *,
    model: str | None = None,
    steps: int = 46,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    temperature: float = 0.05,
    max_length: int = 128,
    train_length: int = 64,
    share: float = 1.0,
    seed: int = 0,
    limit: int | None = None,
) -> Run:
    """Docstring -> function body with in-batch negatives, each batch from one package, for one pass over the data.

    Args:
      model: directory or hub id to start from; None takes all-MiniLM-L6-v2.
      steps: optimiser steps.
      batch_size: pairs per step; each docstring must find its own code among this many.
      learning_rate: the highest one, after the warm-up.
      temperature: of InfoNCE.
      max_length: tokens of a text that the model reads in use; longer functions are cut.
      train_length: tokens of a text that it reads in training; shorter, as the first lines say most of what a function
        does and the time goes into the number of tokens.
      share: train on this share of the training pairs.
      seed: of the order of the pairs.
      limit: use at most this many pairs of a split.
    """
    mesh = parallel.default_mesh()
    return Run(
        embedder=lambda: _load(model, max_length),
        data=lambda embedder: batches(
            mixture([from_list(group) for group in by_package(_some(pairs("train", limit), share), batch_size)]),
            embedder.tokenizer,
            ("query", "body"),
            batch_size=batch_size,
            max_length=train_length,
            seed=seed,
            pack=2 * train_length,
            # Nearly all batches have the same numbers of rows: every other is a compilation.
            row_multiple=math.lcm(11, mesh.size if mesh else 1),
        ),
        objective=on_columns(functools.partial(info_nce, temperature=temperature), "query", "body"),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        mesh=mesh,
        evaluators={"validation": lambda embedder: _validate(embedder, pairs("validation", limit))},
        evaluate_every=max(1, steps // 2),
        checkpoint_every=steps,
        keep=1,
        log_every=max(1, steps // 30),
        seed=seed,
        options={
            "model": model,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "temperature": temperature,
            "max_length": max_length,
            "train_length": train_length,
            "share": share,
            "limit": limit,
        },
    )


def _load(model: str | None, max_length: int) -> SentenceEmbedder:
    """Without dropout, which costs time and in so few steps gains nothing; with `remat`, a fifth of the memory."""
    path = model or default_model().path
    return jaxemb.load(path, dropout=0.0, attention_dropout=0.0, remat="full").replace(max_length=max_length)


def _some(records: Sequence[Pair], share: float) -> list[Pair]:
    """A random share of the records."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]; got {share}")
    chosen = np.random.default_rng(0).permutation(len(records))[: round(share * len(records))]
    return [records[i] for i in sorted(chosen)]


def by_package(records: Sequence[Pair], at_least: int) -> list[list[Pair]]:
    """Records by top-level package in alphabetical order, small packages together: `at_least` so many in a group.

    A batch from one group has negatives that are about the same things, and so are hard to tell from the answer.
    """
    groups: list[list[Pair]] = [[]]
    for _, package in itertools.groupby(sorted(records, key=_package), key=_package):
        if len(groups[-1]) >= at_least:
            groups.append([])
        groups[-1] += package
    if len(groups) > 1 and len(groups[-1]) < at_least:
        last = groups.pop()
        groups[-1] += last
    return groups


def pairs(split: str, limit: int | None = None) -> list[Pair]:
    """The pairs of a split of the standard library, by module; see `jaxemb.data.python_code`."""
    return [pair for pair in _all_pairs() if python_code.split_of(pair["module"]) == split][:limit]


@functools.cache
def _all_pairs() -> list[Pair]:
    return python_code.pairs()


def search_task(records: Sequence[Pair]) -> RetrievalSet:
    """Every docstring as a query whose one relevant document is the body of its function, among those of all `records`.

    The signature is left out: names would give the answer away.
    """
    ids = [f"{pair['path']}:{pair['line']}" for pair in records]
    return RetrievalSet(
        queries={i: pair["query"] for i, pair in zip(ids, records, strict=True)},
        corpus={i: pair["body"] for i, pair in zip(ids, records, strict=True)},
        qrels={i: {i: 1} for i in ids},
    )


def evaluate(encoder: TextEncoder, records: Sequence[Pair]) -> RetrievalScores:
    """Retrieval metrics per query on `search_task(records)`."""
    task = search_task(records)
    return retrieval_per_query(encoder, task.queries, task.corpus, task.qrels, ks=_KS)


def _validate(encoder: TextEncoder, records: Sequence[Pair]) -> dict[str, float]:
    means = evaluate(encoder, records).means()
    return {name: means[name] for name in ("ndcg@10", "recall@10")}


def quickstart(
    out: str | Path = "runs/quickstart", *, overwrite: bool = False, progress: bool = True, **options: Any
) -> dict[str, Any]:
    """Fine-tunes, measures before and after on held-out modules, and writes everything to `out`.

        out/model/         the fine-tuned model, a sentence-transformers directory
        out/index/         search index of the code base
        out/report.html    the report
        out/metrics.json   its numbers
        out/metrics.jsonl, checkpoints/, tensorboard/    as every run has them

    Args:
      out: the directory.
      overwrite: start anew where `out` holds a run.
      progress: say on stderr what is going on.
      options: of `run`.

    Returns:
      The content of `metrics.json`.
    """
    out, started = Path(out), time.perf_counter()
    say = functools.partial(print, file=sys.stderr, flush=True) if progress else lambda text: None
    if options.get("model") is None:
        say(f"model   all-MiniLM-L6-v2 from {default_model().origin}")
    recipe = run(**options)
    splits = {split: pairs(split, options.get("limit")) for split in python_code.SPLITS}
    sizes = ", ".join(f"{len(records)} {split}" for split, records in splits.items())
    say(f"data    functions of Python {platform.python_version()}'s standard library and what they do: {sizes}")

    base = _Remembering(recipe.embedder())
    scores_before = evaluate(base, splits["test"])
    before = _summary(scores_before)
    say(f"before  nDCG@10 {before['ndcg@10']:.4f} ± {before['ndcg@10_se']:.4f} on modules that are held out")
    trained = fit(recipe, out, overwrite=overwrite, progress=progress).embedder

    code_base = [pair for records in splits.values() for pair in records]
    index = _build_index(out, code_base, trained, progress)
    tuned = _Remembering(trained)
    scores_after = evaluate(tuned, splits["test"])
    after = _summary(scores_after)
    gain = scores_after.values["ndcg@10"] - scores_before.values["ndcg@10"]
    change = {
        "ndcg@10": float(gain.mean()),
        "ndcg@10_se": metrics.standard_error(gain),  # of the differences: smaller, as the queries are the same
        "ndcg@10_relative": float(gain.mean()) / before["ndcg@10"],
    }
    say(f"after   nDCG@10 {after['ndcg@10']:.4f} ± {after['ndcg@10_se']:.4f}")
    say(f"change  {change['ndcg@10']:+.4f} ± {change['ndcg@10_se']:.4f}, {change['ndcg@10_relative']:+.1%}")

    numbers = {
        "before": before,
        "after": after,
        "change": change,
        "pairs": {split: len(records) for split, records in splits.items()},
        "options": {**recipe.options, "steps": recipe.steps, "seed": recipe.seed},
        "python": platform.python_version(),
        "jaxemb": jaxemb.__version__,
        "seconds": time.perf_counter() - started,
    }
    _report(out, numbers, _examples(base, tuned, splits["test"]), _points(code_base, index.vectors))
    write_json(out / "metrics.json", numbers)
    say(f"done    in {numbers['seconds']:.0f} s")
    return numbers


@dataclasses.dataclass(frozen=True)
class _Remembering:
    """An encoder that encodes no text twice."""

    embedder: TextEncoder
    known: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> np.ndarray:
        new = [text for text in texts if text not in self.known]
        self.known.update(zip(new, self.embedder.encode(new, prompt_name=prompt_name), strict=True))
        return np.stack([self.known[text] for text in texts])


def _summary(scores: RetrievalScores) -> dict[str, float]:
    """Means of the metrics that differ when one document is relevant, each with its standard error."""
    names = [name for name in scores.values if name.startswith(("ndcg@10", "mrr@10", "recall@"))]
    summary: dict[str, float] = {}
    for name in names:
        values = scores.values[name]
        summary |= {name: float(values.mean()), f"{name}_se": metrics.standard_error(values)}
    return summary


def _package(pair: Pair) -> str:
    return pair["module"].split(".")[0]


def _title(pair: Pair) -> str:
    return f"{pair['module']}.{pair['qualname']}"


def _build_index(out: Path, code_base: Sequence[Pair], embedder: SentenceEmbedder, progress: bool) -> SearchIndex:
    records = [
        {
            "title": _title(pair),
            "about": pair["query"],
            "path": pair["path"],
            "line": pair["line"],
            "text": pair["code"],
        }
        for pair in code_base
    ]
    model = str((out / "model").resolve())
    return build_index(out / "index", records, embedder, model=model, show_progress=progress)


def _examples(before: TextEncoder, after: TextEncoder, records: Sequence[Pair]) -> list[Example]:
    """Questions whose answer moved, evenly from the large rises to the large falls, with their first hits."""
    queries, bodies = [pair["query"] for pair in records], [pair["body"] for pair in records]
    found = [topk_search(encoder.encode(queries), encoder.encode(bodies), len(records)) for encoder in (before, after)]
    own = np.arange(len(records))[:, None]
    ranks = [np.argmax(ids == own, axis=1) + 1 for _, ids in found]
    is_short = np.array([4 <= len(query.split()) <= 14 for query in queries])
    candidates = np.flatnonzero(is_short & (ranks[0] != ranks[1]))
    by_rise = candidates[np.argsort(ranks[1][candidates] / ranks[0][candidates], kind="stable")]
    chosen = by_rise[(np.linspace(0.1, 0.9, _N_EXAMPLES) * len(by_rise)).astype(int)] if len(by_rise) else by_rise

    def hits(i: int, scores: np.ndarray, ids: np.ndarray) -> list[Hit]:
        best = zip(scores[i, :_N_HITS].tolist(), ids[i, :_N_HITS].tolist(), strict=True)
        return [Hit(_title(records[j]), score, i == j) for score, j in best]

    return [
        Example(queries[i], hits(i, *found[0]), hits(i, *found[1]), int(ranks[0][i]), int(ranks[1][i])) for i in chosen
    ]


def _points(code_base: Sequence[Pair], vectors: np.ndarray) -> list[Point]:
    """The map of the code base: a dot for every function, coloured by package."""
    packages = [_package(pair) for pair in code_base]
    places = principal_components(vectors, packages).tolist()
    return [
        Point(x, y, package, f"{_title(pair)}\n{pair['query']}")
        for pair, package, (x, y) in zip(code_base, packages, places, strict=True)
    ]


def _report(out: Path, numbers: Mapping[str, Any], examples: Sequence[Example], points: Sequence[Point]) -> Path:
    log, sizes, options = read_metrics(out), numbers["pairs"], numbers["options"]
    return Report(
        title="Code search in Python's standard library",
        summary=f"all-MiniLM-L6-v2 was trained for {options['steps']} steps on {sizes['train']:,} docstrings and the "
        f"code they describe. It was then asked {sizes['test']:,} questions about modules that it had never seen.",
        losses=[(line["step"], line["train/loss"]) for line in log if "train/loss" in line],
        validation=[(line["step"], line["validation/ndcg@10"]) for line in log if "validation/ndcg@10" in line],
        before=numbers["before"],
        after=numbers["after"],
        change=numbers["change"],
        examples=examples,
        points=points,
        details={
            "data": f"standard library of Python {numbers['python']}: {sizes['train']:,} training, "
            f"{sizes['validation']:,} validation and {sizes['test']:,} test pairs; no package is in two of them",
            "query, document": "a docstring's first paragraph; the function's body without it, and without its name",
            "loss": f"InfoNCE over {options['batch_size']} pairs, temperature {options['temperature']:g}",
            "optimiser": f"AdamW, learning rate {options['learning_rate']:g} with warm-up and linear decay",
            "longest text": f"{options['max_length']} tokens, {options['train_length']} in training",
            "seed": str(options["seed"]),
            "time": f"{numbers['seconds']:.0f} s in all, jaxemb {numbers['jaxemb']}",
        },
        commands=f'jaxemb search {out} "parse an iso date"\n'
        f"jaxemb info {out}/model\n"
        f"tensorboard --logdir {out}/tensorboard",
    ).write(out / "report.html")
