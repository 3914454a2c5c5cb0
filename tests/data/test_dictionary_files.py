import json

import numpy as np
import pytest

from jaxemb.data import Definitions, RecordError, Tokenizer, read_dictionary, read_wordnet

PAIRS = [("cat", "a small animal"), ("ice cream", "a frozen dessert"), ("cat", "a jazz fan"), ("dog", "it barks")]


def pairs_of(definitions):
    return [(definitions.entries[e], text) for e, text in zip(definitions.entry, definitions.texts, strict=True)]


@pytest.fixture
def definitions():
    return Definitions.from_pairs(PAIRS)


def test_pairs_are_grouped_by_entry(definitions):
    assert definitions.entries == ("cat", "ice cream", "dog") and len(definitions) == 4
    assert definitions.entry.tolist() == [0, 1, 0, 2]
    assert definitions.source()[2] == {"definition": "a jazz fan", "entry": 0}
    kept = definitions.select([2, 0])
    assert kept.entries == ["dog", "cat"] and pairs_of(kept) == [PAIRS[0], PAIRS[2], PAIRS[3]]


def test_a_dictionary_of_the_user(tmp_path, definitions):
    path = tmp_path / "dictionary.tsv"
    path.write_text("\n".join(f"{a}\t{b}" for a, b in PAIRS), encoding="utf-8")
    assert pairs_of(read_dictionary(path, names=("word", "definition"))) == PAIRS
    path.write_text("entry\tmeans\ncat\ta small animal<|or|> a jazz fan\n", encoding="utf-8")
    found = read_dictionary(path, word="entry", definition="means", separator="<|or|>")
    assert pairs_of(found) == [PAIRS[0], PAIRS[2]]
    path = tmp_path / "dictionary.jsonl"
    path.write_text(json.dumps({"word": "cat", "definition": ["a small animal", "a jazz fan"]}), encoding="utf-8")
    assert pairs_of(read_dictionary(path)) == [PAIRS[0], PAIRS[2]]


def test_synonyms_share_definitions(tmp_path):
    path = tmp_path / "synsets.jsonl"
    synsets = [{"words": ["cat", "true cat"], "definitions": ["feline"]}, {"words": ["cat"], "definitions": ["a", "b"]}]
    path.write_text("\n".join(map(json.dumps, synsets)), encoding="utf-8")
    found = read_wordnet(path)
    assert pairs_of(found) == [("cat", "feline"), ("true cat", "feline"), ("cat", "a"), ("cat", "b")]


@pytest.mark.parametrize("value", [7, "", " ", [1], {"a": 1}, ["a", ""]])
@pytest.mark.parametrize("field", ["words", "definitions"])
def test_names_the_row_of_what_is_no_text(tmp_path, field, value):
    path = tmp_path / "synsets.jsonl"
    rows = [{"words": "cat", "definitions": "feline"}, {"words": "dog", "definitions": "it barks", field: value}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(RecordError, match=rf"synsets.jsonl: row 1: '{field}' must be a text"):
        read_wordnet(path)
    if field == "definitions" or not isinstance(value, list):
        with pytest.raises(RecordError, match=rf"synsets.jsonl: row 1: '{field}' must be a text"):
            read_dictionary(path, word="words", definition="definitions")


def test_entries_are_split_and_stay_where_they_are_when_others_come():
    dictionary = Definitions.from_pairs((f"word {i % 500}", f"text {i}") for i in range(800))
    parts = dictionary.split()
    assert sum(len(part.entries) for part in parts) == 500 and sum(map(len, parts)) == 800
    assert sorted(pair for part in parts for pair in pairs_of(part)) == sorted(pairs_of(dictionary))
    np.testing.assert_allclose([len(part.entries) / 500 for part in parts], [0.8, 0.1, 0.1], atol=0.04)
    larger = Definitions.from_pairs((f"word {i}", "text") for i in reversed(range(600))).split()
    assert all(set(part.entries) < set(more.entries) for part, more in zip(parts, larger, strict=True))
    assert parts[1].entries != dictionary.split(seed=1)[1].entries


def test_words_are_entries_of_one_token(tiny_minilm, definitions):
    tokenizer = Tokenizer.from_directory(tiny_minilm)
    words = definitions.words(tokenizer)
    found = [words[i] for i in range(len(words))]
    assert [r["definition"] for r in found] == ["a small animal", "a jazz fan", "it barks"]
    ids = [tokenizer.backend.token_to_id(word) for word in ("cat", "cat", "dog")]
    assert [r["word"] for r in found] == ids and [r["entry"] for r in found] == [0, 0, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Definitions.from_pairs([("cat", " ")]), "empty definition or entry: 'cat' is ' '"),
        (lambda: Definitions.from_pairs([("", "text")]), "empty definition or entry"),
        (lambda: Definitions(["a"], ["text"], np.array([1])), r"each number in 0..0"),
        (lambda: Definitions(["a", "b"], ["text"], np.array([0])), r"each number in 0..1"),
        (lambda: Definitions(["a", "a"], ["x", "y"], np.array([0, 1])), "different from each other"),
        (lambda: Definitions(["a"], ["x", "y"], np.array([0])), "one number per definition"),
        (lambda: Definitions.from_pairs(PAIRS).split((0.5, 0.4)), "sum to 1"),
        (lambda: Definitions.from_pairs(PAIRS).split((1 - 1e-7, 1e-7)), "gets none of the 3 entries"),
    ],
)
def test_names_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
