"""Checkpoints of other kinds of models are refused, not read as a part of themselves."""

import json
import re

import numpy as np
import pytest

from jaxemb.checkpoints import CheckpointError, load_encoder, read_tensors
from jaxemb.pooling import Cls, Mean
from jaxemb.sentence_embedder import load

CLASSIFIER = {"classifier.weight": np.ones((1, 4), np.float32), "classifier.bias": np.ones(1, np.float32)}
POOLER = {"bert.pooler.dense.weight": np.ones((4, 4), np.float32), "bert.pooler.dense.bias": np.ones(4, np.float32)}
PROJECTION = {"linear.weight": np.ones((3, 4), np.float32)}
MLM = {
    "cls.predictions.transform.dense.weight": np.ones((4, 4), np.float32),
    "cls.predictions.transform.dense.bias": np.ones(4, np.float32),
    "cls.predictions.transform.LayerNorm.gamma": np.ones(4, np.float32),
    "cls.predictions.transform.LayerNorm.beta": np.ones(4, np.float32),
    "cls.predictions.bias": np.ones(11, np.float32),
    "cls.seq_relationship.weight": np.ones((2, 4), np.float32),
    "cls.seq_relationship.bias": np.ones(2, np.float32),
    "bert.embeddings.position_ids": np.arange(9)[None],
}


@pytest.fixture
def prefixed(tensors):
    return {f"bert.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("architecture", "more", "kind"),
    [
        ("BertForSequenceClassification", POOLER | CLASSIFIER, "a classifier, such as a cross-encoder"),
        (None, CLASSIFIER, "a classifier, such as a cross-encoder"),
        ("BertForQuestionAnswering", {"qa_outputs.weight": np.ones((2, 4), np.float32)}, "a model that answers"),
        ("HF_ColBERT", PROJECTION, "a model of late interaction (ColBERT)"),
        ("BertModel", PROJECTION, "a model of late interaction (ColBERT)"),
        ("BertForMultipleChoice", {}, "a model"),
    ],
)
def test_a_checkpoint_of_which_the_encoder_is_only_a_part_is_refused(write_encoder, prefixed, architecture, more, kind):
    path = write_encoder(prefixed | more, **({"architectures": [architecture]} if architecture else {}))
    with pytest.raises(ValueError, match=re.escape(f"holds {kind}")) as error:
        load(path)
    assert all(name in str(error.value) for name in more if "pooler" not in name)
    assert "jaxemb.load(..., encoder_only=True)" in str(error.value)

    # Asked for by name, the encoder is there, and the rest is not.
    embedder = load(path, encoder_only=True)
    assert embedder.format.encoder.config["architectures"] == ["BertModel"]
    embedder.save(path.parent / "saved")
    saved = read_tensors(path.parent / "saved")
    assert {name: saved[name].tobytes() for name in saved} == {name: prefixed[name].tobytes() for name in prefixed}
    assert load(path.parent / "saved").model.pooling == Mean()
    _, format = load_encoder(path)  # which is asked for an encoder, and keeps the rest beside it
    assert set(format.unused) == set(more)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertForPreTraining", "BertModel", "BertForCL", None])
def test_heads_of_pre_training_and_buffers_are_no_part_that_is_missed(write_encoder, prefixed, architecture):
    more = MLM | POOLER
    embedder = load(write_encoder(prefixed | more, **({"architectures": [architecture]} if architecture else {})))
    assert set(embedder.format.encoder.unused) == set(more)


def test_a_directory_that_names_its_pooling_says_what_its_encoder_is_for(write_encoder, prefixed):
    """As sentence-transformers reads it: some were made of a classifier's encoder."""
    path = write_encoder(prefixed | CLASSIFIER, architectures=["BertForSequenceClassification"])
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (path / "modules.json").write_text(
        json.dumps(
            [{"idx": i, "path": p, "type": f"sentence_transformers.models.{t}"} for i, (t, p) in enumerate(modules)]
        )
    )
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    embedder = load(path)
    assert embedder.model.pooling == Cls() and set(embedder.format.encoder.unused) == set(CLASSIFIER)


@pytest.mark.parametrize(
    ("model_type", "types", "message"),
    [
        ("CrossEncoder", ("models.Transformer",), "is a CrossEncoder of sentence-transformers"),
        (
            "SparseEncoder",
            ("models.Transformer", "models.SpladePooling"),
            "is a SparseEncoder of sentence-transformers",
        ),
        (None, ("sparse_encoder.models.MLMTransformer", "models.SpladePooling"), "MLMTransformer' is not supported"),
        (
            None,
            ("models.Transformer", "models.Dense"),
            "modules are ['Transformer', 'Dense']; expected Transformer, Pool",
        ),
    ],
)
def test_other_models_of_sentence_transformers_are_refused(write_encoder, model_type, types, message):
    path = write_encoder()
    modules = [
        {"idx": i, "path": f"{i}_" if i else "", "type": f"sentence_transformers.{t}"} for i, t in enumerate(types)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    if model_type:
        config = {"model_type": model_type, "default_prompt_name": "query", "prompts": {"query": "a "}}
        (path / "config_sentence_transformers.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load(path)
    assert "encoder_only=True" in str(error.value)
    embedder = load(path, encoder_only=True)
    assert (embedder.model.pooling, embedder.prompts, embedder.default_prompt_name) == (Mean(), {}, None)


def test_an_encoder_that_is_used_for_another_task_is_refused(write_encoder):
    path = write_encoder()
    (path / "sentence_bert_config.json").write_text(json.dumps({"transformer_task": "fill-mask"}))
    with pytest.raises(ValueError, match="transformer_task must be 'feature-extraction'; got 'fill-mask'"):
        load(path)


@pytest.mark.parametrize("architectures", ["BertForSequenceClassification", ["BertForRewardModel"]])
def test_an_architecture_tells_too(write_encoder, architectures):
    path = write_encoder()
    config = json.loads((path / "config.json").read_text()) | {"architectures": architectures}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a head that its files do not hold"):
        load(path)


@pytest.mark.parametrize(
    ("file", "content"), [("modules.json", {"a": 1}), ("modules.json", [{"idx": 0}]), ("config.json", [])]
)
def test_files_of_another_shape_are_named(write_encoder, file, content):
    path = write_encoder()
    (path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{file}: .*expected"):
        load(path)
