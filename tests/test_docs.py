"""What the pages of docs/ and the README say to type: every program and command runs, in order, in an empty directory.

A block of Python is run, or, if it begins with `# name.py`, is a file of that name. Of a block of bash, the commands of
jaxemb are run by this process, and what is between them by bash.
"""

import ast
import functools
import gzip
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import jaxemb
from jaxemb.checkpoints import hub
from jaxemb.cli import main
from jaxemb.data import Tokenizer, python_code
from jaxemb.embedder import Normalize
from jaxemb.encoders import families
from jaxemb.evaluate import read_beir

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}

#: What is written smaller for the tests, by page.
SMALLER: dict[str, dict[str, str]] = {
    "README": {"steps=500": "steps=2", "max_length=128": "max_length=16"},
    "continual": {
        "python_code.pairs()": "python_code.pairs()[::2]",
        '["query"] for i, pair in enumerate(pairs[:40])': '["query"] for i, pair in enumerate(pairs[:8])',
        '["body"] for i, pair in enumerate(pairs)': '["body"][:64] for i, pair in enumerate(pairs[:16])',
        "range(40)": "range(8)",
        "steps=10": "steps=2",
        "batch_size=16": "batch_size=8",
        "max_length=64, buckets=(64,)": "max_length=16, buckets=(16,)",
        "epochs=10": "epochs=1",
    },
    "negatives": {
        "[:500]": "[:400]",
        "[:200]": "[:48]",
        "relative-margin 0.05": "relative-margin 0.0001",
        "--max-length 128": "--max-length 16",
        "relative_margin=0.05": "relative_margin=0.0001",
        "steps=20": "steps=2",
        "steps=10": "steps=2",
        "batch_size=16": "batch_size=8",
        "max_length=64": "max_length=16",
    },
    "own": {
        "[:500]": "[:48]",
        "steps=20": "steps=2",
        "batch_size=16": "batch_size=8",
        "max_length=64, buckets=(64,)": "max_length=16, buckets=(16,)",
    },
    "pods": {
        "batch_size=4096": "batch_size=64",
        "chunk=512": "chunk=16",
        "v5e:4x4": "v5e:2x2",
        "data=4,fsdp=4": "data=2,fsdp=2",
        "max_length=128": "max_length=16",
        "buckets=(128,)": "buckets=(16,)",
    },
    "quickstart": {
        "quickstart --out runs/quickstart": "quickstart --out runs/quickstart --limit 24 --steps 3 --batch-size 8"
    },
    "scratch": {
        "python_code.pairs()": "python_code.pairs()[:120]",
        "8000": "300",
        '"hidden_size": 128, "num_hidden_layers": 3': '"hidden_size": 32, "num_hidden_layers": 1',
        "200": "2",
        "100": "2",
        "[:300]": "[:20]",
        "[300:]": "[20:]",
        "batch_size=64": "batch_size=8",
        "batch_size=32": "batch_size=8",
        "max_length=64": "max_length=16",
        "buckets=(64,)": "buckets=(16,)",
    },
    "sizes": {
        "steps=100": "steps=2",
        "batch_size=16, max_length=32, buckets=(32,)": "batch_size=8, max_length=16, buckets=(16,)",
        "--layers 2,4,6": "--layers 1,2",
        "layers=2, dim=64": "layers=1, dim=64",
        "((2, 64), (6, 384))": "((1, 64), (2, 384))",
    },
    "tasks": {
        "steps=40": "steps=4",
        "batch_size=16": "batch_size=8",
        "max_length=64": "max_length=16",
        "evaluate_every=20": "evaluate_every=2",
    },
    "training": {
        "steps=60": "steps=2",
        '"steps": 60': '"steps": 2',
        "batch_size=16": "batch_size=8",
        "max_length=64": "max_length=16",
        "evaluate_every=30": "evaluate_every=1",
    },
}
SLOW = {"continual", "pods", "quickstart", "scratch", "sizes", "tasks"}


class Block(NamedTuple):
    language: str
    code: str
    line: int


def blocks_of(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    for large, small in SMALLER.get(page, {}).items():
        assert large in text, f"{page}: there is no {large!r} to make smaller"
        text = text.replace(large, small)
    found = re.finditer(r"^ *```(python|bash)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [Block(block[1], block[2], text.count("\n", 0, block.start(2))) for block in found]


BLOCKS = {page: blocks for page in PAGES if (blocks := blocks_of(page))}
needs_torch = lambda block: "import torch" in block.code


def run_page(page: str, *, with_torch: bool) -> None:
    names: dict = {"__name__": page}
    for block in BLOCKS[page]:
        if needs_torch(block) and not with_torch:
            continue
        if block.language == "bash":
            run_commands(block.code)
        elif file := re.match(r"# (\w+\.py)\n", block.code):
            Path(file[1]).write_text(block.code, encoding="utf-8")
        else:
            exec(compile("\n" * block.line + block.code, PAGES[page], "exec"), names)


def run_commands(code: str) -> None:
    for is_ours, group in itertools.groupby(
        re.sub(r"\\\n *", "", code).splitlines(), lambda line: line.startswith("jaxemb ")
    ):
        lines = list(group)
        if not is_ours:
            subprocess.run(["bash", "-e", "-c", "\n".join(lines)], check=True, timeout=60)
        for line in lines if is_ours else ():
            arguments = shlex.split(os.path.expandvars(line), comments=True)
            assert main(arguments[1:]) == 0, line


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch) -> Iterator[None]:
    """An empty directory, which programs may import from and whose modules are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    monkeypatch.setattr(python_code, "pairs", _standard_library)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


_standard_library = functools.cache(python_code.pairs)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """A model with the head and the dimension of MiniLM, and little else."""
    directory = tmp_path_factory.mktemp("models") / "small"
    tokenizer = Tokenizer.train([path.read_text(encoding="utf-8") for path in PAGES.values()], 600)
    sizes = {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 64}
    jaxemb.new("bert", sizes, tokenizer, key=jax.random.key(0), heads=(Normalize(),), max_length=48).save(directory)
    return directory


@pytest.fixture(autouse=True)
def offline(small_model, monkeypatch) -> None:
    """The small model for the one on the hub."""
    monkeypatch.setattr(hub, "_packaged", lambda repository: small_model)
    monkeypatch.setattr(hub, "_hub_answers", lambda repository: False)


@pytest.fixture(scope="module")
def slices(data_dir, tmp_path_factory) -> Path:
    """A directory like `$JAXEMB_DATA`, of the first records of what the pages use."""
    small = tmp_path_factory.mktemp("data")
    first = lambda name, count: gzip.decompress((data_dir / name).read_bytes()).decode().splitlines(True)[:count]

    def write(name: str, lines: list[str]) -> None:
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        (small / name).write_bytes(gzip.compress("".join(lines).encode()))

    for split in ("train", "dev"):
        write(f"stsb_multi/stsb-en-{split}.csv.gz", first(f"stsb_multi/stsb-en-{split}.csv.gz", 80))
    qrels = {split: first(f"ir_medquad/qrels/{split}.tsv.gz", 81) for split in ("train", "dev", "test")}
    judged = {field for lines in qrels.values() for line in lines for field in line.split("\t")[:2]}
    for split, lines in qrels.items():
        write(f"ir_medquad/qrels/{split}.tsv.gz", lines)
    for name in ("queries.jsonl.gz", "corpus.jsonl.gz"):
        lines = first(f"ir_medquad/{name}", 20_000)
        write(f"ir_medquad/{name}", [line for line in lines if json.loads(line)["_id"] in judged])
    return small


def write_medquad(beir: Path, out: Path) -> None:
    """A collection as MedQuAD's files are: pages on a subject with pairs of a question and an answer, or none."""
    (out / "1_CancerGov_QA").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        data = read_beir(beir, split)
        for number, (query, document) in enumerate((q, d) for q, judged in data.qrels.items() for d in judged):
            page = ElementTree.Element("Document")
            ElementTree.SubElement(page, "Focus").text = f"{split} {number}"
            for question, answer in ((data.queries[query], data.corpus[document]), (data.queries[query], "")):
                pair = ElementTree.SubElement(page, "QAPair")
                ElementTree.SubElement(pair, "Question").text = f"\n {question} "
                ElementTree.SubElement(pair, "Answer").text = answer
            ElementTree.ElementTree(page).write(out / "1_CancerGov_QA" / f"{split}_{number}.xml")


@pytest.fixture
def given(request, page, monkeypatch, tmp_path) -> None:
    """What a page presumes: files that it does not make itself, and the directory of data sets."""
    if any("JAXEMB_DATA" in block.code for block in BLOCKS[page]):
        monkeypatch.setenv("JAXEMB_DATA", str(request.getfixturevalue("slices")))
    if page == "training":  # which makes a data set itself
        slices = request.getfixturevalue("slices")
        shutil.copytree(slices / "stsb_multi", tmp_path / "data" / "stsb_multi")
        write_medquad(slices / "ir_medquad", tmp_path / "MedQuAD")
        monkeypatch.setenv("JAXEMB_DATA", str(tmp_path / "data"))
    if page == "README":
        rows = "".join(f"question {i},answer {i}\n" for i in range(64))
        Path("pairs.csv").write_text(f"query,document\n{rows}")


def _marked(page: str):
    return pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW))


@pytest.mark.parametrize("page", [_marked(page) for page in BLOCKS])
def test_a_page(page, given):
    run_page(page, with_torch=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if any(map(needs_torch, blocks))])
def test_a_page_with_its_oracle(page, given):
    pytest.importorskip("transformers")
    run_page(page, with_torch=True)


def _templates(node: ast.AST) -> Iterator[str]:
    """The texts of a program, `…` for what is filled in."""
    match node:
        case ast.JoinedStr():
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        case ast.Constant(value=str()):
            yield re.sub(r"%\.?\w", "…", node.value)
        case ast.BinOp(op=ast.Add()):
            yield "".join("".join(_templates(side)) or "…" for side in (node.left, node.right))


def test_the_messages_of_troubleshooting_are_those_of_the_code():
    quoted = re.findall(r"^\| `(.+?)` \|", PAGES["troubleshooting"].read_text(encoding="utf-8"), re.MULTILINE)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "jaxemb").rglob("*.py")]
    texts = "\n".join(text for tree in trees for node in ast.walk(tree) for text in _templates(node))
    assert len(quoted) > 10
    for message in quoted:
        assert re.search(re.escape(message).replace("…", ".*"), texts), message


def test_every_package_is_in_the_reference():
    listed = set(re.findall(r"^ +jaxemb\.(\w+)$", PAGES["api"].read_text(encoding="utf-8"), re.MULTILINE))
    packages = {name for name in jaxemb.__all__ if inspect.ismodule(getattr(jaxemb, name))}
    assert packages - {"recipes"} <= listed  # recipes are programs to copy


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the site's generator is absent: pip install 'jaxemb[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path / "html")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert "jaxemb.losses.info_nce" in (tmp_path / "html" / "_api" / "jaxemb.losses.html").read_text(encoding="utf-8")
