"""The `jaxemb` command. What a subcommand needs is imported when it runs, so help and usage errors are instant."""

import argparse
import ast
import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from jaxemb.embedder import SentenceEmbedder
    from jaxemb.evaluate import Evaluator
    from jaxemb.retrieval import Hit
    from jaxemb.train import Run

Command = Callable[[argparse.Namespace], None]

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# What these say is about what the user gave; everything else is a failure of the work.
_INPUT_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

MINED_FORMATS = ("triplet", "n-tuple", "n-tuple-scores", "list", "labeled-pair", "labeled-list")

_EXIT_CODES = "exit codes: 0 done, 1 the work failed, 2 bad usage or input, 130 interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (by default those of the process) and returns its exit code."""
    parser = _parser()
    try:
        args = parser.parse_args(arguments)
    except SystemExit as exit_:  # argparse has printed help or the usage error
        return int(exit_.code or OK)
    logging.basicConfig(level=logging.WARNING, format="jaxemb: %(levelname)s: %(message)s")
    try:
        _enable_compilation_cache(args)
        args.command(args)
        sys.stdout.flush()
        return OK
    except KeyboardInterrupt:
        print("jaxemb: interrupted", file=sys.stderr)
        return _exit_code(INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _exit_code(FAILED) if _has_joined() else OK  # others wait for what this process was about to do
    except Exception as error:
        if args.debug:
            if not _has_joined():
                raise
            traceback.print_exc()
        print(f"jaxemb: error: {_one_line(error)}", file=sys.stderr)
        return _exit_code(BAD_INPUT if isinstance(error, _INPUT_ERRORS) else FAILED)


def _exit_code(code: int) -> int:
    """The code, to return; one of several processes that fails ends here and now."""
    if _has_joined():
        from jaxemb.parallel import processes

        processes.end(code)
    return code


def _has_joined() -> bool:
    return (jax := sys.modules.get("jax")) is not None and jax.distributed.is_initialized()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, _INPUT_ERRORS) else f"{type(error).__name__}: {text}"


def _enable_compilation_cache(args: argparse.Namespace) -> None:
    if args.name != "info":
        from jaxemb.compilation import enable_persistent_cache

        enable_persistent_cache()


# The command line


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples, and adds defaults to the help of options that have one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, False, argparse.SUPPRESS) and action.option_strings
        return f"{action.help} (default: %(default)s)" if shown else action.help


def _parser() -> argparse.ArgumentParser:
    import jaxemb

    parser = argparse.ArgumentParser(
        prog="jaxemb",
        usage="jaxemb [--help] [--version] COMMAND [OPTIONS]",
        formatter_class=_Formatter,
        description="Train, use, evaluate and search embedding models in JAX.",
        epilog=f"`jaxemb COMMAND --help` shows a command's options and examples.\n{_EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"jaxemb {jaxemb.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND [OPTIONS]", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--quiet", action="store_true", help="no progress bar")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    model = argparse.ArgumentParser(add_help=False)
    group = model.add_argument_group("model")
    group.add_argument("--model", metavar="PATH_OR_ID", help="directory or hub id (default: all-MiniLM-L6-v2)")
    group.add_argument(
        "--compute-dtype", choices=("float32", "bfloat16"), default="float32", help="precision inside the model"
    )

    encoding = argparse.ArgumentParser(add_help=False)
    group = encoding.add_argument_group("encoding")
    group.add_argument("--batch-tokens", type=_count, metavar="N", help="tokens per batch (default: suits the device)")
    group.add_argument("--dim", type=_count, metavar="N", help="keep the first N dimensions of the vectors")

    texts = argparse.ArgumentParser(add_help=False)
    group = texts.add_argument_group("files of texts")
    group.add_argument("--column", metavar="NAME", help="the column of the texts (default: 'text', or the only one)")
    group.add_argument(
        "--format", choices=("txt", "csv", "tsv", "jsonl", "parquet"), help="of the file (default: by its name)"
    )

    processes = argparse.ArgumentParser(add_help=False)
    group = processes.add_argument_group("several processes that train as one")
    group.add_argument(
        "--distributed", action="store_true", help="join the others; TPU slices, GKE and Slurm say who they are"
    )
    group.add_argument(
        "--coordinator", type=_address, metavar="HOST:PORT", help="an address of process 0 that all can reach"
    )
    group.add_argument("--num-processes", type=_count, metavar="N", help="how many they are")
    group.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0")

    def command(
        name: str,
        run: Command,
        about: str,
        examples: str,
        *parents: argparse.ArgumentParser,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            prog=f"jaxemb {name}",
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"examples:\n{examples.rstrip()}\n\n{_EXIT_CODES}",
            formatter_class=_Formatter,
            parents=[*parents, common],
        )
        sub.set_defaults(command=run, name=name)
        return sub

    sub = command(
        "quickstart",
        _quickstart,
        "fine-tune all-MiniLM-L6-v2 for code search, with measurements and a report",
        """\
  jaxemb quickstart
  jaxemb quickstart --out runs/mine --steps 400 --seed 1""",
    )
    sub.add_argument("--out", default="runs/quickstart", metavar="DIR", help="where everything is written")
    sub.add_argument("--model", metavar="PATH_OR_ID", help="where to start from (default: all-MiniLM-L6-v2)")
    sub.add_argument("--steps", type=_count, metavar="N", help="training steps (default: the recipe's)")
    sub.add_argument("--batch-size", type=_count, metavar="N", help="pairs per step (default: the recipe's)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order of the pairs")
    sub.add_argument("--limit", type=_count, metavar="N", help="at most N pairs of each split, for a quick trial")

    sub = command(
        "train",
        _train,
        "run the training that a config file describes",
        """\
  jaxemb train experiments/code_search.py --out runs/code_search
  jaxemb train my_run.py --out runs/mine --set steps=1000 --set learning_rate=3e-5
  jaxemb train my_run.py --out runs/mine              # again: goes on where it stopped
  jaxemb train my_run.py --out /shared/mine --distributed        # on every host of a TPU slice
  jaxemb train my_run.py --out runs/mine --distributed --coordinator first-host:1234 \\
      --num-processes 2 --process-id 0                # elsewhere: once per process, ids from 0""",
        processes,
    )
    sub.add_argument("config", metavar="CONFIG.py", help="Python file that defines run(**options) -> jaxemb.train.Run")
    sub.add_argument("--out", required=True, metavar="DIR", help="directory of the run: model, checkpoints, logs")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of run(): a Python literal or text",
    )
    sub.add_argument("--no-resume", action="store_true", help="start anew instead of going on from a checkpoint")

    sub = command(
        "rehearse",
        _rehearse,
        "compile the training of a config file for a TPU slice and say what it will need; no TPU is used",
        """\
  jaxemb rehearse tpu/bert_base.py --topology v5e:8x8
  jaxemb rehearse my_run.py --topology v5p:4x4x4 --mesh data=16,fsdp=4 --set batch_size=8192 --json
  jaxemb rehearse my_run.py --topology v6e:16x16 --records 65536""",
    )
    sub.add_argument("config", metavar="CONFIG.py", help="as `jaxemb train` takes it")
    sub.add_argument("--topology", required=True, metavar="NAME", help="v5e:AxB, v6e:AxB or v5p:AxBxC")
    sub.add_argument(
        "--mesh",
        type=_axes,
        metavar="AXIS=N,...",
        help="sizes of data, fsdp, tensor (default: the config's, or all data)",
    )
    sub.add_argument("--records", type=_count, metavar="N", help="records per batch (default: as the data gives them)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="option of run(): a Python literal or text"
    )

    sub = command(
        "encode",
        _encode,
        "turn texts into vectors, written as a .npy file",
        """\
  jaxemb encode sentences.txt --out vectors.npy
  jaxemb encode pages.jsonl --column body --model runs/quickstart/model --dtype float16 --out pages.npy
  zcat titles.gz | jaxemb encode - --prompt-name query --out titles.npy""",
        model,
        encoding,
        texts,
    )
    sub.add_argument(
        "files", nargs="+", metavar="FILE", help="txt (a text per line), csv, tsv, jsonl, parquet; - for stdin"
    )
    sub.add_argument("--out", required=True, metavar="FILE.npy", help="vectors [N, D], row n for text n")
    sub.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="type of the written vectors")
    sub.add_argument("--normalize", action="store_true", help="give the vectors unit length")
    sub.add_argument("--prompt", metavar="TEXT", help="text to put in front of each")
    sub.add_argument("--prompt-name", metavar="NAME", help="or the name of one of the model's prompts")

    sub = command(
        "evaluate",
        _evaluate,
        "measure a model on a similarity or retrieval data set",
        """\
  jaxemb evaluate --task sts --data stsb-en-dev.csv.gz --names sentence1,sentence2,score
  jaxemb evaluate --task sts --data SICK_trial.txt.gz --format tsv \\
      --columns sentence_A,sentence_B,relatedness_score
  jaxemb evaluate --task retrieval --data scifact/ --split test --model runs/quickstart/model --json
  jaxemb evaluate --task sts --data pairs.csv --grid --layers 2,4,6 --dims 64,128 --max-loss 0.01""",
        model,
        encoding,
    )
    sub.add_argument("--task", choices=("sts", "retrieval"), required=True, help="what is measured")
    sub.add_argument("--data", required=True, metavar="PATH", help="sts: a file of pairs; retrieval: a BEIR directory")
    sub.add_argument(
        "--columns",
        metavar="A,B,SCORE",
        default="sentence1,sentence2,score",
        help="sts: the columns of the two texts and the score",
    )
    sub.add_argument("--names", metavar="A,B,...", help="sts: the columns of a file without a header line")
    sub.add_argument(
        "--format", choices=("csv", "tsv", "jsonl", "parquet"), help="sts: of the file (default: by its name)"
    )
    sub.add_argument("--split", default="test", metavar="NAME", help="retrieval: which qrels")
    group = sub.add_argument_group("every size of the model")
    group.add_argument("--grid", action="store_true", help="quality, speed and index size by layers and dimensions")
    group.add_argument("--layers", type=_counts, metavar="N,...", help="numbers of layers (default: up to six)")
    group.add_argument("--dims", type=_counts, metavar="N,...", help="dimensions (default: powers of two from 32)")
    group.add_argument(
        "--max-loss", type=float, default=0.02, metavar="X", help="of quality, for the size that is recommended"
    )

    sub = command(
        "search",
        _search,
        "find the texts nearest to a query",
        """\
  jaxemb search runs/quickstart "parse an iso date"
  jaxemb search notes.txt "what did we decide about the budget" -k 3
  jaxemb search notes.txt "budget" --out notes.index      # keeps the vectors
  jaxemb search notes.index "holidays" --json""",
        model,
        texts,
    )
    sub.add_argument("where", metavar="DIR_OR_FILE", help="a run, an index, or a file of texts that is encoded first")
    sub.add_argument("query", metavar="QUERY", nargs="+", help="what to look for")
    sub.add_argument("-k", type=_count, default=10, metavar="N", help="number of hits")
    sub.add_argument("--out", metavar="DIR", help="of a file of texts: keep its index in this directory")

    sub = command(
        "mine",
        _mine,
        "find hard negatives for pairs of query and positive, written as a .jsonl file",
        """\
  jaxemb mine pairs.csv --out negatives.jsonl
  jaxemb mine pairs.jsonl --columns question,answer --corpus answers.txt --negatives 5 \\
      --relative-margin 0.05 --out negatives.jsonl
  jaxemb mine pairs.csv --output-format triplet --sampling random --range-max 50 --out triplets.jsonl""",
        model,
        encoding,
    )
    formats = ("txt", "csv", "tsv", "jsonl", "parquet")
    sub.add_argument("file", metavar="FILE", help="records of a query and a positive each")
    sub.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the records with negatives are written")
    sub.add_argument(
        "--columns", metavar="QUERY,POSITIVE", default="query,positive", help="the columns of the two texts"
    )
    sub.add_argument("--format", choices=formats[1:], help="of the file (default: by its name)")
    sub.add_argument("--corpus", metavar="FILE", help="more documents to search (default: the positives alone)")
    sub.add_argument("--corpus-column", metavar="NAME", help="their column (default: 'text', or the only one)")
    sub.add_argument("--corpus-format", choices=formats, help="of the corpus file (default: by its name)")
    sub.add_argument("--output-format", choices=MINED_FORMATS, default="list", help="columns of the result")
    sub.add_argument("--scores", action="store_true", help="write the scores as well")
    sub.add_argument("--query-prompt", metavar="TEXT", help="text to put in front of queries")
    sub.add_argument("--query-prompt-name", metavar="NAME", help="or one of the model's prompts (default: 'query')")
    sub.add_argument("--corpus-prompt", metavar="TEXT", help="text to put in front of documents")
    sub.add_argument("--corpus-prompt-name", metavar="NAME", help="or one of the model's (default: 'document')")
    group = sub.add_argument_group("which negatives")
    group.add_argument("--negatives", type=_count, default=3, metavar="N", help="how many for each query")
    group.add_argument("--range-min", type=int, default=0, metavar="N", help="skip the N most similar")
    group.add_argument("--range-max", type=_count, metavar="N", help="look no further than rank N")
    group.add_argument("--max-score", type=float, metavar="S", help="none that is more similar")
    group.add_argument("--min-score", type=float, metavar="S", help="none that is less similar")
    group.add_argument("--absolute-margin", type=float, metavar="M", help="less similar than the positive by M")
    group.add_argument(
        "--relative-margin", type=float, metavar="M", help="or by the share M of its score, such as 0.05"
    )
    group.add_argument("--percentile", type=float, metavar="P", help="none above the P-th percentile of the positives")
    group.add_argument("--sampling", choices=("top", "random"), default="top", help="the most similar, or any in range")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of random sampling")
    group.add_argument("--include-positives", action="store_true", help="rank the positives too, to test rerankers")

    sub = command(
        "info",
        _info,
        "describe a model, or without one the software and devices here",
        """\
  jaxemb info
  jaxemb info runs/quickstart/model
  jaxemb info sentence-transformers/all-MiniLM-L6-v2 --json""",
    )
    sub.add_argument("model", nargs="?", metavar="PATH_OR_ID", help="directory or hub id")
    return parser


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _count(text: str) -> int:
    """The type of an option that is a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def _axes(text: str) -> dict[str, int]:
    """The type of an option that is AXIS=N,..."""
    pairs = re.findall(r"(data|fsdp|tensor)=(-?\d+)(?:,|$)", text)
    if not pairs or ",".join(f"{axis}={size}" for axis, size in pairs) != text or len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"must be sizes of data, fsdp, tensor, such as data=16,fsdp=4; got {text!r}")
    return {axis: int(size) for axis, size in pairs}


def _address(text: str) -> str:
    """The type of an option that is HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"must be HOST:PORT; got {text!r}")
    return text


# The commands


def _quickstart(args: argparse.Namespace) -> None:
    from jaxemb.quickstart import quickstart

    options = {name: getattr(args, name) for name in ("model", "steps", "batch_size", "limit", "seed")}
    given = {name: value for name, value in options.items() if value is not None}
    with _without_warnings("jaxemb.encode"):  # that long functions are cut is part of the recipe
        numbers = quickstart(args.out, progress=not args.quiet, **given)
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


def _train(args: argparse.Namespace) -> None:
    import jax

    from jaxemb.parallel import processes
    from jaxemb.train import fit

    advice = f"start all processes again with the same command to go on from the newest checkpoint in {args.out}"
    _join_processes(args, advice)
    run = _load_run(args)
    try:
        result = fit(run, args.out, resume=not args.no_resume, progress=not args.quiet)
    except jax.errors.JaxRuntimeError as error:
        if processes.tells_of_loss(error):
            raise ConnectionError(f"another process was lost; {advice}. JAX says: {error}") from error
        raise
    if jax.process_index():  # process 0 speaks for all
        return
    metrics = dict(result.metrics)
    report = {"out": args.out, "steps": run.steps, "metrics": metrics, "best": result.best and dict(result.best)}
    lines = [f"{name}  {value:.4f}" for name, value in metrics.items()]
    _print(args, report, "\n".join([*lines, f"the model is {args.out}/model"]))


def _rehearse(args: argparse.Namespace) -> None:
    from jaxemb import parallel
    from jaxemb.parallel.slices import tpu_slice
    from jaxemb.train.rehearsal import rehearse

    slice_ = tpu_slice(args.topology)
    with parallel.default_devices(slice_.devices):  # the config's mesh, if it makes one, is of these
        run = _load_run(args)
        mesh = None if args.mesh is None else parallel.make_mesh(**args.mesh)
    report = rehearse(run, slice_, mesh=mesh, records=args.records)
    _print(args, report.as_json(), str(report))
    if not report.fits:
        raise MemoryError(f"{args.config} needs more than the memory of a chip of {args.topology}")


def _encode(args: argparse.Namespace) -> None:
    if Path(args.out).suffix != ".npy":
        raise ValueError(f"--out must be a .npy file; got {args.out!r}")
    if not Path(args.out).parent.is_dir():
        raise FileNotFoundError(f"--out: there is no directory {Path(args.out).parent}")
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
        dim=args.dim,
        normalize=args.normalize,
        batch_tokens=args.batch_tokens,
        dtype=args.dtype,
        out=args.out,
        mesh=_mesh(),
        show_progress=not args.quiet,
    )
    seconds = time.perf_counter() - start
    report = {"out": args.out, "texts": len(vectors), "dim": vectors.shape[1], "dtype": args.dtype, "seconds": seconds}
    _print(args, report, f"{args.out}: {len(vectors)} vectors of dimension {vectors.shape[1]}, {seconds:.1f} s")


def _evaluate(args: argparse.Namespace) -> None:
    from jaxemb import evaluate

    if args.task == "sts":
        columns = args.columns.split(",")
        if len(columns) != 3:
            raise ValueError(f"--columns must name three columns, A,B,SCORE; got {args.columns!r}")
        pairs = evaluate.read_sts(args.data, columns, names=args.names and args.names.split(","), format=args.format)
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


def _search(args: argparse.Namespace) -> None:
    from jaxemb.retrieval import build_index, open_index

    where, query = Path(args.where), " ".join(args.query)
    if not where.exists():
        raise FileNotFoundError(f"there is no run, index or file {where}")
    if not query.strip():
        raise ValueError("the query is empty")
    if where.is_dir():
        run_model = where / "model"
        index = open_index(where / "index" if (where / "index").is_dir() else where)
        args.model = args.model or (str(run_model) if run_model.is_dir() else index.manifest.model)
        embedder, _ = _load(args)
        hits = index.search([query], embedder, args.k)[0]
    else:
        records, column = _read_texts(args.where, args)
        embedder, name = _load(args)
        with tempfile.TemporaryDirectory() as temporary:
            directory = args.out or Path(temporary) / "index"
            index = build_index(directory, records, embedder, model=name, text=column, show_progress=not args.quiet)
            hits = index.search([query], embedder, args.k)[0]
    report = {"query": query, "hits": [{"score": hit.score, "id": hit.id, **hit.record} for hit in hits]}
    _print(args, report, "\n".join(_hit_lines(rank, hit, index.manifest.text) for rank, hit in enumerate(hits, 1)))


def _mine(args: argparse.Namespace) -> None:
    from jaxemb.data import read
    from jaxemb.retrieval import mine_hard_negatives

    out, columns = Path(args.out), args.columns.split(",")
    if out.suffix != ".jsonl":
        raise ValueError(f"--out must be a .jsonl file; got {args.out!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out: there is no directory {out.parent}")
    if len(columns) != 2:
        raise ValueError(f"--columns must name two columns, QUERY,POSITIVE; got {args.columns!r}")
    source = read(args.file, format=args.format).with_columns(columns)
    corpus = None
    if args.corpus:
        documents = argparse.Namespace(format=args.corpus_format, column=args.corpus_column)
        records, column = _read_texts(args.corpus, documents)
        corpus = [record[column] for record in records]
    embedder, name = _load(args)
    mesh = _mesh()
    mined = mine_hard_negatives(
        embedder,
        source,
        corpus,
        query_column=columns[0],
        positive_column=columns[1],
        query_prompt=args.query_prompt,
        query_prompt_name=args.query_prompt_name,
        corpus_prompt=args.corpus_prompt,
        corpus_prompt_name=args.corpus_prompt_name,
        encode_options={
            "dim": args.dim,
            "batch_tokens": args.batch_tokens,
            "mesh": mesh,
            "show_progress": not args.quiet,
        },
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
        mesh=mesh,
    )
    mined_records = mined.records(args.output_format, output_scores=args.scores)
    unfinished = out.with_name(f"{out.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in mined_records)
    os.replace(unfinished, out)
    found = (mined.negatives.ids >= 0).sum(axis=1)
    report = {
        "out": args.out,
        "model": name,
        "records": len(mined_records),
        "queries": len(mined.queries),
        "documents": len(mined.corpus),
        "queries_with_too_few": int((found < args.negatives).sum()),
        "discarded": dict(mined.negatives.discarded),
    }
    lines = [f"{args.out}: {len(mined_records)} records of {len(mined.queries)} queries"]
    if too_few := report["queries_with_too_few"]:
        lines.append(f"{too_few} queries have less than {args.negatives} negatives; a larger --range-max may find more")
    lines += [f"{count} candidates discarded by {option}" for option, count in mined.negatives.discarded.items()]
    _print(args, report, "\n".join(lines))


def _info(args: argparse.Namespace) -> None:
    report = _describe_model(args.model) if args.model else _describe_machine()
    width = max(map(len, report))
    _print(args, report, "\n".join(f"{name.replace('_', ' '):<{width}}  {_shown(v)}" for name, v in report.items()))


# What the commands share


def _load_run(args: argparse.Namespace) -> "Run":
    from jaxemb.train import load_run

    sys.path.insert(0, os.getcwd())  # what a config file imports may lie here, as with `python -m`
    return load_run(args.config, _options(args.set))


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
    print(json.dumps(report, ensure_ascii=False) if args.json else text)


def _load(args: argparse.Namespace) -> "tuple[SentenceEmbedder, str]":
    """The model that the command asks for, and how it is found again."""
    import jaxemb
    from jaxemb.default_model import default_model

    name = Path(args.model or default_model().path)
    name = name.resolve() if name.is_dir() else name
    return jaxemb.load(str(name), dtype=args.compute_dtype), str(name)


def _load_configured(args: argparse.Namespace) -> "tuple[_Configured, str]":
    """The model as evaluators see it."""
    embedder, name = _load(args)
    return _Configured(embedder, args.dim, args.batch_tokens), name


def _mesh() -> "Mesh | None":
    """All devices, if there are several."""
    import jax

    from jaxemb.parallel import make_mesh

    return make_mesh() if jax.device_count() > 1 else None


@dataclasses.dataclass(frozen=True)
class _Configured:
    """An embedder as evaluators see it, with the command's options of encoding."""

    embedder: "SentenceEmbedder"
    dim: int | None
    batch_tokens: int | None

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.embedder.prompts

    @property
    def similarity_fn_name(self) -> str:
        return self.embedder.similarity_fn_name

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> "np.ndarray":
        return self.embedder.encode(
            texts, prompt_name=prompt_name, dim=self.dim, batch_tokens=self.batch_tokens, mesh=_mesh()
        )


def _read_texts(file: str, args: argparse.Namespace) -> "tuple[list[dict[str, Any]], str]":
    """The records of a file, or the lines of stdin, and the column of their texts."""
    from jaxemb.data import read

    if file == "-":
        return [{"text": line.rstrip("\r\n")} for line in sys.stdin], "text"
    source = read(file, format=args.format)
    records = source.__getitems__(range(len(source)))
    names = list(records[0]) if records else ["text"]
    column = args.column or ("text" if "text" in names else names[0] if len(names) == 1 else None)
    if column is None:
        raise ValueError(f"{file} has the columns {', '.join(names)}; choose one with --column")
    for number, record in enumerate(records):
        if not isinstance(record.get(column), str):
            raise ValueError(f"{file}: record {number} has no text in column {column!r}; it has {sorted(record)}")
    return records, column


def _options(assignments: Sequence[str]) -> dict[str, Any]:
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


def _hit_lines(rank: int, hit: "Hit", text_column: str) -> str:
    """A hit in two lines: what it is called and where it is, then what it is about; one line if it has no title."""
    record = hit.record
    one_line = lambda value: " ".join(str(value).split())
    title = record.get("title") or one_line(record[text_column])
    place = f"  {record['path']}:{record.get('line', 1)}" if "path" in record else ""
    about = one_line(record.get("about") or record[text_column]) if record.get("title") else ""
    width = shutil.get_terminal_size((120, 24)).columns
    lines = [f"{rank:>3}  {hit.score:.3f}  {title}{place}", f"{'':12}{about}"]
    return "\n".join(line[: width - 1] for line in lines if line.strip())


def _shown(value: Any) -> str:
    """A value of a report as a person reads it."""
    match value:
        case bool() | None | "" | () | [] | {}:
            return {True: "yes", False: "no"}.get(value, "none") if isinstance(value, bool) else "none"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(_shown, value))
        case dict():
            return ", ".join(f"{name}: {_shown(item)}" for name, item in value.items())
        case _:
            return str(value)


def _describe_model(name: str) -> dict[str, Any]:
    """What `jaxemb info MODEL` says."""
    from collections import Counter

    import jax

    import jaxemb

    embedder = jaxemb.load(name)
    model, config = embedder.model, embedder.model.encoder.config
    checkpoint = embedder.format.encoder
    return {
        "model": name,
        "family": checkpoint.config["model_type"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "layers": config.layers,
        "hidden_dim": config.dim,
        "attention_heads": config.heads,
        "vocabulary": config.vocab_size,
        "pooling": list(model.pooling),
        "heads": [type(head).__name__ for head in model.heads],
        "embedding_dim": model.dim,
        "unit_length": model.normalizes,
        "similarity": embedder.similarity_fn_name,
        "max_length": embedder.max_length,
        "prompts": dict(embedder.prompts),
        "default_prompt": embedder.default_prompt_name,
        "tensors": dict(Counter(str(tensor.dtype) for tensor in checkpoint.stored)),
        "tensors_unused": sorted(checkpoint.aside),
    }


def _describe_machine() -> dict[str, Any]:
    """What `jaxemb info` says."""
    import importlib.metadata
    import platform

    import jax

    from jaxemb.compilation import enable_persistent_cache

    packages = ("jaxemb", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "compilation_cache": str(enable_persistent_cache()),
    }
