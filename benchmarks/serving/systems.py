"""The systems that ``benchmarks.serving`` compares: start, stop and CPU time of each."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.serving.ray_llm import SERVED, STARTED
from benchmarks.support.load import Round
from benchmarks.support.packages import python_path
from cluster.config.env import local_environment
from cluster.local import LocalServer, free_port, start_local
from cluster.local.server import LOOPBACK
from deployments.engines.vllm.engine import VllmSettings, engine_environment
from deployments.settings import Settings

__all__ = ["Application", "Engine", "Generator", "RayLlm", "System", "VllmServer", "peak_memory_mb", "stop_tree"]

_START_LIMIT_S = 240.0
_METRICS_WITHIN_S = 20.0

_RAY_LLM = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
"""What a user of Ray Serve LLM would set, beside the application's own settings of Ray."""

_ROLES = {"ServeReplica": "replica", "EngineCore": "engine", "haproxy": "proxy", "ProxyActor": "proxy"}
"""Parts of command lines that tell the role of a process."""


class Generator:
    """The process of the load generator (``benchmarks.support.load``).

    With ``engine`` it is a system under test as well.
    """

    def __init__(self, settings: Settings, variant: str, *, engine: bool = False) -> None:
        first = {
            "bundle": str(settings.bundle_path),
            "model": str(settings.base_model_path),
            "variant": variant,
            "engine": settings.engine.model_dump() if engine else None,
        }
        environment = {**os.environ, **engine_environment(settings.engine)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.support.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._write(first)

    def wait_started(self) -> None:
        """Wait until the process takes rounds."""
        self._read()

    def prepare(self, plan: Round) -> None:
        """Make the prompts of a round."""
        self._write(asdict(plan))
        self._read()

    def run(self) -> dict[str, Any]:
        """Run the prepared round."""
        self._write({})
        return self._read()

    def stop(self) -> None:
        """End the process and its descendants."""
        stop_tree(self.process)

    def _write(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with status {self.process.wait()}")
        return json.loads(line)


@dataclass(frozen=True)
class _Cpu:
    seconds: dict[str, float]

    @classmethod
    def of(cls, processes: list[psutil.Process], default: str) -> _Cpu:
        seconds: dict[str, float] = defaultdict(float)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                role = next((role for part, role in _ROLES.items() if part in line), default)
                times = process.cpu_times()
                seconds[role] += times.user + times.system
        return cls(dict(seconds))

    def since(self, earlier: _Cpu) -> dict[str, float]:
        return {role: value - earlier.seconds.get(role, 0.0) for role, value in self.seconds.items()}


class System:
    """A running system under test."""

    name: str
    kind: str
    host, port = LOOPBACK, 0
    rest = "other"
    """The role of all other processes."""

    def wait_started(self) -> None:
        """Wait until the system takes requests."""

    def processes(self) -> list[psutil.Process]:
        """List the living processes."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop every process."""
        raise NotImplementedError

    def measure(self, generator: Generator, plan: Round) -> dict[str, Any]:
        """Return the figures of one round, with the CPU seconds of each role."""
        generator.prepare(plan)
        before = _Cpu.of(self.processes(), self.rest)
        figures = generator.run()
        cpu = _Cpu.of(self.processes(), self.rest).since(before)
        cpu["generator"] = figures.pop("generator_cpu_s")
        return {**figures, "cpu_s": cpu}


class Engine(System):
    """The engine's frontend inside the load generator's process: no server at all."""

    kind = "engine"

    def __init__(self, settings: Settings, variant: str) -> None:
        self.name = "engine"
        self.generator = Generator(settings, variant, engine=True)

    def wait_started(self) -> None:
        """See System."""
        self.generator.wait_started()

    def processes(self) -> list[psutil.Process]:
        """See System; the generator counts its own time."""
        return psutil.Process(self.generator.process.pid).children(recursive=True)

    def measure(self, generator: Generator, plan: Round) -> dict[str, Any]:
        """See System."""
        return super().measure(self.generator, plan)

    def stop(self) -> None:
        """See System."""
        self.generator.stop()


class VllmServer(System):
    """vLLM's own OpenAI server with the engine settings of the application."""

    kind = "vllm"
    rest = "server"

    def __init__(self, settings: Settings, directory: Path, *, name: str, arguments: tuple[str, ...] = ()) -> None:
        self.name = name
        engine = settings.engine
        self.port = free_port()
        directory.mkdir()
        flags = {
            "model": settings.base_model_path,
            "tokenizer": _tokenizer(settings, directory),
            "served-model-name": SERVED,
            "host": self.host,
            "port": self.port,
            "uvicorn-log-level": "warning",
            **{name.replace("_", "-"): value for name, value in _engine_flags(engine).items()},
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        command += ["--enforce-eager"] if engine.enforce_eager else []
        command += ["--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching"]
        command += ["--disable-log-stats", "--disable-uvicorn-access-log", *arguments]
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **engine_environment(engine)},
                cwd=directory,
            )

    def wait_started(self) -> None:
        """See System."""
        deadline = time.monotonic() + _START_LIMIT_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self.host}:{self.port}/health"):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vLLM's server did not start:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """See System."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def stop(self) -> None:
        """See System."""
        stop_tree(self.process)


class RayLlm(System):
    """Ray Serve LLM with direct streaming behind HAProxy, with the same engine settings."""

    kind = "vllm"
    rest = "cluster"

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.name = "ray_llm"
        engine = settings.engine
        self.port = free_port()
        directory.mkdir()
        arguments = {
            "model": str(settings.base_model_path),
            "port": self.port,
            "environment": engine_environment(engine),
            "engine": {
                "tokenizer": str(_tokenizer(settings, directory)),
                "enforce_eager": engine.enforce_eager,
                "enable_prefix_caching": engine.prefix_caching,
                "disable_log_stats": True,
                **_engine_flags(engine),
            },
        }
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serving.ray_llm", json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={
                    **os.environ,
                    **engine_environment(engine),
                    **local_environment(haproxy=False),
                    **_RAY_LLM,
                    "PYTHONPATH": python_path(filter(None, [os.environ.get("PYTHONPATH")])),
                    "RAY_AUTH_TOKEN": secrets.token_hex(32),
                },
            )

    def wait_started(self) -> None:
        """See System."""
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, b"")
        if not any(line.strip() == STARTED.encode() for line in lines):
            raise RuntimeError(f"Ray Serve LLM did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    def processes(self) -> list[psutil.Process]:
        """See System."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def stop(self) -> None:
        """See System. Ray ends its own processes when its standard input closes."""
        assert self.process.stdin is not None
        family = self.processes()
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        stop_tree(self.process)
        psutil.wait_procs(family, timeout=10)


class Application(System):
    """This application on a local cluster, as ``delctl serve`` starts it."""

    kind = "application"
    rest = "cluster"

    def __init__(self, settings: Settings) -> None:
        self._server: LocalServer = start_local(settings)
        self.name = "application"
        url = urlsplit(self._server.url)
        assert url.hostname is not None
        assert url.port is not None
        self.host, self.port = url.hostname, url.port

    def soft_prompts(self, requests: int) -> dict[str, int]:
        """Count cache hits and misses of the soft prompt by the replica's metrics.

        Waits until the metrics count ``requests``, for at most 20 s.
        """
        deadline = time.monotonic() + _METRICS_WITHIN_S
        while True:
            with urllib.request.urlopen(f"http://{self._server.metrics[0]}/metrics") as answer:
                text = answer.read().decode()
            found = {"hit": 0, "miss": 0}
            for line in text.splitlines():
                if line.startswith("ray_del_soft_prompts_total{"):
                    kind = "hit" if 'cache="hit"' in line else "miss"
                    found[kind] += round(float(line.rsplit(" ", 1)[1]))
            if sum(found.values()) >= requests or time.monotonic() > deadline:
                return found
            time.sleep(0.25)

    def processes(self) -> list[psutil.Process]:
        """See System."""
        return self._server.processes()

    def stop(self) -> None:
        """See System."""
        self._server.stop()


def peak_memory_mb(processes: list[psutil.Process]) -> dict[str, int]:
    """Return the peak of the resident memory by role, since the start of each process."""
    peak: dict[str, int] = defaultdict(int)
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            line = " ".join(process.cmdline())
            role = next((role for part, role in _ROLES.items() if part in line), "rest")
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            peak[role] += next(int(one.split()[1]) // 1024 for one in status.splitlines() if one.startswith("VmHWM"))
    return dict(peak)


def _tokenizer(settings: Settings, directory: Path) -> Path:
    """Write a directory with the model's tokenizer as transformers reads it; return its path."""
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_bytes((settings.base_model_path / "tokenizer.json").read_bytes())
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return tokenizer


def _engine_flags(engine: VllmSettings) -> dict[str, Any]:
    """Return vLLM's arguments for the settings of the application, by their names in Python."""
    names = ("dtype", "block_size", "max_num_seqs", "gpu_memory_utilization", "tensor_parallel_size")
    optional = ("max_model_len", "kv_cache_memory_bytes", "max_num_batched_tokens")
    values = engine.model_dump(include={*names, *optional})
    return {name: value for name, value in values.items() if value is not None}


def stop_tree(process: subprocess.Popen[Any]) -> None:
    """End a process and all its descendants."""

    def family() -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(process.pid)
            yield root
            yield from root.children(recursive=True)

    found = list(family())
    for one in found:
        with contextlib.suppress(psutil.Error):
            one.terminate()
    _, alive = psutil.wait_procs(found, timeout=10)
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(alive, timeout=10)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
