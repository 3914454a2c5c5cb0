import ast
import textwrap

import pytest

from jaxemb.data import python_code

LIBRARY = {
    "sums.py": '''
        def add(a, b):
            """Return the sum of
            two numbers.

            Further words.
            """
            # a comment stays
            total = a + b

            return total

        class Outer:
            class Inner:
                @staticmethod
                def greet(name):
                    """Greet somebody by name.
                    >>> greet("x")
                    """
                    text = """hello
        at column zero"""
                    return text + name

            def __repr__(self):
                """A special method is left out."""
                x = 1
                return x

        def abstract(self):
            """This has no body of its own."""
            raise NotImplementedError("later")

        def short(self):
            """Only one line of body here."""
            return 1

        def terse(self):
            """Too terse."""
            x = 1
            return x

        def undocumented(self):
            x = 1
            return x

        def outer(items):
            """Holds another function within itself."""
            def inner(item):
                """An inner function is part of its parent."""
                y = item
                return y
            return [inner(i) for i in items]
    ''',
    "yonder/twice.py": '''
        async def same_query():
            """return the SUM of two   numbers."""
            x = 2
            return x

        def same_body():
            """Another description of a copied body."""
            # a comment stays
            total = a + b
            return total
    ''',
    "yonder/test/test_yonder.py": '''
        def helper():
            """Code of tests is left out."""
            x = 2
            return x
    ''',
    "old.py": "print 'for another Python'\n",
}


@pytest.fixture
def library(tmp_path):
    for name, source in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(source))
    return tmp_path


def test_pairs_of_a_small_library(library):
    pairs = python_code.pairs(library)
    assert [(p["module"], p["qualname"], p["query"]) for p in pairs] == [
        ("sums", "add", "Return the sum of two numbers."),
        ("sums", "Outer.Inner.greet", "Greet somebody by name."),
        ("sums", "outer", "Holds another function within itself."),
    ]
    add, greet, _ = pairs
    assert add["code"] == "def add(a, b):\n    # a comment stays\n    total = a + b\n    return total"
    assert add["body"] == "# a comment stays\ntotal = a + b\nreturn total"
    assert (add["path"], add["line"]) == ("sums.py", 2)
    assert greet["code"] == (
        '@staticmethod\ndef greet(name):\n    text = """hello\nat column zero"""\n    return text + name'
    )
    assert greet["body"] == 'text = """hello\nat column zero"""\nreturn text + name'


def test_the_standard_library_gives_thousands_of_distinct_pairs(standard_library):
    assert len(standard_library) > 3000
    for field in ("query", "body", "code"):
        assert len({pair[field] for pair in standard_library}) == len(standard_library)


def test_the_code_is_python_without_its_docstring(standard_library):
    for pair in standard_library:
        function = ast.parse(pair["code"]).body[0]
        assert function.name == pair["qualname"].rsplit(".")[-1]
        first = ast.get_docstring(function) or ""
        assert " ".join(first.split())[: len(pair["query"])] != pair["query"]
        assert pair["code"].endswith(pair["body"].splitlines()[-1].lstrip())


def test_modules_not_pairs_are_split(standard_library):
    splits = {name: set() for name in python_code.SPLITS}
    sizes = dict.fromkeys(python_code.SPLITS, 0)
    for pair in standard_library:
        split = python_code.split_of(pair["module"])
        splits[split].add(pair["module"].split(".")[0])
        sizes[split] += 1
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["validation"]
    assert not splits["validation"] & splits["test"]
    assert sizes["train"] > 2000 and sizes["test"] > 500 and sizes["validation"] > 200


def test_the_split_of_a_module_is_fixed():
    assert python_code.split_of("email.mime.text") == python_code.split_of("email") == "test"
    assert python_code.split_of("logging.config") == "validation"
    assert python_code.split_of("_pydecimal") == python_code.split_of("decimal")
    assert python_code.split_of("_pyio") == python_code.split_of("io") == python_code.split_of("_io")


def test_pairs_are_the_same_each_time(library):
    assert python_code.pairs(library) == python_code.pairs(library)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"directory: expected a standard library; .*absent is no directory"):
        python_code.pairs(tmp_path / "absent")
