"""Embeddings of causal language models by prompting: templates, what is read of the model, and the published methods.

encoder = Prompted(jaxemb.load("HuggingFaceTB/SmolLM2-135M-Instruct"), PROMPT_EOL)
vectors = encoder.encode(["a text", "another text"])
"""

from jaxemb.prompting.lexical import lexical_vectors, top_words, words_of
from jaxemb.prompting.methods import (
    E5_DOCUMENT,
    E5_QUERY,
    ECHO,
    ECHO_DOCUMENT,
    ECHO_QUERY,
    GEN_EOL,
    GRIT,
    GRIT_DOCUMENT,
    KNOWLEDGE,
    LAST_TOKEN,
    LLM2VEC,
    META_EOL,
    PRETENDED_COT,
    PROMPT_EOL,
    PROMPT_EOL_EXAMPLE,
    TOKEN_MEAN,
    WEIGHTED_MEAN,
    bge_icl,
    prompt_reps,
)
from jaxemb.prompting.prompted import Prompted, mean_of_variants
from jaxemb.prompting.reader import TemplateReader
from jaxemb.prompting.states import Prepending, StatesAt, states_at
from jaxemb.prompting.templates import PromptTemplate, clean, of_chat, prepended

__all__ = [
    "E5_DOCUMENT",
    "E5_QUERY",
    "ECHO",
    "ECHO_DOCUMENT",
    "ECHO_QUERY",
    "GEN_EOL",
    "GRIT",
    "GRIT_DOCUMENT",
    "KNOWLEDGE",
    "LAST_TOKEN",
    "LLM2VEC",
    "META_EOL",
    "PRETENDED_COT",
    "PROMPT_EOL",
    "PROMPT_EOL_EXAMPLE",
    "TOKEN_MEAN",
    "WEIGHTED_MEAN",
    "Prepending",
    "PromptTemplate",
    "Prompted",
    "StatesAt",
    "TemplateReader",
    "bge_icl",
    "clean",
    "lexical_vectors",
    "mean_of_variants",
    "of_chat",
    "prepended",
    "prompt_reps",
    "states_at",
    "top_words",
    "words_of",
]
