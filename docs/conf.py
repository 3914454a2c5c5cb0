"""The site: `make docs`. Pages are Markdown; the reference is made of the docstrings, which are nearly that."""

import re

import jaxemb

project, author = "jaxemb", "the jaxemb authors"
version = release = jaxemb.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
templates_path, exclude_patterns = ["_templates"], ["_build"]
html_theme, html_title = "furo", f"jaxemb {version}"
html_copy_source = False
myst_heading_anchors = 3

default_role = "code"  # one backtick is code, as in Markdown
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # in the entry of their class


def setup(app):
    app.connect("source-read", link_files)
    app.connect("autodoc-process-docstring", to_restructured_text, priority=400)  # before napoleon, which is 500
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-skip-member", skip_fields)


def link_files(app, name, source):
    """Markdown outside of the site is a file to MyST, not a page."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def to_restructured_text(app, what, name, obj, options, lines):
    """Indented blocks are code, and outside of code the marks of reStructuredText are characters."""
    text = re.sub(r"(?<=\S\n\n)(?=  )(?<!::\n\n)", "::\n\n", "\n".join(lines))
    blocks = re.split(r"(?s)(::\n\n  .*?(?=\n\n\S|\Z))", text)
    lines[:] = "".join(block if i % 2 else escaped(block) for i, block in enumerate(blocks)).split("\n")


def escaped(text):
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if i % 2 else re.sub(r"(?<!^)([*|]|_\b)", r"\\\1", part) for i, part in enumerate(parts))


def readable(app, what, name, obj, options, signature, returns):
    """Defaults that are no Python become dots, arguments that say nothing go."""
    if signature is None:  # of a module
        return None
    signature = re.sub(r"<[^<>]*(<[^<>]*>)?[^<>]*>", "...", signature)
    says_nothing = re.fullmatch(r"\(\*args: \S*Any, \*\*kwargs: \S*Any\)", signature)
    return "" if says_nothing else signature, returns


def skip_fields(app, what, name, obj, skip, options):
    """Fields of a tuple or dataclass, which their class's entry lists."""
    return True if what == "class" and not callable(obj) and not isinstance(obj, property | classmethod) else None
