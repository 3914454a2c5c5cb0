"""SmolLM2 prompted here and in transformers, on real pairs of the STS-Benchmark's development set."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

import jaxemb
from jaxemb.evaluate import StsSet, read_sts
from jaxemb.prompting import (
    ECHO,
    KNOWLEDGE,
    PROMPT_EOL,
    TOKEN_MEAN,
    WEIGHTED_MEAN,
    Prepending,
    Prompted,
    TemplateReader,
    clean,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PENULTIMATE = dataclasses.replace(PROMPT_EOL, layer=-2)


@pytest.fixture(scope="module")
def pairs(data_dir):
    """Every tenth, as the specification's prototype has them."""
    data = read_sts(data_dir / "stsb_multi" / "stsb-en-dev.csv.gz", names=("sentence1", "sentence2", "score"))
    return StsSet(data.first[::10], data.second[::10], data.scores[::10])


@pytest.fixture(scope="module")
def smollm2(models_dir):
    path = models_dir("smollm2-135m-instruct")
    return path, jaxemb.load(path, pooling="lasttoken")


@pytest.fixture(scope="module")
def ours(smollm2, pairs):
    """`ours(template)`: the vectors of all sentences, and Spearman's correlation."""
    known = {}

    def of(template, prepending=None):
        if (template, prepending) not in known:
            encoder = Prompted(smollm2[1], template, prepending)
            first, second = np.split(encoder.encode([*pairs.first, *pairs.second]), 2)
            cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
            known[template, prepending] = first, spearmanr(cosines, pairs.scores).statistic
        return known[template, prepending]

    return of


@pytest.mark.slow  # 30 layers, twice
def test_prompt_eol_is_the_computation_of_transformers(smollm2, pairs, ours, record_property):
    """The same ids, states of both depths to 1e-3 of their size, and the same correlation to 0.005."""
    path, embedder = smollm2
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    prompts = [f'This sentence : "{clean(text)}" means in one word:"' for text in [*pairs.first, *pairs.second]]
    reader = TemplateReader(embedder.tokenizer, PROMPT_EOL)
    got = reader.encode([*pairs.first, *pairs.second]).ids
    assert [ids.tolist() for ids in got] == tokenizer(prompts)["input_ids"]
    states = {-1: [], -2: []}
    order = np.argsort([len(ids) for ids in got], kind="stable")
    with torch.no_grad():
        for rows in np.array_split(order, 20):
            batch = tokenizer([prompts[row] for row in rows], return_tensors="pt", padding=True, padding_side="left")
            hidden = model(**batch, output_hidden_states=True).hidden_states
            for layer, found in states.items():
                found.append(hidden[layer][:, -1].numpy())
    for layer, template in ((-1, PROMPT_EOL), (-2, PENULTIMATE)):
        theirs = np.empty((len(prompts), embedder.model.dim), np.float32)
        theirs[order] = np.concatenate(states[layer])
        first, second = np.split(theirs, 2)
        cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        vectors, spearman = ours(template)
        expected = float(spearmanr(cosines, pairs.scores).statistic)
        record_property(f"layer {layer}", {"jaxemb": float(spearman), "torch": expected})
        assert abs(spearman - expected) < 0.005
        np.testing.assert_allclose(vectors, first, atol=1e-3 * np.abs(first).max())


@pytest.mark.slow  # 30 layers, six times
def test_the_order_of_the_methods_is_that_of_the_specifications_prototype(ours, record_property):
    """Each figure within .02, that of token prepending, whose token is random, within .04."""
    expected = {
        "mean": (TOKEN_MEAN, 0.539),
        "weighted mean": (WEIGHTED_MEAN, 0.600),
        "Echo": (ECHO, 0.683),
        "PromptEOL": (PROMPT_EOL, 0.772),
        "PromptEOL, penultimate": (PENULTIMATE, 0.794),
        "Knowledge": (KNOWLEDGE, 0.809),
    }
    found = {name: ours(template)[1] for name, (template, _) in expected.items()}
    found["prepended"] = ours(PENULTIMATE, Prepending())[1]
    record_property("spearman", {name: float(value) for name, value in found.items()})
    for name, (_, figure) in expected.items():
        assert abs(found[name] - figure) < 0.02, name
    assert abs(found["prepended"] - 0.788) < 0.04
    ranked = [found[name] for name in ("mean", "weighted mean", "Echo", "PromptEOL, penultimate", "Knowledge")]
    assert ranked == sorted(ranked)
