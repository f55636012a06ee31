"""A griffe extension that turns reStructuredText roles in docstrings into Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|mod|func|meth|attr|data|exc|obj|const):`(?P<short>~?)\.?(?P<name>[^`<]+)`")
_PAGE = re.compile(r"``?(docs/[a-z/-]+\.md)``?|(?<![\w/`])(docs/[a-z/-]+\.md)")
_LITERAL = re.compile(r"::$", re.MULTILINE)


def to_markdown(text: str) -> str:
    """Return a docstring with roles as code that is linked where the name is known."""

    def role(match: re.Match[str]) -> str:
        name = match["name"]
        shown = name.rpartition(".")[2] if match["short"] else name
        return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'

    return _LITERAL.sub(":", _PAGE.sub(lambda match: f"`{match[1] or match[2]}`", _ROLE.sub(role, text)))


class Roles(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
