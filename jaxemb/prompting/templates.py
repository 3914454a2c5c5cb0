"""What a model reads for a text, and what is read of the model: one value for each method of prompting."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from jaxemb.checks import check_types, checked, having
from jaxemb.pooling import LastToken, Mean, Pooling, WeightedMean, WithoutPrompt

Pooled = Literal["last", "mean", "weighted"]

TEXT, POOLED, PREPENDED = "{text}", "{pooled}", "{prepended}"
_SLOT = re.compile(r"\{[a-z_]+\}")
_POOLINGS: Mapping[str, Pooling] = {"last": LastToken(), "mean": Mean(), "weighted": WeightedMean()}
_ENDS, _QUOTE = ".?\"'", '"'


@checked()
def clean(text: str) -> str:
    """The text as the methods of PromptEOL's kind write it between quotes: it ends in a full stop, and has none itself.

    >>> [clean(text) for text in ('He said "hi"', "Is it?", "ok")]
    ["He said 'hi'", 'Is it.', 'ok.']
    """
    text = text if not text or text[-1] in _ENDS else text + "."
    text = text.replace(_QUOTE, "'")
    return text[:-1] + "." if text.endswith("?") else text


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A prompt around a text, and the state of a causal language model that becomes the text's vector.

        template = PromptTemplate('This sentence : "{text}" means in one word:"', layer=-2)

    Slots of `text`:

        {text}       where the text stands, once or several times
        {pooled}     what comes after it is pooled, what is before is read only
        {prepended}  the token of token prepending, see `jaxemb.prompting.Prepending`
        {bos} {eos}  the tokenizer's own tokens
        any other    what `filled` puts there, such as {task}

    Attributes:
      text: see above.
      pooling: the state of the "last" token, the "mean" of all, or their "weighted" mean, by position (SGPT).
      layer: which states, as numbered by `hidden_states` of transformers: 1 after the first layer, -1 after the last
        one and the final norm, -2 before the last layer.
      clean: write the text as `clean` does.
      special_tokens: let the tokenizer add its own, which is wrong for a template that has them.

    Raises:
      ValueError: for a template without its text, with a slot twice that may be there once, or another pooling.
    """

    text: str
    pooling: Pooled = "last"
    layer: int = -1
    clean: bool = True
    special_tokens: bool = True

    def __post_init__(self):
        check_types(self)
        if TEXT not in self.text:
            raise ValueError(f"text must have the slot {TEXT}; got {self.text!r}")
        for slot in (POOLED, PREPENDED):
            if self.text.count(slot) > 1:
                raise ValueError(f"text must have the slot {slot} at most once; got {self.text!r}")
        if self.pooling not in get_args(Pooled):
            raise ValueError(f"pooling must be one of {get_args(Pooled)}; got {self.pooling!r}")

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of its slots, in order."""
        return tuple(slot[1:-1] for slot in _SLOT.findall(self.text))

    @property
    def pools(self) -> Pooling:
        """The pooling of states; what is in front of {pooled} is marked as a prompt."""
        pooling = _POOLINGS[self.pooling]
        return WithoutPrompt(pooling) if POOLED in self.text else pooling

    def filled(self, **values: str) -> "PromptTemplate":
        """The template with these slots filled, such as `task="Find the answer"`.

        Raises:
          ValueError: for a slot that it does not have, or a value that has the form of one.
        """
        for name, value in values.items():
            if name not in self.slots or name in ("text", "pooled", "prepended"):
                raise ValueError(f"values must be of slots of the template, {list(self.slots)}; got {name!r}")
            if _SLOT.search(value):
                raise ValueError(f"{name} must have no slot of its own; got {value!r}")
        text = _SLOT.sub(lambda slot: values.get(slot[0][1:-1], slot[0]), self.text)
        return dataclasses.replace(self, text=text)

    def parts(self) -> list[str]:
        """Slots, such as "{text}", and what is between them."""
        return [part for part in re.split(rf"({_SLOT.pattern})", self.text) if part]


@checked()
def prepended(template: PromptTemplate) -> PromptTemplate:
    """The template with the token of token prepending before the quote that opens each text's first place.

    Raises:
      ValueError: for a template whose text is not in quotes, or that has the token.
    """
    quoted = f'"{TEXT}"'
    if quoted not in template.text or PREPENDED in template.text:
        raise ValueError(f"template must have its text in quotes, and no {PREPENDED}; got {template.text!r}")
    return dataclasses.replace(template, text=template.text.replace(quoted, f"{PREPENDED} {quoted}", 1))


@checked(tokenizer=having("chat"))
def of_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], answer: str = "", **options: Any) -> PromptTemplate:
    """The template that the checkpoint's chat template makes of a conversation, and of how its answer begins.

        of_chat(tokenizer, [{"role": "user", "content": 'Passage: "{text}". Use one word.'}], 'The word is: "')

    Args:
      tokenizer: of a checkpoint with a chat template.
      messages: the conversation, with slots of `PromptTemplate`.
      answer: how the model's answer begins.
      **options: other fields of `PromptTemplate`.

    Raises:
      ValueError: as `Tokenizer.chat`.
    """
    text = tokenizer.chat(messages, add_generation_prompt=True) + answer
    return PromptTemplate(text, special_tokens=False, **options)
