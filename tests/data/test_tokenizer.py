import json

import numpy as np
import pytest

from jaxemb.data import SPECIAL_TOKENS, Tokenizer


def test_a_vocabulary_alone_gives_bert_word_pieces(tokenizer):
    ids = tokenizer(["Alpha beta", "", "unheard of"])
    assert [i.tolist() for i in ids] == [[2, 5, 6, 3], [2, 3], [2, 1, 1, 3]]
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert all(i.dtype == np.int32 for i in ids)


def test_truncation_keeps_special_tokens_and_counts(tokenizer):
    encoded = tokenizer.encode(["alpha beta gamma delta", "alpha", "alpha beta"], max_length=4)
    assert [i.tolist() for i in encoded.ids] == [[2, 5, 6, 3], [2, 5, 3], [2, 5, 6, 3]]
    assert encoded.truncated == 1


def test_truncation_from_the_left(vocabulary_directory, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((vocabulary_directory / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "left", "model_max_length": 77}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer(["alpha beta gamma delta"], 4)[0].tolist() == [2, 7, 8, 3]
    assert tokenizer.model_max_length == 77


def test_lower_casing_comes_before_the_tokenizers_own_steps(vocabulary_directory, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((vocabulary_directory / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert Tokenizer.from_directory(tmp_path)(["ALPHA"])[0].tolist() == [2, 1, 3]
    assert Tokenizer.from_directory(tmp_path, lower_case=True)(["ALPHA"])[0].tolist() == [2, 5, 3]


def test_a_saved_tokenizer_loads_and_keeps_its_files(minilm, tmp_path):
    Tokenizer.from_directory(minilm).save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        assert (tmp_path / name).read_bytes() == (minilm / name).read_bytes()


def test_a_tokenizer_from_a_vocabulary_saves_a_tokenizer_json(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    texts = ["alpha Beta", "gamma : w3"]
    for a, b in zip(tokenizer(texts), Tokenizer.from_directory(tmp_path)(texts), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("texts", "kind"),
    [(["a", None], "NoneType"), (["a", 3], "int"), (["a", b"b"], "bytes"), (["a", float("nan")], "float")],
)
def test_what_is_no_text_is_named_by_index(tokenizer, texts, kind):
    with pytest.raises(TypeError, match=rf"texts\[1\] must be a string; got {kind}"):
        tokenizer(texts)


def test_a_single_string_is_no_sequence_of_texts(tokenizer):
    with pytest.raises(TypeError, match="must be a sequence of strings; got str"):
        tokenizer("alpha")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tokenizer.word_piece("abc"), "vocabulary must be a sequence of strings; got str 'abc'"),
        (lambda: Tokenizer.train("abc", 9), "texts must be an iterable; got str 'abc'"),
        (lambda: Tokenizer.train(["a"], 9, special_tokens="[PAD]"), "special_tokens must be a sequence of strings"),
    ],
)
def test_no_string_is_taken_for_its_letters(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_no_string_is_taken_for_a_pair(tokenizer):
    with pytest.raises(TypeError, match=r"pairs\[1\] must be a tuple of 2; got str 'ab'"):
        tokenizer.encode_pairs([("alpha", "beta"), "ab"])


def test_a_maximum_without_room_for_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="max_length must exceed the 2 special tokens; got 2"):
        tokenizer(["alpha"], 2)


def test_a_directory_without_a_tokenizer_says_how_to_make_one(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"expected tokenizer.json or vocab.txt; found spiece.model.*save_pretrained"
    ):
        Tokenizer.from_directory(tmp_path)


def test_the_same_texts_make_the_same_tokenizer():
    """The trainer of `tokenizers` gives the pieces other ids in every process and, at ties, other pieces."""
    texts = [f"{a}{b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    vocabularies = [Tokenizer.train(texts, 120).backend.get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    assert [vocabularies[0][token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_a_tokenizer_is_made_from_texts(tmp_path):
    tokenizer = Tokenizer.train(["the cat sat on the mat", "The cats sat"] * 9, 40)
    assert tokenizer.vocab_size <= 40 and tokenizer.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    pieces = [tokenizer.backend.id_to_token(i) for i in tokenizer(["The cats!"])[0]]
    assert pieces[:2] == ["[CLS]", "the"] and pieces[-2:] == ["[UNK]", "[SEP]"]
    tokenizer.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again.special_ids == tokenizer.special_ids
    np.testing.assert_array_equal(again(["The cats!"])[0], tokenizer(["The cats!"])[0])
    padding_second = Tokenizer.train(["a b"], 40, special_tokens=("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    assert padding_second.pad_id == 1


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (("[PAD]", "a"), r"vocabulary must have the tokens .*; it lacks \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ((*SPECIAL_TOKENS, "a", "a"), "vocabulary must have each token once; got 7, 6 different ones"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.word_piece(vocabulary)


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_vocabulary_has_the_lines_of_a_text_file(tmp_path, odd):
    """Characters at which `str.splitlines` would cut as well are tokens, as in bert-base-chinese."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a", odd, "cat", "dog\r"]), newline="")
    assert Tokenizer.from_directory(tmp_path)(["a cat dog"])[0].tolist() == [2, 5, 7, 8, 3]


@pytest.fixture
def saved(tmp_path):
    words = ("Paris", "paris", "café", "cafe", "covid", "##19", "東", "東京")
    Tokenizer.word_piece((*SPECIAL_TOKENS, *words)).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "text", "stated", "otherwise"),
    [
        ({"do_lower_case": False}, "Paris", [5], [6]),
        ({"strip_accents": False}, "café", [7], [8]),
        ({"tokenize_chinese_chars": False}, "東京", [12], [11, 1]),
        ({"added_tokens_decoder": {"13": {"content": "covid19", "special": False}}}, "covid19", [13], [9, 10]),
    ],
)
def test_the_configuration_of_a_tokenizer_goes_before_its_json(saved, options, text, stated, otherwise):
    """As in transformers, whose classes of BERT's kind build their normalizer of the configuration alone."""
    content = lambda **changes: json.dumps({"tokenizer_class": "BertTokenizer"} | changes)
    for changes, expected in ((options, stated), ({}, otherwise)):
        (saved / "tokenizer_config.json").write_text(content(**changes))
        assert Tokenizer.from_directory(saved)([text])[0].tolist() == [2, *expected, 3]
    if "added_tokens_decoder" not in options:
        (saved / "tokenizer_config.json").write_text(content(**options, tokenizer_class="PreTrainedTokenizerFast"))
        assert Tokenizer.from_directory(saved)([text])[0].tolist() == [2, *otherwise, 3]


def test_added_tokens_stand_beside_a_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a"]))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"covid19": 6}))
    assert Tokenizer.from_directory(tmp_path)(["a covid19"])[0].tolist() == [2, 5, 6, 3]


def test_an_added_token_of_another_id_is_refused(saved):
    (saved / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"5": {"content": "covid19"}}}))
    with pytest.raises(ValueError, match="the added token 'covid19' has the id 5; in the tokenizer it is 13"):
        Tokenizer.from_directory(saved)
