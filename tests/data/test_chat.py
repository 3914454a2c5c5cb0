"""Chat templates: what a conversation becomes, and what a template cannot do."""

import dataclasses
import json

import numpy as np
import pytest

from jaxemb.data import SPECIAL_TOKENS, Tokenizer

pytest.importorskip("jinja2")

CONVERSATION = [{"role": "user", "content": "a <b>"}, {"role": "assistant", "content": "c"}]
TEMPLATE = """{%- for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}
[CLS]{{ message['role'] | upper }}: {{ message.content | tojson }}
    {%- generation %}{{ pad_token }}{% endgeneration %}
    {%- if loop.last %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
[CLS]ASSISTANT:{% if not enable_thinking %} now{% endif %}
{%- endif %}"""


def tokenizer(**config) -> Tokenizer:
    files = {"tokenizer_config.json": json.dumps(config).encode()}
    return dataclasses.replace(Tokenizer.word_piece([*SPECIAL_TOKENS, *"abcdef:"]), files=files)


def test_a_conversation_is_written_as_the_template_says():
    plain = '[CLS]USER: "a <b>"[PAD][CLS]ASSISTANT: "c"[PAD]'
    made = tokenizer(chat_template=TEMPLATE)
    assert made.chat(CONVERSATION).strip() == plain
    prompted = made.chat(CONVERSATION, add_generation_prompt=True, enable_thinking=True)
    assert prompted.strip() == plain + "[CLS]ASSISTANT:"
    assert made.chat(CONVERSATION, add_generation_prompt=True).endswith(" now")


def test_templates_are_found_where_checkpoints_have_them():
    several = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
    made = tokenizer(chat_template=several)
    assert made.chat([]) == "one" and made.chat([], template="rag") == "two"
    assert dataclasses.replace(made, files={**made.files, "chat_template.jinja": b"file"}).chat([]) == "file"
    assert tokenizer().chat_templates == {}
    with pytest.raises(ValueError, match=r"chat templates, \['default', 'rag'\]; got 'x'"):
        made.chat([], template="x")


def test_what_has_its_special_tokens_gets_no_others():
    made = tokenizer()
    special = made.special_ids
    with_others = made.encode(["[CLS] a b c"], 5).ids[0]
    np.testing.assert_array_equal(with_others, [special["cls"], special["cls"], 5, 6, special["sep"]])
    found = made.encode(["[CLS] a b c d"], 4, special_tokens=False)
    np.testing.assert_array_equal(found.ids[0], [special["cls"], 5, 6, 7])
    assert found.truncated == 1


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (TEMPLATE, [{"role": "system", "content": ""}], "chat template: no system here"),
        ("{% for %}", [], "chat template: "),
        ("{{ messages.__class__.__mro__ }}", [], "chat template: access to attribute '__class__'.*is unsafe"),
        ("{{ messages.append(1) }}", [], "chat template: .* is unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", [], "chat template: Range too big"),
    ],
)
def test_what_a_template_must_not_do_is_refused(template, messages, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(chat_template=template).chat(messages)


def test_messages_are_objects():
    for wrong, expected in (("hello", "messages must be a sequence"), (["hello"], r"messages\[0\] must be a mapping")):
        with pytest.raises(TypeError, match=rf"{expected}; got str 'hello'"):
            tokenizer(chat_template="").chat(wrong)
