"""Token ids equal those of transformers and sentence-transformers."""

import csv
import gzip
import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from jaxemb.data import Tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
ODD = [
    "",
    " ",
    "  two  spaces ",
    "tab\tand\nnewline",
    "[MASK] and [SEP] inside",
    "naïve Ⅷ ﬁ",
    "🙂👍🏽",
    "a" * 300,
    "\u200b\ufeff",
]


@pytest.mark.parametrize("language", LANGUAGES)
def test_minilm_on_stsb(minilm, data_dir, language):
    with gzip.open(data_dir / "stsb_multi" / f"stsb-{language}-dev.csv.gz", "rt", encoding="utf-8", newline="") as file:
        texts = [text for row in csv.reader(file) for text in row[:2]]
    assert len(texts) == 3000
    expected = transformers.AutoTokenizer.from_pretrained(minilm)(texts)["input_ids"]
    assert [ids.tolist() for ids in Tokenizer.from_directory(minilm)(texts)] == expected


@pytest.mark.parametrize("max_length", [3, 4, 16, 512])
def test_minilm_truncates_alike(minilm, max_length):
    texts = [*ODD, " ".join(ODD) * 40]
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    expected = theirs(texts, truncation=True, max_length=max_length)["input_ids"]
    encoded = Tokenizer.from_directory(minilm).encode(texts, max_length)
    assert [ids.tolist() for ids in encoded.ids] == expected
    assert encoded.truncated == sum(len(ids) > max_length for ids in theirs(texts)["input_ids"])


def test_a_vocabulary_alone_gives_the_checkpoints_tokenizer(minilm, tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    expected = transformers.AutoTokenizer.from_pretrained(minilm)(ODD)["input_ids"]
    assert [ids.tolist() for ids in Tokenizer.from_directory(tmp_path)(ODD)] == expected


def test_special_ids_and_length_are_those_of_transformers(minilm):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(minilm), Tokenizer.from_directory(minilm)
    assert ours.special_ids == {role: getattr(theirs, f"{role}_token_id") for role in ours.special_ids}
    assert set(ours.special_ids) == {"pad", "unk", "cls", "sep", "mask"}
    assert ours.model_max_length == theirs.model_max_length == 512
    assert ours.vocab_size == len(theirs)


def test_sentence_transformers_preprocesses_alike(minilm):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm), device="cpu")
    features = theirs.preprocess(ODD)
    expected = [
        ids[mask == 1].tolist() for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
    ]
    assert [ids.tolist() for ids in Tokenizer.from_directory(minilm)(ODD, theirs.max_seq_length)] == expected


@pytest.mark.parametrize("own_steps", [None, "nfc", "sequence"])
def test_lower_casing_as_sentence_transformers_adds_it(tmp_path, own_steps):
    """`do_lower_case` puts a Lowercase step in front of whatever a cased tokenizer does."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer

    backend = Backend(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "hello": 2, "Hello": 3, "é": 4}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = {
        None: None,
        "nfc": normalizers.NFC(),
        "sequence": normalizers.Sequence([normalizers.NFC(), normalizers.Replace("H", "J")]),
    }[own_steps]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    texts = ["Hello HELLO hello", "E\u0301 É"]
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": True}))
    features = Transformer(str(tmp_path), max_seq_length=16, do_lower_case=True).preprocess(texts)
    expected = [
        ids[mask == 1].tolist() for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
    ]
    assert [ids.tolist() for ids in Tokenizer.from_directory(tmp_path, lower_case=True)(texts)] == expected
    assert expected[0] == [2, 2, 2]
