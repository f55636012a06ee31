"""Run the libraries of applications against the proxy: python -m benchmarks.applications

Each library of libraries.toml is installed in an environment of its own, with the versions that
stand there, and does its first example, a stream, a tool call, a structured output and an error
through one ``delctl proxy``. Two servers answer:

    smollm2     ``delctl serve --bundle smollm2 --model smollm2``, at one of its levels. A model
                this small calls no tool of its own will, so the scripts demand the call where the
                library can (``tool_choice``), and the proxy has the model follow its schema; for
                the libraries that cannot, the proxy demands it (``--tool-choice first``)
    scripted    a server that answers as a good model would, which also calls tools unasked

The results are written to benchmarks/results/applications.json after each library, and those of a
library that is not run again stay.
"""

from __future__ import annotations

import contextlib
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.applications.environments import CASES, Library, install, libraries, run
from benchmarks.support.delctl import started

__all__ = ["RESULT", "best_level", "main"]

RESULT = Path(__file__).parents[1] / "results" / "applications.json"
_ENGINE = """\
bundle: {bundle}
base_model: {model}
engine:
  max_model_len: 2048
  max_num_seqs: 4
scaling:
  max_replicas: 1
"""


def best_level() -> str:
    """Return the last level of SmolLM2's bundle that has an adapter, which understands most."""
    from del_core.bundle import load_bundle
    from del_core.demo import smollm2_bundle_path

    return [name for name, one in load_bundle(smollm2_bundle_path()).variants.items() if one.adapter is not None][-1]


@contextlib.contextmanager
def _smollm2() -> Iterator[Callable[[Library], str]]:
    """Serve, and yield what returns the URL of a library's proxy."""
    from del_core.demo import smollm2_bundle_path
    from del_core.lm.known import cached_model

    model = cached_model("smollm2")
    if model is None:
        raise click.ClickException("SmolLM2 is not on this machine yet; get it with: delctl model get smollm2")
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "serve.yaml"
        config.write_text(_ENGINE.format(bundle=smollm2_bundle_path(), model=model), "utf-8")
        with (
            started(["serve", "--config", str(config), "--port", "0"], 600) as server,
            started(["proxy", "--server", server, "--port", "0"], 120) as proxy,
            started(["proxy", "--server", server, "--port", "0", "--tool-choice", "first"], 120) as demanding,
        ):
            yield lambda library: demanding if library.first_call else proxy


def _note(library: Library, found: dict[str, str], level: str | None) -> None:
    """Write the results of a library: at a level of SmolLM2, or of a scripted server for None."""
    results: dict[str, Any] = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {"libraries": {}}
    results["about"] = {
        "command": "python -m benchmarks.applications",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"Python {platform.python_version()}, Linux, shared virtual machine, 2 cores",
    }
    entry = results["libraries"].setdefault(library.name, {})
    if entry.get("versions") != library.versions():
        entry.clear()
        entry["versions"] = library.versions()
    if level is None:
        entry["scripted"] = found
    else:
        entry |= {"smollm2": found, "level": level}
    results["libraries"] = {name: results["libraries"][name] for name in libraries() if name in results["libraries"]}
    RESULT.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


@click.command(help=__doc__)
@click.option("--only", "only", multiple=True, type=click.Choice([*libraries()]), help="This library; repeatable.")
@click.option(
    "--level",
    help="The privacy level of SmolLM2's bundle.  [default: its last one with an adapter, which understands most]",
)
@click.option("--proxy", "url", metavar="URL", help="A proxy that runs already, in front of a scripted server.")
@click.option(
    "--environments",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".applications"),
    show_default=True,
    help="Where the environments are kept.",
)
def main(only: tuple[str, ...], level: str | None, url: str | None, environments: Path) -> None:
    """Run the libraries, by default all of them against SmolLM2."""
    chosen = [libraries()[name] for name in only or libraries()]
    for library in chosen:
        install(library, environments.absolute())
    level = (level or best_level()) if url is None else None
    with _smollm2() if url is None else contextlib.nullcontext(lambda _: url) as url_for:
        for library in chosen:
            began = time.monotonic()
            found = run(library, environments.absolute(), url=url_for(library), model=level or "open")
            _note(library, found, level)
            passed = sum(one == "yes" for one in found.values())
            click.echo(f"{library.name}: {passed} of {len(CASES)} in {time.monotonic() - began:.0f} s")
