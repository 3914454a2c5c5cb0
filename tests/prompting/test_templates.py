"""Templates and what is written of them: golden strings, spans, cuts."""

import numpy as np
import pytest
import tokenizers

from jaxemb import prompting
from jaxemb.data import Tokenizer
from jaxemb.prompting import (
    ECHO,
    ECHO_QUERY,
    GEN_EOL,
    GRIT,
    META_EOL,
    PROMPT_EOL,
    PROMPT_EOL_EXAMPLE,
    PromptTemplate,
    TemplateReader,
    bge_icl,
    clean,
    prepended,
)

CORPUS = [
    "This sentence : means in one word: a dog runs over the green field of my one neighbour",
    "Is it ok? He said hi.",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level BPE, as most decoders have it, with tokens for begin and end."""
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(CORPUS * 4, 400, special_tokens=["<s>", "<pad>", "</s>"], show_progress=False)
    return Tokenizer(backend._tokenizer, {"bos": 0, "pad": 1, "eos": 2})


def render(template, tokenizer, text):
    return TemplateReader(tokenizer, template).render(clean(text) if template.clean else text)[0]


def test_cleaning():
    assert [clean(text) for text in ('He said "hi"', "Is it?", "ok", "", "done.", "a?!")] == [
        "He said 'hi'",
        "Is it.",
        "ok.",
        "",
        "done.",
        "a?!.",
    ]


def test_golden_strings(tokenizer):
    assert render(PROMPT_EOL, tokenizer, "ok") == 'This sentence : "ok." means in one word:"'
    shown = PROMPT_EOL_EXAMPLE.filled(example="A jockey riding a horse.", word="Equestrian")
    assert render(shown, tokenizer, "ok") == (
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
        'This sentence : "ok." means in one word:"'
    )
    assert render(ECHO_QUERY.filled(task="Find"), tokenizer, "a?") == "<s>Instruct:Find,\nQuery:a?\nQuery again:a?</s>"
    assert render(GRIT.filled(task="Find"), tokenizer, "a") == "<s><|user|>\nFind\n<|embed|>\na"
    assert render(bge_icl("T", [("q", "r")]), tokenizer, "x") == (
        "<instruct>T\n<query>q\n<response>r\n\n<instruct>T\n<query>x\n<response>"
    )
    assert render(prepended(PROMPT_EOL), tokenizer, "ok") == 'This sentence : <PST> "ok." means in one word:"'
    assert len(META_EOL) == 8 and all(template.text.endswith('in one word:"') for template in META_EOL)
    assert prompting.KNOWLEDGE.layer == prompting.PRETENDED_COT.layer == -2


@pytest.mark.parametrize("template", [ECHO, GEN_EOL, ECHO_QUERY.filled(task="Find it")], ids=["echo", "gen", "query"])
def test_what_is_pooled_is_the_tokens_after_the_mark(tokenizer, template):
    reader = TemplateReader(tokenizer, template)
    texts = ["a dog", "the green field of my neighbour", "x"]
    found = reader.encode(texts)
    for text, ids, length in zip(texts, found.ids, found.prompt_lengths, strict=True):
        rendered, start = reader.render(clean(text) if template.clean else text)
        pooled = tokenizer.backend.decode(ids[length:], skip_special_tokens=False)
        assert pooled.strip() == rendered[start:].strip()
        assert 0 < length < len(ids)


def test_only_the_text_is_cut(tokenizer):
    long = "the green field of my neighbour " * 20
    for template, end in ((PROMPT_EOL, '" means in one word:"'), (ECHO, "")):
        reader = TemplateReader(tokenizer, template)
        least = len(reader.encode(["a"]).ids[0])
        found = reader.encode(["a", long, "ünï\U0001f600" * 30], least + 12)
        assert found.truncated == 2
        assert all(least <= len(ids) <= least + 12 for ids in found.ids)
        written = tokenizer.backend.decode(found.ids[1], skip_special_tokens=False)
        assert written.endswith(end) and written.startswith(template.text.partition("{")[0])
        with pytest.raises(ValueError, match="max_length must leave room for texts beside the template; got 3"):
            reader.encode(["a b c"], 3)
    copies = (
        written.partition("Rewritten sentence: ")[2],
        written.partition("Rewrite the sentence: ")[2].partition(" Rew")[0],
    )
    assert copies[0] == copies[1] and long.startswith(copies[0])


def test_the_prepended_token_is_one_that_the_tokenizer_does_not_have(tokenizer):
    reader = TemplateReader(tokenizer, prepended(PROMPT_EOL))
    (ids,) = reader.encode(["ok"]).ids
    assert reader.prepended_id == tokenizer.vocab_size
    assert np.sum(ids == reader.prepended_id) == 1
    assert "<PST>" not in tokenizer.backend.get_vocab()
    known = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    known.add_special_tokens(["<PST>"])
    with pytest.raises(ValueError, match="must not have the token <PST>"):
        TemplateReader(Tokenizer(known), prepended(PROMPT_EOL))


def test_chat(tokenizer):
    config = b'{"chat_template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[model]"}'
    chat = Tokenizer(tokenizer.backend, tokenizer.special_ids, files={"tokenizer_config.json": config})
    pytest.importorskip("jinja2")
    template = prompting.prompt_reps(chat, query=True)
    assert template.text == (
        "[system]You are an AI assistant that can understand human language."
        '[user]Query: "{text}". Use one word to represent the query in a retrieval task. '
        'Make sure your word is in lowercase.[model]The word is: "'
    )
    assert not template.special_tokens


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: PromptTemplate("no slot"), r"text must have the slot \{text\}"),
        (lambda t: PromptTemplate("{text}{pooled}{pooled}"), r"slot \{pooled\} at most once"),
        (lambda t: PromptTemplate("{text}", pooling="max"), "pooling must be one of"),
        (lambda t: PROMPT_EOL.filled(task="x"), r"must be of slots of the template, \['text'\]; got 'task'"),
        (lambda t: ECHO_QUERY.filled(task="{text}"), "task must have no slot of its own"),
        (lambda t: prepended(ECHO), "must have its text in quotes"),
        (lambda t: TemplateReader(t, ECHO_QUERY), r"must have its slots filled.*got \['task'\]"),
        (
            lambda t: TemplateReader(t, PROMPT_EOL).encode(["a", " "]),
            "every text must have something to read; got ' '",
        ),
        (lambda t: TemplateReader(t, PromptTemplate("{text}{pooled}")).encode(["a"]), r"must have a token in what is"),
    ],
)
def test_refusals(make, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        make(tokenizer)
