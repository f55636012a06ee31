"""Ctrl-C at any moment of the start, threads, and texts that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from delctl.main import run

_INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["delctl", *{arguments!r}]
from delctl.entry import main
main()
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("click", ["--version"]),
        ("del_core.errors", ["--version"]),
        ("delctl.commands.inspect", ["inspect", "demo"]),
        ("numpy", ["inspect", "demo"]),
    ],
)
def test_ctrl_c_during_the_start_shows_no_traceback(module: str, arguments: list[str]) -> None:
    program = _INTERRUPTED.format(module=module, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "delctl: stopped"  # click begins a new line


@pytest.mark.parametrize(
    ("arguments", "environment", "threads"),
    [
        (["audit"], {}, "1"),
        (["train", "projection"], {}, "1"),
        (["evaluate"], {"OMP_NUM_THREADS": "3"}, "3"),
        (["audit", "--threads", "2"], {"OMP_NUM_THREADS": "3"}, "2"),
        (["train", "base", "--threads=2"], {}, "2"),
        (["inspect"], {}, None),
    ],
)
def test_a_command_that_computes_uses_one_thread_unless_told_otherwise(
    arguments: list[str], environment: dict[str, str], threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run([*arguments, "--help"])
    assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # what the command set ends with the test


def test_a_wrong_number_of_threads_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "demo", "--text", __file__, "--threads", "0"]) == 2
    assert "0 is not in the range x>=1" in capsys.readouterr().err


_OUT = ["--out", "nowhere"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "demo", *_OUT],
        ["audit", "demo", *_OUT, "--text", __file__, "--attacker-text"],
        ["evaluate", "demo"],
        ["train", "base", *_OUT],
        ["train", "projection", "--model", ".", *_OUT],
        ["calibrate", "--model", ".", "--projection", ".", "--asr", "0.2"],
    ],
)
def test_a_text_that_is_not_there_is_refused_before_anything_is_loaded(arguments: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    option = [] if arguments[-1] == "--attacker-text" else ["--text"]
    program = (
        "import sys\n"
        "from delctl.main import run\n"
        f"for path in {[str(tmp_path / 'absent'), str(tmp_path), str(empty)]!r}:\n"
        f"    assert run({[*arguments, *option]!r} + [path]) == 2\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "[]\n", done.stderr
    for said in ("text file must exist, got", "text file must be a file, got", "text file must not be empty, got"):
        assert said in done.stderr
