"""Send the proxy what OpenAI's specification allows: python -m benchmarks.specification

schemathesis, in an environment of its own, generates requests from the specification of OpenAI's
API, or from the proxy's own description, and sends them to a proxy that runs already:

    valid     requests that the specification allows. If one is refused, the refused field is taken
              out and the rest sent again, until it is answered. Each answer must fit the
              specification, and each refusal must stand in refusals.toml with its reason
    invalid   requests that it does not allow

No answer may have a status of 500 or more. The specification is not part of this repository: get
openapi.json of https://github.com/openai/openai-openapi and name it with --specification.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.applications.environments import Library, install, without_own_python

__all__ = ["findings", "main", "reasons", "send"]

SCHEMATHESIS = Library("schemathesis", "schemathesis", "", ("schemathesis==4.32.5",))
_HERE = Path(__file__).parent
_RESULT = _HERE.parent / "results" / "specification.json"
_TIMEOUT_S = 1800


def send(specification: Path, place: Path, *, url: str, model: str, examples: int) -> dict[str, Any]:
    """Return what the operations answered to the requests of schemathesis."""
    install(SCHEMATHESIS, place)
    python = place / SCHEMATHESIS.name / "bin" / "python"
    command = [str(python), str(_HERE / "generated.py"), str(specification.absolute()), url, model, str(examples)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT_S, check=True, env=without_own_python(), cwd=place
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def reasons() -> list[tuple[re.Pattern[str], str]]:
    """Read what is refused on purpose, with the reasons."""
    listed = tomllib.loads((_HERE / "refusals.toml").read_text("utf-8"))["refused"]
    return [(re.compile(one["match"]), one["reason"]) for one in listed]


def _reason(refusal: str) -> str | None:
    return next((reason for match, reason in reasons() if match.fullmatch(refusal)), None)


def findings(found: dict[str, Any], *, all_fields: bool = True) -> list[str]:
    """Return what must not be: wrong answers, and refusals that are not on the list.

    Without ``all_fields`` the description leaves fields open, and any refusal may be right.
    """
    wrong = []
    for operation, kinds in found.items():
        for kind, seen in kinds.items():
            wrong += [f"{operation}, {kind}: {what}: {seen['first'][what]}" for what in seen["wrong"]]
        refused = kinds["valid"]["refused"] if all_fields else {}
        first = kinds["valid"]["first"]
        wrong += [f"{operation}: refused: {one}: {first[one]}" for one in refused if _reason(one) is None]
    return wrong


def summary(found: dict[str, Any], *, all_fields: bool) -> dict[str, Any]:
    """Return the numbers of a run: requests by outcome, and refusals by reason."""
    by_reason: Counter[str] = Counter()
    operations = {}
    for operation, kinds in found.items():
        for refusal, count in kinds["valid"]["refused"].items():
            by_reason[_reason(refusal) or refusal] += count
        operations[operation] = {
            kind: {
                "answered": seen["answered"],
                "refused": sum(seen["refused"].values()),
                "wrong": sum(seen["wrong"].values()),
            }
            for kind, seen in kinds.items()
        }
    return {
        "operations": operations,
        "reasons": dict(by_reason.most_common()),
        "findings": findings(found, all_fields=all_fields),
    }


@click.command(help=__doc__)
@click.option("--proxy", "url", required=True, metavar="URL", help="A proxy with --default-variant.")
@click.option("--model", default="open", show_default=True, help="The model that valid requests name.")
@click.option(
    "--specification",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="openapi.json of OpenAI's API.  [default: the proxy's own]",
)
@click.option("--examples", type=click.IntRange(1), default=40, show_default=True, help="Requests of each kind.")
@click.option("--json", "write", is_flag=True, help="Write benchmarks/results/specification.json.")
@click.option(
    "--environments",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".applications"),
    show_default=True,
    help="Where the environment is kept.",
)
def main(url: str, model: str, specification: Path | None, examples: int, write: bool, environments: Path) -> None:
    """Send requests and report; exit with 1 if there is a finding."""
    place = environments.absolute()
    place.mkdir(parents=True, exist_ok=True)
    base, is_own = url, specification is None
    if specification is None:
        specification = place / "openapi.json"
        specification.write_text(httpx.get(f"{url}/openapi.json", trust_env=False).text, "utf-8")
    else:
        base = f"{url}/v1"
    version = json.loads(specification.read_text("utf-8"))["info"]["version"]
    found = summary(send(specification, place, url=base, model=model, examples=examples), all_fields=not is_own)
    click.echo(json.dumps(found, indent=1))
    if write:
        about = {
            "command": "python -m benchmarks.specification --proxy URL --specification openapi.json --json",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": f"specification {version}, schemathesis 4.32.5, {examples} requests of each kind",
        }
        _RESULT.write_text(json.dumps({"about": about, **found}, indent=1) + "\n", "utf-8")
    if found["findings"]:
        raise click.ClickException(f"{len(found['findings'])} findings")
