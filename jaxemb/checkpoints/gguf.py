"""Decoders in GGUF files, llama.cpp's, read as what they were made from: a `config.json`, its tensors and a tokenizer.

Quantised tensors are computed with as floats, part by part as devices ask for them; what is saved is a directory of
floats. Needs the package `gguf`, whose arithmetic it is.
"""

import dataclasses
import json
import logging
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxemb.checkpoints.sentence_transformers import DirectoryFormat, ModelDirectory, check_vocabulary, with_overrides
from jaxemb.checkpoints.weights import ONE_DEVICE, Placement, load_weights
from jaxemb.checks import checked
from jaxemb.data.tokenizer import Tokenizer
from jaxemb.embedder import Embedder
from jaxemb.encoders.families import family_of
from jaxemb.packages import remedy
from jaxemb.pooling import LastToken, Pooling, named
from jaxemb.settings import CheckpointError, Settings, flag, numbers, read, size, text, texts

logger = logging.getLogger(__name__)

_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
# What `config.json` calls what stands under "ARCHITECTURE.key".
_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"  # what frequencies are divided by (Llama 3)
_UNSTATED, _NOT_POOLED = -1, 0  # types of poolings
_POOLINGS = {1: "mean", 2: "cls", 3: "lasttoken"}
_SCALINGS = ("none", "linear", "yarn")
_CONTROL, _USER_DEFINED, _TOKEN_TYPES = 3, 4, range(7)  # types of tokens
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type
_TEXT, _LIST = 8, 9  # types that say how long a value is
# How texts are cut before byte pairs are joined, by "tokenizer.ggml.pre"; {} is how many digits go together.
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PATTERNS = {"llama-bpe": _CUT.format("{1,3}"), "qwen2": _CUT.format("")}
_BYTE_LEVEL = ("default", "gpt-2", "smollm")


class _Parts:
    """A tensor of the file, of which only the rows that are indexed are turned into floats.

    Attributes:
      shape, dtype: those of the whole tensor, `[out, in]` or `[n]`.
    """

    def __init__(self, tensor: Any, order: np.ndarray | None, shift: float):
        self._tensor, self._order, self._shift = tensor, order, shift
        self.shape = tuple(int(n) for n in reversed(tensor.shape))
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        from gguf import dequantize

        rows, rest = index[0], index[1:]
        data = self._tensor.data[rows if self._order is None else self._order[rows]]
        floats: Any = dequantize(data, self._tensor.tensor_type)
        return floats[(slice(None), *rest)] + np.float32(self._shift)


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of the file, under the names of `config.json`'s model."""

    def __init__(self, parts: Mapping[str, _Parts]):
        self._parts = parts

    def __getitem__(self, name: str) -> np.ndarray:
        part = self._parts[name]
        return part[tuple(slice(0, n) for n in part.shape)]

    def parts(self, name: str) -> _Parts:
        """The tensor, of which only what is indexed is read."""
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@checked()
def read_gguf(
    path: str | Path, placement: Placement = ONE_DEVICE, *, pooling: Any = None, **overrides: Any
) -> ModelDirectory:
    """What a GGUF file of a decoder holds; arguments as of `jaxemb.load`.

    Raises:
      ModuleNotFoundError: the package `gguf` is not installed.
      CheckpointError: the file is damaged, or lacks something, or its tensors do not fit.
      ValueError: it holds a model or a tokenizer of a kind that is not read.
    """
    path = Path(path)
    with remedy():
        from gguf import GGUFReader
    try:
        _check_lengths(path)
        reader = GGUFReader(path)
        plain = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # whatever it makes of bytes that are none of its kind
        raise CheckpointError(f"{path}: not a complete GGUF file ({error}); fetch or write it again") from error
    meta, tensors = Settings(plain, str(path)), {tensor.name: tensor for tensor in reader.tensors}
    _check_tensors(meta.where, tensors)
    hf_config = Settings(_config(meta, tensors), str(path))
    family = family_of(hf_config)
    hf_config, config = with_overrides(hf_config, family, overrides)
    try:
        names = _named(hf_config, tensors)
        encoder, format = load_weights(config, names, family, hf_config.plain, placement)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tokenizer = _tokenizer(meta)
    check_vocabulary(str(path), tokenizer, config)
    return ModelDirectory(
        model=Embedder(encoder, pooling=placement.put("pooling", _pooling(meta, pooling))),
        tokenizer=tokenizer,
        max_length=config.max_positions,
        format=DirectoryFormat(format),
    )


def _check_lengths(path: Path) -> None:
    """Raises a ValueError if something is longer than what is left of the file: its reader would not notice."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        order, at = "<" if struct.unpack_from("<I", data, 4)[0] & 0xFFFF else ">", 8

        def skip(n: int) -> int:
            nonlocal at
            if n > len(data) - at:
                raise ValueError(f"{n} bytes are to follow byte {at}, and {len(data) - at} do")
            at += n
            return at - n

        def whole(code: str) -> int:
            code = order + code
            return struct.unpack_from(code, data, skip(struct.calcsize(code)))[0]

        def skip_value(kind: int) -> None:
            if kind == _TEXT:
                skip(whole("Q"))
            elif kind == _LIST:
                part, n = whole("I"), whole("Q")
                if part in _WIDTHS:
                    skip(n * _WIDTHS[part])
                else:
                    for _ in range(n):
                        skip_value(part)
            elif kind in _WIDTHS:
                skip(_WIDTHS[kind])
            else:
                raise ValueError(f"{kind}, before byte {at}, is no type of a value")

        n_tensors, n_entries = whole("Q"), whole("Q")
        for _ in range(n_entries):
            skip(whole("Q"))
            skip_value(whole("I"))
        for _ in range(n_tensors):
            skip(whole("Q"))
            skip(8 * whole("I") + 12)  # its axes, its type, and where it is


def _check_tensors(where: str, tensors: Mapping[str, Any]) -> None:
    """Raises a CheckpointError that names a tensor of a type or a shape that nothing here has."""
    from gguf import GGML_QUANT_SIZES, dequantize

    for name, tensor in tensors.items():
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if not shape or (name == "token_embd.weight" and len(shape) != 2):
            expected = "two axes" if shape else "an axis"
            raise CheckpointError(f"{where}: tensor {name!r} must have {expected}; its shape is {shape}")
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[tensor.tensor_type][1]), np.uint8), tensor.tensor_type)  # a block
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise CheckpointError(f"{where}: tensor {name!r} is of the type {kind}, which is not read") from error


def _config(meta: Settings, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of the model that the file was made from."""
    kind = text(meta, "general.architecture", options=_MODEL_TYPES)
    found = {ours: meta[key] for theirs, ours in _KEYS.items() if (key := f"{kind}.{theirs}") in meta}
    # Numbers are of 32 bits there: 1e-5 is 9.99999974738e-06.
    found = {key: float(str(np.float32(n))) if isinstance(n, float) else n for key, n in found.items()}
    if kind == "llama" and "head_dim" not in found and f"{kind}.rope.dimension_count" in meta:
        found["head_dim"] = meta[f"{kind}.rope.dimension_count"]
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{meta.where}: tensor 'token_embd.weight' is missing")
    scaling: dict[str, Any] = {}
    name = text(meta, f"{kind}.rope.scaling.type", "none", _SCALINGS)
    if name != "none":
        trained = meta.get(f"{kind}.rope.scaling.original_context_length")
        scaling = {"rope_type": name, "factor": meta[f"{kind}.rope.scaling.factor"]}
        scaling |= {} if trained is None else {"original_max_position_embeddings": trained}
    elif _ROPE_FACTORS in tensors:
        factors = np.asarray(tensors[_ROPE_FACTORS].data, float).tolist()
        scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
        scaling |= {"factor": 1.0, "attention_factor": 1.0}
    return {
        "model_type": _MODEL_TYPES[kind],
        "architectures": [family_of({"model_type": _MODEL_TYPES[kind]}).model_types[_MODEL_TYPES[kind]]],
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "dtype": "float32",
        **found,
        **({"rope_scaling": scaling} if scaling else {}),
    }


def _named(config: Settings, tensors: Mapping[str, Any]) -> _Tensors:
    """The tensors by the names of the model, and as it has them: llama.cpp changes some."""
    gemma = config["model_type"].startswith("gemma")
    names = {**_TENSORS, **(_SANDWICH if gemma else {})}
    heads = size(config, "num_attention_heads")
    heads_of = {"attn_q": heads, "attn_k": size(config, "num_key_value_heads", heads)}
    parts = {}
    for name, tensor in tensors.items():
        if name == _ROPE_FACTORS:
            continue
        if not (match := re.fullmatch(r"(?:blk\.(\d+)\.)?(.*?)\.(weight|bias)", name)):
            raise CheckpointError(f"tensors must be called *.weight or *.bias; got {name!r}")
        layer, kind, part = match.groups()
        ours = f"{names.get(kind, kind)}.{part}"
        ours = ours if layer is None else f"model.layers.{layer}.{ours}"
        turned = kind in heads_of and config["model_type"] == "llama"  # whose pairs of dimensions stand side by side
        order = _halves(name, int(tensor.shape[-1]), heads_of[kind]) if turned else None
        parts[ours] = _Parts(tensor, order, -1.0 if gemma and kind.endswith("norm") else 0.0)
    return _Tensors(parts)


def _halves(name: str, rows: int, heads: int) -> np.ndarray:
    """Which row of the file each row of a projection is: it has the first of all pairs of a head, then the second."""
    if rows % (2 * heads):
        raise CheckpointError(f"tensor {name!r} must have pairs of rows for each of {heads} heads; it has {rows} rows")
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()


def _pooling(meta: Settings, given: Any) -> Pooling:
    if given is not None:
        return given if isinstance(given, Pooling) else named((given,) if isinstance(given, str) else tuple(given))
    key = f"{meta['general.architecture']}.pooling_type"
    stated = size(meta, key, _UNSTATED, least=_UNSTATED, most=max(_POOLINGS))
    if stated in _POOLINGS:
        return named((_POOLINGS[stated],))
    said = f"{key} says that states are not pooled" if stated == _NOT_POOLED else "nothing says how states are pooled"
    logger.warning("%s: %s; it is by their last token", meta.where, said)
    return LastToken()


def _tokenizer(meta: Settings) -> Tokenizer:
    """The tokenizer that the file describes."""
    kind = text(meta, "tokenizer.ggml.model", options=("gpt2", "llama"))
    tokens = texts(meta, "tokenizer.ggml.tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens) or not tokens:
        twice = next((token for i, token in enumerate(tokens) if vocabulary[token] != i), None)
        got = f"{twice!r} twice" if tokens else "none"
        raise CheckpointError(f"{meta.where}: tokenizer.ggml.tokens must be different texts; got {got}")
    types = _token_types(meta, len(tokens))
    backend, with_bos = (_byte_level if kind == "gpt2" else _sentence_piece)(meta, vocabulary)
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (_CONTROL, _USER_DEFINED):
            special = token_type == _CONTROL
            backend.add_tokens([tokenizers.AddedToken(token, special=special, normalized=False)])
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
    stated = {role: _token_id(meta, name, len(tokens)) for role, name in roles.items()}
    ids = {role: i for role, i in stated.items() if i is not None}
    before = ["bos"] * (flag(meta, "tokenizer.ggml.add_bos_token", with_bos) and "bos" in ids)
    after = ["eos"] * (flag(meta, "tokenizer.ggml.add_eos_token", False) and "eos" in ids)
    if before or after:
        around = [(tokens[ids[role]], ids[role]) for role in (*before, *after)]
        single = " ".join([*(tokens[ids[r]] for r in before), "$A", *(tokens[ids[r]] for r in after)])
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    template = text(meta, "tokenizer.chat_template", None)
    made = Tokenizer(backend, special_ids=ids)
    files = {"tokenizer_config.json": json.dumps(made._config(), indent=2).encode()}
    files |= {} if template is None else {"chat_template.jinja": template.encode()}
    return dataclasses.replace(made, files=files)


def _token_types(meta: Settings, n: int) -> list[int]:
    """The types of n tokens."""
    key = "tokenizer.ggml.token_type"
    if key not in meta:
        logger.warning("%s: no %s; special tokens are read as plain text", meta.where, key)
        return [0] * n
    is_type = lambda i: isinstance(i, int) and not isinstance(i, bool) and i in _TOKEN_TYPES
    expected = f"a list of {n} whole numbers in 0..{_TOKEN_TYPES[-1]}, one for each token"
    return read(meta, key, None, expected, lambda v: isinstance(v, list) and len(v) == n and all(map(is_type, v)))


def _token_id(meta: Settings, name: str, n: int) -> int | None:
    """The one of n tokens that has a role, if there is one."""
    key = f"tokenizer.ggml.{name}_token_id"
    return size(meta, key, least=0, most=n - 1) if key in meta else None


def _byte_level(meta: Settings, vocabulary: Mapping[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    """GPT-2's kind of byte pairs, and whether a text begins with a token where the file does not say."""
    name = text(meta, "tokenizer.ggml.pre", "default", (*_BYTE_LEVEL, *_PATTERNS))
    merges = [tuple(merge.split(" ", 1)) for merge in texts(meta, "tokenizer.ggml.merges")]
    for pair in merges:
        if len(pair) < 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise CheckpointError(
                f"{meta.where}: tokenizer.ggml.merges must be two tokens, and a space between, that become a third; "
                f"got {' '.join(pair)!r}"
            )
    backend = tokenizers.Tokenizer(models.BPE(dict(vocabulary), merges, ignore_merges=name == "llama-bpe"))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in _PATTERNS)]
    if name in _PATTERNS:
        steps.insert(0, pre_tokenizers.Split(tokenizers.Regex(_PATTERNS[name]), "isolated"))
    elif name == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend, name == "llama-bpe"


def _sentence_piece(meta: Settings, vocabulary: Mapping[str, int]) -> tuple[tokenizers.Tokenizer, bool]:
    """SentencePiece's byte pairs: two pieces become one in the order of the scores of what they become."""
    key = "tokenizer.ggml.scores"
    if len(scores := numbers(meta, key)) != len(vocabulary):
        raise CheckpointError(f"{meta.where}: {key} must be {len(vocabulary)}, one for each token; got {len(scores)}")
    pairs = []
    for piece, i in vocabulary.items():
        halves = ((piece[:n], piece[n:]) for n in range(1, len(piece)))
        known = [(vocabulary[a], vocabulary[b], a, b) for a, b in halves if a in vocabulary and b in vocabulary]
        pairs += [(-scores[i], *pair) for pair in sorted(known)]
    merges = [(a, b) for *_, a, b in sorted(pairs, key=lambda pair: pair[0])]
    unknown = _token_id(meta, "unknown", len(vocabulary))
    options = {} if unknown is None else {"unk_token": list(vocabulary)[unknown]}
    model = models.BPE(dict(vocabulary), merges, fuse_unk=True, byte_fallback=True, **options)
    backend = tokenizers.Tokenizer(model)
    first = flag(meta, "tokenizer.ggml.add_space_prefix", True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if first else "never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if first else [])])
    return backend, True
