"""Chat templates in Jinja, with what transformers documents for them, within bounds.

A template comes with a bundle, from a server that nobody trusts. It runs in Jinja's immutable
sandbox, which keeps it from anything but its arguments, and within three more bounds:

- **Names.** Only the filters, methods and functions that chat templates use are there. None has a
  result that is longer than its arguments, except those that check the length first.
- **Work.** Every expression that computes something, every loop and every piece of output counts by
  the size of its value. A rendering that counts beyond :data:`MAX_WORK`, or takes more than
  :data:`MAX_SECONDS` of processor time, is ended. So memory is bounded, too.
- **The clock.** ``strftime_now`` knows the day (UTC) and no time of the day: a text in front of a
  chat that changed with every turn would make its counts new with every turn.

Needs the package jinja2, so it is imported where a template is used.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

from jinja2 import TemplateSyntaxError, Undefined, filters, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE_BYTES: Final = 64 * 1024
MAX_WORK: Final = 2_000_000  # a string counts for one and a sixteenth of its characters
MAX_SECONDS: Final = 2.0
_CLOCK_STEP: Final = 256  # work between two looks at the clock
_MAX_NODES: Final = 10_000
_MAX_INDENT: Final = 64
_MAX_BITS: Final = 64

_FILTERS: Final = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select",
    "selectattr", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_STRING_METHODS: Final = (
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace",
    "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
)  # fmt: skip
_METHODS: Final[Mapping[type, tuple[str, ...]]] = {
    str: _STRING_METHODS,
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
}
_REFUSED_NODES: Final = (nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)


class BoundsError(Exception):
    """A template did more than it may; the text has nothing of what it was given."""


class RefusedError(Exception):
    """A template refused its messages through ``raise_exception``, whose text may quote them."""


class BoundedTemplate:
    """A compiled template. Several threads may render it at once."""

    def __init__(self, source: str) -> None:
        """Compile. Raises ValueError with a reason, which may quote the template."""
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise ValueError(f"it must have at most {MAX_TEMPLATE_BYTES} bytes")
        self._environment = environment = _Environment()
        try:
            tree = environment.parse(source)
            if sum(1 for _ in tree.find_all(nodes.Node)) > _MAX_NODES:
                raise ValueError(f"it must have at most {_MAX_NODES} parts")
            for found in tree.find_all(_REFUSED_NODES):
                raise ValueError(f"line {found.lineno}: it must not load other templates")
            self._template = environment.from_string(_Counting(environment).visit(tree))
            return
        except TemplateSyntaxError as error:
            reason = f"line {error.lineno}: {error.message}"
        except ValueError as error:
            reason = str(error)
        except Exception as error:  # nested too deeply, for the parser or for Python
            reason = type(error).__name__
        raise ValueError(reason)

    def render(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, str], *, day: datetime.date) -> str:
        """Return the text of a chat, up to where the assistant's answer begins.

        Raises BoundsError, RefusedError, or any other exception of a template that fails. Only the
        text of a BoundsError is free of what the messages say.
        """
        given: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        with self._environment.rendering(_Rendering(day)):
            return "".join(self._template.generate(**{**variables, **given}))


class _Rendering:
    """The state of one rendering."""

    def __init__(self, day: datetime.date) -> None:
        self.day = day
        self._work = self._next_look = 0
        self._until: float | None = None

    def count(self, amount: int) -> None:
        """Add work. Raises BoundsError beyond the bounds."""
        self._work += amount
        if self._work > MAX_WORK:
            raise BoundsError(f"it must do at most {MAX_WORK} units of work")
        if self._work >= self._next_look:
            now = time.thread_time()
            self._until = now + MAX_SECONDS if self._until is None else self._until
            if now > self._until:
                raise BoundsError(f"it must take at most {MAX_SECONDS:g} s")
            self._next_look = self._work + _CLOCK_STEP


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with the tags, filters and functions of transformers' templates, counting its work."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        # Nothing is computed while a template is compiled, where nothing is counted.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self._local = threading.local()
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters |= {"tojson": self._tojson, "join": self._join, "replace": self._replace, "indent": self._indent}
        own = {"range": self._range, "raise_exception": _refuse, "strftime_now": self._strftime_now}
        self.globals = {"dict": dict, "namespace": _Namespace, **own}
        self._callable = (dict, _Namespace, *own.values())

    # --- the work ---------------------------------------------------------------------------------

    @contextmanager
    def rendering(self, run: _Rendering) -> Iterator[None]:
        """Count the work of this thread for a rendering."""
        self._local.run = run
        try:
            yield
        finally:
            del self._local.run

    def counted(self, value: Any) -> Any:
        """Return a value that an expression computed, after counting it."""
        self._count(1 if isinstance(value, Namespace) else self._size(value))
        return value

    def written(self, value: Any) -> str:
        """Return a value as text that is written or joined to one."""
        text = self._text(value)
        self._count(1 + len(text) // 16)
        return text

    def _count(self, amount: int) -> None:
        self._local.run.count(amount)

    def _size(self, value: Any) -> int:
        """Return the size of a value with everything in it, or count too much on the way."""
        if isinstance(value, str):
            return 1 + len(value) // 16
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise BoundsError(f"its integers must have at most {_MAX_BITS} bits")
        if isinstance(value, Namespace):
            raise BoundsError("its lists and mappings must hold no namespaces")  # whose text may be of any length
        if isinstance(value, range):
            return 1 + len(value)
        if isinstance(value, Mapping):
            parts: Iterable[Any] = (part for pair in value.items() for part in pair)
        elif isinstance(value, list | tuple | set):
            parts = value
        else:
            return 1
        for part in parts:  # counted one by one: lists in lists may be more than memory holds
            self._count(self._size(part))
        return 1

    def _text(self, value: Any) -> str:
        if value is None or isinstance(value, str | bool | int | float | Undefined):
            return str(value)
        self._count(self._size(value))  # as long as its parts together
        return str(value)

    # --- what a template can use ------------------------------------------------------------------

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow methods by name; attributes of the loop and the elements of mappings."""
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return isinstance(obj, LoopContext | Namespace) and bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: Any) -> None:
        """``format`` is not among the methods of strings."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function that a template may call, and count what it returns."""
        self = __self
        if isinstance(__obj, types.MethodType) and __obj.__self__ is self and __obj.__name__ in ("counted", "written"):
            return __obj(*args)
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, types.BuiltinMethodType) and isinstance(owner, str):
            measured = {"join": partial(self._join, d=owner), "replace": partial(self._replace, owner)}
            if (function := measured.get(__obj.__name__)) is not None:
                return self.counted(__context.call(function, *args, **kwargs))
        is_known = isinstance(__obj, Macro | LoopContext | Undefined) or __obj in self._callable
        if not is_known and not isinstance(owner, (*_METHODS, LoopContext)):
            raise SecurityError("it calls what a template must not call")
        return self.counted(__context.call(__obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``*``, ``**`` and ``%``, which could make long values of short ones."""
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if operator == "*" and not numbers:
            times = next((side for side in (left, right) if isinstance(side, int)), 0)
            self._count(max(0, times) * self._size(right if isinstance(left, int) else left))
        elif not numbers:
            raise BoundsError(f"it must use {operator} with numbers only")
        elif operator == "**" and abs(right) > _MAX_BITS:
            raise BoundsError(f"its exponents must be at most {_MAX_BITS}")
        return super().call_binop(context, operator, left, right)

    def _range(self, *bounds: int) -> range:
        found = range(*bounds)
        if len(found) > MAX_WORK:
            raise BoundsError(f"its ranges must have at most {MAX_WORK} numbers")
        return found

    def _strftime_now(self, form: str) -> str:
        return datetime.datetime.combine(self._local.run.day, datetime.time()).strftime(form)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Return JSON as transformers does: unlike Jinja's own, nothing is escaped for HTML."""
        self._count(self._size(value) + self._size(separators))
        if indent is not None and not 0 <= indent <= _MAX_INDENT:
            raise BoundsError(f"its indents must be at most {_MAX_INDENT}")
        pairs = {"ensure_ascii": ensure_ascii, "separators": separators, "sort_keys": sort_keys}
        return json.dumps(value, indent=indent, **pairs)  # type: ignore[arg-type]

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            value = (self.getattr(part, attribute) for part in value)
        parts = [self._text(part) for part in value]
        self._count(len(parts) + (sum(map(len, parts)) + len(parts) * len(d)) // 16)
        return str(d).join(parts)

    def _replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        given = self._text(text)
        times = given.count(old) if count < 0 else min(count, given.count(old))
        self._count(1 + (len(given) + times * len(new)) // 16)
        return given.replace(str(old), str(new), count)

    def _indent(self, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        size = len(width) if isinstance(width, str) else width
        if size > _MAX_INDENT:
            raise BoundsError(f"its indents must be at most {_MAX_INDENT}")
        self._count(1 + (len(text) + (1 + text.count("\n")) * max(0, size)) // 16)
        return str(filters.do_indent(text, width, first, blank))


def _refuse(message: object = "") -> None:
    raise RefusedError(message if isinstance(message, str) else "")


class _Namespace(Namespace):
    """Jinja's namespace, which holds no other ones: their text may be longer than memory."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        for value in dict(*rest, **kwargs).values():
            _check_member(value)
        Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_member(value)
        super().__setitem__(name, value)


def _check_member(value: object) -> None:
    if isinstance(value, Namespace):
        raise BoundsError("its namespaces must hold no namespaces")


class _Generation(Extension):
    """``{% generation %}``, which marks what an assistant wrote; here its body is just written."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


_COMPUTING: Final = (
    nodes.BinExpr, nodes.Call, nodes.Compare, nodes.Dict, nodes.Filter, nodes.Getitem, nodes.List, nodes.Test,
    nodes.Tuple,
)  # fmt: skip


class _Counting(NodeTransformer):
    """Puts calls of ``counted`` around what computes, and of ``written`` around what is written."""

    def __init__(self, environment: _Environment) -> None:
        self._environment = environment

    def _call(self, name: str, node: nodes.Expr) -> nodes.Call:
        line, environment = node.lineno, self._environment
        found = nodes.Call(
            nodes.EnvironmentAttribute(name, lineno=line, environment=environment), [node], [], None, None, lineno=line
        )
        found.set_environment(environment)
        return found

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        is_target = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return self._call("counted", node) if isinstance(node, _COMPUTING) and not is_target else node

    def _inside(self, node: nodes.Node | None) -> None:
        """Transform the parts of a node that has to stay what it is."""
        if node is not None:
            super().generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self._inside(node)
        node.nodes = [self._call("written", part) for part in node.nodes]
        return self._call("counted", node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self._inside(node)
        node.nodes = [self._call("written", _constant(one)) for one in node.nodes]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self._inside(node)
        node.iter = self._call("counted", cast(nodes.Expr, node.iter))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        call = node.call
        self._inside(node)
        node.call = call
        return node

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:  # noqa: N802
        return self._with_filter(node)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802
        return self._with_filter(node)

    def _with_filter(self, node: nodes.Node) -> nodes.Node:
        """A filter of a block is no expression: its innermost argument is the block."""
        block: Any = node
        chain, block.filter = block.filter, None
        self._inside(node)
        block.filter = chain
        return node


def _constant(node: nodes.Expr) -> nodes.Expr:
    """Return the text between tags as an expression."""
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node
