"""Embeddings by prompting: a decoder, templates, and nothing trained."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxemb.checks import checked, having
from jaxemb.embedder import Embedder, transformer_of
from jaxemb.encode import encode
from jaxemb.nn import unit
from jaxemb.prompting.reader import TemplateReader
from jaxemb.prompting.states import Prepending, states_at
from jaxemb.prompting.templates import PREPENDED, PromptTemplate, prepended
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.text_encoder import TextEncoder

Templates = PromptTemplate | Sequence[PromptTemplate]


@dataclasses.dataclass(frozen=True, eq=False)
class Prompted:
    """A decoder that embeds texts by a prompt: a `TextEncoder`, for evaluators, search and mining.

        encoder = Prompted(jaxemb.load("SmolLM2-135M-Instruct"), PROMPT_EOL)
        sts(encoder, first, second, scores)
        Prompted(decoder, {"query": prompt_reps(tokenizer, query=True), "document": prompt_reps(tokenizer)})

    Of several templates the vectors are averaged, not normalised before (MetaEOL). Pooling and heads of the embedder
    are not used.

    Attributes:
      embedder: the decoder; only its attention, tokenizer and `max_length` matter beside the weights.
      templates: one, several, or by the name of a prompt one or several.
      prepending: token prepending, in every template; None for none.

    Raises:
      ValueError: for no template, a layer that the decoder does not have, or slots that are not filled.
      TypeError: for an encoder that is no transformer.
    """

    embedder: SentenceEmbedder
    templates: Templates | Mapping[str, Templates]
    prepending: Prepending | None = None

    def __post_init__(self):
        transformer = transformer_of(self.embedder.model)
        for name, templates in self._by_name().items():
            if not templates:
                raise ValueError(f"templates{f'[{name!r}]' if name else ''} must be one or several; got none")
            for template in templates:
                states_at(transformer, template.layer)
                TemplateReader(self.embedder.tokenizer, template)

    @property
    def prompts(self) -> Mapping[str, str]:
        """The first template of each name, as text."""
        return {name: templates[0].text for name, templates in self._by_name().items() if name}

    @property
    def similarity_fn_name(self) -> str:
        return "cosine"

    @property
    def dim(self) -> int:
        return transformer_of(self.embedder.model).dim

    @checked()
    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        normalize: bool = False,
        **options: Any,
    ) -> np.ndarray:
        """Embeddings of the texts, `[N, D]`.

        Args:
          texts: N texts.
          prompt_name: of templates that have names; None for the first.
          normalize: give the vectors unit length.
          **options: as `SentenceEmbedder.encode` takes: `batch_tokens`, `mesh`, `show_progress`.

        Raises:
          ValueError: for an unknown name; naming a text in which there is nothing to read.
        """
        by_name = self._by_name()
        if prompt_name is not None and prompt_name not in by_name:
            raise ValueError(f"prompt_name must be one of {sorted(self.prompts)}; got {prompt_name!r}")
        templates = by_name[next(iter(by_name)) if prompt_name is None else prompt_name]
        vectors = np.mean([self._encode(template, texts, options) for template in templates], axis=0)
        return np.asarray(unit(vectors)) if normalize else np.asarray(vectors)

    def _encode(self, template: PromptTemplate, texts: Sequence[str], options: Mapping[str, Any]) -> np.ndarray:
        reader, encoder = self.reader(template), states_at(transformer_of(self.embedder.model), template.layer)
        if self.prepending is not None:
            how, table = self.prepending, encoder.transformer.embeddings.tokens
            vector = jax.random.normal(jax.random.key(how.seed), table.shape[1:], table.dtype)
            encoder = dataclasses.replace(
                encoder, prepended=vector, prepended_id=reader.prepended_id, layers=(how.start, how.stop)
            )
        model = Embedder(encoder, pooling=template.pools)
        return encode(model, reader, self.embedder.max_length, texts, **options)

    def reader(self, template: PromptTemplate) -> TemplateReader:
        """What makes token ids of texts by one of the templates."""
        wants = self.prepending is not None and PREPENDED not in template.text
        return TemplateReader(self.embedder.tokenizer, prepended(template) if wants else template)

    def _by_name(self) -> dict[str, tuple[PromptTemplate, ...]]:
        """ "" is the name of templates that have none."""
        named = self.templates if isinstance(self.templates, Mapping) else {"": self.templates}
        return {name: (some,) if isinstance(some, PromptTemplate) else tuple(some) for name, some in named.items()}


@checked(encoder=having("encode"))
def mean_of_variants(
    encoder: TextEncoder,
    texts: Sequence[str],
    variants: Callable[[str], Sequence[str]],
    *,
    prompt_name: str | None = None,
    normalize: bool = False,
) -> np.ndarray:
    """GenEOL: the mean of the vectors of a text and of other wordings of it, `[N, D]`.

    Args:
      encoder: such as `Prompted(decoder, GEN_EOL)`.
      texts: N texts.
      variants: of a text, any number of texts that mean the same, such as those that a language model writes of it:
        paraphrases, other structures, what follows from it, shorter ones. It is called once for each different text.
      prompt_name: as of the encoder.
      normalize: average vectors of unit length; without, longer ones count for more.

    References:
      Thirukovalluru and Dhingra 2024, arXiv 2410.14635.
    """
    known = {text: [text, *variants(text)] for text in dict.fromkeys(texts)}
    every = list(dict.fromkeys(variant for group in known.values() for variant in group))
    vectors = np.asarray(encoder.encode(every, prompt_name=prompt_name))
    vectors = np.asarray(unit(vectors)) if normalize else vectors
    row = {text: i for i, text in enumerate(every)}
    means = {text: vectors[[row[variant] for variant in group]].mean(axis=0) for text, group in known.items()}
    return np.stack([means[text] for text in texts])
