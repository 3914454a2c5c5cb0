"""Every encoder family against transformers, on tiny random models with randomised norms and biases."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.checkpoints import load_encoder, load_weights, read_tensors, save_weights, write_tensors
from jaxemb.checkpoints.weights import CheckpointFormat
from jaxemb.encoders import Transformer
from jaxemb.encoders.families import family_of
from jaxemb.types import Tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

_VOCABULARY = 97
_SIZES = {"vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_BERT_SIZES = _SIZES | {"intermediate_size": 48}

CONFIGS = {
    "bert": transformers.BertConfig(**_BERT_SIZES, max_position_embeddings=40),
    "roberta": transformers.RobertaConfig(
        **_BERT_SIZES, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
    ),
    "xlm-roberta": transformers.XLMRobertaConfig(
        **_BERT_SIZES, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
    ),
    "camembert": transformers.CamembertConfig(
        **_BERT_SIZES, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
    ),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=_VOCABULARY, dim=32, n_layers=4, n_heads=4, hidden_dim=48, max_position_embeddings=40
    ),
    "mpnet": transformers.MPNetConfig(**_BERT_SIZES, max_position_embeddings=42, layer_norm_eps=1e-5, pad_token_id=1),
    "modernbert": transformers.ModernBertConfig(
        **_BERT_SIZES, max_position_embeddings=40, local_attention=8, pad_token_id=0
    ),
    "modernbert-with-biases": transformers.ModernBertConfig(
        **_BERT_SIZES, local_attention=6, pad_token_id=0, norm_bias=True, attention_bias=True, mlp_bias=True
    ),
    "nomic_bert": transformers.NomicBertConfig(**_BERT_SIZES, max_position_embeddings=40),
}
_COUNTS_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")  # these find positions from the padding id


_final_states = jax.jit(lambda model, tokens: model(tokens))
_all_states = jax.jit(lambda model, tokens: model(tokens, all_states=True))
_gradients = jax.jit(jax.grad(lambda model, tokens, probe: jnp.sum(model(tokens) * probe)))


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model in both frameworks."""

    reference: torch.nn.Module
    model: Transformer
    format: CheckpointFormat
    path: Path


def _make_pair(config: transformers.PreTrainedConfig, path: Path) -> Pair:
    torch.manual_seed(0)
    reference = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # defaults (unit norms, zero biases) would hide swapped tensors
            parameter.add_(0.2 * torch.randn_like(parameter))
    reference.save_pretrained(path)
    return Pair(reference, *load_encoder(path), path)


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "mpnet", "modernbert", "nomic_bert"])
def pair(request, tmp_path_factory) -> Pair:
    return _make_pair(CONFIGS[request.param], tmp_path_factory.mktemp(request.param))


def _texts(lengths=(23, 5, 14, 1)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, _VOCABULARY, n) for n in lengths]


def _pad(texts, pad_id: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, texts)) + 3
    shape = lambda text, fill: np.pad(
        text, (0, width - len(text)) if side == "right" else (width - len(text), 0), constant_values=fill
    )
    ids = np.stack([shape(text, pad_id) for text in texts])
    return ids, np.stack([shape(np.ones_like(text), 0) for text in texts])


def _reference_inputs(pair: Pair, ids, mask) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if pair.reference.config.model_type not in _COUNTS_PADDING:  # the others count from the start of the row
        inputs["position_ids"] = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    return inputs


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_hidden_state_equals_transformers(pair, side):
    _assert_hidden_states_equal(pair, side)


@pytest.mark.parametrize("name", ["xlm-roberta", "camembert", "modernbert-with-biases"])
def test_every_hidden_state_of_variants_equals_transformers(name, tmp_path):
    pair = _make_pair(CONFIGS[name], tmp_path)
    for side in ("right", "left"):
        _assert_hidden_states_equal(pair, side)


def _assert_hidden_states_equal(pair: Pair, side: str) -> None:
    ids, mask = _pad(_texts(), pair.reference.config.pad_token_id, side)
    with torch.no_grad():
        expected = pair.reference(**_reference_inputs(pair, ids, mask), output_hidden_states=True)
    states = _all_states(pair.model, Tokens.from_mask(ids, mask))
    assert len(states) == len(expected.hidden_states) == pair.model.config.layers + 1
    real = mask.astype(bool)
    for state, reference in zip(states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(np.asarray(state)[real], reference.numpy()[real], atol=1e-4, rtol=0)
    last = _final_states(pair.model, Tokens.from_mask(ids, mask))
    np.testing.assert_allclose(np.asarray(last)[real], expected.last_hidden_state.numpy()[real], atol=1e-4, rtol=0)


def test_packed_texts_equal_transformers_one_by_one(pair):
    texts = _texts()
    numbers = np.repeat(np.arange(1, len(texts) + 1), list(map(len, texts)))
    segment_ids = np.pad(numbers, (0, 3))[None]
    positions = np.pad(np.concatenate([np.arange(len(text)) for text in texts]), (0, 3))[None]
    ids = np.pad(np.concatenate(texts), (0, 3))[None]
    packed = Tokens(jnp.asarray(ids), jnp.asarray(segment_ids), jnp.asarray(positions), texts_per_row=len(texts))
    states = np.asarray(_final_states(pair.model, packed))[0]
    for number, text in enumerate(texts, start=1):
        with torch.no_grad():
            expected = pair.reference(torch.tensor(text[None])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(states[segment_ids[0] == number], expected, atol=1e-4, rtol=0)


def test_gradients_of_all_parameters_equal_transformers(pair, tmp_path):
    ids, mask = _pad(_texts(), pair.reference.config.pad_token_id, "right")
    probe = np.random.default_rng(1).normal(size=(*ids.shape, pair.model.config.dim)) * mask[..., None]

    pair.reference.zero_grad()
    states = pair.reference(**_reference_inputs(pair, ids, mask)).last_hidden_state
    (states * torch.tensor(probe, dtype=torch.float32)).sum().backward()
    gradients = _gradients(pair.model, Tokens.from_mask(ids, mask), probe)

    # A gradient has the model's structure, so that it can be written as a checkpoint, and transformers read it.
    tensors = save_weights(gradients, pair.format)
    write_tensors(tmp_path, tensors)
    pair.reference.config.save_pretrained(tmp_path)
    as_model = type(pair.reference).from_pretrained(tmp_path)
    ours = {name: parameter.detach().numpy() for name, parameter in as_model.named_parameters()}
    compared = 0
    for name, parameter in pair.reference.named_parameters():
        if parameter.grad is None:  # the pooler
            continue
        expected = parameter.grad.numpy()
        # The gradient of a key bias is 0 but for rounding: softmax does not see it. Hence the absolute term.
        atol = 1e-5 + 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(ours[name], expected, atol=atol, rtol=1e-3, err_msg=name)
        compared += expected.size
    assert compared == sum(leaf.size for leaf in jax.tree.leaves(pair.model)) - _unused(pair.model)


def _unused(model: Transformer) -> int:
    """Parameters without a counterpart: the first attention norm where the model skips it."""
    norms = model.layers.attention_norm
    return sum(leaf[0].size for leaf in jax.tree.leaves(norms)) if model.config.skip_first_attention_norm else 0


def test_untouched_model_saves_the_same_bytes_and_loads_in_transformers(pair, tmp_path):
    original = read_tensors(pair.path)
    saved = save_weights(pair.model, pair.format)
    assert set(saved) == set(original)
    for name, tensor in original.items():
        assert saved[name].dtype == tensor.dtype
        assert saved[name].tobytes() == tensor.tobytes(), name
    write_tensors(tmp_path, saved)
    pair.reference.config.save_pretrained(tmp_path)
    again = type(pair.reference).from_pretrained(tmp_path)
    for name, parameter in pair.reference.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name


def test_every_leaf_comes_from_the_checkpoint(pair):
    """Other weights of the same shapes give other leaves everywhere, so that no leaf keeps an initial value."""
    tensors = {name: tensor + 1 for name, tensor in save_weights(pair.model, pair.format).items()}
    other, _ = load_weights(pair.model.config, tensors, family_of(pair.format.config), pair.format.config)
    differences = jax.tree.map(lambda a, b: b - a, pair.model, other)
    for path, difference in jax.tree_util.tree_leaves_with_path(differences):
        leaf = jax.tree_util.keystr(path)
        unused = pair.model.config.skip_first_attention_norm and "attention_norm" in leaf  # the first of the stack
        np.testing.assert_allclose(difference[1:] if unused else difference, 1, atol=1e-5, err_msg=leaf)


def test_token_types_equal_transformers(tmp_path):
    torch.manual_seed(1)
    reference = transformers.BertModel(transformers.BertConfig(**_BERT_SIZES)).eval()
    reference.save_pretrained(tmp_path)
    model, _ = load_encoder(tmp_path)
    ids, types = np.arange(5, 15)[None], np.array([[0] * 4 + [1] * 6])
    with torch.no_grad():
        expected = reference(torch.tensor(ids), token_type_ids=torch.tensor(types)).last_hidden_state.numpy()
    states = _final_states(model, Tokens.from_mask(ids, np.ones_like(ids), type_ids=jnp.asarray(types)))
    np.testing.assert_allclose(states, expected, atol=1e-4, rtol=0)


def _nomic_bert(path, **options) -> torch.nn.Module:
    torch.manual_seed(2)
    reference = transformers.NomicBertModel(CONFIGS["nomic_bert"]).eval()
    reference.save_pretrained(path, **options)
    return reference


def test_nomic_bert_is_read_under_both_namings(tmp_path):
    _nomic_bert(tmp_path / "published", save_original_format=True)
    _nomic_bert(tmp_path / "transformers", save_original_format=False)
    assert "encoder.layers.0.attn.Wqkv.weight" in read_tensors(tmp_path / "published")
    assert "layers.0.self_attn.q_proj.weight" in read_tensors(tmp_path / "transformers")
    published, _ = load_encoder(tmp_path / "published")
    native, _ = load_encoder(tmp_path / "transformers")
    jax.tree.map(np.testing.assert_array_equal, published, native)


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "modernbert", "nomic_bert"])
def test_a_model_with_a_task_head_loads_and_keeps_the_head(family, head, tmp_path):
    torch.manual_seed(3)
    whole = getattr(transformers, f"AutoModelFor{head}").from_config(CONFIGS[family]).eval()
    whole.save_pretrained(tmp_path)
    model, format = load_encoder(tmp_path)
    original, saved = read_tensors(tmp_path), save_weights(model, format)
    assert format.unused
    assert {name: tensor.tobytes() for name, tensor in saved.items()} == {n: t.tobytes() for n, t in original.items()}
    whole.base_model.save_pretrained(tmp_path / "body")
    body, _ = load_encoder(tmp_path / "body")
    jax.tree.map(np.testing.assert_array_equal, model, body)
