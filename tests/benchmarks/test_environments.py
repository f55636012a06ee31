"""Environments of libraries: what is installed, and when it is installed again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.applications.environments import Library, install, libraries


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a command ``uv`` in place of the real one writes its arguments to."""
    tools, seen = tmp_path / "tools", tmp_path / "seen"
    tools.mkdir()
    (tools / "uv").write_text(f'#!/bin/sh\necho "$@" >> {seen}\n', "utf-8")
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return seen


def arguments(seen: Path) -> list[list[str]]:
    """Return what was installed, without the command and its environment."""
    return [line.split(" ")[5:] for line in seen.read_text("utf-8").splitlines()]


def test_a_library_is_installed_once_for_its_versions(tmp_path: Path, installed: Path) -> None:
    library = Library(name="a", title="A", script="a.py", packages=("a==1",), helpers=("b==2",))
    install(library, tmp_path)
    install(library, tmp_path)
    assert arguments(installed) == [["a==1", "b==2"]]
    install(Library(name="a", title="A", script="a.py", packages=("a==3",)), tmp_path)
    assert arguments(installed) == [["a==1", "b==2"], ["a==3"]]


def test_a_library_may_be_installed_without_what_it_requires(tmp_path: Path, installed: Path) -> None:
    install(Library(name="a", title="A", script="a.py", packages=("a==1",), helpers=("b==2",), alone=True), tmp_path)
    assert arguments(installed) == [["--no-deps", "a==1"], ["b==2"]]


def test_what_is_installed_alone_names_what_it_uses_in_exact_versions() -> None:
    for library in libraries().values():
        if library.alone:
            assert library.helpers
            assert all(one.count("==") == 1 for one in (*library.packages, *library.helpers))
