"""Every command's help has an example that its options allow, and shells complete commands."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from delctl import main
from delctl.examples import EXAMPLES


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands that do something, with what calls them."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, f"{path} {name}")
    else:
        yield path, command


def commands() -> dict[str, click.Command]:
    """Return every command by what calls it."""
    found: dict[str, click.Command] = {}
    for name in main.COMMANDS:
        found.update(leaves(getattr(importlib.import_module(f"delctl.commands.{name}"), name), name))
    return found


def test_every_example_is_that_of_a_command_and_has_its_options() -> None:
    known = commands()
    for path, example in EXAMPLES.items():
        words = shlex.split(example.replace("\\\n", " "))
        assert words[: 1 + len(path.split())] == ["delctl", *path.split()]
        options = {option for one in known[path].params for option in one.opts}
        used = {word for word in words if word.startswith("--")}
        assert used <= options, path
        needed = {one.opts[0] for one in known[path].params if isinstance(one, click.Option) and one.required}
        from_environment = {one.opts[0] for one in known[path].params if isinstance(one, click.Option) and one.envvar}
        assert needed - from_environment <= used, path


@pytest.mark.parametrize("path", sorted(commands()))
def test_the_help_of_a_command_has_an_example(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*path.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"Examples?:[^:]*\bdelctl {path}\b", said), said


@pytest.mark.parametrize(
    ("words", "expected"), [("delctl le", "plain,ledger"), ("delctl proxy --private p", "plain,pii")]
)
def test_a_shell_completes_commands_and_choices(words: str, expected: str) -> None:
    position = str(len(words.split()) - 1)
    environment = {**os.environ, "_DELCTL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": position}
    program = "from delctl.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [expected], done.stderr
