"""Masked language modelling against transformers: loss, gradients of all parameters, and the head on disk."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from jaxemb.checkpoints import save_weights
from jaxemb.pretraining import MaskedAutoEncoder, MaskedLanguageModel
from jaxemb.sentence_embedder import load
from jaxemb.types import Tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef")
_SIZES = {"vocab_size": 11, "num_hidden_layers": 2, "initializer_range": 0.3}
_BERT = _SIZES | {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20}
MODELS = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_BERT)),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(vocab_size=11, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
    ),
    "mpnet": lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**_BERT, pad_token_id=1)),
    "modernbert": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**{**_BERT, "pad_token_id": 0, "attn_implementation": "eager"})
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_loss_gradients_and_checkpoints(family, tmp_path):
    torch.manual_seed(0)
    theirs = MODELS[family]().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "vocab.txt").write_text("\n".join(_WORDS) + "\n")
    transformers.BertTokenizer(str(tmp_path / "theirs" / "vocab.txt")).save_pretrained(tmp_path / "theirs")

    rng = np.random.default_rng(0)
    seen, whole = rng.integers(5, 11, (2, 3, 7))
    hidden = rng.random((3, 7)) < 0.4
    labels = torch.tensor(np.where(hidden, whole, -100))
    expected = theirs(torch.tensor(seen), attention_mask=torch.ones(3, 7, dtype=torch.long), labels=labels).loss
    expected.backward()

    embedder = load(tmp_path / "theirs")
    model = MaskedLanguageModel.of(embedder, jax.random.key(0))
    tokens = Tokens.from_mask(seen, np.ones((3, 7)))

    def mean_loss(model):
        states = model.embedder.encoder(tokens)
        return model.losses(states, dataclasses.replace(tokens, ids=whole), hidden, most=20).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(model)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    format = gradient.into(embedder).format.encoder
    found = save_weights(gradient.embedder.encoder, format)
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            np.testing.assert_allclose(found[name], parameter.grad, atol=1e-5, rtol=1e-4, err_msg=name)

    changed = dataclasses.replace(model, head=jax.tree.map(lambda leaf: leaf * 1.5, model.head))
    changed.into(embedder).save(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours").state_dict()
    np.testing.assert_allclose(again[_bias(again)], 1.5 * theirs.state_dict()[_bias(again)], rtol=1e-6)
    same = MaskedLanguageModel.of(load(tmp_path / "ours"), jax.random.key(1)).head
    jax.tree.map(np.testing.assert_array_equal, same, changed.head)


def test_masked_autoencoding_of_sizes(tmp_path):
    """The authors' losses, written with transformers' modules: the transform reads d components only, and its output at
    the first token takes the place of that token's embedding in front of a copy of the first layer."""
    torch.manual_seed(0)
    theirs = MODELS["bert"]().eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(_WORDS) + "\n")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    whole, seen, by_decoder = rng.integers(5, 11, (3, 4, 7))
    hidden, from_decoder = rng.random((2, 4, 7)) < 0.4
    sizes = ((1, 5), (2, 16))

    bert, head = theirs.bert, theirs.cls.predictions
    first = copy.deepcopy(bert.encoder.layer[0])
    states = bert(torch.tensor(seen), output_hidden_states=True).hidden_states
    expected = torch.zeros(())
    for n, d in sizes:
        dense = head.transform.dense
        h = torch.nn.functional.linear(states[n][..., :d], dense.weight[:, :d], dense.bias)
        h = head.transform.LayerNorm(torch.nn.functional.gelu(h))
        embedded = bert.embeddings(torch.tensor(by_decoder))
        output = first(torch.cat([h[:, :1], embedded[:, 1:]], dim=1))
        restored = output[0] if isinstance(output, tuple) else output
        for logits, which in ((head.decoder(h), hidden), (head(restored), from_decoder)):
            loss = torch.nn.functional.cross_entropy(logits[torch.tensor(which)], torch.tensor(whole[which]))
            expected = expected + loss / 2 / len(sizes)
    expected.backward()

    embedder = load(tmp_path)
    model = MaskedAutoEncoder.of(MaskedLanguageModel.of(embedder, jax.random.key(0)))
    tokens, *views = (Tokens.from_mask(ids, np.ones((4, 7))) for ids in (whole, seen, by_decoder))
    pairs = list(zip(views, (hidden, from_decoder), strict=True))
    value, gradient = jax.jit(jax.value_and_grad(lambda model: model.losses(tokens, sizes, *pairs).mean()))(model)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    changed = gradient.language_model.into(embedder)
    found = save_weights(changed.model.encoder, changed.format.encoder)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(found[name], parameter.grad, atol=1e-5, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(gradient.decoder.mlp.up.kernel[0], first.intermediate.dense.weight.grad.T, atol=1e-5)


def _bias(state) -> str:
    names = ("cls.predictions.decoder.bias", "lm_head.decoder.bias", "vocab_projector.bias", "decoder.bias")
    return next(name for name in names if name in state)
