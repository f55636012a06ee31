"""``delctl``: the entry point. A command is imported when it is called, so ``--help`` is fast.

Exit codes: 0 done; 1 failed; 2 input refused (usage, options, files, bundles); 130 stopped by
Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

import click

from del_core.errors import DelError
from delctl.examples import add_examples


@dataclass(frozen=True)
class LazyCommand:
    """A command of the module of its name, described without importing it."""

    help: str
    """One line for ``delctl --help``."""
    extra: str | None = None
    """The extra of the distribution that the command needs beyond the base install."""
    computes: bool = False
    """Whether it takes ``--threads``, since it computes at length in this process."""


COMMANDS: Mapping[str, LazyCommand] = MappingProxyType(
    {
        "demo": LazyCommand("Follow a private prompt through every variant.", "serve"),
        "doctor": LazyCommand("Check the installation and say what to do."),
        "serve": LazyCommand("Serve a model and its bundle on this machine.", "serve"),
        "up": LazyCommand("Start a Ray cluster on this machine and serve on it.", "serve"),
        "status": LazyCommand("Show nodes, replicas, load and versions of a cluster.", "serve"),
        "plan": LazyCommand("Estimate replicas, memory, network and cost for a load."),
        "deploy": LazyCommand("Deploy a Serve config file to a Ray cluster.", "serve"),
        "logs": LazyCommand("Print the logs of the cluster on this machine.", "serve"),
        "down": LazyCommand("Stop the cluster on this machine.", "serve"),
        "ask": LazyCommand("Send a private prompt to a server and print what it writes."),
        "chat": LazyCommand("Chat privately with a server's model in the terminal.", "chat"),
        "keys": LazyCommand("Make API keys for a server, and keys of bundles, gateways and passes.", "serve"),
        "proxy": LazyCommand("Answer OpenAI's API on this machine, with private prompts.", "proxy"),
        "passes": LazyCommand("Get passes, which pay for requests without naming their caller.", "passes"),
        "playground": LazyCommand("Open a page that shows what a private prompt becomes.", "proxy"),
        "relay": LazyCommand("Pass sealed requests on to a server that does not see who calls.", "proxy"),
        "trust": LazyCommand("Show, accept and forget what was accepted from servers."),
        "ledger": LazyCommand("Show, export and erase what is kept of people's privacy budgets."),
        "model": LazyCommand("Get, convert and check base models.", "train"),
        "export": LazyCommand("Write a model that servers of others serve to private prompts.", "train"),
        "inspect": LazyCommand("Verify a bundle and show its variants, guarantees and audits."),
        "audit": LazyCommand("Attack a bundle's variants on held-out text and write a report.", "train", True),
        "evaluate": LazyCommand("Measure the text behind a bundle's variants on your own text.", "train", True),
        "train": LazyCommand("Train a base LM, a projection, a soft prompt.", "train", True),
        "calibrate": LazyCommand("Find the noise for an attack success or an epsilon.", "train", True),
        "sign": LazyCommand("Sign a bundle.", "signing"),
        "log": LazyCommand("Keep a transparency log of bundles, and prove what it holds."),
        "bundle": LazyCommand("Put trained variants together into a bundle.", "train"),
    }
)

# The modules of each extra. A missing module that is not listed is a defect.
EXTRA_MODULES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "serve": frozenset(
            {"ray", "vllm", "starlette", "uvicorn", "pydantic", "yaml", "torch", "transformers", "psutil"}
        ),
        "chat": frozenset({"jinja2"}),
        "proxy": frozenset({"jinja2", "starlette", "uvicorn"}),
        "passes": frozenset({"cryptography"}),
        "signing": frozenset({"cryptography"}),
        "train": frozenset({"torch", "transformers", "peft", "scipy", "tqdm", "accelerate"}),
    }
)

# Errors for refused input, as opposed to failures.
INPUT_ERRORS = frozenset(
    {
        "BaseModelError",
        "BundleError",
        "BundleRejectedError",
        "CapacityError",
        "DeviceError",
        "FrameError",
        "InvalidRequestError",
        "SettingsError",
        "StorageError",
        "TextError",
    }
)

FAILED, REFUSED, STOPPED = 1, 2, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when one is called, and listed without."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"delctl.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        add_examples(command, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="del-serve", prog_name="delctl", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Private prompts for a frozen LLM.

    Prompts leave this machine only as noisy counts; the server generates from those. BUNDLE and
    MODEL arguments take a directory, the word demo for the ones that ship with the package, or the
    word smollm2 for the real language model (delctl model get smollm2) and its bundle.
    """


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; errors become a line on stderr. Returns the exit code."""
    # Determined before click parses, since parsing can fail, too.
    debug = "--debug" in arguments[: _first_command(arguments)]
    _set_environment(arguments)
    try:
        code = cli.main(args=list(arguments), prog_name="delctl", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("delctl: stopped", err=True)
        return STOPPED
    except BrokenPipeError:
        # The reader of the output has ended, as in `delctl inspect demo | head -1`. Buffered output
        # is discarded, so that the interpreter does not report it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError):
            return _missing_module(error, arguments)
        return _failure(error, debug)
    return code if isinstance(code, int) else 0


def _set_environment(arguments: Sequence[str]) -> None:
    """Set what other packages read only while they are imported.

    Threads of small operators wait for each other: where anything else runs, several are slower
    than one. So a command computes with one unless ``--threads`` or the environment says otherwise.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of weights that load in a second
    command = next(iter(arguments[_first_command(arguments) :]), "")
    if command not in COMMANDS or not COMMANDS[command].computes:
        return
    joined = "\0".join(arguments).replace("\0--threads=", "\0--threads\0").split("\0")
    given = joined[joined.index("--threads") + 1 :][:1] if "--threads" in joined else []
    if given and given[0].isdigit():
        os.environ["OMP_NUM_THREADS"] = given[0]
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _first_command(arguments: Sequence[str]) -> int:
    """Index of the first argument that is no option."""
    return next((index for index, word in enumerate(arguments) if not word.startswith("-")), len(arguments))


def _missing_module(error: ModuleNotFoundError, arguments: Sequence[str]) -> int:
    """Report the extra of a missing module."""
    top = (error.name or "").partition(".")[0]
    command = next(iter(arguments[_first_command(arguments) :]), "")
    wanted = COMMANDS[command].extra if command in COMMANDS else None
    if wanted is None or top not in EXTRA_MODULES[wanted]:
        said = f"delctl: {error}; the installation is incomplete"
    else:
        said = (
            f"delctl {command}: needs the package {top}, which is not installed; it comes with the extra "
            f"del-serve[{wanted}] (for the CPU set, use requirements/cpu.lock as the README says)"
        )
    click.echo(said, err=True)
    return FAILED


def _failure(error: Exception, debug: bool) -> int:
    """Report an error in one line; return its exit code."""
    # By name along the hierarchy, so that no layer is imported for its errors.
    refused = any(parent.__name__ in INPUT_ERRORS for parent in type(error).__mro__)
    if refused or isinstance(error, DelError):
        click.echo(f"delctl: {error}", err=True)
        return REFUSED if refused else FAILED
    if isinstance(error, OSError) and error.filename is not None:
        click.echo(f"delctl: {error.filename}: {error.strerror}", err=True)
        return FAILED
    # An error of another package. The first line identifies it; the rest may be long.
    first_line = str(error).partition("\n")[0]
    hint = "" if debug else " (delctl --debug ... shows the traceback)"
    click.echo(f"delctl: {type(error).__name__}: {first_line}{hint}", err=True)
    return FAILED


if __name__ == "__main__":
    main()
