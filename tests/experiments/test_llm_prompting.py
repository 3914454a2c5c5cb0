import jax
import numpy as np
import pytest
import tokenizers

import jaxemb
from experiments import llm_prompting
from experiments.llm_prompting import EXPERIMENT, LAST, MEAN, PENULTIMATE
from jaxemb.data import Tokenizer


@pytest.fixture
def tiny_decoder(monkeypatch):
    """Of random weights, in place of SmolLM2."""
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(["This sentence means in one word"], 300, special_tokens=["<pad>"], show_progress=False)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sizes["max_position_embeddings"] = 256
    made = jaxemb.new("llama", sizes, Tokenizer(backend._tokenizer, {"pad": 0}), key=jax.random.key(0))
    monkeypatch.setattr(llm_prompting, "decoder", lambda: made)


@pytest.mark.slow  # programs of many lengths
def test_smoke(smoke_cells, tiny_decoder):
    table, summary = smoke_cells(EXPERIMENT, MEAN, LAST, PENULTIMATE, "token prepending")
    found = {name: record["values"]["spearman"] for name, record in summary["cells"].items()}
    assert len(found) == 12 and all(-100 <= value <= 100 for value in found.values())
    assert len({*found.values()}) > 6
    assert "47.06 (Llama-2-7B, seven sets)" in table and "8 pairs of each seed" in table


def test_no_two_seeds_share_a_pair(monkeypatch, data_dir):
    monkeypatch.setenv("JAXEMB_DATA", str(data_dir))
    llm_prompting.pairs.cache_clear()
    sizes = {"STS-B": 1500, "SICK": 4927}
    preset = EXPERIMENT.presets["paper"]
    for dataset in preset.datasets:
        whole = llm_prompting.pairs(dataset)
        assert len(whole) == sizes.get(dataset, len(whole)) >= preset.seeds * preset.pairs
        assert np.isfinite(whole.scores).all() and whole.scores.min() >= 0 and whole.scores.max() <= 5
        drawn = [llm_prompting.data(preset, dataset, seed) for seed in range(preset.seeds)]
        pairs = [(a, b, s) for part in drawn for a, b, s in zip(part.first, part.second, part.scores, strict=True)]
        every = [*zip(whole.first, whole.second, whole.scores, strict=True)]
        assert all(pairs.count(pair) <= every.count(pair) for pair in pairs)
    llm_prompting.pairs.cache_clear()
