"""Chat templates: the text that a model reads for a conversation, by the Jinja template of its checkpoint."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxemb.packages import remedy

_OLDEST = (3, 1, 6)  # sandboxes of older releases have holes


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The conversation as `template` writes it.

    The template comes with the checkpoint and is a program: it runs in Jinja's sandbox, where it reaches nothing but
    what it is given, though for as long as it likes.

    Args:
      template: its text.
      messages: the conversation, such as `[{"role": "user", "content": "Hello"}]`.
      **variables: what else it may use, such as `bos_token` or `add_generation_prompt`.

    Raises:
      ModuleNotFoundError: Jinja is not installed.
      ValueError: what the template says is wrong with the conversation, or what is wrong with the template.
      TypeError: messages are no sequence of objects.
    """
    if isinstance(messages, str) or not all(isinstance(message, Mapping) for message in messages):
        raise TypeError(f"messages must be objects with a role and a content; got {messages!r:.60}")
    with remedy():
        import jinja2
    try:
        return _compiled(template).render(messages=messages, **variables)
    except (jinja2.TemplateError, OverflowError) as error:  # the latter of a range that the sandbox does not allow
        raise ValueError(f"chat template: {error}") from error


@functools.cache
def _compiled(template: str) -> Any:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < _OLDEST:
        raise ImportError(f"chat templates need jinja2 3.1.6 or later; {jinja2.__version__} is installed")

    class Generation(jinja2.ext.Extension):
        """`{% generation %} ... {% endgeneration %}`, which mark an answer, and change nothing."""

        tags = {"generation"}  # noqa: RUF012, as its base class has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        """Jinja's own is for HTML."""
        options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment.from_string(template)
