"""Text to token ids, with the `tokenizers` library and the files of a checkpoint directory."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import normalizers

from jaxemb.checks import at_least, checked, described, encodable, instance
from jaxemb.checks import size as check_size
from jaxemb.data import chat
from jaxemb.files import made_directory, parse_json, read_bytes, write_bytes, write_json, write_text
from jaxemb.settings import REQUIRED, CheckpointError, Settings, flag, inner, number, shown, size, text

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Everything a checkpoint directory may say about its tokenizer; kept verbatim, so that saving loses nothing.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)

# What `tokenizer_config.json` calls the options of BERT's normalizer, and what a token may be beside its text.
_NORMALIZER_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_TOKENS_MAP = "special_tokens_map"
_PROBE = "Aé 漢字 1.5 ☃\U0001f600 \u0378"  # of many kinds: what no vocabulary has, too
_MOST_GROWTH = 64
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Encoded(NamedTuple):
    """Token ids of some texts.

    Attributes:
      ids: one int32 `[length]` array per text, special tokens included.
      truncated: how many of the texts were longer than the maximum and were cut.
      type_ids: of pairs, one int32 `[length]` array each: which text a token is of, 0 or 1; None for single texts.
      prompt_lengths: how many tokens of each text are of a prompt in front of it, int32 `[N]`; None if nobody asked.
    """

    ids: list[np.ndarray]
    truncated: int
    type_ids: list[np.ndarray] | None = None
    prompt_lengths: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer as a function: texts to id arrays, with special tokens, cut to a maximum length, unpadded.

    Texts are passed on as they are (sentence-transformers neither strips nor cleans them). The object has no
    state that a call changes, so threads may share it.

    Attributes:
      backend: the `tokenizers.Tokenizer`, without truncation and padding of its own.
      special_ids: ids of the special tokens by role: "pad", "unk", "cls", "sep", "mask", "bos", "eos".
      model_max_length: longest input in tokens that the checkpoint's `tokenizer_config.json` states, if any.
      truncation_side: which end of a text that is too long is cut.
      files: the checkpoint's tokenizer files, verbatim.
    """

    backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
    special_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)
    model_max_length: int | None = None
    truncation_side: str = "right"
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    _n_prefix: int = dataclasses.field(init=False, repr=False, default=0)  # special tokens before a text
    _n_suffix: int = dataclasses.field(init=False, repr=False, default=0)  # and after it

    def __post_init__(self):
        if self.truncation_side not in ("right", "left"):
            raise ValueError(f"truncation_side must be 'right' or 'left'; got {self.truncation_side!r}")
        self.backend.no_truncation()
        self.backend.no_padding()
        with _naming("fails on a text"):
            self.backend.encode(_PROBE)
            probe = self.backend.encode("a").special_tokens_mask
        n_prefix = probe.index(0) if 0 in probe else len(probe)
        object.__setattr__(self, "_n_prefix", n_prefix)
        object.__setattr__(self, "_n_suffix", probe[n_prefix:].count(1))

    @property
    def special_tokens(self) -> int:
        """How many special tokens every text gets."""
        return self._n_prefix + self._n_suffix

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def largest(self) -> tuple[int, str]:
        """The largest id and its token."""
        return max((i, token) for token, i in self.backend.get_vocab().items())

    @property
    def pad_id(self) -> int:
        return self.special_ids.get("pad", 0)

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The checkpoint's chat templates by name; most have one, "default"."""
        return _chat_templates(Path(), self.files)

    @checked()
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        template: str = "default",
        **variables: Any,
    ) -> str:
        """The text of a conversation as the checkpoint's chat template writes it, special tokens included.

            text = tokenizer.chat([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
            tokenizer.encode([text], special_tokens=False)

        Args:
          messages: the conversation.
          add_generation_prompt: end with what an answer begins with.
          template: the name of one of `chat_templates`.
          **variables: what else that template may use, such as `enable_thinking`.

        Raises:
          ModuleNotFoundError: Jinja is not installed.
          ValueError: there is no such template, or what it says is wrong with the conversation.
        """
        if not (known := self.chat_templates):
            raise ValueError(
                "the checkpoint has no chat template: no chat_template.jinja or chat_template in tokenizer_config.json"
            )
        if template not in known:
            raise ValueError(
                f"template must be one of the checkpoint's chat templates, {list(known)}; got {template!r}"
            )
        special = {f"{role}_token": self.backend.id_to_token(i) for role, i in self.special_ids.items()}
        options = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return chat.render(known[template], messages, **{**special, **options, **variables})

    def __call__(self, texts: Sequence[str], max_length: int | None = None) -> list[np.ndarray]:
        """Ids of each text, int32 `[length <= max_length]`; see `encode`."""
        return self.encode(texts, max_length).ids

    @checked(max_length=at_least(1))
    def encode(self, texts: Sequence[str], max_length: int | None = None, *, special_tokens: bool = True) -> Encoded:
        """Token ids of `texts` and how many were cut to `max_length` tokens.

        Special tokens count towards `max_length` and are always kept; None means no limit. Without `special_tokens`
        none are added, as is right for texts that have their own, such as those of `chat`.

        Raises:
          TypeError: a text is not a str; names its index.
          ValueError: a text has a lone surrogate, which is no character; `max_length` leaves no room for a token beside
            the special tokens.
        """
        for i, one in enumerate(texts):
            if not isinstance(one, str):  # of an array, whose parts have not been looked at
                raise TypeError(f"texts[{i}] must be a string; got {described(one)}")
            encodable(f"texts[{i}]", one)
        prefix, suffix = (self._n_prefix, self._n_suffix) if special_tokens else (0, 0)
        if max_length is not None and max_length <= prefix + suffix:
            raise ValueError(f"max_length must exceed the {prefix + suffix} special tokens; got {max_length}")
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        if max_length is None:
            return Encoded(ids, 0)
        too_long = [i for i, sequence in enumerate(ids) if len(sequence) > max_length]
        for i in too_long:
            ids[i] = self._truncate(ids[i], max_length, prefix, suffix)
        return Encoded(ids, len(too_long))

    @checked()
    def prompt_length(self, prompt: str) -> int:
        """How many tokens of a text are of the prompt in front of it, special ones before it included.

        It is the prompt's own number of tokens, as in sentence-transformers: one that joins it and the text counts as
        the prompt's.
        """
        return len(self.encode([prompt]).ids[0]) - self._n_suffix if prompt else 0

    @checked(max_length=at_least(1))
    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_length: int | None = None) -> Encoded:
        """Token ids and token types of pairs of texts that are read as one, as the checkpoint's tokenizer joins them.

        Of a pair that is longer than `max_length` the longer text is cut until both are as long, then both
        ("longest_first" of transformers). Special tokens count and are kept; None means no limit.

        Raises:
          TypeError: a text is not a str; names the index of its pair.
          ValueError: a text has a lone surrogate, which is no character; `max_length` leaves no room for a token of
            each text beside the special tokens.
        """
        for i, pair in enumerate(pairs):
            if not all(isinstance(text, str) for text in pair):
                raise TypeError(f"pairs[{i}] must be two strings; got {described(pair)}")
            for one in pair:
                encodable(f"pairs[{i}]", one)
        n_special = self.backend.num_special_tokens_to_add(True)
        if max_length is not None and max_length < n_special + 2:
            raise ValueError(f"max_length must exceed the {n_special} special tokens by 2; got {max_length}")
        texts = self.backend.encode_batch([text for pair in pairs for text in pair], add_special_tokens=False)
        ids, type_ids, truncated = [], [], 0
        for first, second in zip(texts[::2], texts[1::2], strict=True):
            if max_length is not None and len(first) + len(second) > max_length - n_special:
                truncated += 1
                kept = _longest_first(len(first), len(second), max_length - n_special)
                first.truncate(kept[0], direction=self.truncation_side)
                second.truncate(kept[1], direction=self.truncation_side)
            joined = self.backend.post_process(first, second)
            ids.append(np.array(joined.ids, np.int32))
            type_ids.append(np.array(joined.type_ids, np.int32))
        return Encoded(ids, truncated, type_ids)

    def _truncate(self, ids: np.ndarray, max_length: int, prefix: int, suffix: int) -> np.ndarray:
        if self.truncation_side == "right":
            return np.concatenate([ids[: max_length - suffix], ids[len(ids) - suffix :]])
        return np.concatenate([ids[:prefix], ids[len(ids) - (max_length - prefix) :]])

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> "Tokenizer":
        """What the `tokenizers` library trained; its special tokens are those with the usual names, [PAD] or <pad>.

            backend = tokenizers.ByteLevelBPETokenizer()
            backend.train_from_iterator(texts, 8000, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
            tokenizer = Tokenizer.of(backend)

        It adds what the backend's post-processor adds to a text, so for "[CLS] text [SEP]" give it one.

        Raises:
          TypeError: if it is no tokenizer of that library.
        """
        backend = getattr(backend, "_tokenizer", backend)  # in the library's own trainers
        if not isinstance(backend, tokenizers.Tokenizer):
            raise TypeError(f"backend must be a tokenizers.Tokenizer; got {type(backend).__name__} {backend!r:.60}")
        names = {role: (f"[{role.upper()}]", f"<{role}>") for role in ("pad", "unk", "cls", "sep", "mask")}
        names |= {"cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>")}
        ids = backend.get_vocab()
        found = {role: [ids[name] for name in usual if name in ids] for role, usual in names.items()}
        return cls(backend, special_ids={role: there[0] for role, there in found.items() if there})

    @classmethod
    @checked(vocab_size=check_size)
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        lower_case: bool = True,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
    ) -> "Tokenizer":
        """A new tokenizer of BERT's kind whose word pieces are made from `texts`, for a model from scratch.

        Args:
          texts: as many as are at hand.
          vocab_size: most tokens that it may have, special ones and single characters included.
          lower_case: lower-case texts and strip accents.
          special_tokens: those of BERT, in the order of their ids from 0 (MPNet's padding must have the id 1).
        """
        backend = tokenizers.BertWordPieceTokenizer(lowercase=lower_case)
        if absent := [token for token in SPECIAL_TOKENS if token not in special_tokens]:
            raise ValueError(f"special_tokens must have {', '.join(SPECIAL_TOKENS)}; it lacks {', '.join(absent)}")
        named = [instance(f"texts[{i}]", text, str) for i, text in enumerate(texts)]
        # Its characters "##c" would get ids in an order that differs from run to run, and ties of word pieces follow.
        backend.train_from_iterator(named, vocab_size=0, special_tokens=list(special_tokens), show_progress=False)
        continuing = sorted(token for token in backend.get_vocab() if token.startswith("##") and len(token) == 3)
        kept = list(dict.fromkeys([*special_tokens, *continuing]))
        backend.train_from_iterator(named, vocab_size=vocab_size, special_tokens=kept, show_progress=False)
        ids = backend.get_vocab()
        return cls.word_piece(sorted(ids, key=ids.__getitem__), lower_case=lower_case)

    @classmethod
    @checked()
    def word_piece(cls, vocabulary: Sequence[str], *, lower_case: bool = True) -> "Tokenizer":
        """A tokenizer of BERT's kind: words, and their continuations "##...", in the order of their ids.

        Raises:
          ValueError: if one of `SPECIAL_TOKENS` is absent, or a token is there twice.
        """
        ids = {token: i for i, token in enumerate(vocabulary)}
        if absent := [token for token in SPECIAL_TOKENS if token not in ids]:
            raise ValueError(
                f"vocabulary must have the tokens {', '.join(SPECIAL_TOKENS)}; it lacks {', '.join(absent)}"
            )
        if len(ids) < len(vocabulary):
            raise ValueError(f"vocabulary must have each token once; got {len(vocabulary)}, {len(ids)} different ones")
        backend = _word_piece(ids, {}, {"do_lower_case": lower_case})
        return cls(backend, special_ids={token.strip("[]").lower(): ids[token] for token in SPECIAL_TOKENS})

    @classmethod
    @checked()
    def from_directory(cls, directory: str | Path, *, lower_case: bool = False) -> "Tokenizer":
        """The tokenizer of a checkpoint directory: its `tokenizer.json`, else WordPiece from its `vocab.txt`.

        As in transformers, what `tokenizer_config.json` says of case, accents, Chinese characters and added tokens goes
        before what `tokenizer.json` says.

        Args:
          directory: a Hugging Face or sentence-transformers model directory.
          lower_case: lower-case texts first, whatever the tokenizer does itself (`do_lower_case` in
            sentence-transformers' `sentence_bert_config.json`).

        Raises:
          FileNotFoundError: the directory has neither file.
          IsADirectoryError: one of the tokenizer's files is a directory.
          ValueError: `tokenizer_config.json` gives an added token another id than it has.
          CheckpointError: a file cannot be read, or a value in it is wrong, of a chat template, too.
        """
        directory = Path(directory)
        paths = {name: directory / name for name in TOKENIZER_FILES}
        files = {name: read_bytes(path) for name, path in paths.items() if path.is_file() or path.is_dir()}
        _chat_templates(directory, files)  # which raises an error now, while its directory is known
        config, tokens = (_settings(directory, files, f"{name}.json") for name in ("tokenizer_config", _TOKENS_MAP))
        specials = {
            role: content
            for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
            if (content := _token(config if f"{role}_token" in config else tokens, f"{role}_token")) is not None
        }
        if "tokenizer.json" in files:
            backend = _from_json(_settings(directory, files, "tokenizer.json"), files["tokenizer.json"])
        elif "vocab.txt" in files:
            backend = _from_vocabulary(directory / "vocab.txt", files["vocab.txt"], specials, config)
        else:
            found = ", ".join(files) or "no tokenizer files"
            raise FileNotFoundError(
                f"{directory}: expected tokenizer.json or vocab.txt; found {found}. Make a tokenizer.json with "
                "transformers: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
            )
        _set_options(backend, config)
        stated = inner(config, "added_tokens_decoder")
        if not stated and "tokenizer.json" not in files:
            added = _settings(directory, files, "added_tokens.json")
            stated = Settings({str(size(added, token, least=0)): token for token in added}, added.where)
        _add_tokens(backend, stated)
        if lower_case and not _lower_cases(backend.normalizer):
            rest = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
        length = number(config, "model_max_length", None, above=0)
        try:
            return cls(
                backend,
                special_ids={r: i for r, token in specials.items() if (i := backend.token_to_id(token)) is not None},
                # transformers writes int(1e30) for "no limit".
                model_max_length=int(length) if length is not None and length < 1e9 else None,
                truncation_side=text(config, "truncation_side", "right", ("left", "right")),
                files=files,
            )
        except _TokenizerError as error:
            file = directory / ("tokenizer.json" if "tokenizer.json" in files else "vocab.txt")
            raise CheckpointError(f"{file}: the tokenizer {error}") from error

    @checked()
    def save(self, directory: str | Path) -> None:
        """Writes the original files, verbatim, into a model directory, and a `tokenizer.json` in any case.

        With the `tokenizer.json` of a new tokenizer goes a `tokenizer_config.json`, by which transformers knows its
        special tokens.
        """
        directory = made_directory(directory)
        for name, content in self.files.items():
            write_bytes(directory / name, content)
        if "tokenizer.json" not in self.files:
            write_text(directory / "tokenizer.json", self.backend.to_str())
        if not self.files:
            write_json(directory / "tokenizer_config.json", self._config(), indent=2)

    def _config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says of it: a tokenizer that `tokenizer.json` describes, of no model's class."""
        length = {} if self.model_max_length is None else {"model_max_length": self.model_max_length}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "truncation_side": self.truncation_side,
            **length,
            **{f"{role}_token": self.backend.id_to_token(i) for role, i in self.special_ids.items()},
        }


def _chat_templates(directory: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    name, key = "chat_template.jinja", "chat_template"
    if name in files:
        try:
            return {"default": files[name].decode("utf-8")}
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{directory / name}: not UTF-8, at byte {error.start}") from error
    config = _settings(directory, files, "tokenizer_config.json")
    if not isinstance(several := config.get(key), list):
        one = text(config, key, None)
        return {} if one is None else {"default": one}
    if not all(isinstance(entry, Mapping) for entry in several):
        raise CheckpointError(
            f"{config.where}: {key} must be a text, or objects with name and template; got {shown(several)}"
        )
    entries = [Settings(entry, f"{config.where}: {key}") for entry in several]
    return {text(entry, "name"): text(entry, "template") for entry in entries}


def _set_options(backend: tokenizers.Tokenizer, config: Settings) -> None:
    """Sets what `tokenizer_config.json` states of BERT's normalizer, which is its class's business alone."""
    generic = text(config, "tokenizer_class", None) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    if generic or not isinstance(normalizer := backend.normalizer, normalizers.BertNormalizer):
        return
    for key, option in _NORMALIZER_OPTIONS.items():
        if key in config:
            setattr(normalizer, option, flag(config, key, None if key == "strip_accents" else REQUIRED))
    backend.normalizer = normalizer


def _add_tokens(backend: tokenizers.Tokenizer, stated: Settings) -> None:
    """Adds the tokens that a config states by their ids, where the tokenizer has not added them already."""
    if unlike := [key for key in stated if not (key.isascii() and key.isdecimal())]:
        raise CheckpointError(f"{stated.where}: keys must be ids of tokens; got {unlike[0]!r:.60}")
    known = backend.get_added_tokens_decoder()
    for key in sorted(stated, key=int):
        i, options = int(key), inner(stated, key) if isinstance(stated[key], Mapping) else {}
        content = text(options, "content") if options else text(stated, key)
        flags = {name: flag(options, name) for name in _TOKEN_FLAGS if name in options}
        if i not in known or known[i].content != content:
            backend.add_tokens([tokenizers.AddedToken(content, **flags)])
        if (got := backend.token_to_id(content)) != i:
            raise CheckpointError(
                f"{stated.where}: the added token {content!r} has the id {i}; in the tokenizer it is {got}"
            )


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """What is left of two lengths whose sum is above `room`: the longer one is cut first."""
    half = room // 2
    if min(first, second) <= half:
        return (first, room - first) if first <= second else (room - second, second)
    return (half, room - half) if first <= second else (room - half, half)


def _settings(directory: Path, files: Mapping[str, bytes], name: str) -> Settings:
    """The object in one of the files; {} where it is absent."""
    try:
        return Settings(parse_json(files.get(name, b"{}"), dict, finite=False), str(directory / name))
    except ValueError as error:
        raise CheckpointError(f"{directory / name}: {error}") from error


def _token(config: Settings, key: str) -> str | None:
    """The text of a token that a config gives as a string or as an AddedToken object."""
    if isinstance(config.get(key), Mapping):
        return text(inner(config, key), "content")
    return text(config, key, None)


class _TokenizerError(ValueError):
    """What the tokenizers library says, which has no errors of its own."""


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turns whatever the tokenizers library raises into a `_TokenizerError` that says `what` went wrong."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # also its PanicException, which is no Exception
        raise _TokenizerError(f"{what}: {error}") from error


def _from_json(config: Settings, content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a `tokenizer.json`."""
    if (growth := _growth(config.get("normalizer"))) > _MOST_GROWTH:
        expected = f"expected at most {_MOST_GROWTH} times"
        raise CheckpointError(f"{config.where}: normalizer can make texts {growth:.0f} times as long; {expected}")
    try:
        with _naming("not what the tokenizers library reads"):
            return tokenizers.Tokenizer.from_str(content.decode("utf-8-sig"))
    except _TokenizerError as error:
        raise CheckpointError(f"{config.where}: {error}") from error


def _growth(normalizer: Any) -> float:
    """How many times as long a text can become by what a normalizer, as `tokenizer.json` has it, puts in."""
    if not isinstance(normalizer, Mapping):
        return 1
    if isinstance(steps := normalizer.get("normalizers"), list):
        return math.prod(map(_growth, steps))
    pattern = normalizer.get("pattern")
    replaced = pattern.get("String", "") if isinstance(pattern, Mapping) else ""
    content = normalizer.get("content") or normalizer.get("prepend") or ""
    return max(1.0, len(content) / max(len(replaced), 1)) if isinstance(content, str) else 1


def _from_vocabulary(path: Path, content: bytes, specials: dict[str, str], config: Settings) -> tokenizers.Tokenizer:
    """BERT's tokenizer of a `vocab.txt`; fills in the names of special tokens that `specials` lacks."""
    try:
        # Lines end as those of text files do; `splitlines` would also end them at characters such as U+2028.
        lines = io.StringIO(content.decode("utf-8"), newline=None)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: expected UTF-8; got other bytes at {error.start}") from error
    ids = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    _fill_in(specials)
    if absent := [specials[role] for role in ("unk", "cls", "sep") if specials[role] not in ids]:
        raise CheckpointError(f"{path}: expected the special tokens {', '.join(absent)}, which it lacks")
    return _word_piece(ids, specials, {key: flag(config, key, None) for key in _NORMALIZER_OPTIONS})


def _fill_in(specials: dict[str, str]) -> None:
    for role in ("pad", "unk", "cls", "sep", "mask"):
        specials.setdefault(role, f"[{role.upper()}]")


def _word_piece(vocab: dict[str, int], specials: dict[str, str], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer of ids by token; fills in the names of special tokens that `specials` lacks."""
    _fill_in(specials)
    is_set = lambda key: config.get(key) is not False
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=specials["unk"]))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=is_set("do_lower_case"),
        handle_chinese_chars=is_set("tokenize_chinese_chars"),
        strip_accents=config.get("strip_accents"),
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    first, last = specials["cls"], specials["sep"]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, vocab[token]) for token in (first, last)],
    )
    backend.add_special_tokens([specials[role] for role in ("pad", "unk", "cls", "sep", "mask")])
    return backend


def _lower_cases(normalizer: normalizers.Normalizer | None) -> bool:
    """Whether lower-casing is a step of `normalizer` already (the test that sentence-transformers makes)."""
    steps: Any = normalizer if isinstance(normalizer, normalizers.Sequence) else [normalizer]
    return any(isinstance(step, normalizers.Lowercase) for step in steps)
