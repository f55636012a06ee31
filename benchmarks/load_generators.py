"""Load generators of other projects: python -m benchmarks.load_generators [--json]

They ask, on this machine and one after the other,

    vllm_serve    vLLM's own OpenAI server, with the same model and engine settings: the clear
                  prompt
    proxy         ``delctl proxy`` in front of this application: the prompt is tokenized, replaced
                  by counts, sent and decoded
    application   this application itself, for what needs no private prompt

with

    vllm bench serve   vLLM's benchmark, out of the installed vLLM
    guidellm           the benchmark of the vLLM project, at a path of the caller's
    wrk                an HTTP load generator, at a path of the caller's, for listings

guidellm asks for a PyTorch with CUDA, so it belongs in an environment of its own; wrk is a package
of most Linux distributions. A generator without a path is left out. Servers and generators share
the cores. The proxy's rows hold what a user's machine does, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.serving.ray_llm import SERVED
from benchmarks.serving.systems import Application, VllmServer
from benchmarks.support.delctl import started
from benchmarks.support.packages import python_path
from benchmarks.support.served import LEVELS, ROOM, served

__all__ = ["measure"]

_INPUT, _OUTPUT = 32, 16
_LIMIT_S = 300.0
_SECONDS = 5
_COMPLETIONS = "/v1/completions"
# vLLM's command line asks for a distribution of the name of its CUDA build.
_VLLM_BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


@dataclass(frozen=True)
class Target:
    """A server of OpenAI's API."""

    name: str
    url: str
    model: str


def measure(
    directory: Path, *, requests: int, concurrency: int, guidellm: Path | None, wrk: Path | None
) -> Iterator[dict[str, Any]]:
    """Start the servers and yield a row for each generator and target."""
    settings, variant = served("demo", directory, scaling=ROOM), LEVELS["demo"][0]
    tokenizer = settings.base_model_path
    with contextlib.ExitStack() as stack:
        reference = VllmServer(settings, directory / "vllm", name="vllm_serve")
        stack.callback(reference.stop)
        application = Application(settings)
        stack.callback(application.stop)
        reference.wait_started()
        own = f"http://{application.host}:{application.port}"
        log = stack.enter_context((directory / "proxy.log").open("w"))
        cache = {"DEL_CACHE_DIR": str(directory / "cache")}
        address = stack.enter_context(started(["proxy", "--server", own, "--port", "0"], _LIMIT_S, cache, log))
        proxy = Target("proxy", address, variant)
        clear = Target("vllm_serve", f"http://{reference.host}:{reference.port}", SERVED)
        for target in (clear, proxy):
            row = _vllm_bench(target, tokenizer, directory, requests, concurrency)
            yield _row("vllm bench serve", target, _COMPLETIONS, concurrency, row)
        for target in (clear, proxy) if guidellm else ():
            assert guidellm is not None
            row = _guidellm(guidellm, target, tokenizer, directory, requests, concurrency)
            yield _row("guidellm", target, _COMPLETIONS, concurrency, row)
        for target in (clear, Target("application", own, variant), proxy) if wrk else ():
            assert wrk is not None
            yield _row("wrk", target, "/v1/models", concurrency, _wrk(wrk, target, concurrency))


def _row(generator: str, target: Target, path: str, concurrency: int, figures: dict[str, Any]) -> dict[str, Any]:
    about = {"generator": generator, "target": target.name, "path": path, "concurrency": concurrency}
    return about | figures | {"load_average": round(os.getloadavg()[0], 1)}


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise click.ClickException(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def _vllm_bench(target: Target, tokenizer: Path, directory: Path, requests: int, concurrency: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "backend": "openai", "base-url": target.url, "endpoint": _COMPLETIONS, "model": target.model,
        "tokenizer": tokenizer, "dataset-name": "random", "random-input-len": _INPUT, "random-output-len": _OUTPUT,
        "num-prompts": requests, "max-concurrency": concurrency, "num-warmups": concurrency,
        "result-dir": directory, "result-filename": f"{target.name}.json",
    }  # fmt: skip
    command = [sys.executable, "-c", _VLLM_BENCH, "--ignore-eos", "--save-result", "--disable-tqdm"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    _run(command, {**os.environ, "PYTHONPATH": python_path([Path(__file__).parents[1]])})
    found = json.loads((directory / f"{target.name}.json").read_text(encoding="utf-8"))
    return {
        "requests": found["completed"],
        "failed": requests - found["completed"],
        "requests_per_s": round(found["request_throughput"], 2),
        "ttft_p50_ms": round(found["median_ttft_ms"], 1),
        "itl_p50_ms": round(found["median_itl_ms"], 1),
    }


def _guidellm(
    program: Path, target: Target, tokenizer: Path, directory: Path, requests: int, concurrency: int
) -> dict[str, Any]:
    out = directory / f"guidellm-{target.name}.json"
    options = {
        "backend": f"kind=openai_http,target={target.url},model={target.model},request_format={_COMPLETIONS}",
        "profile": f"kind=concurrent,streams={concurrency}",
        "constraint": f"kind=max_requests,count={requests}",
        "data": f"kind=synthetic_text,prompt_tokens={_INPUT},output_tokens={_OUTPUT}",
        "tokenizer": f"kind=hf_auto,model={tokenizer}",
        "output": f"kind=json,path={out}",
    }
    command = [str(program), "run", "--disable-progress"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    _run(command, {name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    (found,) = json.loads(out.read_text(encoding="utf-8"))["benchmarks"]
    totals, metrics = found["metrics"]["request_totals"], found["metrics"]
    return {
        "requests": totals["successful"],
        "failed": totals["errored"] + totals["incomplete"],
        "requests_per_s": round(metrics["requests_per_second"]["successful"]["mean"], 2),
        "ttft_p50_ms": round(metrics["time_to_first_token_ms"]["successful"]["median"], 1),
        "itl_p50_ms": round(metrics["inter_token_latency_ms"]["successful"]["median"], 1),
    }


def _wrk(program: Path, target: Target, concurrency: int) -> dict[str, Any]:
    command = [str(program), "-t1", f"-c{concurrency}", f"-d{_SECONDS}s", "--latency", f"{target.url}/v1/models"]
    report = _run(command, dict(os.environ))

    def value(pattern: str, missing: str = "") -> str:
        match = re.search(pattern, report)
        if match is None and not missing:
            raise click.ClickException(f"wrk's report has no {pattern}:\n{report}")
        return match[1] if match else missing

    latency = value(r"50%\s+(\S+)")
    unit = {"us": 1e-3, "ms": 1.0, "s": 1e3}[latency.lstrip("0123456789.")]
    return {
        "requests": int(value(r"(\d+) requests in")),
        "failed": int(value(r"Non-2xx or 3xx responses: (\d+)", "0")),
        "requests_per_s": round(float(value(r"Requests/sec:\s+(\S+)")), 1),
        "latency_p50_ms": round(float(latency.rstrip("mus")) * unit, 3),
    }


_SHOWN = (
    *("generator", "target", "path", "requests", "failed", "requests_per_s"),
    *("ttft_p50_ms", "itl_p50_ms", "latency_p50_ms"),
)
_PROGRAM = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--requests", type=click.IntRange(1), default=256, show_default=True, help="Requests of each run.")
@click.option("--concurrency", type=click.IntRange(1, 128), default=16, show_default=True)
@click.option("--guidellm", type=_PROGRAM, help="The program guidellm, 0.8 or newer.")
@click.option("--wrk", type=_PROGRAM, help="The program wrk.")
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
def main(requests: int, concurrency: int, guidellm: Path | None, wrk: Path | None, as_json: bool) -> None:
    """Measure with load generators of other projects."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="del-generators-") as temporary:
        sizes = {"requests": requests, "concurrency": concurrency}
        for row in measure(Path(temporary), **sizes, guidellm=guidellm, wrk=wrk):
            rows.append(row)
            shown = ", ".join(f"{name} {row[name]}" for name in _SHOWN if name in row)
            click.echo(shown, err=as_json)
    if as_json:
        click.echo(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
