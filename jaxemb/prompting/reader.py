"""Texts to token ids through a template: what `jaxemb.encode` takes in place of a tokenizer."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import tokenizers

from jaxemb.checks import at_least, checked
from jaxemb.data.tokenizer import Encoded, Tokenizer
from jaxemb.prompting.templates import POOLED, PREPENDED, TEXT, PromptTemplate, clean

PREPENDED_TOKEN = "<PST>"


@dataclasses.dataclass(frozen=True, eq=False)
class TemplateReader:
    """Writes texts into a template and makes token ids of the whole; what is too long is cut in the text alone.

    Attributes:
      tokenizer: of the model.
      template: all its slots but those of texts must be filled, or be tokens that the tokenizer has.

    Raises:
      ValueError: for slots that are not filled, or a tokenizer that has the prepended token.
    """

    tokenizer: Tokenizer
    template: PromptTemplate

    def __post_init__(self):
        special = self.tokenizer.special_ids
        known = ["text", "pooled", "prepended", *(role for role in ("bos", "eos") if role in special)]
        if open_slots := [slot for slot in self.template.slots if slot not in known]:
            raise ValueError(f"template must have its slots filled, or be of tokens that there are; got {open_slots}")
        if PREPENDED in self.template.text and PREPENDED_TOKEN in self.tokenizer.backend.get_vocab():
            raise ValueError(f"the tokenizer must not have the token {PREPENDED_TOKEN}, which is prepended")

    @functools.cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer's own, or a copy that knows the prepended token."""
        if PREPENDED not in self.template.text:
            return self.tokenizer.backend
        copy = tokenizers.Tokenizer.from_str(self.tokenizer.backend.to_str())
        copy.add_special_tokens([tokenizers.AddedToken(PREPENDED_TOKEN)])
        return copy

    @property
    def prepended_id(self) -> int:
        """The id of the prepended token, which the model has no row for; -1 where the template has none."""
        found = self.backend.token_to_id(PREPENDED_TOKEN)
        return -1 if found is None else found

    def render(self, text: str) -> tuple[str, int]:
        """The template with the text, and at which character what is pooled begins."""
        token = lambda role: self.backend.id_to_token(self.tokenizer.special_ids[role]) or ""
        written, pooled = "", 0
        for part in self.template.parts():
            if part == POOLED:
                pooled = len(written)
            elif part == TEXT:
                written += text
            elif part == PREPENDED:
                written += PREPENDED_TOKEN
            else:
                written += token(part[1:-1]) if part in ("{bos}", "{eos}") else part
        return written, pooled

    def prompt_length(self, prompt: str) -> int:
        """0: prompts are the template's."""
        return 0

    @checked(max_length=at_least(1))
    def encode(self, texts: Sequence[str], max_length: int | None = None) -> Encoded:
        """Token ids of the texts in the template, and how many tokens of each are in front of what is pooled.

        Raises:
          ValueError: for a text of white space alone, a `max_length` that the template fills without any text, or a
            text of which nothing is left to pool.
        """
        if blank := [text for text in texts if not text.strip()]:
            raise ValueError(f"every text must have something to read; got {blank[0]!r}")
        shown = [clean(text) if self.template.clean else text for text in texts]
        rendered = [self.render(text) for text in shown]
        found = self._encoded([whole for whole, _ in rendered])
        starts, truncated = [pooled for _, pooled in rendered], 0
        if max_length is not None:
            for i in (i for i, encoding in enumerate(found) if len(encoding) > max_length):
                found[i], starts[i] = self._cut(shown[i], found[i], max_length)
                truncated += 1
        ids = [np.array(encoding.ids, np.int32) for encoding in found]
        if POOLED not in self.template.text:
            return Encoded(ids, truncated)
        lengths = [_before(encoding, start) for encoding, start in zip(found, starts, strict=True)]
        for text, length, own in zip(texts, lengths, ids, strict=True):
            if length == len(own):
                raise ValueError(f"every text must have a token in what is pooled; got {text!r:.60}")
        return Encoded(ids, truncated, prompt_lengths=np.array(lengths, np.int32))

    def _encoded(self, texts: list[str]) -> list[tokenizers.Encoding]:
        return self.backend.encode_batch(texts, add_special_tokens=self.template.special_tokens)

    def _cut(self, text: str, whole: tokenizers.Encoding, max_length: int) -> tuple[tokenizers.Encoding, int]:
        """The template with so much of the text that it fits: ids, and where what is pooled begins."""
        places = self.template.text.count(TEXT)
        while (excess := len(whole) - max_length) > 0:
            ends = [end for _, end in self.backend.encode(text, add_special_tokens=False).offsets]
            kept = len(ends) - -(-excess // places)
            if kept < 1:
                raise ValueError(f"max_length must leave room for texts beside the template; got {max_length}")
            text = text[: min(ends[kept - 1], len(text) - 1)]
            rendered, start = self.render(text)
            (whole,) = self._encoded([rendered])
        return whole, start


def _before(encoding: tokenizers.Encoding, start: int) -> int:
    """How many tokens end where the character number `start` begins, or earlier."""
    ends = np.array([end for _, end in encoding.offsets])
    beyond = np.flatnonzero(ends > start)
    return int(beyond[0]) if len(beyond) else len(ends)
