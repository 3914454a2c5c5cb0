import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxemb.encoders import Bags, HashedBag, hashed_ngrams

TEXTS = ["A cat sat.", "", "a CAT, a hat!", "Größe", "?!"]


def test_the_features_are_words_and_their_ngrams():
    # In so many buckets no two of these features meet: counts must be sklearn's.
    CountVectorizer = pytest.importorskip("sklearn.feature_extraction.text").CountVectorizer
    words = CountVectorizer(token_pattern=r"\w+").fit(TEXTS)
    ngrams = CountVectorizer(analyzer="char", ngram_range=(3, 4), lowercase=False).build_analyzer()
    pieces = CountVectorizer(
        analyzer=lambda text: [gram for word in words.build_analyzer()(text) for gram in ngrams(f"<{word}>")]
    ).fit(TEXTS)
    counts = np.concatenate([words.transform(TEXTS).toarray(), pieces.transform(TEXTS).toarray()], axis=1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    matrix = hashed_ngrams(TEXTS, buckets=2**31 - 1)
    for i in range(len(TEXTS)):
        np.testing.assert_allclose(
            np.sort(matrix[[i]].data), np.sort(shares[i][shares[i] > 0]), rtol=1e-6, err_msg=TEXTS[i]
        )
    # The words a, cat and sat; <a>; <ca cat at> <cat cat>; <sa sat <sat sat>, at> being there already.
    assert matrix[[0]].nnz == 3 + 1 + 5 + 4


def test_the_hash_is_the_same_everywhere():
    assert hashed_ngrams(["at"], buckets=1000).indices.tolist() == sorted(
        zlib.crc32(gram) % 1000 for gram in (b"word at", b"<at", b"at>", b"<at>")
    )


@functools.cache
def tower() -> HashedBag:
    init = lambda key: HashedBag.init(key, buckets=64, dim=8)
    return jax.tree.map(np.asarray, jax.device_get(jax.jit(init)(jax.random.key(0))))


run = jax.jit(lambda tower, bags, key=None: tower(bags, key=key))


def test_bags_are_products_with_the_table_and_a_residual_layer():
    matrix = hashed_ngrams(TEXTS, buckets=64)
    x = matrix.toarray() @ tower().table
    y = x + np.tanh(x @ tower().residual.kernel + tower().residual.bias)
    np.testing.assert_allclose(run(tower(), Bags.from_csr(matrix), jax.random.key(1)), y, atol=1e-6)


def test_padding_changes_neither_value_nor_gradient():
    matrix = hashed_ngrams(TEXTS, buckets=64)
    loss = jax.jit(jax.value_and_grad(lambda tower, bags: jnp.sum(jnp.sin(tower(bags)))))
    exact, padded = Bags.from_csr(matrix), Bags.from_csr(matrix, matrix.nnz + 7)
    assert padded.ids.shape == (matrix.nnz + 7,) and (np.diff(padded.texts) >= 0).all()
    for a, b in zip(*(jax.tree.leaves(loss(tower(), bags)) for bags in (exact, padded)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.integers(1, 100))
def test_rows_sum_to_one(texts, buckets):
    sums = hashed_ngrams(texts, buckets=buckets).toarray().sum(1)
    assert all(total == pytest.approx(1, abs=1e-5) or total == 0 for total in sums)
    alone = np.concatenate([hashed_ngrams([text], buckets=buckets).toarray() for text in texts])
    np.testing.assert_array_equal(hashed_ngrams(texts, buckets=buckets).toarray(), alone)


def test_bad_input():
    with pytest.raises(ValueError, match=r"buckets must be in 1\.\.\d+; got 0"):
        hashed_ngrams(["a"], buckets=0)
    with pytest.raises(ValueError, match=r"sizes\[0\] must be at least 1; got 0"):
        hashed_ngrams(["a"], buckets=5, sizes=(0,))
    with pytest.raises(ValueError, match="size must be at least 4, the number of features; got 3"):
        Bags.from_csr(hashed_ngrams(["at"]), 3)
