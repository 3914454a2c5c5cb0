"""Chat templates: what a conversation becomes, and what a template cannot do."""

import dataclasses
import json

import numpy as np
import pytest

from jaxemb.data import SPECIAL_TOKENS, Tokenizer
from jaxemb.data.chat import render
from jaxemb.settings import CheckpointError

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
        ("{{ 1 / 0 }}", [], "chat template: ZeroDivisionError: division by zero"),
        ("{{ 'a' + 1 }}", [], "chat template: TypeError: "),
        ("{{ strftime_now(3) }}", [], "chat template: TypeError: "),
        ("{{ messages() }}", [], "chat template: TypeError: "),
        ("{{ [1, 'a'] | sort }}", [], "chat template: TypeError: "),
        ("{{ messages | slice(0) | list }}", [], "chat template: ZeroDivisionError: "),
        ("{% for a, b in [1] %}{% endfor %}", [], "chat template: TypeError: "),
        ("{% include 'x' %}", [], "chat template: TypeError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", [], "chat template: RecursionError: "),
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", [], "chat template: RecursionError: "),
    ],
)
def test_what_a_template_must_not_do_is_refused(template, messages, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(chat_template=template).chat(messages)


@pytest.mark.parametrize(
    "expression",
    [
        "'a' * 10**9",
        "10**9 * ['a']",
        "10 ** (10**9)",
        "'a'.ljust(10**9)",
        "'a'.zfill(width)",
        "'\t'.expandtabs(tabsize=10**9)",
        "'a' | center(10**9)",
        "[1] | map('center', 10**9) | list",
        "'a' | indent(width=10**9, first=true)",
        "[1] | batch(10**9, 0) | list",
        "[1] | slice(10**9) | list",
        "1.5 | round(10**9, 'ceil')",
        "[1] | tojson(indent=10**9)",
        "'%1000000000d' % 1",
        "'%*d' % (10**9, 1)",
        "'%.1000000000f' | format(1)",
        "'{:1000000000}'.format(1)",
        "'{:{}}'.format(1, 10**9)",
        "'{a:1000000000}'.format_map({'a': 1})",
    ],
)
def test_no_operation_makes_something_huge(expression):
    with pytest.raises(ValueError, match=r"chat template: (more than 100,000 parts at once|the format .* is too wide)"):
        tokenizer(chat_template="{{ " + expression + " }}").chat([], width=10**9)


def test_what_is_small_is_as_in_jinja():
    cases = {
        "'ab' * 3": "ababab",
        "2 ** 10 % 7": "2",
        "'a' | center(5)": "  a  ",
        "'%5.1f' % 2": "  2.0",
        "'{:>4}{}'.format(1, 10**6)": "   11000000",
        "'%s' | format(10**6)": "1000000",
        "10**6 | round": "1000000",
        "none | default(10**6, true)": "1000000",
        "'aXb'.split('X')": "['a', 'b']",
        "[1, 2] | tojson(indent=1)": "[\n 1,\n 2\n]",
    }
    for expression, expected in cases.items():
        assert tokenizer(chat_template="{{ " + expression + " }}").chat([]) == expected, expression


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "tokenizer_config.json: chat_template must be a text, or objects with name and template; got [1]"),
        (3, "tokenizer_config.json: chat_template must be a string; got 3"),
        ([{"name": "a"}], "tokenizer_config.json: chat_template: key 'template' is missing"),
        (b"\xff", "chat_template.jinja: not UTF-8, at byte 0"),
        (None, "chat_template.jinja: is a directory; expected a file"),
    ],
)
def test_templates_that_cannot_be_read_are_named_with_their_file(content, message, tmp_path):
    Tokenizer.word_piece([*SPECIAL_TOKENS, "a"]).save(tmp_path)
    if content is None:
        (tmp_path / "chat_template.jinja").mkdir()
    elif isinstance(content, bytes):
        (tmp_path / "chat_template.jinja").write_bytes(content)
    else:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": content}))
    with pytest.raises((CheckpointError, IsADirectoryError)) as error:
        Tokenizer.from_directory(tmp_path)
    said = str(error.value)
    assert str(tmp_path) in said and all(part in said for part in message.split(": ", 1)), said


def test_a_checkpoint_without_a_template_is_named():
    with pytest.raises(ValueError, match="the checkpoint has no chat template"):
        Tokenizer.word_piece([*SPECIAL_TOKENS, "a"]).chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize("wrong", [None, 3, "hello", b"hello", {"role": "user"}, ["hello"], iter([])])
def test_what_is_no_list_of_messages_is_refused(wrong):
    with pytest.raises(TypeError, match="messages must be a list of objects with a role and a content; got"):
        render("", wrong)


def test_messages_are_objects():
    for wrong, expected in (("hello", "messages must be a sequence"), (["hello"], r"messages\[0\] must be a mapping")):
        with pytest.raises(TypeError, match=rf"{expected}; got str 'hello'"):
            tokenizer(chat_template="").chat(wrong)
