"""The options of the `jaxemb` command, and the help that it prints."""

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence

from jaxemb.cli import commands as run

Command = Callable[[argparse.Namespace], None]

_TABLES = ("csv", "tsv", "jsonl", "parquet")  # of files with columns
_FORMATS = ("txt", *_TABLES)
_OF_STDIN = ", as each line of stdin (-) is a text"
_HEADERLESS = "the columns of a csv or tsv file without a header line"
_EXIT_CODES = "exit codes: 0 done, 1 the work failed, 2 bad usage or input, 130 interrupted"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples, and adds defaults to the help of options that have one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, False, [], (), argparse.SUPPRESS) and action.option_strings
        return f"{action.help} (default: %(default)s)" if shown else action.help


def make_parser() -> argparse.ArgumentParser:
    """The parser; what it returns has `command`, to be called with it, and that command's `name`."""
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
    for add in (_quickstart, _train, _compile, _encode, _evaluate, _search, _mine, _info):
        add(commands)
    for sub in commands.choices.values():
        for action in sub._actions:
            if action.nargs != 0 and action.type is None and action.choices is None:
                action.type = _text
    return parser


def _command(
    commands, name: str, runs: Command, about: str, examples: str, *shared: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """A new command; `shared` are groups of options that it has in common with others."""
    sub = commands.add_parser(
        name,
        prog=f"jaxemb {name}",
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"examples:\n{examples.rstrip()}\n\n{_EXIT_CODES}",
        formatter_class=_Formatter,
        parents=[*shared, _output()],
    )
    sub.set_defaults(command=runs, name=name, parser=sub)
    return sub


#: Options that mean something only beside others: which, when, and how that is said.
_ONLY: dict[str, tuple[tuple[tuple[str, ...], Callable[[argparse.Namespace], bool], str], ...]] = {
    "evaluate": (
        (("layers", "dims", "max_loss"), lambda args: args.grid, "with --grid"),
        (("columns", "names", "format"), lambda args: args.task == "sts", "with --task sts"),
        (("split",), lambda args: args.task == "retrieval", "with --task retrieval"),
    ),
    "encode": ((("column", "names", "format"), lambda args: set(args.files) != {"-"}, f"for a file{_OF_STDIN}"),),
    "search": (
        (
            ("column", "names", "format", "out", "vectors"),
            lambda args: not os.path.isdir(args.where),
            "for a file of texts",
        ),
    ),
    "mine": (
        (("corpus_column", "corpus_format"), lambda args: args.corpus, "with --corpus"),
        (("corpus_column", "corpus_format"), lambda args: args.corpus != "-", f"for a file{_OF_STDIN}"),
        (("seed",), lambda args: args.sampling == "random", "with --sampling random"),
    ),
}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line; ends the process with help, or with what is wrong with them."""
    args = make_parser().parse_args(arguments)
    for names, holds, when in _ONLY.get(args.name, ()):
        given = [name for name in names if getattr(args, name) != args.parser.get_default(name)]
        if given and not holds(args):
            args.parser.error(f"argument --{given[0].replace('_', '-')}: only {when}")
    return args


# The commands, in the order of the help


def _quickstart(commands) -> None:
    sub = _command(
        commands,
        "quickstart",
        run.quickstart,
        "fine-tune all-MiniLM-L6-v2 for code search, with measurements and a report",
        """\
  jaxemb quickstart
  jaxemb quickstart --out runs/mine --steps 400 --seed 1""",
    )
    sub.add_argument("--out", default="runs/quickstart", metavar="DIR", help="where everything is written")
    sub.add_argument("--overwrite", action="store_true", help="remove the run that DIR holds, and start anew")
    sub.add_argument("--model", metavar="PATH_OR_ID", help="where to start from (default: all-MiniLM-L6-v2)")
    sub.add_argument("--steps", type=_count, metavar="N", help="training steps (default: the recipe's)")
    sub.add_argument("--batch-size", type=_count, metavar="N", help="pairs per step (default: the recipe's)")
    sub.add_argument("--seed", type=_natural, default=0, metavar="N", help="seed of the order of the pairs")
    sub.add_argument("--limit", type=_count, metavar="N", help="at most N pairs of each split, for a quick trial")


def _train(commands) -> None:
    sub = _command(
        commands,
        "train",
        run.train,
        "run the training that a config file describes",
        """\
  jaxemb train experiments/code_search.py --out runs/code_search
  jaxemb train my_run.py --out runs/mine --set steps=1000 --set learning_rate=3e-5
  jaxemb train my_run.py --out runs/mine              # again: goes on where it stopped
  jaxemb train my_run.py --out runs/mine --set steps=2000        # longer: goes on, finished or not
  jaxemb train my_run.py --out runs/mine --overwrite  # anew
  jaxemb train my_run.py --out /shared/mine --distributed        # on every host of a TPU slice
  jaxemb train my_run.py --out runs/mine --distributed --coordinator first-host:1234 \\
      --num-processes 2 --process-id 0                # elsewhere: once per process, ids from 0""",
        _processes(),
    )
    sub.add_argument("config", metavar="CONFIG.py", help="Python file that defines run(**options) -> jaxemb.train.Run")
    sub.add_argument("--out", required=True, metavar="DIR", help="directory of the run: model, checkpoints, logs")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="option of run(): a Python literal or text"
    )
    again = sub.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="remove the run that DIR holds, and start anew")
    again.add_argument("--no-resume", action="store_true", help="fail if DIR holds a run, instead of going on with it")


def _compile(commands) -> None:
    sub = _command(
        commands,
        "compile",
        run.compile_,
        "compile the training of a config file for a TPU slice (with jaxemb[tpu], without a TPU) and say what it needs",
        """\
  jaxemb compile tpu/bert_base.py --topology v5e:8x8
  jaxemb compile my_run.py --topology v5p:4x4x4 --mesh data=16,fsdp=4 --set batch_size=8192 --json
  jaxemb compile my_run.py --topology v6e:16x16 --records 65536""",
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


def _encode(commands) -> None:
    sub = _command(
        commands,
        "encode",
        run.encode,
        "turn texts into vectors, written as a .npy file",
        """\
  jaxemb encode sentences.txt --out vectors.npy
  jaxemb encode pages.jsonl --column body --model runs/quickstart/model --dtype float16 --out pages.npy
  zcat titles.gz | jaxemb encode - --prompt-name query --out titles.npy""",
        _model(),
        _encoding(),
        _texts(),
    )
    sub.add_argument(
        "files", nargs="+", metavar="FILE", help="txt (a text per line), csv, tsv, jsonl, parquet; - for stdin"
    )
    sub.add_argument("--out", required=True, metavar="FILE.npy", help="vectors [N, D], row n for text n")
    sub.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="type of the written vectors")
    sub.add_argument("--normalize", action="store_true", help="give the vectors unit length")
    prompts = sub.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", type=_any_text, metavar="TEXT", help="text to put in front of each")
    prompts.add_argument("--prompt-name", metavar="NAME", help="or the name of one of the model's prompts")


def _evaluate(commands) -> None:
    sub = _command(
        commands,
        "evaluate",
        run.evaluate,
        "measure a model on a similarity or retrieval data set",
        """\
  jaxemb evaluate --task sts --data stsb-en-dev.csv.gz --names sentence1,sentence2,score
  jaxemb evaluate --task sts --data SICK_trial.txt.gz --format tsv \\
      --columns sentence_A,sentence_B,relatedness_score
  jaxemb evaluate --task retrieval --data scifact/ --split test --model runs/quickstart/model --json
  jaxemb evaluate --task sts --data pairs.csv --grid --layers 2,4,6 --dims 64,128 --max-loss 0.01""",
        _model(),
        _encoding(),
    )
    sub.add_argument("--task", choices=("sts", "retrieval"), required=True, help="what is measured")
    sub.add_argument("--data", required=True, metavar="PATH", help="sts: a file of pairs; retrieval: a BEIR directory")
    sub.add_argument(
        "--columns",
        metavar="A,B,SCORE",
        default="sentence1,sentence2,score",
        help="sts: the columns of the two texts and the score",
    )
    sub.add_argument(
        "--names", type=_names, metavar="A,B,...", help="sts: columns of a csv or tsv file without a header line"
    )
    sub.add_argument("--format", choices=_TABLES, help="sts: of the file (default: by its name)")
    sub.add_argument("--split", default="test", metavar="NAME", help="retrieval: which qrels")
    group = sub.add_argument_group("every size of the model")
    group.add_argument("--grid", action="store_true", help="quality, speed and index size by layers and dimensions")
    group.add_argument("--layers", type=_counts, metavar="N,...", help="numbers of layers (default: up to six)")
    group.add_argument("--dims", type=_counts, metavar="N,...", help="dimensions (default: powers of two from 32)")
    group.add_argument(
        "--max-loss", type=_loss, default=0.02, metavar="X", help="of quality, for the size that is recommended"
    )


def _search(commands) -> None:
    sub = _command(
        commands,
        "search",
        run.search,
        "find the texts nearest to queries",
        """\
  jaxemb search runs/quickstart "parse an iso date"
  jaxemb search notes.txt "what did we decide about the budget" "who comes on Monday" -k 3
  jaxemb search notes.txt "budget" --vectors notes.npy    # of `jaxemb encode notes.txt --out notes.npy`
  jaxemb search notes.txt "budget" --out notes.index      # keeps the vectors
  jaxemb search notes.index "holidays" --json""",
        _model(),
        _texts(),
    )
    sub.add_argument("where", metavar="DIR_OR_FILE", help="a run, an index, or a file of texts that is encoded first")
    sub.add_argument("query", metavar="QUERY", nargs="+", help="what to look for; several are searched one by one")
    sub.add_argument("-k", type=_count, default=10, metavar="N", help="number of hits for each")
    sub.add_argument(
        "--vectors",
        metavar="FILE.npy",
        help="vectors of the texts that `jaxemb encode` wrote; 64, spread over all, are compared with the model's",
    )
    sub.add_argument("--out", metavar="DIR", help="of a file of texts: keep its index in this directory")


def _mine(commands) -> None:
    sub = _command(
        commands,
        "mine",
        run.mine,
        "find hard negatives for pairs of query and positive, written as a .jsonl file",
        """\
  jaxemb mine pairs.csv --out negatives.jsonl
  jaxemb mine pairs.jsonl --columns question,answer --corpus answers.txt --negatives 5 \\
      --relative-margin 0.05 --out negatives.jsonl
  jaxemb mine pairs.csv --output-format triplet --sampling random --range-max 50 --out triplets.jsonl""",
        _model(),
        _encoding(),
    )
    sub.add_argument("file", metavar="FILE", help="records of a query and a positive each")
    sub.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the records with negatives are written")
    sub.add_argument(
        "--columns", metavar="QUERY,POSITIVE", default="query,positive", help="the columns of the two texts"
    )
    sub.add_argument("--format", choices=_TABLES, help="of the file (default: by its name)")
    sub.add_argument("--names", type=_names, metavar="A,B,...", help=_HEADERLESS)
    sub.add_argument("--corpus", metavar="FILE", help="more documents to search (default: the positives alone)")
    sub.add_argument("--corpus-column", metavar="NAME", help="their column (default: 'text', or the only one)")
    sub.add_argument("--corpus-format", choices=_FORMATS, help="of the corpus file (default: by its name)")
    sub.add_argument("--output-format", choices=run.MINED_FORMATS, default="list", help="columns of the result")
    sub.add_argument("--scores", action="store_true", help="write the scores as well")
    sub.add_argument(
        "--keep",
        type=_names,
        default=(),
        metavar="A,B,...",
        help="columns to write as well; those of the negatives are called negatives_A (triplet: negative_A)",
    )
    prompts = sub.add_mutually_exclusive_group()
    prompts.add_argument("--query-prompt", type=_any_text, metavar="TEXT", help="text to put in front of queries")
    prompts.add_argument("--query-prompt-name", metavar="NAME", help="or one of the model's prompts (default: 'query')")
    prompts = sub.add_mutually_exclusive_group()
    prompts.add_argument("--corpus-prompt", type=_any_text, metavar="TEXT", help="text to put in front of documents")
    prompts.add_argument("--corpus-prompt-name", metavar="NAME", help="or one of the model's (default: 'document')")
    group = sub.add_argument_group("which negatives")
    group.add_argument("--negatives", type=_count, default=3, metavar="N", help="how many for each query")
    group.add_argument("--range-min", type=_natural, default=0, metavar="N", help="skip the N most similar")
    group.add_argument("--range-max", type=_count, metavar="N", help="look no further than rank N")
    group.add_argument("--max-score", type=_number, metavar="S", help="none that is more similar")
    group.add_argument("--min-score", type=_number, metavar="S", help="none that is less similar")
    group.add_argument("--absolute-margin", type=_number, metavar="M", help="less similar than the positive by M")
    group.add_argument(
        "--relative-margin", type=_number, metavar="M", help="or by the share M of its score, such as 0.05"
    )
    group.add_argument(
        "--percentile", type=_number, metavar="P", help="none above the P-th percentile of the positives"
    )
    group.add_argument("--sampling", choices=("top", "random"), default="top", help="the most similar, or any in range")
    group.add_argument("--seed", type=_natural, default=0, metavar="N", help="of random sampling")
    group.add_argument("--include-positives", action="store_true", help="rank the positives too, to test rerankers")


def _info(commands) -> None:
    sub = _command(
        commands,
        "info",
        run.info,
        "describe a model, or without one the software and devices here",
        """\
  jaxemb info
  jaxemb info runs/quickstart/model
  jaxemb info sentence-transformers/all-MiniLM-L6-v2 --json""",
    )
    sub.add_argument("model", nargs="?", metavar="PATH_OR_ID", help="directory or hub id")


# Options that several commands have


def _output() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print the result as JSON")
    shared.add_argument("--quiet", action="store_true", help="no progress bar")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return shared


def _model() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("model")
    group.add_argument("--model", metavar="PATH_OR_ID", help="directory or hub id (default: all-MiniLM-L6-v2)")
    group.add_argument(
        "--compute-dtype", choices=("float32", "bfloat16"), default="float32", help="precision inside the model"
    )
    group.add_argument(
        "--max-length",
        type=_count,
        metavar="N",
        help="tokens that are read of a text (default: the model's); less is faster",
    )
    return shared


def _encoding() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("encoding")
    group.add_argument("--batch-tokens", type=_count, metavar="N", help="tokens per batch (default: suits the device)")
    group.add_argument("--dim", type=_count, metavar="N", help="keep the first N dimensions of the vectors")
    return shared


def _texts() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("files of texts")
    group.add_argument("--column", metavar="NAME", help="the column of the texts (default: 'text', or the only one)")
    group.add_argument("--names", type=_names, metavar="A,B,...", help=_HEADERLESS)
    group.add_argument("--format", choices=_FORMATS, help="of the file (default: by its name)")
    return shared


def _processes() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("several processes that train as one")
    group.add_argument(
        "--distributed", action="store_true", help="join the others; TPU slices, GKE and Slurm say who they are"
    )
    group.add_argument(
        "--coordinator", type=_address, metavar="HOST:PORT", help="an address of process 0 that all can reach"
    )
    group.add_argument("--num-processes", type=_count, metavar="N", help="how many they are")
    group.add_argument("--process-id", type=_natural, metavar="I", help="which of them this is, from 0")
    return shared


# Types of options


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _count(text: str) -> int:
    """The type of an option that is a positive whole number."""
    return _whole(text, 1)


def _natural(text: str) -> int:
    """The type of an option that is a whole number, such as a seed."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or (len(text) < 11 and int(text) < least):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}; got {text!r}")
    if len(text) > 10 or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be below 2**31; got {text!r}")
    return int(text)


def _number(text: str) -> float:
    """The type of an option that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number; got {text!r}")
    return value


def _loss(text: str) -> float:
    """The type of an option that is a finite number, not below 0."""
    if (value := _number(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0; got {text!r}")
    return value


def _text(text: str) -> str:
    """The type of all other options: an empty text would be taken for one that is not given."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must not be empty; got {text!r}")
    return _any_text(text)


def _any_text(text: str) -> str:
    """The type of an option that may be an empty text."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"must not have a zero byte; got {text!r}")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError(f"must be UTF-8; got {text!r}")
    return text


def _names(text: str) -> list[str]:
    """The type of an option that is names with commas between."""
    if not all(names := [name.strip() for name in text.split(",")]):
        raise argparse.ArgumentTypeError(f"must be names with commas between; got {text!r}")
    return names


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
