"""Code-search pairs from Python's own standard library: what a function's docstring says -> its code without it.

The rules follow CodeSearchNet (Husain et al. 2019, arXiv:1909.09436, section 2): the query is the docstring's first
paragraph, of three words or more; the body has two lines or more; tests and special methods are left out; of pairs
with an equal query or an equal body the first is kept. Modules, not pairs, are divided into splits, so that what is
measured is search in code that was never seen.
"""

import ast
import hashlib
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

SPLITS = ("train", "validation", "test")

_MIN_QUERY_WORDS = 3
_MIN_BODY_LINES = 2
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo", "__pycache__"}
# A doctest or a parameter list that follows without a blank line is no part of the first paragraph.
_PARAGRAPH_ENDS = (">>>", ":param", "@param", "Args:", "Arguments:", "Parameters:", "Returns:")


def pairs(directory: str | Path | None = None) -> list[dict[str, str | int]]:
    """All pairs of a standard library, sorted by file and line; the same directory always gives the same list.

    Args:
      directory: a `lib/python3.x` directory; None takes the running Python's.

    Returns:
      Records of `query`, `code` (the function's source with its comments, without the docstring), `body` (the same
      without decorators and signature, so that the name gives nothing away), `module`, `qualname`, `path` (below the
      directory) and `line`.
    """
    directory = Path(directory or sysconfig.get_path("stdlib"))
    if not directory.is_dir():
        raise FileNotFoundError(f"directory: expected a standard library; {directory} is no directory")
    found: list[dict[str, str | int]] = []
    queries, bodies = set(), set()
    for path in sorted(directory.rglob("*.py")):
        relative = path.relative_to(directory)
        if not _LEFT_OUT.isdisjoint(relative.parts):
            continue
        for pair in _pairs_of_file(path, relative):
            query, body = str(pair["query"]).casefold(), pair["body"]
            if query not in queries and body not in bodies:
                found.append(pair)
            queries.add(query)
            bodies.add(body)
    return found


def split_of(module: str) -> str:
    """The split of a module: 8 of 10 train, 1 validation, 1 test, by the SHA-256 of its top-level package's name.

    `_pydecimal` goes where `decimal` goes, of which it is the Python twin.
    """
    top = module.split(".")[0].removeprefix("_py").lstrip("_")
    tenth = int.from_bytes(hashlib.sha256(top.encode()).digest()[:8]) % 10
    return {8: "test", 9: "validation"}.get(tenth, "train")


def _pairs_of_file(path: Path, relative: Path) -> Iterator[dict[str, str | int]]:
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return  # written for another Python
    lines = source.split("\n")
    parts = relative.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for qualname, function in _functions(tree, ""):
        query, sources = _query(function), _code(function, lines)
        if query is not None and sources is not None:
            yield {
                "query": query,
                "code": sources[0],
                "body": sources[1],
                "module": module,
                "qualname": qualname,
                "path": relative.as_posix(),
                "line": function.lineno,
            }


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods with qualified names; not functions within functions, whose code is their parent's."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            is_special = child.name.startswith("__") and child.name.endswith("__")
            if not is_special and "test" not in child.name.lower():
                yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, prefix)


def _query(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    docstring = ast.get_docstring(function)
    if not docstring:
        return None
    paragraph: list[str] = []
    for line in docstring.split("\n"):
        if not line.strip() or line.strip().startswith(_PARAGRAPH_ENDS):
            break
        paragraph.append(line)
    words = " ".join(paragraph).split()
    return " ".join(words) if len(words) >= _MIN_QUERY_WORDS else None


def _code(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, str] | None:
    """The source of a function without its docstring, and of its body alone; None if too little is left."""
    docstring, *statements = function.body
    if not statements or docstring.end_lineno is None or all(map(_is_placeholder, statements)):
        return None
    if docstring.lineno == function.lineno or docstring.end_lineno >= statements[0].lineno:
        return None  # the docstring shares a line with code
    start = min(node.lineno for node in [*function.decorator_list, function])
    lines_of_body = lines[docstring.end_lineno : function.end_lineno]
    code = _dedent(lines[start - 1 : docstring.lineno - 1] + lines_of_body, function.col_offset)
    body = _dedent(lines_of_body, statements[0].col_offset)
    return (code, body) if body.count("\n") + 1 >= _MIN_BODY_LINES else None


def _dedent(lines: list[str], width: int) -> str:
    """Without blank lines and `width` characters of indentation (which a line within a string may lack)."""
    return "\n".join(line[width:] if line[:width].isspace() else line for line in lines if line.strip())


def _is_placeholder(statement: ast.stmt) -> bool:
    """`pass`, `...` or `raise NotImplementedError`: what abstract methods have for a body."""
    if isinstance(statement, ast.Raise) and statement.exc is not None:
        return "NotImplementedError" in ast.unparse(statement.exc)
    is_constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_constant or isinstance(statement, ast.Pass)
