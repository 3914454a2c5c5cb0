"""The order of the library: imports point down, those inside functions and for types alike."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "jaxemb"

#: From the ground up: a room may import from its own floor's rooms below it and from the floors below.
FLOORS = (
    ("checks", "packages"),
    ("files", "settings", "types", "trees", "similarity", "progress", "compilation", "backends"),
    ("parallel",),
    ("nn",),
    ("losses", "pooling", "interval", "isotropy"),
    ("encoders", "data"),
    ("embedder",),
    ("checkpoints",),
    ("encode",),
    ("sentence_embedder", "text_encoder"),
    ("prompting",),
    ("retrieval",),
    ("evaluate", "classifiers"),
    ("objectives",),
    ("pretraining",),
    ("transforms", "merging"),
    ("train",),
    ("continual", "aot"),
    ("recipes",),
    ("cli",),
)
#: What is made of arrays alone knows no more of jaxemb than this.
PURE = {
    "nn": {"checks", "trees", "parallel.mesh"},
    "losses": {"checks", "nn", "trees", "parallel.mesh"},
    "pooling": {"checks", "types", "nn"},
    "evaluate.metrics": {"checks"},
}


def _imports() -> dict[str, set[str]]:
    """Of every file, as "room.file", the files that it imports anywhere in it."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in ROOT.rglob("*.py")
    }
    found = defaultdict(set)
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxemb":
                home = (node.module or "").removeprefix("jaxemb").removeprefix(".")
                for alias in node.names:
                    inner = f"{home}.{alias.name}".removeprefix(".")
                    found[name].add(inner if inner in files else home)
            elif isinstance(node, ast.Import):
                found[name] |= {
                    a.name.removeprefix("jaxemb").removeprefix(".") for a in node.names if "jaxemb" in a.name
                }
    return found


IMPORTS = {name: of for name, of in _imports().items() if name not in ("__init__", "__main__", "jaxemb")}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def test_every_room_has_a_floor():
    rooms = {name.split(".")[0] for name in IMPORTS} - {""}
    assert rooms - FLOOR.keys() == set()


def test_arrows_point_down():
    for name, imported in IMPORTS.items():
        for other in imported - {""}:
            here, there = name.split(".")[0], other.split(".")[0]
            assert here == there or FLOOR[there] < FLOOR[here], f"jaxemb.{name} imports jaxemb.{other}"


def test_no_file_imports_itself_round_a_corner():
    """A package's `__init__` only lists what its files define, so that these import from each other, not from it."""
    order = TopologicalSorter({name: imported - {""} for name, imported in IMPORTS.items()}).static_order()
    assert set(order) >= IMPORTS.keys()  # a circle raises


def test_what_is_made_of_arrays_alone_knows_no_model():
    for name, imported in IMPORTS.items():
        for room, allowed in PURE.items():
            if name == room or name.startswith(f"{room}."):
                outside = {other for other in imported if other.split(".")[0] != room.split(".")[0]}
                known = {o for o in outside if o in allowed or o.split(".")[0] in allowed}
                assert outside <= known, f"jaxemb.{name} imports {sorted(outside - known)}"


def test_the_library_imports_no_experiment():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(m.split(".")[0] in ("experiments", "benchmarks", "tpu", "tests") for m in modules), path
