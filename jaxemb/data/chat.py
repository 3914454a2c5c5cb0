"""Chat templates: the text that a model reads for a conversation, by the Jinja template of its checkpoint."""

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxemb.packages import remedy

_OLDEST = (3, 1, 6)  # sandboxes of older releases have holes
_MOST = 100_000  # parts of what one operation repeats or pads, as of the sandbox's `range`
_SIZED = ("batch", "center", "indent", "round", "slice", "tojson")  # filters whose numbers say how much they make
_PADDING = ("center", "expandtabs", "ljust", "rjust", "zfill")  # and methods of texts
_WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{6})|\{[^}]*:[^}]*(\{|\d{6})")  # formats that may say so, too


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The conversation as `template` writes it.

    The template comes with the checkpoint and is a program: it runs in Jinja's sandbox, where it reaches nothing but
    what it is given, and no single operation repeats or pads more than 100,000 times; its loops may take as long as
    they like.

    Args:
      template: its text.
      messages: the conversation, such as `[{"role": "user", "content": "Hello"}]`.
      **variables: what else it may use, such as `bos_token` or `add_generation_prompt`.

    Raises:
      ModuleNotFoundError: Jinja is not installed.
      ValueError: what the template says is wrong with the conversation, or what is wrong with the template.
      TypeError: messages are no list of objects.
    """
    if (
        isinstance(messages, str | bytes)
        or not isinstance(messages, Sequence)
        or not all(isinstance(message, Mapping) for message in messages)
    ):
        raise TypeError(f"messages must be a list of objects with a role and a content; got {messages!r:.60}")
    with remedy():
        import jinja2
    environment = _environment()
    try:
        return _compiled(environment, template).render(messages=messages, **variables)
    except (jinja2.TemplateError, OverflowError) as error:  # the latter of what the sandbox finds too large
        raise ValueError(f"chat template: {error}") from error
    except Exception as error:  # of the template, a program
        raise ValueError(f"chat template: {type(error).__name__}: {error}") from error


@functools.cache
def _compiled(environment: Any, template: str) -> Any:
    return environment.from_string(template)


@functools.cache
def _environment() -> Any:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < _OLDEST:
        raise ImportError(f"chat templates need jinja2 3.1.6 or later; {jinja2.__version__} is installed")

    class Sandbox(ImmutableSandboxedEnvironment):
        """In which one short operation makes nothing huge."""

        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%":
                _check_format(left)
            elif operator == "**" and isinstance(left, int) and isinstance(right, int):
                _check_size(left.bit_length() * right)
            elif operator == "*":
                for times, repeated in ((left, right), (right, left)):
                    if isinstance(times, int) and isinstance(repeated, Sequence):
                        _check_size(times * len(repeated))
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            text = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # the sandbox wraps `format`
            if isinstance(text, str) and function.__name__ in _PADDING:
                _check_size(*args, *kwargs.values())
            elif isinstance(text, str) and function.__name__ in ("format", "format_map"):
                _check_format(text)
            return super().call(context, function, *args, **kwargs)

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

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.filters |= {name: _sized(environment.filters[name]) for name in _SIZED}
    environment.filters["format"] = _formatting(environment.filters["format"])
    del environment.globals["lipsum"]  # any number of paragraphs
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment


def _check_size(*sizes: Any) -> None:
    for size in sizes:
        if isinstance(size, int) and size > _MOST:
            raise OverflowError(f"more than {_MOST:,} parts at once")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDE.search(text):
        raise OverflowError(f"the format {text!r:.60} is too wide")


def _sized(filter: Callable) -> Callable:
    """The filter, which takes no large numbers."""

    @functools.wraps(filter)  # with what says that it is given the environment
    def call(*args: Any, **options: Any) -> Any:
        _check_size(*args[1 + hasattr(filter, "jinja_pass_arg") :], *options.values())
        return filter(*args, **options)

    return call


def _formatting(filter: Callable) -> Callable:
    @functools.wraps(filter)
    def call(text: Any, *args: Any, **options: Any) -> Any:
        _check_format(str(text))
        return filter(text, *args, **options)

    return call
