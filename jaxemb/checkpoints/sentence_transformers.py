"""Model directories of sentence-transformers, read and written; a plain Hugging Face directory is read too."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxemb.checkpoints.heads import without_heads
from jaxemb.checkpoints.kinds import REMEDY, architectures, refuse_parts
from jaxemb.checkpoints.tensors import TENSOR_FILES, read_tensors, write_tensors
from jaxemb.checkpoints.weights import (
    ONE_DEVICE,
    CheckpointFormat,
    Placement,
    check_shapes,
    is_exact,
    load_weights,
    lossless,
    save_weights,
)
from jaxemb.checks import checked, is_finite
from jaxemb.data.tokenizer import TOKENIZER_FILES, Tokenizer
from jaxemb.embedder import Dense, Embedder, Head, Normalize
from jaxemb.encoders.families import Family, family_of
from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.files import Contents, inside, read_json, replaced_files, write_json
from jaxemb.nn import Linear, Norm, dense_kernels
from jaxemb.pooling import POOLINGS, Attention, LastToken, Mean, Pooling, WithoutPrompt, named, names_of
from jaxemb.settings import CheckpointError, Settings, flag, inner, size, text, texts
from jaxemb.similarity import PAIRED

logger = logging.getLogger(__name__)

# The flags by which releases before 5.4 say the pooling mode, in the order in which they concatenate several.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "silu": "torch.nn.modules.activation.SiLU",
}
_ACTIVATION_OF_CLASS = {path.rpartition(".")[2]: name for name, path in _ACTIVATIONS.items()}
_OWN = "jaxemb.pooling.Attention"  # how `modules.json` calls a pooling that sentence-transformers does not have
_BI_ENCODER, _TASK = "SentenceTransformer", "feature-extraction"
_NAME_POOLING = (
    "Name the pooling that the model was trained with: jaxemb.load(..., pooling='mean'), 'cls' or 'lasttoken'"
)
_LAYER_NORM_EPS = 1e-5  # torch's default; sentence-transformers' LayerNorm has no option for it
_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
)
_NAMES = ("config.json", *TOKENIZER_FILES, *TENSOR_FILES)  # of the root, or of a module's folder
CONTENTS = Contents(
    "model directory",
    mark="modules.json",
    files=(
        *("modules.json", "config_sentence_transformers.json", *_SENTENCE_CONFIGS, *_NAMES),
        *(f"[0-9]*_*/{name}" for name in (*_SENTENCE_CONFIGS, *_NAMES)),
    ),
)


@dataclasses.dataclass(frozen=True)
class DirectoryFormat:
    """What must be known of a model directory, beside the model, to write it back as it was.

    Attributes:
      encoder: how the encoder's checkpoint was stored.
      head_dtype: the dtype in which the heads' tensors are stored.
      do_lower_case: whether texts are lower-cased before the tokenizer, whatever that does itself.
    """

    encoder: CheckpointFormat
    head_dtype: str = "float32"
    do_lower_case: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ModelDirectory:
    """What a model directory holds.

    Attributes:
      model: the pytree; `model(tokens) -> [N, D]`.
      tokenizer: texts to token ids.
      max_length: longest text in tokens, special tokens included; longer ones are cut.
      format: where the weights came from and how to write them back.
      prompts: texts to put in front, by name (such as "query" and "document").
      default_prompt_name: the prompt used when none is asked for.
      similarity_fn_name: how vectors of this model are compared.
    """

    model: Embedder
    tokenizer: Tokenizer
    max_length: int
    format: DirectoryFormat
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"


@checked()
def read_directory(
    root: str | Path,
    placement: Placement = ONE_DEVICE,
    *,
    pooling: str | Sequence[str] | Pooling | None = None,
    encoder_only: bool = False,
    **overrides: Any,
) -> ModelDirectory:
    """Reads a sentence-transformers directory, or a bare Hugging Face encoder, which is pooled as there.

    Args:
      root: a local directory.
      placement: where the weights go.
      pooling: in place of what the directory says: one or several names of `POOLINGS`, or a module; see `load`.
      encoder_only: of a checkpoint of another kind of model, such as a cross-encoder, take the encoder alone.
      **overrides: fields of `TransformerConfig` to set, such as `dtype="bfloat16"` or `remat="full"`.

    Raises:
      CheckpointError: if a file is missing or damaged, or tensors do not fit the configuration; all are named.
      ValueError: if the directory asks for what jaxemb does not have: a model type, a module, an activation; or holds
        another kind of model, of which this would be a part; or for an unknown pooling.
    """
    root = Path(root)
    config = _settings(root / "config_sentence_transformers.json")
    if encoder_only:
        config = Settings({}, config.where)
    elif (kind := text(config, "model_type", None) or _BI_ENCODER) != _BI_ENCODER:
        raise ValueError(f"{root}: is a {kind} of sentence-transformers, but a {_BI_ENCODER} is read here. {REMEDY}")
    modules = _encoder_alone(root) if encoder_only else _modules(root)
    stored = inner(config, "prompts")
    prompts = {name: prompt for name in stored if (prompt := text(stored, name, None)) is not None}
    encoder_path = modules[0]["path"]
    encoder, encoder_format = load_encoder(encoder_path, placement, **overrides)
    if encoder_only:
        encoder_format = without_heads(encoder_format)
    elif len(modules) == 1:  # with a pooling, the directory says itself what its encoder is used for
        refuse_parts(encoder_path, encoder_format)
    of_module = modules[1] if len(modules) > 1 else None
    pooling = _pooling(root, of_module, pooling, encoder_format.config, encoder.config, warn=not encoder_only)
    heads, dtypes = _heads(modules[2:], pooling.output_dim(encoder.dim))
    present = [encoder_path / name for name in _SENTENCE_CONFIGS if (encoder_path / name).is_file()]
    sentence_config = _settings(present[0] if present else encoder_path / _SENTENCE_CONFIGS[0])
    if not encoder_only and (task := text(sentence_config, "transformer_task", None) or _TASK) != _TASK:
        raise ValueError(f"{encoder_path}: transformer_task must be {_TASK!r}; got {task!r}. {REMEDY}")
    if not encoder_only and "message" in inner(sentence_config, "modality_config"):
        raise ValueError(
            f"{sentence_config.where}: by modality_config, texts are written as chat messages, which is not supported; "
            f"expected plain texts. {REMEDY}"
        )
    do_lower_case = flag(sentence_config, "do_lower_case", False)
    tokenizer = Tokenizer.from_directory(encoder_path, lower_case=do_lower_case)
    check_vocabulary(str(encoder_path), tokenizer, encoder.config)
    pad = tokenizer.special_ids.get("pad")
    if None not in (pad, stated := encoder_format.config.get("pad_token_id")) and pad != stated:
        logger.warning("%s: pad_token_id is %s in config.json, but %d in the tokenizer", encoder_path, stated, pad)
    return ModelDirectory(
        model=Embedder(
            encoder=encoder,
            heads=placement.put("heads", heads),
            pooling=placement.put("pooling", pooling),
        ),
        tokenizer=tokenizer,
        max_length=_max_length(encoder_path, sentence_config, tokenizer, encoder.config.max_positions),
        format=DirectoryFormat(encoder_format, dtypes[0] if dtypes else "float32", do_lower_case),
        prompts=prompts,
        default_prompt_name=text(config, "default_prompt_name", None, prompts),
        similarity_fn_name=text(config, "similarity_fn_name", None, PAIRED) or "cosine",
    )


def _max_length(path: Path, config: Settings, tokenizer: Tokenizer, positions: int) -> int:
    """The longest text in tokens: as a directory, its tokenizer and the positions of its model allow."""
    least = tokenizer.special_tokens + 1
    stated = size(config, "max_seq_length", None, least=least) or tokenizer.model_max_length
    if (longest := min(stated or positions, positions)) < least:
        raise CheckpointError(
            f"{path}: the tokenizer adds {least - 1} special tokens to each text, but by model_max_length of "
            f"tokenizer_config.json or the positions of the model it may have no more than {longest}"
        )
    return longest


@checked()
def load_encoder(
    path: str | Path, placement: Placement = ONE_DEVICE, **overrides: Any
) -> tuple[Transformer, CheckpointFormat]:
    """The encoder of a Hugging Face directory (`config.json`, safetensors) and the format to save it in again.

    `placement` says where the weights go, `overrides` are fields of `TransformerConfig`. Raises as `read_directory`
    does.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: config.json is missing; expected a Hugging Face model directory")
    hf_config = _settings(path / "config.json")
    family = family_of(hf_config)
    hf_config, config = with_overrides(hf_config, family, overrides)
    tensors = read_tensors(path)
    try:
        return load_weights(config, tensors, family, hf_config.plain, placement)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def with_overrides(
    hf_config: Settings, family: Family, overrides: Mapping[str, Any]
) -> tuple[Settings, TransformerConfig]:
    """What a family makes of a `config.json`, some fields replaced, and the `config.json` that says so.

    Which way a decoder sees is part of what the model is, so that it is written back with it, where the family asks.
    Raises as `mapped` does.
    """
    if (causal := overrides.get("causal")) is not None:
        changed = Settings({**hf_config.plain, "is_causal": causal}, hf_config.where)
        config = mapped(changed, family, overrides)
        if "is_causal" in changed.asked:
            return changed, config
    return hf_config, mapped(hf_config, family, overrides)


def mapped(hf_config: Settings, family: Family, overrides: Mapping[str, Any]) -> TransformerConfig:
    """What a family makes of a `config.json`, some fields replaced.

    Raises:
      CheckpointError: naming a key that is absent, or has a value that a transformer cannot have.
      ValueError: for overrides that are no fields, or have such values.
    """
    try:
        config = family.config(hf_config)
    except CheckpointError:
        raise
    except ValueError as error:  # values that do not go with each other
        raise CheckpointError(f"{hf_config.where}: {error}") from error
    if unknown := sorted(overrides.keys() - vars(config).keys()):
        raise ValueError(f"overrides must be among {', '.join(vars(config))}; got {', '.join(unknown)}")
    return dataclasses.replace(config, **overrides)


def check_vocabulary(where: str, tokenizer: Tokenizer, config: TransformerConfig) -> None:
    """Raises CheckpointError if the tokenizer has ids that the model has no embeddings for."""
    largest, token = tokenizer.largest
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has ids up to {largest} ({token!r}), but the model has embeddings of "
            f"0..{config.vocab_size - 1} only"
        )


@checked()
def write_directory(path: str | Path, contents: ModelDirectory) -> None:
    """Writes a directory that sentence-transformers (2 and later), transformers and text-embeddings-inference load.

    All of it is written or nothing. In a model directory that is at `path`, the files of the model are replaced;
    whatever else is there (`.git`, notes, `onnx/`) stays.

    Raises:
      FileExistsError: if `path` is a file, or a non-empty directory without `modules.json`.
    """
    with replaced_files(path, CONTENTS) as fresh:
        _write(contents, fresh)


def check_writable(contents: ModelDirectory) -> None:
    """Raises a ValueError for a model that `write_directory` could not write, of which shapes alone may be given."""
    check_shapes(jax.eval_shape(dense_kernels, contents.model.encoder), contents.format.encoder)
    if not isinstance(contents.model.pooling, Attention):
        _saved_names(contents.model.pooling)


def _write(contents: ModelDirectory, root: Path) -> None:
    model: Embedder = dense_kernels(contents.model)
    format = _lossless(model, contents.format)
    contents.tokenizer.save(root)
    write_tensors(root, save_weights(model.encoder, format.encoder))
    write_json(root / "config.json", format.encoder.config)
    write_json(
        root / "sentence_bert_config.json",
        {"max_seq_length": contents.max_length, "do_lower_case": format.do_lower_case},
    )
    write_json(
        root / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": dict(contents.prompts),
            "default_prompt_name": contents.default_prompt_name,
            "similarity_fn_name": contents.similarity_fn_name,
        },
    )
    # Newer releases write longer paths, but these are the ones that every release and other software know.
    names = "sentence_transformers.models."
    kind = _OWN if isinstance(model.pooling, Attention) else f"{names}Pooling"
    modules = [(f"{names}Transformer", ""), (kind, f"1_{kind.rpartition('.')[2]}")]
    _write_pooling(_folder(root / modules[1][1]), model.pooling, model.encoder.dim, format.head_dtype)
    for number, head in enumerate(model.heads, start=2):
        kind = {Dense: "Dense", Norm: "LayerNorm", Normalize: "Normalize"}[type(head)]
        modules.append((f"{names}{kind}", f"{number}_{kind}"))
        _write_head(_folder(root / f"{number}_{kind}"), head, format.head_dtype)
    write_json(
        root / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(modules)],
    )


def _lossless(model: Embedder, format: DirectoryFormat) -> DirectoryFormat:
    """The format, with float32 where narrower types would round the model's arrays."""
    rest = (np.asarray(leaf) for leaf in jax.tree.leaves((model.pooling, model.heads)))
    head_dtype = format.head_dtype if all(is_exact(leaf, format.head_dtype) for leaf in rest) else "float32"
    return dataclasses.replace(format, encoder=lossless(model.encoder, format.encoder), head_dtype=head_dtype)


def _modules(root: Path) -> list[dict[str, Any]]:
    """The entries of `modules.json`, with `type` reduced to the class name: an encoder, a pooling, then heads."""
    entries = _entries(root)
    if not entries:
        parts = [root / "config_sentence_transformers.json", *sorted(root.glob("[0-9]_*/config.json"))]
        if found := [str(part.relative_to(root)) for part in parts if part.is_file()]:
            raise CheckpointError(f"{root}: modules.json is missing, which says what {', '.join(found)} is for")
        return [{"type": "Transformer", "path": root}]
    modules = [{"type": _module_kind(root, text(e, "type")), "path": _module_path(root, e)} for e in entries]
    kinds = [module["type"] for module in modules]
    poolings = {"Pooling", _OWN}
    if kinds[:1] != ["Transformer"] or not poolings & set(kinds[1:2]) or {"Transformer", *poolings} & set(kinds[2:]):
        raise ValueError(
            f"{root / 'modules.json'}: modules are {kinds}; expected Transformer, Pooling, then any of "
            f"Dense, LayerNorm, Normalize. {REMEDY}"
        )
    return modules


def _module_kind(root: Path, path: str) -> str:
    known = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
    package, _, kind = path.rpartition(".")
    if path == _OWN or (package.startswith("sentence_transformers.") and kind in known):
        return path if path == _OWN else kind
    raise ValueError(
        f"{root / 'modules.json'}: module type {path!r} is not supported; expected one of "
        f"{', '.join(known)} of sentence_transformers. {REMEDY}"
    )


def _encoder_alone(root: Path) -> list[dict[str, Any]]:
    """The first of the directory's modules, whatever it is called: the encoder."""
    entries = _entries(root)
    return [{"type": "Transformer", "path": _module_path(root, entries[0]) if entries else root}]


def _entries(root: Path) -> list[Settings]:
    """The entries of `modules.json` in their order, which `idx` says, or the file; [] without one."""
    path = root / "modules.json"
    if not path.is_file():
        return []
    found = read_json(path, list, error=CheckpointError)
    if not found or not all(isinstance(entry, dict) for entry in found):
        raise CheckpointError(f"{path}: expected a list of modules, objects with type and path; got {found!r:.60}")
    entries = [Settings(entry, f"{path}: module {number}") for number, entry in enumerate(found)]
    return [e for _, e in sorted(enumerate(entries), key=lambda pair: size(pair[1], "idx", pair[0], least=0))]


def _module_path(root: Path, entry: Settings) -> Path:
    return inside(root, text(entry, "path"), where=entry.where, error=CheckpointError)


def _pooling(
    root: Path,
    module: Mapping[str, Any] | None,
    given: str | Sequence[str] | Pooling | None,
    hf_config: Mapping[str, Any],
    config: TransformerConfig,
    *,
    warn: bool,
) -> Pooling:
    """The pooling that is given, or that of the directory's module; without either that of sentence-transformers.

    It is the last token of a causal language model and the mean of anything else, which a warning says.
    """
    if isinstance(given, Pooling):
        return given
    if given is not None:
        return named((given,) if isinstance(given, str) else tuple(given))
    if module is not None:
        return _read_pooling(module["type"], module["path"], config.dim)
    predicts = config.causal and any(str(name).endswith("ForCausalLM") for name in architectures(hf_config))
    if warn:
        how = "last token" if predicts else "mean"
        logger.warning("%s: nothing says how states are pooled; it is by their %s. %s", root, how, _NAME_POOLING)
    return LastToken() if predicts else Mean()


def _read_pooling(kind: str, path: Path, dim: int) -> Pooling:
    if kind == _OWN:
        weight, bias, context = _read_head_tensors(path, {"linear.weight": 2, "linear.bias": 1, "context": 1})
        _check_shapes(path, {"linear.weight": weight, "linear.bias": bias, "context": context}, dim, len(context))
        return Attention(Linear(weight.T, bias), context)
    config = _module_config(path, _NAME_POOLING)
    pooling = named(_pooling_names(config))
    return pooling if flag(config, "include_prompt", True) else WithoutPrompt(pooling)


def _pooling_names(config: Settings) -> tuple[str, ...]:
    if "pooling_mode" not in config:
        flags = [key for key in config if key.startswith("pooling_mode_") and flag(config, key)]
        if not flags or not set(flags) <= _POOLING_FLAGS.keys():
            expected = f"expected pooling_mode, or one of {list(_POOLING_FLAGS)} that is true"
            raise CheckpointError(f"{config.where}: {expected}; got {flags or list(config)}. {_NAME_POOLING}")
        return tuple(mode for key, mode in _POOLING_FLAGS.items() if key in flags)
    several = isinstance(config["pooling_mode"], list)
    modes = texts(config, "pooling_mode") if several else [text(config, "pooling_mode")]
    if not modes or (unknown := [mode for mode in modes if mode not in POOLINGS]):
        got = unknown if modes else []
        raise ValueError(f"{config.where}: pooling_mode must be among {list(POOLINGS)}; got {got}")
    return tuple(modes)


def _module_config(path: Path, remedy: str = "") -> Settings:
    """The `config.json` of a module that cannot do without."""
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path / 'config.json'} is missing, of which modules.json speaks. {remedy}".rstrip())
    return _settings(path / "config.json")


def _write_pooling(path: Path, pooling: Pooling, dim: int, dtype: str) -> None:
    """In a new folder; a pooling with weights is a module of a class that only jaxemb has."""
    if isinstance(pooling, Attention):
        linear = pooling.linear
        assert linear.bias is not None  # as `Attention.init` makes it
        tensors = {"linear.weight": linear.kernel.T, "linear.bias": linear.bias, "context": pooling.context}
        write_json(path / "config.json", dict(zip(("in_features", "hidden"), linear.kernel.shape, strict=True)))
        write_tensors(path, {name: np.asarray(tensor).astype(dtype) for name, tensor in tensors.items()})
    else:
        write_json(path / "config.json", _pooling_config(dim, *_saved_names(pooling)))


def _saved_names(pooling: Pooling) -> tuple[tuple[str, ...], bool]:
    """The names of the pooling, and whether it reads prompts as well."""
    leaves_out = isinstance(pooling, WithoutPrompt) and not pooling.kept
    plain = pooling.pooling if isinstance(pooling, WithoutPrompt) and leaves_out else pooling
    if (names := names_of(plain)) is None:
        raise ValueError(
            f"a {type(pooling).__name__} pooling cannot be saved: a model directory holds one or several of "
            f"{', '.join(POOLINGS)}, or an Attention"
        )
    return names, not leaves_out


def _pooling_config(dim: int, names: tuple[str, ...], include_prompt: bool) -> dict[str, Any]:
    """The flags that every release reads; the newer key only for an order of concatenation that flags cannot say."""
    if names == tuple(mode for mode in _POOLING_FLAGS.values() if mode in names):
        flags = {flag: mode in names for flag, mode in _POOLING_FLAGS.items()}
        return {"word_embedding_dimension": dim, **flags, "include_prompt": include_prompt}
    return {"embedding_dimension": dim, "pooling_mode": list(names), "include_prompt": include_prompt}


def _heads(modules: Sequence[Mapping[str, Any]], dim: int) -> tuple[tuple[Head, ...], list[str]]:
    """The heads of vectors `[N, dim]`, and the dtypes of their tensors."""
    heads: list[Head] = []
    dtypes = []
    for module in modules:
        head, dtype = _read_head(module["type"], module["path"], dim)
        dim = head.linear.kernel.shape[1] if isinstance(head, Dense) else dim
        heads.append(head)
        dtypes += [dtype] if dtype else []
    return tuple(heads), dtypes


def _read_head(kind: str, path: Path, dim: int) -> tuple[Head, str | None]:
    """A head of vectors `[N, dim]`, and the dtype of its tensors if it has any."""
    config = _module_config(path) if kind == "Dense" else _settings(path / "config.json")
    for key in ("module_input_name", "module_output_name"):
        text(config, key, "sentence_embedding", ["sentence_embedding"])
    if kind == "Normalize":
        return Normalize(), None
    if kind == "LayerNorm":
        weight, bias = _read_head_tensors(path, {"norm.weight": 1, "norm.bias": 1})
        _check_shapes(path, {"norm.weight": weight, "norm.bias": bias}, dim, dim)
        return Norm(weight, bias, kind="layer", eps=_LAYER_NORM_EPS), str(weight.dtype)
    if flag(config, "use_residual", False):
        raise ValueError(f"{config.where}: use_residual=true is not supported; expected false")
    activation = text(config, "activation_function")
    module, _, name = activation.rpartition(".")
    if not module.startswith("torch.nn") or name not in _ACTIVATION_OF_CLASS:
        raise ValueError(
            f"{config.where}: activation_function must be one of {list(_ACTIVATIONS.values())}; got {activation!r}"
        )
    ranks = {"linear.weight": 2, "linear.bias": 1} if flag(config, "bias", True) else {"linear.weight": 2}
    weight, *biases = _read_head_tensors(path, ranks)  # one bias or none
    _check_shapes(path, dict(zip(ranks, [weight, *biases], strict=True)), dim, len(weight))
    linear = Linear(weight.T, *biases)
    return Dense(linear=linear, activation=_ACTIVATION_OF_CLASS[name]), str(weight.dtype)


def _check_shapes(path: Path, tensors: Mapping[str, np.ndarray], inputs: int, outputs: int) -> None:
    """Raises CheckpointError unless matrices are `[outputs, inputs]` and vectors `[outputs]`."""
    for name, tensor in tensors.items():
        if tensor.shape != (expected := (outputs, inputs)[: tensor.ndim]):
            raise CheckpointError(f"{path}: {name} must have the shape {list(expected)}; got {list(tensor.shape)}")


def _write_head(path: Path, head: Head, dtype: str) -> None:
    match head:
        case Normalize():
            return
        case Norm(weight=weight, bias=bias):
            if head.kind != "layer" or bias is None or head.eps != _LAYER_NORM_EPS:
                raise ValueError(f"a norm head must be a LayerNorm with bias and eps={_LAYER_NORM_EPS} to be saved")
            config: dict[str, Any] = {"dimension": len(weight)}
            tensors = {"norm.weight": weight, "norm.bias": bias}
        case Dense(linear=linear, activation=activation):
            config = {
                "in_features": linear.kernel.shape[0],
                "out_features": linear.kernel.shape[1],
                "bias": linear.bias is not None,
                "activation_function": _ACTIVATIONS[activation],
            }
            tensors = {"linear.weight": linear.kernel.T}
            if linear.bias is not None:
                tensors["linear.bias"] = linear.bias
    write_json(path / "config.json", config)
    write_tensors(path, {name: np.asarray(tensor).astype(dtype) for name, tensor in tensors.items()})


def _read_head_tensors(path: Path, ranks: Mapping[str, int]) -> list[Any]:
    """The tensors that `ranks` names, in that order, on the host; there must be no others."""
    tensors = read_tensors(path)
    if set(tensors) != set(ranks) or any(tensors[name].ndim != rank for name, rank in ranks.items()):
        found = {name: list(tensors[name].shape) for name in tensors}
        raise CheckpointError(f"{path}: expected tensors of ranks {dict(ranks)}; found shapes {found}")
    if bad := [name for name in ranks if not is_finite(tensors[name])]:
        raise CheckpointError(f"{path}: {', '.join(bad)}: has values that are not finite")
    return [tensors[name] for name in ranks]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _settings(path: Path) -> Settings:
    """The object in a JSON file; {} where there is none."""
    return Settings(read_json(path, dict, error=CheckpointError) if path.is_file() else {}, str(path))
