"""What JSON files say, by key."""

import pytest

from jaxemb import settings
from jaxemb.settings import CheckpointError, Settings, flag, inner, layers, number, rate, size, spread, text, texts

C = Settings(
    {
        "size": 3,
        "zero": 0,
        "huge": 10**12,
        "text": "a",
        "null": None,
        "flag": True,
        "rate": 0.5,
        "list": ["a"],
        "object": {"deep": 1},
        "half": "\ud83d",
    },
    "dir/config.json",
)
BAD = {
    "size: absent": (lambda: size(C, "none"), "key 'none' is missing; expected a whole number of at least 1"),
    "size: null": (lambda: size(C, "null", 3), "null must be a whole number of at least 1; got null"),
    "size: text": (lambda: size(C, "text"), "text must be a whole number of at least 1; got 'a'"),
    "size: bool": (lambda: size(C, "flag"), "flag must be a whole number of at least 1; got true"),
    "size: zero": (lambda: size(C, "zero"), "zero must be a whole number of at least 1; got 0"),
    "size: too much": (lambda: size(C, "huge"), rf"huge must be a whole number in 1\.\.{2**31 - 1}; got 10+"),
    "size: range": (lambda: size(C, "size", most=2), r"size must be a whole number in 1\.\.2; got 3"),
    "layers": (
        lambda: layers({"n": 10**9}, "n"),
        r"config.json: n must be a whole number in 1\.\.4096; got 10*",
    ),
    "number": (lambda: number({"n": float("inf")}, "n"), "n must be a finite number; got Infinity"),
    "number: above": (lambda: number(C, "zero", above=0), "zero must be a finite number > 0; got 0"),
    "rate": (lambda: rate(C, "size"), r"size must be a number in \[0, 1\); got 3"),
    "spread": (lambda: spread({"s": -1}, "s"), "s must be a finite number >= 0; got -1"),
    "flag": (lambda: flag(C, "zero"), "zero must be true or false; got 0"),
    "text": (lambda: text(C, "list"), r'list must be a string; got \["a"\]'),
    "text: half a character": (lambda: text(C, "half"), r"half must be a string; got .*ud83d"),
    "text: options": (lambda: text(C, "text", "b", ["c", "b"]), r"text must be one of \['b', 'c'\]; got 'a'"),
    "texts": (lambda: texts(C, "text"), "text must be a list of strings; got 'a'"),
    "inner": (lambda: inner(C, "list"), "list must be an object"),
    "inner: key": (lambda: text(inner(C, "object"), "deep"), "dir/config.json: object: deep must be a string; got 1"),
    "item": (lambda: C["none"], "dir/config.json: key 'none' is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_file_key_and_what_was_expected(name):
    read, message = BAD[name]
    with pytest.raises(ValueError, match=message) as raised:
        read()
    assert (raised.type is CheckpointError) != ("config.json: n" in message or name in ("number", "spread"))


def test_values_and_defaults():
    assert (size(C, "size"), size(C, "none", 4), size(C, "null", None), size(C, "zero", least=0)) == (3, 4, None, 0)
    assert (number(C, "size"), rate(C, "rate"), spread(C, "zero"), flag(C, "flag")) == (3.0, 0.5, 0.0, True)
    assert (text(C, "text"), text(C, "null", None, ["b"]), texts(C, "list")) == ("a", None, ["a"])
    assert dict(inner(C, "null")) == dict(inner(C, "none")) == {}
    assert inner(C, "object")["deep"] == 1


def test_settings_know_which_keys_were_asked_for():
    c = Settings({"a": 1, "b": 2}, "file")
    size(c, "a"), c.get("c"), "d" in c
    assert c.asked == {"a", "c", "d"}
    assert {**c} == {"a": 1, "b": 2}
    assert settings.where({}) == "config.json"
