"""Run the libraries of applications against the proxy: python -m benchmarks.applications

Each library of libraries.toml is installed in an environment of its own, with the versions that
stand there, and does its first example, a stream, a tool call, a structured output and an error
through one ``delctl proxy``. Two servers answer:

    smollm2     ``delctl serve --bundle smollm2 --model smollm2``, at one of its levels. A model
                this small calls no tool of its own will, so the scripts demand the call where the
                library can (``tool_choice``); the proxy then has the model follow its schema
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.applications.environments import CASES, Library, install, libraries, run
from benchmarks.support.delctl import started

__all__ = ["RESULT", "main"]

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


@contextlib.contextmanager
def _smollm2(level: str) -> Iterator[tuple[str, str]]:
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
        ):
            yield proxy, level


def _note(library: Library, model: str, found: dict[str, str]) -> None:
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
    entry[model] = found
    results["libraries"] = {name: results["libraries"][name] for name in libraries() if name in results["libraries"]}
    RESULT.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


@click.command(help=__doc__)
@click.option("--only", "only", multiple=True, type=click.Choice([*libraries()]), help="This library; repeatable.")
@click.option("--level", default="chat-open", show_default=True, help="The privacy level of SmolLM2's bundle.")
@click.option("--proxy", "url", metavar="URL", help="A proxy that runs already, in front of a scripted server.")
@click.option(
    "--environments",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".applications"),
    show_default=True,
    help="Where the environments are kept.",
)
def main(only: tuple[str, ...], level: str, url: str | None, environments: Path) -> None:
    """Run the libraries, by default all of them against SmolLM2."""
    chosen = [libraries()[name] for name in only or libraries()]
    for library in chosen:
        install(library, environments.absolute())
    name = "smollm2" if url is None else "scripted"
    with _smollm2(level) if url is None else contextlib.nullcontext((url, "open")) as (proxy, model):
        for library in chosen:
            began = time.monotonic()
            found = run(library, environments.absolute(), url=proxy, model=model)
            _note(library, name, found)
            passed = sum(one == "yes" for one in found.values())
            click.echo(f"{library.name}: {passed} of {len(CASES)} in {time.monotonic() - began:.0f} s")
