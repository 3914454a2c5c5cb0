"""What comes with a wrong argument: its name, what it was, and what was expected."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from jaxemb import losses, nn, transforms
from jaxemb.checks import (
    arrays,
    at_least,
    between,
    checked,
    checker,
    each,
    encodable,
    having,
    having_keys,
    numbers,
    one_of,
    shapes,
)
from jaxemb.evaluate import metrics
from jaxemb.retrieval import hard_negatives
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.text_encoder import TextEncoder

GOOD: list[tuple[Any, list[Any]]] = [
    (int, [3, np.int64(3)]),
    (float, [3, 0.5, np.float32(1), np.array(2.0), jnp.float32(1)]),
    (str, ["a"]),
    (bool, [True, np.bool_(0)]),
    (str | Path, ["a", Path("a")]),
    (int | None, [None, 1]),
    (np.ndarray, [np.zeros(2), jnp.zeros(2)]),
    (jax.Array, [jnp.zeros(2), np.zeros(2), jax.random.key(0)]),
    (Sequence[str], [["a"], ("a",), np.array(["a"])]),
    (Iterable[int], [[1], iter([1])]),
    (Mapping[str, int], [{}, {"a": 1}]),
    (tuple[int, int], [(1, 2), [1, 2]]),
    (DTypeLike, [jnp.bfloat16, "int8", np.dtype(bool)]),
    (Callable[[int], int], [abs]),
    (Literal["a", "b"] | None, ["a", None]),
    (jax.sharding.Mesh | None, [None]),
    (Any, [object()]),
    (list[int] | Any, ["a"]),
    ("Unknown", [1]),
]
BAD: list[tuple[Any, Any, str]] = [
    (int, "3", "x must be a whole number; got str '3'"),
    (int, True, "x must be a whole number; got bool True"),
    (int, 2.5, "x must be a whole number; got float 2.5"),
    (float, "1", "x must be a number; got str '1'"),
    (float, np.zeros(2), r"x must be a number; got ndarray float64 \(2,\)"),
    (str, None, "x must be a string; got NoneType None"),
    (bool, "no", "x must be True or False; got str 'no'"),
    (str | Path, 3, "x must be a path; got int 3"),
    (None | int, [], r"x must be a whole number or None; got list \[\]"),
    (np.ndarray, [1], r"x must be an array of real numbers; got list \[1\]"),
    (jax.Array, 1.0, "x must be an array of real numbers; got float 1.0"),
    (jax.Array, [[1.0], [2.0]], "x must be an array of real numbers; got list"),
    (jax.Array, [jnp.zeros(2)], "x must be an array of real numbers; got list"),
    (jax.Array, np.array(["a"]), r"x must be an array of real numbers; got ndarray <U1 \(1,\)"),
    (Sequence[str], "abc", "x must be a sequence of strings; got str 'abc'"),
    (Sequence[int], np.array(["a", "b"]), r"x\[0\] must be a whole number; got str_ <U1"),
    (Sequence[str], iter("abc"), "x must be a sequence of strings; got str_ascii_iterator"),
    (Sequence[str] | None, ["a", 1], r"x\[1\] must be a string; got int 1"),
    (Sequence[tuple[int, int]], [[1, 2], 3], r"x\[1\] must be a tuple of 2; got int 3"),
    (Mapping[str, int], [], "x must be a mapping; got list"),
    (Mapping[str, int], {"a": "b"}, r"x\['a'\] must be a whole number; got str 'b'"),
    (tuple[int, int], (1, 2, 3), "x must be a tuple of 2; got tuple"),
    (tuple[int, ...], (1, "a"), r"x\[1\] must be a whole number; got str 'a'"),
    (jax.Array, np.zeros(2, complex), r"x must be an array of real numbers; got ndarray complex128 \(2,\)"),
    (DTypeLike, "text", "x must be a type of numbers, such as jnp.float32; got str 'text'"),
    (int, np.int64, "x must be a whole number; got type <class 'numpy.int64'>"),
    (float, np.float32, "x must be a number; got type <class 'numpy.float32'>"),
    (str, np.ndarray, "x must be a string; got type <class 'numpy.ndarray'>"),
    (jax.Array, np.float32, "x must be an array of real numbers; got type <class 'numpy.float32'>"),
    (ArrayLike, np.float32, "x must be numbers; got type <class 'numpy.float32'>"),
    (Sequence[str], list, "x must be a sequence of strings; got type <class 'list'>"),
    (Iterable[int], list, "x must be an iterable; got type <class 'list'>"),
    (TextEncoder, SentenceEmbedder, "x must be a TextEncoder; got type <class 'jaxemb"),
    (TextEncoder, "a model", "x must be a TextEncoder; got str 'a model'"),
    (Callable[[int], int], "abs", "x must be a function; got str 'abs'"),
    (jax.sharding.Mesh | None, 1, "x must be a Mesh or None; got int 1"),
]


def _of(annotation: Any) -> Callable:
    def function(x):
        return x

    function.__annotations__ = {"x": annotation}
    return checked()(function)


@pytest.mark.parametrize(("annotation", "values"), GOOD, ids=[str(a) for a, _ in GOOD])
def test_what_an_annotation_says_is_taken(annotation, values):
    for value in values:
        assert _of(annotation)(value) is value


@pytest.mark.parametrize(("annotation", "value", "message"), BAD, ids=[m for *_, m in BAD])
def test_what_it_does_not_say_is_refused(annotation, value, message):
    with pytest.raises(TypeError, match=message):
        _of(annotation)(value)


@pytest.mark.parametrize(("ends", "allowed"), [("[]", {0, 1}), ("[)", {0}), ("(]", {1}), ("()", set())])
def test_a_range_has_its_ends_or_not(ends, allowed):
    check = between(0, 1, ends)
    check("x", 0.5)
    for value in (-1, 0, 1, 2, float("nan")):
        if value in allowed:
            check("x", value)
        else:
            with pytest.raises(ValueError, match=re.escape(f"x must be in {ends[0]}0, 1{ends[1]}; got {value}")):
                check("x", value)


def test_ranges_are_checked_where_they_are_given():
    @checked(k=at_least(1))
    def search(k: int | None = None, *, seed: int = 0) -> None:
        """Searches."""

    search(), search(3), search(None), search(seed=2**40)
    for arguments, message in (
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"seed": -1}, r"seed must be in 0\.\."),
        ({"seed": 2**63}, r"seed must be in 0\.\."),
    ):
        with pytest.raises(ValueError, match=message):
            search(**arguments)
    assert search.__doc__ == "Searches."
    with pytest.raises(TypeError, match="search has no argument j"):
        checked(j=at_least(1))(search)


def test_what_is_traced_is_of_its_type_alone():
    check = checker(lambda x, *, t: None, {"t": at_least(1)})
    jax.make_jaxpr(lambda t: check(jnp.zeros(2), t=t)["x"])(0)


def test_paths_and_things_of_several_classes():
    @checked(model=having("encode", "dim"))
    def use(path: str | Path, model: Any = None) -> None: ...

    use("a"), use(Path("a"))
    for path in ("", " ", "\ud83d"):
        with pytest.raises(ValueError, match=r"path(: expected a path; got| has a lone surrogate)"):
            use(path)
    with pytest.raises(TypeError, match="model must have dim; got str 'a'"):
        use("a", "a")
    with pytest.raises(TypeError, match="model must have encode, dim; got type <class"):
        use("a", type("Model", (), {"encode": None, "dim": 3}))
    with pytest.raises(TypeError, match="path must be a string or a path; got NoneType None"):
        use(None)


def test_options_and_texts():
    with pytest.raises(ValueError, match=r"metric must be one of \['dot', 'cosine'\]; got \['dot'\]"):
        one_of("metric", ["dot"], ["dot", "cosine"])
    encodable("text", "half \U0001f600")
    with pytest.raises(ValueError, match=r"texts\[3\] has a lone surrogate, half a character, at 5: 'half \\ud83d'"):
        encodable("texts[3]", "half \ud83d")


def test_shapes_must_fit_together():
    check = shapes(queries="N D", negatives="N K D | N D", weights="... N")
    fitting = {"queries": SOME, "negatives": np.ones((2, 5, 3)), "weights": np.ones((7, 2))}
    check(fitting), check(fitting | {"negatives": SOME, "weights": None}), check({"queries": SOME})
    for wrong, message in (
        ({"queries": SOME[0]}, r"queries must be \[N, D\]; got \(3,\)"),
        ({"negatives": SOME[:1]}, r"negatives must be \[N, K, D\] or \[N, D\] with N = 2, D = 3 as in queries; "),
        ({"weights": np.float32(1)}, r"weights must be \[\.\.\., N\] with N = 2 as in queries; got \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            check(fitting | wrong)
    square = checked(shapes(R="T T"))(lambda R: R)
    with pytest.raises(ValueError, match=r"R must be \[T, T\]; got \(2, 3\)"):
        jax.jit(square)(SOME)


def test_parts_and_leaves_are_named():
    each(arrays)("models", [{"w": SOME, "b": None}, SOME]), having_keys("label")("train", {"label": 1})
    for check, value, message in (
        (each(arrays), [{"w": SOME}, {"w": 1.0}], r"models\[1\]\['w'\] must be an array of a tree; got float 1.0"),
        (each(arrays), {"one": []}, r"models\['one'\] must be a tree of arrays; got list \[\], which has none"),
        (each(arrays), "text", "models must be a sequence or a mapping; got str 'text'"),
    ):
        with pytest.raises(TypeError, match=message):
            check("models", value)
    with pytest.raises(ValueError, match=r"train must have 'label'; got \['text'\]"):
        having_keys("label")("train", {"text": 1})

    @checked()
    def use(*columns: str) -> None: ...

    use(), use("a", "b")
    with pytest.raises(TypeError, match=r"columns\[1\] must be a string; got int 1"):
        use("a", 1)


def test_numbers_that_a_device_would_make_others_of():
    with pytest.raises(ValueError, match="a must be whole numbers of 32 bits; got 1099511627776"):
        nn.dot(np.full((2, 2), 2**40), np.eye(2))
    with pytest.raises(ValueError, match="scale must be whole numbers of 32 bits"):
        losses.cosent(SOME, SOME, SOME[:, 0], scale=2**62)
    with pytest.raises(ValueError, match=r"scale must be a number of float32, at most 3.4e38; got 1e\+300"):
        losses.cosent(SOME, SOME, SOME[:, 0], scale=1e300)
    with pytest.raises(ValueError, match=r"temperature must be a number of float32, at least 1.2e-38; got 1e-40"):
        losses.info_nce(SOME, SOME, temperature=1e-40)


def test_masks_and_orders_of_bytes_that_would_not_be_heeded():
    masked, big = np.ma.masked_array(np.ones((2, 3)), np.eye(2, 3)), np.ones((2, 3), ">f4")
    with pytest.raises(TypeError, match=r"x must be an array without a mask; got MaskedArray float64 \(3,\)"):
        metrics.pearson(masked[0], np.ones(3))
    for corpus, message in (
        (masked, "without a mask"),
        (big, r"in this machine's order of bytes; got >f4: use astype"),
    ):
        with pytest.raises(TypeError, match=f"corpus must be .*{message}"):
            hard_negatives(np.ones((2, 3), np.float32), corpus, np.array([[0, 0]]))
        for check in (arrays, numbers):
            with pytest.raises(TypeError, match=rf"batch\['w'\] must be .*{message}"):
                check("batch", {"w": corpus})


EMPTY = np.zeros((0, 3), np.float32)
SOME = np.ones((2, 3), np.float32)


@pytest.mark.parametrize("name", ["info_nce", "siglip", "decoupled_contrastive", "symmetric_info_nce", "cosent"])
@pytest.mark.parametrize("jit", [False, True])
def test_a_loss_of_an_empty_batch_is_refused(name, jit):
    loss = getattr(losses, name)
    arguments = [EMPTY, EMPTY, EMPTY[:, 0]] if name == "cosent" else [EMPTY, EMPTY]
    with pytest.raises(ValueError, match=r"(queries|first) must not be empty; got an array of shape \(0, 3\)"):
        (jax.jit(loss) if jit else loss)(*arguments)


def test_a_loss_names_what_is_no_array():
    for arguments, message in (
        ((None, SOME), "queries must be an array of real numbers; got NoneType None"),
        ((SOME, [SOME[0], SOME[1]]), "documents must be an array of real numbers; got list"),
        ((SOME, [[1.0, 2.0], [3.0]]), "documents must be an array of real numbers; got list"),
        ((SOME, {"a": 1}), "documents must be an array of real numbers; got dict"),
        ((SOME, SOME, "no"), "negatives must be an array of real numbers or None; got str 'no'"),
    ):
        with pytest.raises(TypeError, match=message):
            losses.info_nce(*arguments)
    with pytest.raises(TypeError, match="temperature must be a number or an array of real numbers; got str '1'"):
        losses.info_nce(SOME, SOME, temperature="1")
    with pytest.raises(TypeError, match="k must be a whole number; got str '2'"):
        losses.k_sparse(SOME, "2")


def test_what_is_the_same_everywhere_is_checked_by_name():
    @checked()
    def use(*, rate: float = 0.5, key: jax.Array | None = None) -> None: ...

    use(rate=1, key=jax.random.key(0)), use(rate=np.float32(0.1), key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="rate must be a number; got nan"):
        use(rate=float("nan"))
    with pytest.raises(TypeError, match=r"key must be a random key, such as jax.random.key\(0\)"):
        use(key=jnp.zeros(2))


def test_an_argument_that_is_missing_or_unknown_names_the_function():
    with pytest.raises(TypeError, match="ewc: missing a required argument: 'weight'"):
        transforms.ewc()
    with pytest.raises(TypeError, match="ewc: got an unexpected keyword argument 'wieght'"):
        transforms.ewc(1.0, wieght=2.0)
