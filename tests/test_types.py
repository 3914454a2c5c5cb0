import jax
import numpy as np
import pytest

from jaxemb.data import pack, pad
from jaxemb.types import Tokens, concatenate

RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(1, 99, n) for n in (3, 5, 2, 4, 6, 1)]


def test_tokens_from_a_mask_on_either_side():
    mask = np.array([[1, 1, 0], [0, 1, 1]])
    tokens = Tokens.from_mask(np.ones((2, 3)), mask)
    np.testing.assert_array_equal(tokens.mask, mask == 1)
    np.testing.assert_array_equal(tokens.positions, [[0, 1, 0], [0, 0, 1]])


def test_tokens_are_a_pytree_with_static_slots_per_row():
    tokens = pack(TEXTS, row_length=8, texts_per_row=4)
    doubled = jax.tree.map(lambda a: 2 * a, tokens)
    np.testing.assert_array_equal(doubled.ids, 2 * tokens.ids)
    assert doubled.texts_per_row == 4


def _texts(tokens):
    row, segment = tokens.slots // tokens.texts_per_row, tokens.slots % tokens.texts_per_row + 1
    return [np.asarray(tokens.ids)[r][tokens.segment_ids[r] == s] for r, s in zip(row, segment, strict=True)]


def test_concatenated_batches_hold_all_texts_in_order():
    both = concatenate([pack(texts, row_length=8, texts_per_row=4) for texts in (TEXTS[:4], TEXTS[4:])])
    assert both.count == 6
    for got, text in zip(_texts(both), TEXTS, strict=True):
        np.testing.assert_array_equal(got, text)


def test_concatenated_rows_of_one_text_need_no_slots():
    both = concatenate([pad(texts, length=8) for texts in (TEXTS[:4], TEXTS[4:])])
    assert both.slots is None and both.count == 6
    np.testing.assert_array_equal(both.ids, pad(TEXTS, length=8).ids)


def test_batches_of_other_layouts_are_refused():
    with pytest.raises(ValueError, match="same layout of rows"):
        concatenate([pad(TEXTS, length=8), pad(TEXTS, length=9)])
