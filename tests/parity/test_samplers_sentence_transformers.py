"""Batch samplers against sentence-transformers'."""

from collections import Counter

import numpy as np
import pytest

from jaxemb.data import from_list
from jaxemb.data.samplers import NoDuplicates, SharedValues, group_by_label, no_duplicates

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
reference = pytest.importorskip("sentence_transformers.base.sampler")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("batch_size", [2, 5, 16])
@pytest.mark.parametrize("distinct", [30, 200])
def test_no_duplicates_gives_the_same_batches_for_the_same_permutation(batch_size, distinct):
    random = np.random.default_rng(batch_size)
    columns = {name: [f"t{i}" for i in random.integers(0, distinct, 150)] for name in ("query", "document")}
    sampler = reference.NoDuplicatesBatchSampler(
        datasets.Dataset.from_dict(columns), batch_size, drop_last=False, generator=torch.Generator(), seed=7
    )
    order = torch.randperm(150, generator=torch.Generator().manual_seed(7)).numpy()
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    shared = NoDuplicates().plan(from_list(records), ["query", "document"], batch_size, False).draw.args[0]
    assert isinstance(shared, SharedValues)
    found = no_duplicates(order, shared, batch_size)
    assert [batch.tolist() for batch in found] == [list(map(int, batch)) for batch in sampler]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch_size", [4, 6, 16])
def test_group_by_label_gives_as_many_batches_of_as_many_rows_of_each_label(batch_size, drop_last):
    labels = np.random.default_rng(0).geometric(0.3, 151)
    dataset = datasets.Dataset.from_dict({"text": [""] * 151, "label": labels})
    sampler = reference.GroupByLabelBatchSampler(
        dataset, batch_size, drop_last, ["label"], generator=torch.Generator(), seed=1
    )
    theirs = list(sampler)
    ours = group_by_label(labels, batch_size, np.random.default_rng(1))
    ours = ours.only(batch_size) if drop_last else ours
    assert [len(batch) for batch in ours] == [len(batch) for batch in theirs]
    if len(ours.rows) == sampler._stream_length:  # else the last rows are dropped, and their labels are random
        assert Counter(labels[ours.rows].tolist()) == Counter(labels[np.concatenate(theirs)].tolist())
