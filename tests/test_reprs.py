"""What is printed of large things is a line, and they can be compared and hashed."""

import dataclasses

import jax
import numpy as np

import jaxemb
from jaxemb.data import SPECIAL_TOKENS, Tokenizer, from_iterable, from_list
from jaxemb.embedder import Normalize
from jaxemb.retrieval import build_index, open_index

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def test_a_line_each(tmp_path):
    tokenizer = Tokenizer.word_piece([*SPECIAL_TOKENS, *"abcdef"])
    embedder = jaxemb.new("bert", SIZES, tokenizer, key=jax.random.key(0), heads=(Normalize(),))
    source = from_list([{"text": "a b " * 1000}] * 3)
    embedder.save(tmp_path / "model")
    build_index(tmp_path / "index", source, jaxemb.load(tmp_path / "model"), model=str(tmp_path / "model"))
    index = open_index(tmp_path / "index")
    numbers = sum(leaf.size for leaf in jax.tree.leaves(embedder.model))
    assert repr(embedder).startswith("SentenceEmbedder('bert', max_length=512, Embedder(encoder=Transformer(")
    assert f"encoder=Transformer({numbers:,} numbers), heads=[Normalize()], pooling=Mean()" in repr(embedder.model)
    assert repr(source) == "Source('list', 3 records)" and "3 x 16 float32, cosine" in repr(index)
    stream = from_iterable(lambda: iter([]))
    things = (embedder, tokenizer, source, stream, index)
    for thing in (*things, embedder.model, embedder.model.encoder):
        assert len(repr(thing)) < 400 and "\n" not in repr(thing) and str(thing) == repr(thing)
    for thing in things:
        changed = dataclasses.replace(thing)
        assert thing == thing and thing != changed and len({thing, changed}) == 2
    assert np.shape(embedder.encode(["a"])) == (1, 16)
