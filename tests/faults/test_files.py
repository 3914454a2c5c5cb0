"""Every key of every JSON file, and the bytes of every other, of what jaxemb reads: damaged, and used all the same."""

import outcomes
import places
import pytest

#: Of kinds of which a case compiles something, or that others are like.
_SAMPLE = {"run": 4, "llama, a decoder": 6, "qwen3, a decoder": 4, "gguf": 6, "tokenizer": 6}


@pytest.mark.parametrize("kind", places.PLACES)
def test_a_sample_of_damaged_files(kind, record_property):
    outcomes.survey(outcomes.sample(places.cases(kind), _SAMPLE.get(kind, 12)), record_property)


@outcomes.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("kind", places.PLACES)
def test_all_damaged_files(kind, record_property):
    outcomes.survey(places.cases(kind), record_property)
