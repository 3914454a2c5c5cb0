"""Texts without labels: sentences of `text_corpora`, and the dictionary of the Open English WordNet."""

import functools
import gzip

from experiments.lib import datasets
from jaxemb.data import Definitions, read_wordnet

CORPORA = ("brown", "masc", "clinc_wiki_sents")


def sentences() -> list[str]:
    """The sentences of Brown, MASC and CLINC's part of Wikipedia that have 5 words or more."""
    found: list[str] = []
    for name in CORPORA:
        with gzip.open(datasets.data_dir("text_corpora", f"{name}.txt.gz"), "rt", encoding="utf-8") as file:
            found += [line.strip() for line in file if len(line.split()) >= 5]
    return found


@functools.cache
def wordnet() -> Definitions:
    """The entries of the Open English WordNet whose definitions all have more than 8 characters."""
    definitions = read_wordnet(datasets.data_dir("oewn_glosses", "synsets.jsonl.gz"))
    short = {e for text, e in zip(definitions.texts, definitions.entry.tolist(), strict=True) if len(text) <= 8}
    return definitions.select([e for e in range(len(definitions.entries)) if e not in short])
