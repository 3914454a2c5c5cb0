"""What the subcommands of `jaxemb` do with their parsed options."""

import argparse
import ast
import contextlib
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxemb.data import Source
    from jaxemb.evaluate import Evaluator
    from jaxemb.retrieval import Hit, SearchIndex
    from jaxemb.sentence_embedder import SentenceEmbedder
    from jaxemb.text_encoder import Configured
    from jaxemb.train import Run

# The packages that `jaxemb info` lists: first what everything needs.
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "numpy"),
    *("grain", "tensorflow-datasets", "array-record", "pyarrow", "rich", "matplotlib", "tensorboardX"),
)
_ALIKE = 0.14  # of its length: how far vectors of one text are that differ by precision and device alone; cosine 0.99
_SAMPLE, _TINY = 64, 1e-12  # texts that are encoded to check vectors of all; a length that counts as zero
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # of terminals; not the end of a line
MINED_FORMATS = ("triplet", "n-tuple", "n-tuple-scores", "list", "labeled-pair", "labeled-list")


def quickstart(args: argparse.Namespace) -> None:
    """Fine-tunes, measures and reports, by the quickstart's recipe."""
    from jaxemb.recipes.quickstart import quickstart

    options = {name: getattr(args, name) for name in ("model", "steps", "batch_size", "limit", "seed")}
    given = {name: value for name, value in options.items() if value is not None}
    with _without_warnings("jaxemb.encode"), _called_overwrite():  # that functions are cut is part of the recipe
        numbers = quickstart(args.out, overwrite=args.overwrite, progress=not args.quiet, **given)
    _print(
        args,
        numbers,
        f"\nThe report is {args.out}/report.html, the model {args.out}/model. To search the standard library:\n\n"
        f'    jaxemb search {args.out} "parse an iso date"\n',
    )


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _called_overwrite() -> Iterator[None]:
    """What `fit` calls overwrite=True the errors of the command call as it does."""
    try:
        yield
    except (ValueError, FileExistsError) as error:
        said = str(error)
        if "overwrite=True" not in said:
            raise
        raise type(error)(said.replace("overwrite=True", "--overwrite")) from error


def train(args: argparse.Namespace) -> None:
    """Runs the training of a config file, alone or with other processes."""
    import jax

    from jaxemb.parallel import processes
    from jaxemb.train import fit
    from jaxemb.train.logging import headlines

    advice = f"start all processes again with the same command to go on from the newest checkpoint in {args.out}"
    _join_processes(args, advice)
    run = _load_run(args)
    try:
        with _called_overwrite():
            result = fit(run, args.out, resume=not args.no_resume, overwrite=args.overwrite, progress=not args.quiet)
    except jax.errors.JaxRuntimeError as error:
        if processes.tells_of_loss(error):
            raise ConnectionError(f"another process was lost; {advice}. JAX says: {error}") from error
        raise
    if jax.process_index():  # process 0 speaks for all
        return
    metrics = dict(result.metrics)
    report = {"out": args.out, "steps": run.steps, "steps_taken": result.steps_taken, "metrics": metrics}
    report |= {"best": result.best and dict(result.best)}
    shown = headlines(metrics, run.best and run.best[0])
    lines = [] if result.steps_taken else ["the run was finished, and nothing is trained; this is what it gave then:"]
    lines += [f"{name}  {metrics[name]:.4f}" for name in shown]
    if more := len(metrics) - len(shown):
        lines.append(f"{more} more results are in {args.out}/metrics.jsonl")
    lines.append(f"the model is {args.out}/model")
    if result.best and run.best:
        step, value = result.best["step"], result.best["value"]
        lines.append(f"the best is {args.out}/best, of step {step}: {run.best[0]} {value:.4f}")
    _print(args, report, "\n".join(lines))


def compile_(args: argparse.Namespace) -> None:
    """Compiles the training of a config file for a TPU slice; raises MemoryError if it does not fit."""
    from jaxemb import parallel
    from jaxemb.aot import compile_run
    from jaxemb.aot.slices import tpu_slice

    slice_ = tpu_slice(args.topology)
    with parallel.default_devices(slice_.devices):  # the config's mesh, if it makes one, is of these
        run = _load_run(args)
        mesh = None if args.mesh is None else parallel.make_mesh(**args.mesh)
    report = compile_run(run, slice_, mesh=mesh, records=args.records, progress=not args.quiet)
    _print(args, {"config": args.config, "set": args.set, **report.as_json()}, str(report))
    if not report.fits:
        raise MemoryError(f"{args.config} needs more than the memory of a chip of {args.topology}")


def encode(args: argparse.Namespace) -> None:
    """Writes the vectors of files of texts."""
    if Path(args.out).suffix != ".npy":
        raise ValueError(f"--out must be a .npy file; got {args.out!r}")
    if not Path(args.out).parent.is_dir():
        raise FileNotFoundError(f"--out: there is no directory {Path(args.out).parent}")
    if args.files.count("-") > 1:
        raise ValueError("FILE: - is stdin, which can be read only once")
    _check_output([args.out], args.files)
    texts = []
    for file in args.files:
        records, column = _read_texts(file, args)
        texts += [record[column] for record in records]
    embedder, _ = _load(args)
    start = time.perf_counter()
    vectors = embedder.encode(
        texts,
        prompt=args.prompt,
        prompt_name=args.prompt_name,
        normalize=args.normalize,
        dtype=args.dtype,
        out=args.out,
        show_progress=not args.quiet,
        **_encoding(args),
    )
    seconds = time.perf_counter() - start
    report = {"out": args.out, "texts": len(vectors), "dim": vectors.shape[1], "dtype": args.dtype, "seconds": seconds}
    _print(args, report, f"{args.out}: {len(vectors)} vectors of dimension {vectors.shape[1]}, {seconds:.1f} s")


def evaluate(args: argparse.Namespace) -> None:
    """Prints a model's measures on a data set, of every size with `--grid`."""
    from jaxemb import evaluate

    if args.task == "sts":
        columns = args.columns.split(",")
        if len(columns) != 3:
            raise ValueError(f"--columns must name three columns, A,B,SCORE; got {args.columns!r}")
        with _chosen_by("--columns"):
            pairs = evaluate.read_sts(args.data, columns, names=args.names, format=args.format)
        if args.grid:
            return _evaluate_grid(args, evaluate.sts_evaluator(pairs), "cosine_spearman")
        encoder, name = _load_configured(args)
        scores = evaluate.sts(encoder, pairs.first, pairs.second, pairs.scores)
        report = {"task": "sts", "model": name, "data": args.data, "pairs": len(pairs), "metrics": scores}
        lines = [f"{measure:<18} {value:.4f}" for measure, value in scores.items()]
    else:
        task = evaluate.read_beir(args.data, args.split)
        if args.grid:
            return _evaluate_grid(args, evaluate.retrieval_evaluator(task), "ndcg@10")
        encoder, name = _load_configured(args)
        per_query = evaluate.retrieval_per_query(encoder, task.queries, task.corpus, task.qrels)
        report = {"task": "retrieval", "model": name, "data": args.data, "split": args.split, **per_query.summary()}
        wanted = ("ndcg@10", "mrr@10", "map@100", "recall@1", "recall@10", "recall@100")
        lines = [
            f"{measure:<18} {found['mean']:.4f} ± {found['standard_error'] or 0:.4f}"
            for measure, found in report["metrics"].items()
            if measure in wanted
        ]
        lines.append(f"{report['queries']} queries, {len(task.corpus)} documents; ± one standard error")
    _print(args, report, "\n".join(lines))


def _evaluate_grid(args: argparse.Namespace, evaluator: "Evaluator", metric: str) -> None:
    from jaxemb import evaluate

    if args.dim is not None:
        raise ValueError("--grid takes --dims, several, instead of --dim")
    embedder, name = _load(args)
    sizes = {"layers": args.layers, "dims": args.dims}
    found = evaluate.grid(embedder, evaluator, metric, **sizes, batch_tokens=args.batch_tokens, mesh=_mesh())
    report = {"task": args.task, "model": name, "data": args.data, **found.summary(args.max_loss)}
    _print(args, report, found.table(args.max_loss))


def search(args: argparse.Namespace) -> None:
    """Prints the texts nearest to each query."""
    from jaxemb.checkpoints import hub
    from jaxemb.retrieval import build_index, open_index
    from jaxemb.retrieval.index import CONTENTS

    where = Path(args.where)
    if not where.exists():
        raise FileNotFoundError(f"there is no run, index or file {where}")
    if where.is_dir():
        run_model = where / "model"
        has_index = (where / "index").is_dir()
        if run_model.is_dir() and not has_index:
            raise FileNotFoundError(
                f"the run {where} has no index; search a file of texts: "
                f"jaxemb search TEXTS QUERY --model {run_model} --out {where / 'index'}"
            )
        if (where / "run.json").is_file() and not has_index:
            raise FileNotFoundError(f"the run {where} has no model yet; {hub.how_to_go_on(where)}")
        index = open_index(where / "index" if has_index else where)
        args.model = args.model or str(run_model if run_model.is_dir() else _model_of(index))
        embedder, _ = _load(args)
        found = index.search(args.query, embedder, args.k)
    else:
        if args.out:
            _check_output((Path(args.out) / name for name in CONTENTS.files), [args.where, args.vectors or args.where])
        records, column = _read_texts(args.where, args)
        embedder, name = _load(args)
        vectors = args.vectors and _vectors(args.vectors, [record[column] for record in records], embedder)
        with tempfile.TemporaryDirectory() as temporary:
            directory = args.out or Path(temporary) / "index"
            options = {"model": name, "text": column, "vectors": vectors, "show_progress": not args.quiet}
            index = build_index(directory, records, embedder, **options)
            found = index.search(args.query, embedder, args.k)
    report, parts = [], []
    for query, hits in zip(args.query, found, strict=True):
        report.append({"query": query, "hits": [_hit_report(hit) for hit in hits]})
        title = [query] if len(found) > 1 else []
        parts.append("\n".join([*title, *(_hit_lines(i, hit, index.manifest.text) for i, hit in enumerate(hits, 1))]))
    _print(args, {"results": report}, "\n\n".join(parts))


def _vectors(file: str, texts: Sequence[str], embedder: "SentenceEmbedder") -> Any:
    """The vectors of a file that `jaxemb encode` wrote, which must be of these texts and this model.

    Of a sample of the texts, one of each of 64 parts, the model's own vectors are compared. So if a share s is of other
    texts, they are taken with a probability of `(1 - s)**64`: a file of other texts is noticed, that a few texts were
    edited is not.
    """
    import numpy as np

    from jaxemb.similarity import unit_rows

    if not Path(file).is_file():
        raise FileNotFoundError(f"--vectors: there is no file {file}")
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is Python, and what NumPy raises for one is of many types
        raise ValueError(f"--vectors: {file} is no .npy file of numbers: {error}") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
        got = vectors.dtype if isinstance(vectors, np.ndarray) else "an archive"
        raise ValueError(f"--vectors: {file} must be a .npy file of floating-point numbers; got {got}")
    if vectors.shape != (expected := (len(texts), embedder.model.dim)):
        raise ValueError(
            f"--vectors: {file} must hold {expected}, a vector of this model for each text; got {vectors.shape}"
        )
    for start in range(0, len(vectors), 65_536):  # which are on the disk
        bad = ~np.isfinite(part := vectors[start : start + 65_536]).all(axis=1) | ~part.any(axis=1)
        if bad.any():
            raise ValueError(
                f"--vectors: {file} has a vector that is zero or not finite, of text {start + bad.argmax()}"
            )
    if not len(texts):
        return vectors
    parts = np.linspace(0, len(texts), min(len(texts), _SAMPLE) + 1).astype(int)
    sample = np.random.default_rng(0).integers(parts[:-1], parts[1:])  # not every n-th, as texts may have a period
    # Where lengths matter they are compared, too.
    seen = unit_rows if embedder.similarity_fn_name == "cosine" else lambda rows: np.asarray(rows, np.float32)
    given, least = seen(vectors[sample]), np.full(len(sample), np.inf)
    for name in dict.fromkeys((embedder.default_prompt_name, *embedder.prompts)):
        made = seen(embedder.encode([texts[i] for i in sample], prompt_name=name))
        away = np.linalg.norm(given - made, axis=1) / np.maximum(np.linalg.norm(made, axis=1), _TINY)
        if (away <= _ALIKE).all():
            return vectors
        least = min(least, away, key=np.max)
    raise ValueError(
        f"--vectors: {file} is not of these texts and this model: its vector of text {sample[least.argmax()]} is "
        f"{least.max():.0%} of the length away from the model's; another model is named with --model, another length "
        "with --max-length"
    )


def mine(args: argparse.Namespace) -> None:
    """Writes records with hard negatives."""
    from jaxemb.retrieval import mine_hard_negatives

    out, columns = Path(args.out), args.columns.split(",")
    if out.suffix != ".jsonl":
        raise ValueError(f"--out must be a .jsonl file; got {args.out!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out: there is no directory {out.parent}")
    if len(set(columns)) != 2 or len(columns) != 2:
        raise ValueError(f"--columns must name two columns, QUERY,POSITIVE; got {args.columns!r}")
    _check_output([args.out], [args.file, args.corpus or args.file])
    source, corpus = _read_to_mine(args, columns)
    (embedder, name), encoding = _load(args), _encoding(args)
    mined = mine_hard_negatives(
        embedder,
        source,
        corpus,
        query_column=columns[0],
        positive_column=columns[1],
        keep=args.keep,
        query_prompt=args.query_prompt,
        query_prompt_name=args.query_prompt_name,
        corpus_prompt=args.corpus_prompt,
        corpus_prompt_name=args.corpus_prompt_name,
        encode_options={**encoding, "show_progress": not args.quiet},
        num_negatives=args.negatives,
        range_min=args.range_min,
        range_max=args.range_max,
        max_score=args.max_score,
        min_score=args.min_score,
        absolute_margin=args.absolute_margin,
        relative_margin=args.relative_margin,
        percentile=args.percentile,
        sampling_strategy=args.sampling,
        seed=args.seed,
        include_positives=args.include_positives,
        mesh=encoding["mesh"],
    )
    mined_records = mined.records(args.output_format, output_scores=args.scores)
    _write_jsonl(out, mined_records)
    found = (mined.negatives.ids >= 0).sum(axis=1)
    report = {
        "out": args.out,
        "model": name,
        "records": len(mined_records),
        "pairs": len(source),
        "queries": len(mined.queries),
        "documents": len(mined.corpus),
        "ranked": mined.negatives.ranked,
        "queries_with_too_few": int((found < args.negatives).sum()),
        "discarded": dict(mined.negatives.discarded),
    }
    _print(args, report, "\n".join(_mined_lines(args, report)))


def _read_to_mine(
    args: argparse.Namespace, columns: Sequence[str]
) -> "tuple[Source, Sequence[Mapping[str, Any]] | None]":
    """The pairs and the corpus of `mine`, if the result can hold their columns."""
    from jaxemb.data import read
    from jaxemb.retrieval.mining import check_columns

    with _chosen_by("--columns and --keep" if args.keep else "--columns"):
        source = read(args.file, format=args.format, names=args.names, columns=[*columns, *args.keep])
    _check_kept(args.file, source.__getitems__(range(len(source))) if args.keep else (), args.keep)
    corpus = None
    if args.corpus:
        documents = argparse.Namespace(format=args.corpus_format, column=args.corpus_column, names=None)
        records, column = _read_texts(args.corpus, documents, option="--corpus-column", keep=args.keep)
        if not (corpus := [{**record, columns[1]: record[column]} for record in records]):
            raise ValueError(f"--corpus: {args.corpus} has no texts")
    most = min(args.negatives, len(source) + len(corpus or ()))
    check_columns([*columns, *args.keep], args.output_format, output_scores=args.scores, num_negatives=most)
    return source, corpus


def _mined_lines(args: argparse.Namespace, report: Mapping[str, Any]) -> Iterator[str]:
    """What `mine` reports, as a person reads it."""
    of = f"({report['queries']} queries, {report['documents']} documents)"
    yield f"{args.out}: {report['records']} records of {report['pairs']} pairs {of}"
    if too_few := report["queries_with_too_few"]:
        left = " and are left out" if args.output_format in ("list", "n-tuple", "n-tuple-scores") else ""
        remedies = {
            "a larger --range-max": report["ranked"] < report["documents"],
            "a smaller --range-min": args.range_min,
            **{f"another --{name.replace('_', '-')}": count for name, count in report["discarded"].items()},
        }
        more = " or ".join(remedy for remedy, helps in remedies.items() if helps) or "a larger --corpus"
        yield f"{too_few} queries have less than {args.negatives} negatives{left}; {more} may find more"
    for option, count in report["discarded"].items():
        yield f"{count} candidates discarded by {option}"


def info(args: argparse.Namespace) -> None:
    """Prints what a model, or this machine, is."""
    report = _describe_model(args.model) if args.model else _describe_machine()
    width = max(map(len, report))
    _print(args, report, "\n".join(f"{name.replace('_', ' '):<{width}}  {_shown(v)}" for name, v in report.items()))


# What the commands share


@contextlib.contextmanager
def _chosen_by(option: str) -> Iterator[None]:
    """What a file lacks is named by an option; the error says which."""
    from jaxemb.data.files import FieldError

    try:
        yield
    except FieldError as error:
        raise FieldError(f"{error}; choose others with {option}") from error


def _load_run(args: argparse.Namespace) -> "Run":
    from jaxemb.train import load_run

    sys.path.insert(0, os.getcwd())  # what a config file imports may lie here, as with `python -m`
    return load_run(args.config, parsed_options(args.set))


def _join_processes(args: argparse.Namespace, advice: str) -> None:
    """Makes this process one of a distributed program, before anything else asks JAX for its devices."""
    given = (args.coordinator, args.num_processes, args.process_id)
    if not args.distributed:
        if any(option is not None for option in given):
            raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
        return
    if any(option is None for option in given) and any(option is not None for option in given):
        raise ValueError("--coordinator, --num-processes and --process-id are given all three or, to find out, none")
    if args.process_id is not None and not 0 <= args.process_id < args.num_processes:
        raise ValueError(f"--process-id must be in 0..{args.num_processes - 1}; got {args.process_id}")
    from jaxemb.parallel import processes

    try:
        processes.join(*given, advice=advice)
    except ValueError as error:
        raise ValueError(
            f"--distributed found no TPU slice, GKE job or Slurm job to join ({error}); "
            "give --coordinator, --num-processes and --process-id"
        ) from None


def _print(args: argparse.Namespace, report: Mapping[str, Any], text: str) -> None:
    visible = lambda: _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)
    print(json.dumps(_or_null(report), ensure_ascii=False) if args.json else visible())


def _or_null(value: Any) -> Any:
    """The value with null for numbers that are not finite, which JSON does not have."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {name: _or_null(item) for name, item in value.items()}
        case list() | tuple():
            return [_or_null(item) for item in value]
        case _:
            return value


def _load(args: argparse.Namespace) -> "tuple[SentenceEmbedder, str]":
    """The model that the command asks for, and how it is found again."""
    import jaxemb
    from jaxemb.recipes.offline_model import default_model

    name = args.model or str(default_model().path)
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    embedder = jaxemb.load(name, dtype=args.compute_dtype)
    if (length := args.max_length) is None:
        return embedder, name
    if length > embedder.max_length:
        raise ValueError(f"--max-length must be at most {embedder.max_length}, what the model reads; got {length}")
    return embedder.replace(max_length=length), name


def _model_of(index: "SearchIndex") -> Path:
    """The model that an index names, if it is on this machine: what a file says is not fetched."""
    from jaxemb.checkpoints.hub import resolve

    try:
        return resolve(index.manifest.model, fetch=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{index.path}: the model of the index is absent; name it with --model: {error}"
        ) from None


def _load_configured(args: argparse.Namespace) -> "tuple[Configured, str]":
    """The model as evaluators see it, with the command's options of encoding."""
    from jaxemb.text_encoder import Configured

    embedder, name = _load(args)
    return Configured(embedder, _encoding(args)), name


def _encoding(args: argparse.Namespace) -> dict[str, Any]:
    return {"dim": args.dim, "batch_tokens": args.batch_tokens, "mesh": _mesh()}


def _mesh() -> "Mesh | None":
    """All devices, if there are several."""
    from jaxemb import parallel

    return parallel.default_mesh()


def _check_output(outputs: Iterable[str | Path], inputs: Iterable[str]) -> None:
    """Raises a ValueError for a file that is read, and would be replaced by what is written."""
    written = set(map(os.path.realpath, outputs))
    if file := next((file for file in inputs if os.path.realpath(file) in written), None):
        raise ValueError(f"--out: {file} is read, and would be overwritten; write elsewhere")


def _check_kept(file: str, records: Iterable[Mapping[str, Any]], keep: Sequence[str]) -> None:
    """Raises an error that names record and column for a value that a .jsonl file cannot hold."""
    from jaxemb.checks import json_text

    for number, record in enumerate(records):
        for name in keep:
            json_text(f"{file}: record {number}: column {name!r} (--keep)", record.get(name))


def _read_texts(
    file: str, args: argparse.Namespace, option: str = "--column", keep: Sequence[str] = ()
) -> "tuple[list[dict[str, Any]], str]":
    """The records of a file, or the lines of stdin, and the column of their texts; `keep` are columns to be written."""
    from jaxemb.checks import described
    from jaxemb.data import read
    from jaxemb.data.files import checked_format

    if file == "-":
        return _lines("stdin", _lines_of_stdin()), "text"
    source = read(file, format=args.format, names=args.names, keep_blank=True)
    records = source.__getitems__(range(len(source)))
    if checked_format(Path(file), args.format) == "txt":
        records = _lines(file, (record["text"] for record in records))
    names = list(records[0]) if records else ["text"]
    column = args.column or ("text" if "text" in names else names[0] if len(names) == 1 else None)
    has_header = not args.names and (args.format or file.removesuffix(".gz")).endswith(("csv", "tsv"))
    if has_header and args.column is None and column not in (None, "text"):
        logging.getLogger(__name__).warning(
            "%s: the first line, %r, is taken for the name of its column; if it is a text, add --names text",
            file,
            column,
        )
    if column is None:
        hint = "; if that is no header line, say what the columns are called with --names" if has_header else ""
        raise ValueError(f"{file} has the columns {', '.join(names)}; choose one with {option}{hint}")
    for number, record in enumerate(records):
        value = record.get(column)
        if not isinstance(value, str):
            there = [name for name in sorted(record) if record[name] is not None]
            problem = f"it has {there}" if value is None else f"it has {described(value)} there"
            raise ValueError(f"{file}: record {number} has no text in column {column!r} ({option}); {problem}")
    _check_kept(file, records, keep)
    return _with_texts(file, records, column, "record"), column


def _lines(name: str, texts: Iterable[str]) -> list[dict[str, Any]]:
    """Records of the lines that are not blank, each with its number."""
    return _with_texts(name, [{"text": text, "line": n} for n, text in enumerate(texts, 1)], "text", "line")


def _with_texts(name: str, records: Sequence[dict[str, Any]], column: str, what: str) -> list[dict[str, Any]]:
    """The records whose text is not blank; a warning says which others there are, from 1."""
    from jaxemb.data.files import BlankLines

    kept, blank = [], BlankLines(what)
    for number, record in enumerate(records, 1):
        if record[column].strip():
            kept.append(record)
        else:
            blank.add(number)
    blank.report(name, "the texts are counted without them")
    return kept


def _lines_of_stdin() -> list[str]:
    """The lines, which end and begin as those of a .txt file do."""
    if getattr(sys.stdin, "name", None) == os.devnull:  # opened in place of one that was closed
        raise ValueError("FILE: - is stdin, which is closed")
    try:
        lines = [line.decode("utf-8" if n else "utf-8-sig") for n, line in enumerate(sys.stdin.buffer)]
    except UnicodeDecodeError as error:
        raise ValueError(f"FILE: - is stdin, which is not {error.encoding}: {error.reason}") from error
    return [line.rstrip("\r\n") for line in lines]


def parsed_options(assignments: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as options; a value that is no Python literal is a text."""
    options = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set must be NAME=VALUE; got {assignment!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    from jaxemb.files import replaced_file

    with replaced_file(path) as fresh, open(fresh, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _hit_report(hit: "Hit") -> dict[str, Any]:
    """A hit as JSON: its score and number, and the record, whose own id is the number if it has one."""
    own = {"record_score" if name == "score" else name: value for name, value in hit.record.items()}
    return {"score": hit.score, "id": hit.id, **own}


def _hit_lines(rank: int, hit: "Hit", text_column: str) -> str:
    """A hit in up to three lines: what it is called and where it is, what it is about, and its other columns."""
    record = hit.record
    one_line = lambda value: " ".join(str(value).split())
    title = one_line(record.get("title") or record[text_column])
    number = one_line(record.get("line", 1))
    line = f"line {number}  " if "line" in record and "path" not in record else ""
    place = f"  {one_line(record['path'])}:{number}" if "path" in record else ""
    about = one_line(record.get("about") or record[text_column]) if record.get("title") else ""
    shown = {text_column, "title", "path", "line", "about"}
    others = [
        f"{name}: {one_line(value)[:60]}"
        for name, value in record.items()
        if name not in shown and isinstance(value, str | int | float) and value != ""
    ]
    width = shutil.get_terminal_size((120, 24)).columns
    lines = [f"{rank:>3}  {hit.score:.3f}  {line}{title}{place}", f"{'':12}{about}", f"{'':12}{'  '.join(others)}"]
    return "\n".join(line[: width - 1] for line in lines if line.strip())


def _shown(value: Any) -> str:
    """A value of a report as a person reads it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case None | "" | () | []:
            return "none"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(_shown, value))
        case dict():
            return ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) or "none"
        case _:
            return str(value)


def _describe_model(name: str) -> dict[str, Any]:
    """What `jaxemb info MODEL` says."""
    from collections import Counter

    import jax

    import jaxemb
    from jaxemb.embedder import transformer_of
    from jaxemb.pooling import names_of

    embedder = jaxemb.load(name)
    model, config = embedder.model, transformer_of(embedder.model).config
    checkpoint = embedder.format.encoder
    return {
        "model": name,
        "family": checkpoint.config["model_type"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "layers": config.layers,
        "hidden_dim": config.dim,
        "attention_heads": config.heads,
        "vocabulary": config.vocab_size,
        "pooling": list(names_of(model.pooling) or [type(model.pooling).__name__]),
        "heads": [type(head).__name__ for head in model.heads],
        "embedding_dim": model.dim,
        "unit_length": model.normalizes,
        "similarity": embedder.similarity_fn_name,
        "max_length": embedder.max_length,
        "prompts": dict(embedder.prompts),
        "default_prompt": embedder.default_prompt_name,
        "tensors": dict(Counter(str(tensor.dtype) for tensor in checkpoint.stored)),
        "tensors_unused": sorted(checkpoint.unused),
    }


def _describe_machine() -> dict[str, Any]:
    """What `jaxemb info` says."""
    import importlib.metadata
    import platform

    import jax

    import jaxemb
    from jaxemb.compilation import enable_persistent_cache

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "absent"

    return {
        "python": platform.python_version(),
        "jaxemb": jaxemb.__version__,
        **{package: version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "compilation_cache": str(enable_persistent_cache()),
    }
