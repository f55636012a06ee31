"""Write the tables of the documentation that come from code, between their marks.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; :data:`TABLES` has the
functions that write them. A test checks that the pages are current.

Usage: docs_tables.py [--check]. With ``--check`` nothing is written, and the exit status is 1 if a
page is stale.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.alerts import Alert

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from client_lib import errors as client_errors  # noqa: E402
from del_core.errors import ERROR_STATUS  # noqa: E402

PACKAGES = ("del_core", "client_lib", "deployments", "cluster", "delctl")
_TABLE = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = tuple(head)
    lines = [head, ("---",) * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def first_sentence(docstring: str | None) -> str:
    """Return the first sentence of a docstring as Markdown."""
    text = " ".join((docstring or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text).replace("``", "`")
    return re.split(r"(?<=[.!?])\s", text)[0].removesuffix(".")


def error_codes() -> str:
    """Return the table of the error codes, their status and the error that the client raises."""
    rows = []
    for code, status in ERROR_STATUS.items():
        error = client_errors.error_from_status("", status, {"code": code})
        rows.append((f"`{code}`", str(status), f"`{type(error).__name__}`"))
    return table(("code", "status", "the client raises"), rows)


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield every class of the packages with the name of its module."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    yield module, node


def _errors(of_client: bool) -> str:
    """Return the table of the classes that derive from DelError, of the client or of the rest."""
    classes = list(_classes())
    known = {"DelError"}
    while added := {
        node.name
        for _, node in classes
        if node.name not in known and any(isinstance(base, ast.Name) and base.id in known for base in node.bases)
    }:
        known |= added
    rows = []
    for module, node in classes:
        if node.name not in known or node.name.startswith("_") or (module == client_errors.__name__) != of_client:
            continue
        bases = ", ".join(f"`{base.id}`" for base in node.bases if isinstance(base, ast.Name))
        place = () if of_client else (f"`{module}`",)
        rows.append((f"`{node.name}`", *place, bases, first_sentence(ast.get_docstring(node))))
    return table(("class", *(() if of_client else ("module",)), "base", "meaning"), rows)


def client_error_classes() -> str:
    """Return the table of the client's errors."""
    return _errors(of_client=True)


def other_error_classes() -> str:
    """Return the table of all other errors."""
    return _errors(of_client=False)


def attacks() -> str:
    """Return the table of the audit's attacks."""
    from del_core.audit.attacks.base import ATTACKS

    rows = ((f"`{name}`", attack.explanation, attack.knowledge.value) for name, attack in ATTACKS.items())
    return table(("attack", "method", "possible for"), rows)


def mechanisms() -> str:
    """Return the table of the mechanism kinds."""
    from del_core.mechanism import MECHANISMS

    rows = (
        (f"`{name}`", first_sentence(kind.__doc__), "yes" if kind.can_dequantize else "no")
        for name, kind in MECHANISMS.items()
    )
    return table(("kind", "mechanism", "counts stand for coordinates"), rows)


def decoders() -> str:
    """Return the table of the decoder kinds."""
    from del_core.decoders import DECODERS

    rows = (
        (f"`{name}`", kind.description, "yes" if kind.trained else "no", "yes" if kind.joint else "no")
        for name, kind in DECODERS.items()
    )
    return table(("kind", "decoder", "trained itself", "trained with an encoder"), rows)


def engines() -> str:
    """Return the table of the engine kinds."""
    from deployments.engines import ENGINES

    rows = (
        (f"`{name}`", first_sentence(sys.modules[kind.settings.__module__].__doc__)) for name, kind in ENGINES.items()
    )
    return table(("kind", "engine"), rows)


def model_families() -> str:
    """Return the table of the families of language models."""
    from del_core.lm.families import FAMILIES

    rows = ((family.label, f"`{name}`", family.note) for name, family in FAMILIES.items())
    return table(("family", "`model_type`", "note"), rows)


def alerts() -> str:
    """Return the table of the server's alerts."""
    from scripts.alerts import ALERTS

    return _alerts(ALERTS)


def proxy_alerts() -> str:
    """Return the table of the proxy's alerts."""
    from scripts.alerts import PROXY

    return _alerts(PROXY)


def _alerts(alerts: Iterable[Alert]) -> str:
    rows = ((f"`{one.name}`", one.severity, one.meaning, one.action) for one in alerts)
    return table(("alert", "severity", "meaning", "what to do"), rows)


def commands() -> str:
    """Return the table of the commands, with the first sentence of their help."""
    import click

    from delctl.main import cli

    def rows(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        if not isinstance(command, click.Group):
            yield f"`{' '.join(path)}`", first_sentence(command.help)
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from rows(below, (*path, name))

    return table(("command", "what it does"), rows(cli, ("delctl",)))


TABLES: dict[str, Callable[[], str]] = {
    "alerts": alerts,
    "proxy-alerts": proxy_alerts,
    "error-codes": error_codes,
    "client-errors": client_error_classes,
    "other-errors": other_error_classes,
    "attacks": attacks,
    "commands": commands,
    "decoders": decoders,
    "engines": engines,
    "mechanisms": mechanisms,
    "model-families": model_families,
}


def written(text: str) -> str:
    """Return a page with its tables made anew.

    Raises:
        ValueError: the page has a mark with an unknown name.
    """

    def replacement(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"table must be one of {', '.join(TABLES)}, got {name}")
        return match[1] + TABLES[name]() + match[3]

    return _TABLE.sub(replacement, text)


def stale_pages() -> dict[Path, str]:
    """Return the pages whose tables are not current, with their new text."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    texts = {page: page.read_text("utf-8") for page in pages}
    return {page: new for page, text in texts.items() if "<!-- table: " in text and (new := written(text)) != text}


def main() -> int:
    """Write the stale pages, or name them."""
    check = sys.argv[1:] == ["--check"]
    stale = stale_pages()
    for page, text in stale.items():
        if not check:
            page.write_text(text, encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {'stale' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
