"""Every decoder family and way to stretch rotary positions against transformers, on tiny random models."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxemb.checkpoints import load_encoder, read_tensors, save_weights, write_tensors
from jaxemb.checkpoints.weights import CheckpointFormat
from jaxemb.encoders import Transformer
from jaxemb.types import Tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

_SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_SIZES |= {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
_TRAINED = {"factor": 4.0, "original_max_position_embeddings": 12}
_SHORT, _LONG = [1.0, 1.1, 1.3, 1.6], [1.0, 2.0, 4.0, 8.0]
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_TRAINED},
    "yarn": {"rope_type": "yarn", "beta_fast": 4.0, "beta_slow": 0.5, **_TRAINED},
    "yarn-untruncated": {"rope_type": "yarn", "truncate": False, "attention_factor": 1.3, **_TRAINED},
    "yarn-mscale": {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.2, **_TRAINED},
    "longrope": {"rope_type": "longrope", "short_factor": _SHORT, "long_factor": _LONG, **_TRAINED},
}


def _stretched(name: str) -> transformers.PreTrainedConfig:
    longest = {"max_position_embeddings": 12} if name == "dynamic" else {}
    rope = {"rope_theta": 50.0, **SCALINGS[name]}  # of so small a base, all dimensions turn in few tokens
    return transformers.LlamaConfig(**_SIZES | longest, rope_parameters=rope)


CONFIGS = {
    "llama": transformers.LlamaConfig(**_SIZES, rope_theta=100.0),
    "llama-biases": transformers.LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True, head_dim=12),
    "mistral": transformers.MistralConfig(**_SIZES, sliding_window=5),
    "qwen2": transformers.Qwen2Config(**_SIZES),
    "qwen2-sliding": transformers.Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=2),
    "qwen3": transformers.Qwen3Config(**_SIZES, head_dim=16),
    "gemma": transformers.GemmaConfig(**_SIZES, head_dim=16),
    "gemma2": transformers.Gemma2Config(**_SIZES, head_dim=16, sliding_window=5, query_pre_attn_scalar=24),
    "gemma3": transformers.Gemma3TextConfig(**_SIZES, head_dim=16, sliding_window=5, sliding_window_pattern=3),
    "gemma3-stretched": transformers.Gemma3TextConfig(
        **_SIZES,
        head_dim=16,
        sliding_window=5,
        layer_types=["full_attention", *["sliding_attention"] * 2, "full_attention"],
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "phi3": transformers.Phi3Config(**_SIZES, sliding_window=5),
    "phi3-partly-turned": transformers.Phi3Config(
        **_SIZES,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=12,
        rope_parameters={"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.5], "long_factor": [1.0, 3.0, 9.0]},
    ),
    **{f"llama-{name}": _stretched(name) for name in SCALINGS},
}
EMBEDDING_GEMMA = transformers.Gemma3TextConfig(
    **_SIZES, head_dim=16, sliding_window=6, sliding_window_pattern=2, use_bidirectional_attention=True
)

_all_states = jax.jit(lambda model, tokens: model(tokens, all_states=True))
_gradients = jax.jit(jax.grad(lambda model, tokens, probe: jnp.sum(model(tokens) * probe)))


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model in both frameworks."""

    reference: torch.nn.Module
    model: Transformer
    format: CheckpointFormat
    path: Path


def _make_pair(config: transformers.PreTrainedConfig, path: Path, causal: bool | None = None) -> Pair:
    torch.manual_seed(0)
    reference = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # defaults (unit norms, zero biases) would hide swapped tensors
            parameter.add_(0.15 * torch.randn_like(parameter))
    reference.save_pretrained(path)
    if causal is not None:
        reference.config.is_causal = causal
    return Pair(reference, *load_encoder(path, **({} if causal is None else {"causal": causal})), path)


@pytest.fixture(scope="module", params=CONFIGS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "bidirectional"])
def pair(request, name, tmp_path_factory) -> Pair:
    return _make_pair(CONFIGS[name], tmp_path_factory.mktemp(name), request.param)


TEXTS = [np.random.default_rng(0).integers(5, 97, n) for n in (1, 5, 14, 23)]
_LENGTHS = np.array(list(map(len, TEXTS)))


def _one_by_one(pair: Pair) -> list[np.ndarray]:
    """Every hidden state `[L + 1, n, D]` of each text. From short to long: dynamic scaling remembers the longest."""
    with torch.no_grad():
        runs = [pair.reference(torch.tensor(text[None]), output_hidden_states=True) for text in TEXTS]
    return [np.stack([state[0].numpy() for state in run.hidden_states]) for run in runs]


def _padded(side: str) -> tuple[np.ndarray, np.ndarray]:
    width = max(_LENGTHS) + 3
    place = lambda x: np.pad(x, (0, width - len(x)) if side == "right" else (width - len(x), 0))
    return np.stack([place(text) for text in TEXTS]), np.stack([place(np.ones_like(text)) for text in TEXTS])


def _packed() -> Tokens:
    numbers, positions = np.repeat(np.arange(1, 5), _LENGTHS), np.concatenate([np.arange(n) for n in _LENGTHS])
    row = lambda x: jnp.asarray(np.pad(x, (0, 3))[None])
    return Tokens(row(np.concatenate(TEXTS)), row(numbers), row(positions), texts_per_row=4)


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_every_hidden_state_equals_transformers(pair):
    """Padded on either side and packed, each text as it is alone."""
    expected = _one_by_one(pair)
    for side in ("right", "left"):
        ids, mask = _padded(side)
        states = np.asarray(_all_states(pair.model, Tokens.from_mask(ids, mask)))
        for row, real, alone in zip(states.swapaxes(0, 1), mask == 1, expected, strict=True):
            _close(row[:, real], alone)
    states = np.asarray(_all_states(pair.model, _packed()))[:, 0]
    for number, alone in enumerate(expected, start=1):
        _close(states[:, np.asarray(_packed().segment_ids)[0] == number], alone)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_equal_those_of_transformers(pair, name, side):
    """transformers' own batches, where no text changes the frequencies of another."""
    if any(rope.trained_length for rope in pair.model.config.ropes):
        pytest.skip("in transformers these depend on the longest text of the batch")
    ids, mask = _padded(side)
    places = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "position_ids": places}
    with torch.no_grad():
        expected = pair.reference(**inputs, output_hidden_states=True).hidden_states
    states = np.asarray(_all_states(pair.model, Tokens.from_mask(ids, mask)))
    _close(states[:, mask == 1], np.stack([state.numpy() for state in expected])[:, mask == 1])


def test_an_untouched_model_saves_the_same_bytes(pair):
    original, saved = read_tensors(pair.path), save_weights(pair.model, pair.format)
    assert {n: (t.dtype, t.tobytes()) for n, t in saved.items()} == {
        n: (t.dtype, t.tobytes()) for n, t in original.items()
    }


@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "gemma2", "phi3"])
def test_gradients_of_all_parameters_equal_transformers(name, tmp_path):
    pair = _make_pair(CONFIGS[name], tmp_path / "model")
    ids, mask = _padded("right")
    probe = np.random.default_rng(1).normal(size=(*ids.shape, 32)) * mask[..., None]
    states = pair.reference(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    (states * torch.tensor(probe, dtype=torch.float32)).sum().backward()
    tensors = save_weights(_gradients(pair.model, Tokens.from_mask(ids, mask), probe), pair.format)
    parameters = dict(pair.reference.named_parameters())
    assert parameters.keys() == tensors.keys()
    for tensor, parameter in parameters.items():
        expected = parameter.grad.numpy()
        # The gradient of a key bias is 0 but for rounding: softmax does not see it. Hence the absolute term.
        atol = 2e-5 + 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(tensors[tensor], expected, atol=atol, rtol=1e-3, err_msg=tensor)


def test_embedding_gemma_sees_both_ways(tmp_path):
    pair = _make_pair(EMBEDDING_GEMMA, tmp_path)
    assert not pair.model.config.causal and pair.model.config.windows == (3, 0, 3, 0)
    test_every_hidden_state_equals_transformers(pair)
    test_an_untouched_model_saves_the_same_bytes(pair)


def test_yi_is_read_under_both_namings(tmp_path):
    """The first release calls its norms otherwise, and transformers no longer reads it."""
    pair = _make_pair(CONFIGS["llama"], tmp_path / "llama")
    theirs = read_tensors(tmp_path / "llama")
    old = lambda n: n.replace("input_layernorm", "ln1").replace("post_attention_layernorm", "ln2")
    for naming in (str, old):
        path = tmp_path / naming.__name__
        write_tensors(path, {f"model.{naming(n)}": theirs[n] for n in theirs})
        text = (tmp_path / "llama" / "config.json").read_text()
        (path / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "Yi"'))
        model, format = load_encoder(path)
        jax.tree.map(np.testing.assert_array_equal, model, pair.model)
        assert save_weights(model, format).keys() == read_tensors(path).keys()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3"])
def test_what_attention_was_asked_for_is_saved(name, tmp_path):
    """transformers reads the config of a model that was loaded as bidirectional, and gives the same."""
    pair = _make_pair(CONFIGS[name], tmp_path / "model", causal=False)
    path = tmp_path / "both"
    write_tensors(path, save_weights(pair.model, pair.format))
    config = type(pair.reference.config)(**pair.format.config)
    assert config.is_causal is False
    config.save_pretrained(path)
    assert load_encoder(path)[0].config == pair.model.config
    reference = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = reference(torch.tensor(TEXTS[-1][None])).last_hidden_state[0].numpy()
    ids = TEXTS[-1][None]
    _close(np.asarray(_all_states(pair.model, Tokens.from_mask(ids, np.ones_like(ids))))[-1, 0], expected)
