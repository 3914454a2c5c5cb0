import json
import resource
import types

import numpy as np
import pytest

from jaxemb.retrieval import Hit, build_index, open_index


class Letters:
    """Encodes a text as its numbers of the letters a to d."""

    def __init__(self, letters="abcd"):
        self.letters, self.model = letters, types.SimpleNamespace(dim=len(letters))
        self.prompts, self.similarity_fn_name, self.asked = {}, "cosine", []

    def encode(self, texts, *, prompt_name=None, dtype="float32", out=None, show_progress=False):
        self.asked.append(prompt_name)
        vectors = np.array([[text.count(letter) for letter in self.letters] for text in texts], dtype)
        if out is not None:
            np.save(out, vectors)
        return vectors


RECORDS = ["aab", {"text": "b\n\u2028b", "page": 3}, "ddd"]


@pytest.fixture
def index(tmp_path):
    return build_index(tmp_path / "index", RECORDS, Letters(), model="letters")


def test_search_gives_the_records_best_first(index):
    assert len(index) == 3
    (hits,) = index.search(["b"], Letters(), k=2)
    assert hits == [
        Hit(pytest.approx(1.0), 1, {"text": "b\n\u2028b", "page": 3}),
        Hit(pytest.approx(0.2**0.5), 0, {"text": "aab"}),
    ]
    assert [len(hits) for hits in index.search(["a", "d"], Letters(), k=10)] == [3, 3]


def test_an_index_can_be_opened_again(index):
    again = open_index(index.path)
    assert again.manifest == index.manifest
    assert isinstance(again.vectors, np.memmap)
    assert again.search(["b"], Letters()) == index.search(["b"], Letters())
    manifest = json.loads((index.path / "manifest.json").read_text())
    assert (manifest["model"], manifest["dim"], manifest["count"], manifest["similarity"]) == (
        "letters",
        4,
        3,
        "cosine",
    )


def test_options_of_building(tmp_path):
    model = Letters()
    model.prompts, model.similarity_fn_name = {"query": "q: ", "passage": "p: "}, "dot"
    records = [{"body": "a"}, {"body": "aaaab"}]
    index = build_index(tmp_path / "index", records, model, model="letters", text="body", dtype="float16")
    assert index.vectors.dtype == np.float16
    ((best, _),) = index.search(["a"], model)
    assert best == Hit(4.0, 1, {"body": "aaaab"})
    assert model.asked == ["passage", None, None, "query"]  # None: what the model is known by


def test_vectors_at_hand_are_not_encoded_again(tmp_path):
    model = Letters()
    vectors = Letters().encode(["c", "b", "a"])
    index = build_index(tmp_path / "index", RECORDS, model, model="letters", vectors=vectors, dtype="float16")
    assert model.asked == [None]
    assert index.search(["a"], model)[0][0].record == {"text": "ddd"}
    assert index.vectors.dtype == np.float16
    with pytest.raises(ValueError, match=r"vectors must be \(3, 4\), as the records; got \(2, 4\)"):
        build_index(tmp_path / "index", RECORDS, model, model="letters", vectors=vectors[:2])


def test_building_again_replaces_the_index_and_leaves_nothing_else(index):
    build_index(index.path, ["c"], Letters(), model="letters")
    assert len(open_index(index.path)) == 1
    assert [path.name for path in index.path.parent.iterdir()] == ["index"]


def test_a_failed_build_leaves_the_old_index(index):
    class Broken(Letters):
        def encode(self, texts, **options):
            return super().encode(texts, **options) * np.nan

    with pytest.raises(ValueError, match="the embedding of record 0 is not finite"):
        build_index(index.path, RECORDS, Broken(), model="letters")
    assert open_index(index.path).search(["b"], Letters()) == index.search(["b"], Letters())
    assert [path.name for path in index.path.parent.iterdir()] == ["index"]


def test_a_full_disk_leaves_the_old_index(index):
    """It is noticed before the vectors are written, which else ends the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{index.path}'"):
            vectors = np.ones((2000, 4), np.float32)
            build_index(index.path, ["a"] * 2000, Letters(), model="letters", vectors=vectors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_index(index.path).search(["b"], Letters()) == index.search(["b"], Letters())


def test_building_over_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is no search index"):
        build_index(tmp_path, RECORDS, Letters(), model="letters")
    with pytest.raises(FileExistsError, match=r"notes.txt exists and is no search index"):
        build_index(tmp_path / "notes.txt", RECORDS, Letters(), model="letters")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "message", "records"),
    [
        (ValueError, "records must not be empty", []),
        (ValueError, r"record 1 has no field 'text'; it has \['body'\]", ["a", {"body": "b"}]),
        (TypeError, "record 1: 'text' must be a str; got int", ["a", {"text": 3}]),
        (TypeError, "record 0 is not JSON: .*set", [{"text": "a", "tags": {1}}]),
        (TypeError, "record 1 is not JSON: keys must be strings; got int 1", ["a", {"text": "b", 1: 2, "1": 3}]),
        (TypeError, "record 0 is not JSON: keys must be strings; got NoneType", [{"text": "a", "in": [{None: 1}]}]),
        (ValueError, "record 0 is not JSON: Out of range float", [{"text": "a", "x": float("nan")}]),
        (ValueError, "record 0 is not JSON: .*digits", [{"text": "a", "x": 10**4500}]),
    ],
)
def test_bad_records_are_named(tmp_path, error, message, records):
    with pytest.raises(error, match=message):
        build_index(tmp_path / "index", records, Letters(), model="letters")
    assert not list(tmp_path.iterdir())


def test_a_similarity_that_cannot_be_searched_is_refused(tmp_path):
    model = Letters()
    model.similarity_fn_name = "manhattan"
    with pytest.raises(ValueError, match="the model by 'manhattan'"):
        build_index(tmp_path / "index", RECORDS, model, model="letters")


def test_a_model_of_another_dimension_is_named(index):
    with pytest.raises(ValueError, match="vectors of dimension 4, made by letters; this model's have 2"):
        index.search(["a"], Letters("ab"))


def test_another_model_of_the_same_dimension_is_refused(index, caplog):
    with pytest.raises(ValueError, match=r"made by letters; this is another model: its vector .* build the index anew"):
        index.search(["a"], Letters("eabc"))

    class Rounded(Letters):
        def encode(self, texts, **options):
            return super().encode(texts, **options) * 1.01

    assert index.search(["a"], Rounded()) == index.search(["a"], Letters())
    assert "its vector of one text is 1.0% of the length away. If it was trained on, build the index" in caplog.text
    caplog.clear()
    assert index.search(["a"], known := Letters()) == index.search(["a"], known) and not caplog.text
    assert len(known.asked) == 3  # it is judged once
    assert [model is known.model for model in index._known] == [True]  # the others are not kept alive


@pytest.mark.parametrize("name", ["vectors.npy", "records.jsonl"])
def test_files_that_were_changed_are_named(index, name):
    """Shuffled records and a flipped bit leave files that can be read."""
    if name == "records.jsonl":
        changed = b"".join(reversed((index.path / name).read_bytes().splitlines(keepends=True)))
    else:
        changed = bytearray((index.path / name).read_bytes())
        changed[-6] ^= 1
    (index.path / name).write_bytes(changed)
    with pytest.raises(ValueError, match=f"{name} was changed after the index was built"):
        open_index(index.path)
    assert len(open_index(index.path, verify=False)) == 3


def test_vectors_that_float16_cannot_hold_are_named(tmp_path):
    vectors = np.array([[1, 2, 3, 4], [1, 1e6, 3, 4], [0, 0, 0, 1]], np.float32)
    with pytest.raises(ValueError, match="the embedding of record 1 is not finite"):
        build_index(tmp_path / "i", RECORDS, Letters(), model="letters", vectors=vectors, dtype="float16")
    vectors[1] = 1e-9
    with pytest.raises(ValueError, match="the embedding of record 1 is too small for float16"):
        build_index(tmp_path / "i", RECORDS, Letters(), model="letters", vectors=vectors, dtype="float16")
    vectors[1] = 0
    build_index(tmp_path / "i", RECORDS, Letters(), model="letters", vectors=vectors, dtype="float16")


@pytest.mark.parametrize("name", ["manifest.json", "vectors.npy", "records.jsonl"])
def test_a_missing_file_is_named(index, name):
    (index.path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        open_index(index.path)


def test_files_that_are_cut_off_are_named(index):
    vectors = (index.path / "vectors.npy").read_bytes()
    for size in (0, 20, len(vectors) - 8):
        (index.path / "vectors.npy").write_bytes(vectors[:size])
        with pytest.raises(ValueError, match=r"vectors.npy is damaged or cut off"):
            open_index(index.path)
    (index.path / "vectors.npy").write_bytes(vectors)
    records = (index.path / "records.jsonl").read_bytes()
    (index.path / "records.jsonl").write_bytes(records[:-3])
    with pytest.raises(ValueError, match=r"records.jsonl: manifest says 3 records; got 2 whole lines"):
        open_index(index.path)


def test_vectors_that_do_not_match_the_manifest_are_named(index):
    np.save(index.path / "vectors.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match=r"manifest says float32 \(3, 4\); got float32 \(3, 5\)"):
        open_index(index.path)
    np.save(index.path / "vectors.npy", np.array([{}] * 3, object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"vectors.npy is damaged"):
        open_index(index.path)
    (index.path / "vectors.npy").write_bytes(
        b"\x93NUMPY\x01\0\x76\0" + b"{'descr': ('<f4', (".ljust(117) + b"\n" + bytes(48)
    )
    with pytest.raises(ValueError, match=r"vectors.npy is damaged"):
        open_index(index.path)


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ("not valid JSON", "{"),
        ("format must be 3; got 1; build the index anew", '{"format": 1}'),
        ("expected a JSON object; got a list", "[]"),
        ("key 'text' is missing", '{"format": 3, "model": "m"}'),
    ],
)
def test_a_damaged_manifest_is_named(index, message, content):
    (index.path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_index(index.path)


def test_a_damaged_record_is_named_when_it_is_found(index):
    (index.path / "records.jsonl").write_text('{"text": "aab"}\n{"text": \n3\n')
    again = open_index(index.path, verify=False)
    assert again.record(0) == {"text": "aab"}
    with pytest.raises(ValueError, match=r"records.jsonl:2: not valid JSON"):
        again.record(1)
    with pytest.raises(ValueError, match=r"records.jsonl:3: expected a JSON object; got a number 3"):
        again.record(2)
    (index.path / "records.jsonl").write_text('{"text": "aab"}\n{"page": 3}\n{}\n')
    with pytest.raises(ValueError, match=r"records.jsonl:2: expected the field 'text', .*; got \['page'\]"):
        open_index(index.path, verify=False).record(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": "4"}, "manifest.json: dim must be a whole number of at least 1; got '4'"),
        ({"similarity": None}, r"manifest.json: similarity must be one of .*; got null"),
        ({"sha256": []}, r"manifest.json: sha256 must be an object; got \[\]"),
        ({"sha256": {}}, "manifest.json: sha256: key 'vectors.npy' is missing"),
        ({"text": "nope"}, r"records.jsonl:1: expected the field 'nope', which manifest.json .*; got \['text'\]"),
        ({"similarity": "dot"}, "manifest.json was changed after the index was built; build it anew"),
        ({"fingerprint": "?"}, "manifest.json: fingerprint must be base64 of 4 numbers"),
    ],
)
def test_a_manifest_names_its_key(tmp_path, changes, message):
    build_index(tmp_path / "index", ["a", "b"], Letters(), model="m")
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        open_index(tmp_path / "index")


def test_half_a_character_in_any_field_is_named(tmp_path):
    records = [{"text": "a"}, {"text": "b", "note": "\ud83d"}]
    with pytest.raises(ValueError, match="record 1 has a lone surrogate, half a character"):
        build_index(tmp_path / "index", records, Letters(), model="m")
    assert not (tmp_path / "index").exists()
