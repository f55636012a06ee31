"""The entry point: lazy commands, and errors as one line and an exit code."""

from __future__ import annotations

import subprocess
import sys
import types

import click
import pytest

from client_lib.errors import InvalidRequestError
from del_core.errors import BundleError, DelError
from delctl import main

_HEAVY = ("torch", "transformers", "ray", "vllm", "starlette", "pydantic", "numpy", "scipy", "httpx", "rich")


def test_help_lists_every_command_and_loads_no_layer() -> None:
    program = (
        "import sys\n"
        "from delctl.main import run\n"
        "assert run(['--help']) == 0\n"
        f"loaded = [name for name in {_HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: delctl ")
    for name, entry in main.COMMANDS.items():
        assert f"\n  {name} " in done.stdout
        assert entry.help.split()[0] in done.stdout


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_of_the_table_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: delctl {name} ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("delctl 0.")


@pytest.mark.parametrize("arguments", [["nonsense"], ["inspect"], ["inspect", "demo", "--nonsense"], ["--nonsense"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: delctl" in captured.err
    assert "Error: " in captured.err


def _command_that_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException, extra: str | None = None) -> None:
    """Put a command named ``fail`` into the table."""

    @click.command()
    def fail() -> None:
        raise error

    module = types.ModuleType("delctl.commands.fail")
    vars(module)["fail"] = fail
    monkeypatch.setitem(sys.modules, "delctl.commands.fail", module)
    monkeypatch.setattr(main, "COMMANDS", {"fail": main.LazyCommand("Fail.", extra)})


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BundleError("client/table.safetensors", "is cut off"), 2, "delctl: client/table.safetensors: is cut off\n"),
        (InvalidRequestError("variant: 'x'; allowed: y"), 2, "delctl: variant: 'x'; allowed: y\n"),
        (DelError("the server is gone"), 1, "delctl: the server is gone\n"),
        (FileNotFoundError(2, "No such file or directory", "there"), 1, "delctl: there: No such file or directory\n"),
        (KeyboardInterrupt(), 130, "delctl: stopped\n"),
        (ModuleNotFoundError("No module named 'delctl_x'", name="delctl_x"), 1, "the installation is incomplete\n"),
    ],
)
def test_errors_are_one_line_and_a_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that_raises(monkeypatch, error)
    assert main.run(["fail"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(line)
    # After Ctrl-C a terminal shows ^C, so the message begins on a line of its own.
    assert captured.err.lstrip("\n").count("\n") == 1


def test_an_unexpected_error_is_one_line_and_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that_raises(monkeypatch, RuntimeError("first line\nsecond line"))
    assert main.run(["fail"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("delctl: RuntimeError: first line (")
    assert said.count("\n") == 1
    assert main.run(["--debug", "fail"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith("delctl: RuntimeError: first line\n")


@pytest.mark.parametrize(("extra", "missing"), [("serve", "ray.serve"), ("train", "torch")])
def test_a_missing_extra_is_named(
    extra: str, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command_that_raises(monkeypatch, ModuleNotFoundError(f"No module named {missing!r}", name=missing), extra)
    assert main.run(["fail"]) == 1
    said = capsys.readouterr().err
    assert f"del-serve[{extra}]" in said
    assert missing.partition(".")[0] in said
    assert said.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error_to_shout_about() -> None:
    program = "import sys; from delctl.main import run; sys.exit(run(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) in (0, 1)
