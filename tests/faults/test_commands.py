"""Every option of every command, malformed: an exit code, and one line that says what is wrong."""

import argparse
import contextlib
import dataclasses
import functools
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import outcomes
import places
import pytest
from outcomes import Outcome

from jaxemb.cli import main
from jaxemb.cli.parser import make_parser

VALUES = (
    "",
    "text",
    "-1",
    "0",
    "1.5",
    "nan",
    "9" * 20,
    "absent/file.csv",
    "\udcff",
    "a,b,,c",
    "x=1",
    "a b:c",
    ".",
    "data.bin",
)
#: What a command may take, whatever comes of it: "COMMAND OPTION 'VALUE'".
LAWFUL = "|".join(
    (
        r"--(\w+-)?prompt '.+'",
        r"search query '.+'",
        r"--(\w+-)?prompt ''|--seed '0'|search where '.'|(train|quickstart) --out '(absent/file.csv|\.|data.bin)'",
        r"--(min|max)-score '-?[\d.]+'|--(absolute|relative)-margin '-?[\d.]+'",
        r"--percentile '(0|1.5)'|--max-loss '[\d.]+'",
        r"--range-min '0'|--column 'text'|--out '(text|-1|0|1.5|nan|9+|a,b,,c|x=1|a b:c)'",
    )
)
GOOD = {
    "train": ["config.py", "--out", "run", "--quiet"],
    "compile": ["config.py", "--topology", "v5e:2x2"],
    "encode": ["notes.txt", "--out", "vectors.npy", "--model", "model", "--quiet"],
    "evaluate": ["--task", "sts", "--data", "pairs.csv", "--columns", "first,second,score", "--model", "model"],
    "search": ["index", "7", "--model", "model"],
    "mine": ["pairs.csv", "--columns", "first,second", "--out", "mined.jsonl", "--model", "model", "--quiet"],
    "info": ["model"],
    "quickstart": [
        "--model",
        "model",
        "--limit",
        "8",
        "--steps",
        "1",
        "--batch-size",
        "4",
        "--out",
        "quick",
        "--quiet",
    ],
}
_LONG = ("compile", "quickstart")
#: Whole command lines, beside the options one by one.
LINES = (
    "encode absent.txt --out v.npy",
    "encode . --out v.npy --model model",
    "encode data.bin --format csv --out v.npy --model model",
    "encode data.bin --format parquet --out v.npy --model model",
    "encode data.bin --format jsonl --out v.npy --model model",
    "encode notes.txt --out absent/v.npy --model model",
    "encode notes.txt --out v.txt --model model",
    "encode notes.txt --out folder.npy --model model",
    "encode notes.txt --out v.npy --model data.bin",
    "encode notes.txt --out v.npy --model index",
    "encode notes.txt --out v.npy --model ./absent",
    "encode notes.txt --out v.npy --model model --prompt a --prompt-name b",
    "evaluate --task sts --data pairs.csv --columns first,second,score --model model --layers 1",
    "evaluate --task sts --data pairs.csv --columns first,second,score --model model --dims 4",
    "evaluate --task sts --data pairs.csv --columns first,second,score --model model --grid --dim 4",
    "evaluate --task sts --data beir --model model",
    "evaluate --task sts --data absent --model model",
    "evaluate --task retrieval --data absent --model model",
    "evaluate --task sts --data pairs.csv --model model",
    "evaluate --task retrieval --data pairs.csv --model model",
    "evaluate --task retrieval --data index --model model",
    "search absent 7",
    "search model 7",
    "search beir 7",
    "search index 7 --column text",
    "search index 7 --out other.index",
    "search notes.txt 7 --model model --out model",
    "mine notes.txt --out m.jsonl --model model",
    "mine pairs.csv --columns first --out m.jsonl --model model",
    "mine pairs.csv --columns first,first --out m.jsonl --model model",
    "info data.bin",
    "info beir",
    "train broken.py --out run",
    "train nothing.py --out run",
    "train absent.py --out run",
    "train . --out run",
    "train config.py --out notes.txt",
    "train config.py --out run --set steps",
    "train config.py --out run --set steps=0",
    "train config.py --out run --set steps=two",
    "train config.py --out run --set absent=2",
    "train config.py --out run --num-processes 2",
    "compile config.py --topology v9:2x2",
    "compile config.py --topology v5e:0x0",
    "compile config.py --topology v5e:2x2 --mesh data=3",
    "compile config.py --topology v5e:2x2 --mesh data=0",
    "train",
    "absent",
    "",
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line, as a case of `outcomes`; a refusal names one of `names`."""

    arguments: tuple[str, ...]
    names: tuple[str, ...]
    what: str = ""
    is_lawful: bool = False

    @property
    def name(self) -> str:
        return self.what or " ".join(self.arguments)

    def outcome(self) -> tuple[Outcome, str]:
        said, given = io.StringIO(), io.StringIO()
        with _folder(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(given):
            try:
                code = main(list(self.arguments))
            except Exception as error:
                return Outcome.RAW, f"traceback: {type(error).__name__}: {error}"
        last = said.getvalue().rstrip("\n").split("\n")[-1]
        if code == 0:
            return (Outcome.AS_BEFORE, "") if self.is_lawful else (Outcome.SILENT, given.getvalue()[:80])
        is_one_line = re.match(r"jaxemb( \w+)?: error: ", last) and "Traceback" not in said.getvalue()
        is_clear = code == 2 and is_one_line and outcomes.mentions(last, self.names) and not given.getvalue()
        return (Outcome.CLEAR if is_clear else Outcome.RAW), f"exit {code}: {last[:300]}"


@functools.cache
def _files() -> Path:
    """What the commands read."""
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    places.embedder().save(root / "model")
    for name, kind in {"index": "index", "pairs.csv": "csv", "beir": "retrieval data"}.items():
        places.PLACES[kind][0].make(root / name)
    (root / "notes.txt").write_text("1 2\n3\n4 5 6\n")
    (root / "data.bin").write_bytes(bytes(range(256)))
    (root / "folder.npy").mkdir()
    (root / "config.py").write_text(
        "from tiny_run import toy_run\n\ndef run(steps=1):\n    return toy_run(steps=steps)\n"
    )
    (root / "broken.py").write_text("def run(:\n")
    (root / "nothing.py").write_text("steps = 1\n")
    return root


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    """A copy of the files, as the current directory."""
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        path = Path(temporary) / "inner"
        shutil.copytree(_files(), path)
        with contextlib.chdir(path):
            yield


def malformed_options() -> list[Command]:
    """Every option and argument of every command with every value; the rest is good."""
    parser = make_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found = [
        (command, _with(command, action, value))
        for command, sub in commands.choices.items()
        for action in sub._actions
        if action.nargs != 0 and action.dest != "help"
        for value in VALUES
    ]
    return [case for command, case in found if not (case.is_lawful and command in _LONG)]


def _with(command: str, action: argparse.Action, value: str) -> Command:
    good = list(GOOD[command])
    option = action.option_strings[-1] if action.option_strings else None
    if option is None:
        number = {"query": 1}.get(action.dest, 0)
        good[number] = value
    elif option in good:
        good[good.index(option) + 1] = value
    else:
        good += [option, value]
    shown = (repr(value), repr(value).strip("'"), value.partition("=")[0]) if value.strip(" .") else (repr(value),)
    names = (action.dest, (option or action.dest).lstrip("-"), str(action.metavar), "directory", "fields", *shown)
    what = f"{command} {option or action.dest} {value!r}"
    return Command((command, *good), names, what, bool(re.search(LAWFUL, what)))


def whole_lines() -> list[Command]:
    """The lines of `LINES`; a refusal names a word of them."""
    return [Command(tuple(line.split()), (*re.findall(r"[\w.:]+", line), "COMMAND")) for line in LINES]


@pytest.mark.parametrize(("command", "arguments"), GOOD.items())
def test_good_lines_are_good(command, arguments):
    if command in _LONG:
        pytest.skip("takes long, and is tested elsewhere")
    assert Command((command, *arguments), (), is_lawful=True).outcome() == (Outcome.AS_BEFORE, "")


def test_a_sample_of_malformed_options(record_property):
    outcomes.survey(outcomes.sample(malformed_options(), 40), record_property)


def test_lines_that_make_no_sense(record_property):
    outcomes.survey(whole_lines(), record_property)


@outcomes.exhaustive
@pytest.mark.slow
def test_all_malformed_options(record_property):
    outcomes.survey(malformed_options(), record_property)
