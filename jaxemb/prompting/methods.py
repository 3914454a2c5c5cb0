"""Methods of prompting by the names that their papers give them. What is compared with papers is their text, byte by
byte, but for the task descriptions of MetaEOL, which are ours."""

from collections.abc import Sequence
from typing import Any

from jaxemb.checks import checked, having
from jaxemb.prompting.templates import PromptTemplate, of_chat

TOKEN_MEAN = PromptTemplate("{text}", pooling="mean")
WEIGHTED_MEAN = PromptTemplate("{text}", pooling="weighted")
LAST_TOKEN = PromptTemplate("{text}")
"""SGPT's weighted mean (Muennighoff 2022, arXiv 2202.08904), and what it is compared with."""

PROMPT_EOL = PromptTemplate('This sentence : "{text}" means in one word:"')
PROMPT_EOL_EXAMPLE = PromptTemplate(
    'This sentence : "{example}" means in one word:"{word}".This sentence : "{text}" means in one word:"'
)
"""Jiang et al. 2023, arXiv 2307.16645. Of an example, such as "The man is riding a horse." and "Horseback-riding"."""

PRETENDED_COT = PromptTemplate('After thinking step by step , this sentence : "{text}" means in one word:"', layer=-2)
KNOWLEDGE = PromptTemplate(
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : "{text}" means in one word:"',
    layer=-2,
)
"""Zhang et al. 2024, arXiv 2404.03921."""

_SAME = 'To enhance the performance of this task, this sentence : "{text}" means in one word:"'
_TASK = 'For this task, this sentence : "{text}" '
META_EOL = tuple(
    PromptTemplate(f"{description} {asked}")
    for description, asked in (
        (
            "In this task, you sort sentences by their topic.",
            _TASK + 'should be classified under one general category in one word:"',
        ),
        (
            "In this task, you tell facts from opinions.",
            _TASK + 'discriminates between opinion and fact in one word:"',
        ),
        ("In this task, you rate products by their reviews.", _TASK + 'reflects the sentiment in one word:"'),
        ("In this task, you name the emotion of a diary's entry.", _TASK + 'conveys the emotion in one word:"'),
        ("In this task, you judge whether two sentences say the same.", _SAME),
        ("In this task, you find other words of the same meaning in their context.", _SAME),
        (
            "In this task, you find the most important fact of a news report.",
            _TASK + 'encapsulates the key fact in one word:"',
        ),
        (
            "In this task, you find the entities and relations of a scientific abstract.",
            _TASK + 'highlights the primary entity or relation in one word:"',
        ),
    )
)
"""Lei et al. 2024, arXiv 2402.18458: eight tasks, two each of classification, sentiment, paraphrase and extraction."""

ECHO = PromptTemplate("Rewrite the sentence: {text} Rewritten sentence: {pooled}{text}", pooling="mean")
ECHO_QUERY = PromptTemplate(
    "{bos}Instruct:{task},\nQuery:{text}\nQuery again:{pooled}{text}{eos}",
    pooling="mean",
    clean=False,
    special_tokens=False,
)
ECHO_DOCUMENT = PromptTemplate(
    "{bos}Document:{text}\nDocument again:{pooled}{text}{eos}", pooling="mean", clean=False, special_tokens=False
)
"""Springer et al. 2024, arXiv 2402.15449: without training, and as its trained models read queries and documents."""

GEN_EOL = PromptTemplate(KNOWLEDGE.text.replace('in one word:"', 'in one word{pooled}:"'), pooling="mean", layer=-2)
"""Thirukovalluru and Dhingra 2024, arXiv 2410.14635: of a text and of its variants, see `mean_of_variants`."""

E5_QUERY = PromptTemplate("Instruct: {task}\nQuery: {text}{eos}", clean=False)
E5_DOCUMENT = PromptTemplate("{text}{eos}", clean=False)
"""Wang et al. 2023 (E5-Mistral), arXiv 2401.00368."""

LLM2VEC = PromptTemplate("{task}{pooled}{text}", pooling="mean", clean=False)
"""BehnamGhader et al. 2024, arXiv 2404.05961, with bidirectional attention; the task ends as the model's own do."""

GRIT = PromptTemplate(
    "{bos}<|user|>\n{task}\n<|embed|>\n{pooled}{text}", pooling="mean", clean=False, special_tokens=False
)
GRIT_DOCUMENT = PromptTemplate("{bos}<|embed|>\n{pooled}{text}", pooling="mean", clean=False, special_tokens=False)
"""Muennighoff et al. 2024 (GritLM), arXiv 2402.09906, with bidirectional attention."""


@checked()
def bge_icl(task: str, examples: Sequence[tuple[str, str]] = ()) -> PromptTemplate:
    """Queries of bge-en-icl: a task, and in front of the query some queries and what answers them.

    Args:
      task: what is to be done.
      examples: pairs of a query and its answer; none is the zero-shot form.

    References:
      Li et al. 2024, arXiv 2409.15700.
    """
    shown = "".join(f"<instruct>{task}\n<query>{query}\n<response>{answer}\n\n" for query, answer in examples)
    return PromptTemplate(f"{shown}<instruct>{task}\n<query>{{text}}\n<response>", clean=False)


@checked(tokenizer=having("chat"))
def prompt_reps(tokenizer: Any, *, query: bool = False) -> PromptTemplate:
    """PromptReps: the word that a chat model would say of a passage, or of a query; for dense and sparse vectors.

    Args:
      tokenizer: of a checkpoint with a chat template.
      query: whether it is one.

    Raises:
      ValueError: as `Tokenizer.chat`.

    References:
      Zhuang et al. 2024, arXiv 2404.18424. Its files for Llama 3 write a backslash and an n for line ends; here they
      are line ends.
    """
    kind = "Query" if query else "Passage"
    asked = f'{kind}: "{{text}}". Use one word to represent the {kind.lower()} in a retrieval task. '
    messages = [
        {"role": "system", "content": "You are an AI assistant that can understand human language."},
        {"role": "user", "content": asked + "Make sure your word is in lowercase."},
    ]
    return of_chat(tokenizer, messages, 'The word is: "', clean=False)
