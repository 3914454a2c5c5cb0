"""The kinds of files that jaxemb reads: how one of each is made, how it is used, and how it can be damaged."""

import dataclasses
import functools
import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf_files
import jax
import mutations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
from outcomes import Case
from tiny_run import toy_run
from tokenizers import decoders, models, pre_tokenizers, processors

import jaxemb
from jaxemb import evaluate, train
from jaxemb.checkpoints import read_tensors, write_tensors
from jaxemb.data import Tokenizer, read, read_dictionary, stream
from jaxemb.data.tokenizer import SPECIAL_TOKENS
from jaxemb.embedder import Dense, Normalize
from jaxemb.nn import Linear, Norm
from jaxemb.pooling import LastToken
from jaxemb.retrieval import build_index, open_index

Mutants = Callable[[bytes], Iterator[tuple[str, bytes]]]


@dataclasses.dataclass(frozen=True)
class Place:
    """A file or directory of one kind.

    Attributes:
      make: makes it at a path.
      use: what a user does with it.
      suffix: of the path, where that says what it is.
      lawful: regular expression of the mutants, "file: what is wrong", that nobody could know from a good file, or
        that are one.
      others: mutants of the whole directory, by name.
    """

    make: Callable[[Path], None]
    use: Callable[[Path], Any]
    suffix: str = ""
    lawful: str = "(?!)"
    others: Mapping[str, Callable[[Path], None]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def original(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix="faults-")) / f"good{self.suffix}"
        self.make(path)
        return path

    @functools.cached_property
    def expected(self) -> Any:
        return self._used(lambda path: None)

    def cases(self, mutants: Mapping[str, Mutants]) -> list[Case]:
        """Every mutant of every file, and those of the directory.

        Args:
          mutants: of files, by a regular expression of their names; the first that fits counts.
        """
        found = []
        for file in self.files():
            name = self.name_of(file)
            made = next((make for pattern, make in mutants.items() if re.search(pattern, name)), None)
            if made is None:
                continue
            for what, content in made(file.read_bytes()):
                found.append(self._case(name, what, functools.partial(_write, name, content)))
            found.append(self._case(name, "missing", functools.partial(_remove, name)))
            found.append(self._case(name, "a directory", functools.partial(_folder, name)))
        found += [self._case(name.partition(": ")[0], name.partition(": ")[2], f) for name, f in self.others.items()]
        return found

    def files(self) -> list[Path]:
        """Those of the good one."""
        if self.original.is_file():
            return [self.original]
        return sorted(path for path in self.original.rglob("*") if path.is_file())

    def name_of(self, file: Path) -> str:
        return file.relative_to(self.original).as_posix() if self.original.is_dir() else file.name

    def damaged(self, file: Path, content: bytes) -> Case:
        """The case of other bytes in a file."""
        name = self.name_of(file)
        return self._case(name, f"{content!r:.300}", functools.partial(_write, name, content))

    def _case(self, file: str, what: str, change: Callable[[Path], None]) -> Case:
        # Where files do not fit each other, any of them may be named.
        inside = [Path(self.name_of(path)) for path in self.files()] if self.original.is_dir() else []
        others = {part for path in inside for part in path.parts}
        names = (Path(file).name, Path(file).stem, "good", "chat template", *sorted(others))
        if file.startswith("tokenizer"):  # of which some make no tokens of some texts
            names = (*names, "texts")
        name, use = f"{file}: {what}", functools.partial(self._used, change)
        return Case(name, use, names, self.expected, bool(re.search(self.lawful, name)))

    def _used(self, change: Callable[[Path], None]) -> Any:
        with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
            path = Path(temporary) / f"good{self.suffix}"
            if self.original.is_dir():
                shutil.copytree(self.original, path, symlinks=True)
            else:
                shutil.copyfile(self.original, path)
            change(path)
            return self.use(path)


def _inside(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _write(name: str, content: bytes, path: Path) -> None:
    _inside(path, name).write_bytes(content)


def _remove(name: str, path: Path) -> None:
    _inside(path, name).unlink()


def _folder(name: str, path: Path) -> None:
    _remove(name, path)
    (path / name if path.is_dir() else path).mkdir()


# Models

TEXTS = ("1 2 3", "7", "")
_SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_LIKE_BERT = {
    **_SIZES,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_LIKE_BERT, "max_position_embeddings": 16, "type_vocab_size": 2, "position_embedding_type": "absolute"},
    "roberta": {**_LIKE_BERT, "max_position_embeddings": 18, "type_vocab_size": 1},
    "mpnet": {**_LIKE_BERT, "max_position_embeddings": 18, "relative_attention_num_buckets": 32},
    "distilbert": {
        "dim": 8,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 16,
        "max_position_embeddings": 16,
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "initializer_range": 0.02,
    },
    "modernbert": {
        **_SIZES,
        "num_hidden_layers": 2,
        "max_position_embeddings": 16,
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "norm_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    },
    "nomic_bert": {
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_inner": 16,
        "n_positions": 16,
        "type_vocab_size": 2,
        "layer_norm_epsilon": 1e-12,
        "rotary_emb_base": 1000.0,
    },
}


def tokenizer(family: str = "bert") -> Tokenizer:
    """Digits; the padding stands where the family has it."""
    tokens = [*SPECIAL_TOKENS, *map(str, range(10))]
    if family in ("roberta", "mpnet"):
        tokens[:2] = tokens[1::-1]
    return Tokenizer.word_piece(tokens)


@functools.cache
def embedder(family: str = "bert", *, heads: bool = False) -> "jaxemb.SentenceEmbedder":
    """A model of one layer and 8 dimensions."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jax.numpy.asarray(rng.normal(size=shape), np.float32)
    made = (
        (
            Dense(Linear(draw(8, 6), draw(6)), activation="tanh"),
            Norm(draw(6), draw(6), kind="layer", eps=1e-5),
            Normalize(),
        )
        if heads
        else ()
    )
    model = jaxemb.new(family, CONFIGS[family], tokenizer(family), key=jax.random.key(0), heads=made)
    prompts = {"prompts": {"query": "1 ", "document": ""}, "default_prompt_name": "document"} if heads else {}
    return model.replace(**prompts)


def _model(family: str, *, heads: bool = False) -> Callable[[Path], None]:
    return lambda path: embedder(family, heads=heads).save(path)


def _sharded(path: Path) -> None:
    """Of several files, as large models are, with the tokenizer as a `vocab.txt`."""
    embedder().save(path)
    tensors = dict(read_tensors(path))
    (path / "model.safetensors").unlink()
    write_tensors(path, tensors, max_bytes=1500)
    tokens = sorted(tokenizer().backend.get_vocab().items(), key=lambda entry: entry[1])
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens))
    (path / "tokenizer.json").unlink()


def _encode(path: Path) -> Any:
    return jaxemb.load(path).encode(list(TEXTS))


# Tokenizers

_SENTENCES = (*TEXTS, "1 12 x 3\n4", "[CLS] 5 [MASK]", "é 💡 6", "7 " * 40)


def _tokenizer(path: Path) -> None:
    path.mkdir()
    tokenizer().save(path)


def _tokenize(path: Path) -> list[bool]:
    """Whether the tokens of each sentence are those that the library `tokenizers` itself makes by the file."""
    ours = Tokenizer.from_directory(path)(_SENTENCES)
    theirs = tokenizers.Tokenizer.from_str((path / "tokenizer.json").read_text("utf-8-sig"))
    theirs.no_truncation()
    theirs.no_padding()
    return [ids.tolist() == theirs.encode(text).ids for text, ids in zip(_SENTENCES, ours, strict=True)]


# Decoders

_CHAT = "{% for m in messages %}<|start|>{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
_DECODER = {
    **_SIZES,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": _DECODER
    | {
        "mlp_bias": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen3": _DECODER | {"use_sliding_window": False},
}


def _byte_pairs() -> Tokenizer:
    """Bytes, without pairs; a text ends with a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(["<|end|>", "<|start|>", *alphabet])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|start|>"])
    backend.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    return Tokenizer(backend, special_ids={"bos": 1, "eos": 0, "pad": 0})


def _decoder(family: str) -> Callable[[Path], None]:
    """A directory of sentence-transformers, with a chat template: that of Llama within `tokenizer_config.json`."""

    def make(path: Path) -> None:
        made = jaxemb.new(family, DECODERS[family], _byte_pairs(), key=jax.random.key(0), pooling=LastToken())
        made.save(path)
        if family == "llama":
            file = path / "tokenizer_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": _CHAT}))
        else:
            (path / "chat_template.jinja").write_text(_CHAT)

    return make


def _chat(path: Path) -> Any:
    model = jaxemb.load(path)
    return [model.encode(list(TEXTS)), model.tokenizer.chat([{"role": "user", "content": "1 2"}])]


def _gguf(path: Path, change: Callable[[Any], None] = lambda writer: None) -> None:
    """One file, of llama.cpp; `change` is done to its writer."""
    name = "qwen3"

    def more(writer: Any) -> None:
        gguf_files.byte_pairs(writer)
        change(writer)

    gguf_files.write_gguf(path, name, gguf_files.tensors_of(gguf_files.CONFIGS[name]), more=more)


def _gguf_mutants(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Every entry left out, and with values of other types; and the bytes."""
    from gguf import GGUFValueType

    kinds = {str: "STRING", int: "INT64", float: "FLOAT32", bool: "BOOL", list: "ARRAY"}
    wrong = [*mutations.FEW.items(), *((name, mutations.WRONG[name]) for name in ("0", "1.5", "NaN", "true"))]
    wrong = [(name, value) for name, value in wrong if type(value) in kinds and value != []]

    def entry(key: str, *value: Any) -> Callable[[Any], None]:
        def change(writer: Any) -> None:
            del writer.kv_data[0][key]
            for v in value:
                writer.add_key_value(key, v, GGUFValueType[kinds[type(v)]])

        return change

    keys: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        file = Path(temporary) / "model.gguf"
        _gguf(file, lambda writer: keys.extend(writer.kv_data[0]))
        for key in keys:
            _gguf(file, entry(key))
            yield f"{key} left out", file.read_bytes()
            for name, value in [*wrong, ("a list of texts", ["text"]), ("a list of numbers", [1, 2])]:
                _gguf(file, entry(key, value))
                yield f"{key} = {name}", file.read_bytes()
    yield from mutations.byte_files(content, flips=48)


def _not_finite(value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = {name: np.array(tensor) for name, tensor in read_tensors(path).items()}
        tensors[max(tensors)].flat[0] = value
        write_tensors(path, tensors)

    return change


_BITS = r"safetensors: (bit|zeros)"  # the values of weights: whatever they are, they are a model
#: What is another model, and a good one.
_OTHER_MODELS = "|".join(
    (
        _BITS,
        r"config.json: .*(eps|epsilon|theta|base) = (0|1.5|true|1e300|2\*\*62)",
        r"config.json: (activation|hidden_act\w*|architectures\S*) ",
        r"config.json: (pad_token_id|tokenizer_class)",
        r"modules.json: [34] left out",
        r"config.json: .*(dropout|_prob|initializer_range|local_attention|every_n_layers|buckets)",
        r"sentence_bert_config.json: .*(max_seq_length|do_lower_case)",
        r"config_sentence_transformers.json: .*(prompts|default_prompt_name|model_type|similarity)",
        r"^tokenizer(_config)?.json: ",
        r"^vocab.txt: (bit|cut|with|twice|a byte)",
        r"(\.json|vocab.txt): a byte order mark",
    )
)
_OTHER_DECODERS = "|".join(
    (
        _OTHER_MODELS,
        r"config.json: \S*rope_scaling.*factor = ",
        r"config.json: \S*original_max_position_embeddings (left out|=)",
        r"config.json: (rms_norm_eps|rope_scaling|rope_theta) (left out|= null)",
        r"config.json: bit",  # of a key, which is missing then
        r"^chat_template.jinja: ",
    )
)
_OTHER_GGUF = "|".join(
    (
        r": bit",  # nearly all of them are weights
        r": general\.(?!architecture)",
        r": \S*(context_length|layer_norm_rms_epsilon|rope.freq_base) ",
        r": tokenizer\.",
    )
)
_MUTANTS_OF_MODELS: dict[str, Mutants] = {
    r"^tokenizer.json$": functools.partial(mutations.json_files, wrong=mutations.FEW),
    r"\.json$": mutations.json_files,
    r"\.(safetensors|txt)$": mutations.byte_files,
}


# Indexes

RECORDS = [{"text": text, "number": number} for number, text in enumerate(("1 2", "3 4 5", "6", "7 8", "9 1 2"))]


def _index(path: Path) -> None:
    build_index(path, RECORDS, embedder(), model="models/tiny")


def _search(path: Path) -> Any:
    return [
        [(hit.score, hit.id, hit.record.get("text")) for hit in hits]
        for hits in open_index(path).search(["1 2", "7"], embedder(), k=3)
    ]


def _swapped(path: Path) -> None:
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(b"".join(lines[::-1]))


def _another_model(path: Path) -> None:
    """Of the same sizes."""
    other = embedder("distilbert")
    shutil.rmtree(path)
    build_index(path, RECORDS, other, model="models/tiny")


# Runs


def _unfinished(path: Path) -> None:
    """Killed after step 4 of 6."""
    train.fit(_run(), path, progress=False)
    shutil.rmtree(path / "checkpoints" / "step_00000006")
    shutil.rmtree(path / "model")
    shutil.rmtree(path / "tensorboard", ignore_errors=True)


def _run() -> train.Run:
    return toy_run(steps=6, checkpoint_every=2, keep=3, evaluate_every=2, log_every=1, best=("toy/error", "min"))


def _resume(path: Path) -> Any:
    result = train.fit(_run(), path, progress=False)
    assert len(train.read_metrics(path)) and (path / "model" / "model.safetensors").is_file()
    return [result.embedder.model["w"], dict(result.metrics)]


def _stray(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for folder in [path, *(entry for entry in path.rglob("*") if entry.is_dir())]:
            (folder / name).write_bytes(b"\0\1")

    return change


def _all_checkpoints(path: Path) -> None:
    for manifest in path.rglob("manifest.json"):
        manifest.write_text("[]")


# Data

_ROWS = [{"first": "a b", "second": "c, d", "score": 1.5}, {"first": "é", "second": 'say "x"', "score": 2.0}] * 4


def _csv(path: Path, separator: str = ",") -> None:
    quote = lambda text: '"' + text.replace('"', '""') + '"' if separator == "," else text
    rows = [separator.join((quote(row["first"]), quote(row["second"]), str(row["score"]))) for row in _ROWS]
    path.write_text("\n".join([separator.join(("first", "second", "score")), *rows]) + "\n", encoding="utf-8")


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS), encoding="utf-8")


def _zipped(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def made(path: Path) -> None:
        make(path)
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))

    return made


def _parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(_ROWS), path)


def _beir(path: Path) -> None:
    (path / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "t", "text": f"{i}"} for i in range(4)]
    queries = [{"_id": f"q{i}", "text": f"{i}"} for i in range(3)]
    for name, lines in {"corpus.jsonl": documents, "queries.jsonl": queries}.items():
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(3))
    (path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")


def _read(path: Path) -> Any:
    """By index, as a stream, and as pairs with a score."""
    source = read(path)
    records = source.__getitems__(range(len(source)))
    streamed = list(stream(path))
    found = [json.dumps(record, default=str) for record in [*records, *streamed]]
    if path.suffix == ".parquet":
        return found
    pairs = evaluate.read_sts(path, ("first", "second", "score"))
    return [found, list(pairs.first), pairs.scores]


def _retrieve(path: Path) -> Any:
    data = evaluate.read_beir(path)
    return evaluate.retrieval(embedder(), data.queries, data.corpus, data.qrels)


def _define(path: Path) -> Any:
    found = read_dictionary(path, word="first", definition="second")
    return [list(found.entries), list(found.texts), found.entry]


_MUTANTS_OF_DATA: dict[str, Mutants] = {
    r"\.jsonl$": mutations.line_files,
    r"\.gz$": mutations.gzip_files,
    r".": mutations.byte_files,
}
#: Other text is other text; a row that is missing was perhaps never there.
_OTHER_DATA = r": (is empty|bit|twice|a byte order mark|no gzip|cut|a line missing|lines in another order|line 1)"

PLACES: dict[str, tuple[Place, dict[str, Mutants]]] = {
    "model": (
        Place(
            _model("bert", heads=True),
            _encode,
            lawful=_OTHER_MODELS,
            others={
                "model.safetensors: a weight is NaN": _not_finite(np.nan),
                "model.safetensors: a weight is Inf": _not_finite(np.inf),
            },
        ),
        _MUTANTS_OF_MODELS,
    ),
    "sharded model": (Place(_sharded, _encode, lawful=_OTHER_MODELS), {r"(index.json|txt|00001.*tensors)$": None}),
    **{
        family: (Place(_model(family), _encode, lawful=_OTHER_MODELS), {r"^config.json$": mutations.json_files})
        for family in CONFIGS
        if family != "bert"
    },
    "tokenizer": (
        Place(_tokenizer, _tokenize),
        {r"^tokenizer.json$": functools.partial(mutations.json_files, wrong=mutations.FEW)},
    ),
    **{
        f"{family}, a decoder": (
            Place(_decoder(family), _chat, lawful=_OTHER_DECODERS),
            {
                r"^config.json$": mutations.json_files,
                r"^(tokenizer_config|1_Pooling/config|modules).json$": functools.partial(
                    mutations.json_files, wrong=mutations.FEW
                ),
                r"\.jinja$": mutations.byte_files,
            },
        )
        for family in DECODERS
    },
    "gguf": (Place(_gguf, _chat, ".gguf", lawful=_OTHER_GGUF), {r".": _gguf_mutants}),
    "index": (
        Place(
            _index,
            _search,
            lawful=r"manifest.json: (model|text) |a byte order mark",
            others={
                "records.jsonl: in reverse": _swapped,
                "manifest.json: another model's": _another_model,
                "good: a stray file": _stray(".DS_Store"),
            },
        ),
        {r"\.json$": mutations.json_files, r"\.jsonl$": mutations.line_files, r".": mutations.byte_files},
    ),
    "run": (
        Place(
            _unfinished,
            _resume,
            others={
                "good: a stray file": _stray(".DS_Store"),
                "good: a stray directory": lambda path: (path / "checkpoints" / "step_notes").mkdir(),
                "manifest.json: no checkpoint is whole": _all_checkpoints,
            },
        ),
        {
            r"^run.json$": functools.partial(mutations.json_files, wrong=mutations.FEW, deepest=1),
            r"step_00000004/(loop-0|manifest).json$": functools.partial(mutations.json_files, wrong=mutations.FEW),
            r"metrics.jsonl$": mutations.line_files,
            r"step_00000004/state/": mutations.few_files,
        },
    ),
    "csv": (Place(_csv, _read, ".csv", lawful=_OTHER_DATA), _MUTANTS_OF_DATA),
    "tsv": (Place(lambda path: _csv(path, "\t"), _read, ".tsv", lawful=_OTHER_DATA), _MUTANTS_OF_DATA),
    "jsonl": (Place(_jsonl, _read, ".jsonl", lawful=_OTHER_DATA), _MUTANTS_OF_DATA),
    "csv.gz": (
        Place(_zipped(_csv), _read, ".csv.gz", lawful=": (is empty|twice|no gzip|with zeros)"),
        _MUTANTS_OF_DATA,
    ),
    "parquet": (Place(_parquet, _read, ".parquet", lawful=_OTHER_DATA), _MUTANTS_OF_DATA),
    "dictionary": (Place(_jsonl, _define, ".jsonl", lawful=_OTHER_DATA), _MUTANTS_OF_DATA),
    "retrieval data": (Place(_beir, _retrieve, lawful=_OTHER_DATA), _MUTANTS_OF_DATA),
}


@functools.cache
def cases(kind: str) -> Sequence[Case]:
    """All mutants of a kind."""
    place, mutants = PLACES[kind]
    return place.cases({pattern: make or _either for pattern, make in mutants.items()})


def _either(content: bytes) -> Iterator[tuple[str, bytes]]:
    return (
        mutations.json_files(content) if content[:1] == b"{" and content[-1:] == b"}" else mutations.byte_files(content)
    )
