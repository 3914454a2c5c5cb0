"""The shape of the code: functions that are read on one screen."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 60

_NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)


def _long_functions(source: str) -> dict[str, int]:
    """The functions of more lines of code (without docstrings, comments, blank lines) than they may have.

    Those inside of a function count as lines of it. One that begins with a comment, which says why, may be longer.
    """
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    lines = {n for t in tokens if t.type not in _NO_CODE for n in range(t.start[0], t.end[0] + 1)}
    comments = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    found = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = sum(node.lineno <= line <= node.end_lineno for line in lines)
            says_why = node.body[0].end_lineno + 1 if ast.get_docstring(node) else node.body[0].lineno - 1
            if size > MOST_LINES and says_why not in comments:
                found[node.name] = size
    return found


@pytest.mark.parametrize("folder", ["jaxemb", "experiments", "benchmarks", "tpu"])
def test_functions_are_short_or_say_why_not(folder):
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name, size in _long_functions(path.read_text(encoding="utf-8")).items():
            found[f"{path.relative_to(ROOT)}: {name}"] = size
    assert found == {}


def test_what_counts_as_a_line_of_code():
    body = "    x = 1\n" * MOST_LINES
    docstring = '    """Says\n\n    much."""\n'
    assert _long_functions(f"def f():\n{docstring}{body}") == {"f": MOST_LINES + 1}
    assert _long_functions(f"def f():\n{docstring}    # One table.\n{body}") == {}
    assert _long_functions(f"def f():\n    # One table.\n{body}") == {}
    assert _long_functions(f"def f():\n{docstring}\n\n{body[10:]}    # Not the first comment.\n") == {}
    inner = "".join(f"    {line}\n" for line in body[10:].splitlines())
    assert _long_functions(f"def f():\n    def g():\n{inner}") == {"f": MOST_LINES + 1}
