"""The backend as a process, and the files of its container."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from examples.mobile_backend.settings import Settings
from scripts.lock import read_lock
from tests.examples.mobile_backend.conftest import PLAN, WITHIN_S, events_of, eventually, text_of
from tests.examples.mobile_backend.test_messages import WHOLE, Gate
from tests.support.guide import ROOT
from tests.support.scripted_server import ScriptedServer

HERE = ROOT / "examples/mobile_backend"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_sigterm_lets_answers_end(
    server: ScriptedServer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = tmp_path / "plans.toml"
    plans.write_text(f'[free]\nvariant = "balanced"\nmax_epsilon_per_token = 1000\ntokens = 600\n'
                     f"answer_tokens = {PLAN.answer_tokens}\n")  # fmt: skip
    for name, value in {
        "DEL_URL": server.url,
        "REDIS_URL": settings.redis,
        "BACKEND_KEY": settings.key.hex(),
        "PLANS": str(plans),
        "PYTHONPATH": str(ROOT),
    }.items():
        monkeypatch.setenv(name, value)
    rest = Gate(after_events=1)
    server.script.append(rest)
    port = _free_port()
    command = [sys.executable, "-m", "examples.mobile_backend", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN_S, trust_env=False) as app:
            eventually(lambda: process.poll() is not None or _is_ready(app))
            headers = {"authorization": "Bearer alice-token"}
            message = {"id": "1", "text": "a"}
            with app.stream("POST", "/chats/1/messages", json=message, headers=headers) as answer:
                assert answer.status_code == 200, answer.read()
                lines = answer.iter_lines()
                first = next(lines)
                process.send_signal(signal.SIGTERM)
                eventually(lambda: not _accepts(port))  # the end has begun
                rest.open()
                assert text_of(events_of("\n".join([first, *lines]))) == WHOLE
        _, said = process.communicate(timeout=WITHIN_S)
        assert process.returncode in (0, -signal.SIGTERM), said  # uvicorn passes the signal on at its end
        assert '"event": "message"' in said
        assert all(line.startswith("{") for line in said.splitlines()), said
    finally:
        process.kill()
        process.wait()


def _is_ready(app: httpx.Client) -> bool:
    try:
        return app.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _accepts(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_wrong_settings_end_the_process_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEL_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("BACKEND_KEY", "abc")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "examples.mobile_backend"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: BACKEND_KEY: must be 64 hexadecimal digits, got 3 characters\n"


def test_the_image_is_confined_and_says_whether_it_is_healthy() -> None:
    text = (HERE / "Dockerfile").read_text("utf-8")
    assert re.search(r"^ARG PYTHON=python:3\.11-slim-bookworm$", text, re.MULTILINE)
    build, final = text.split("FROM ${PYTHON}\n")
    assert "FROM ${PYTHON} AS build" in build
    assert "USER 10001:10001" in final
    assert "HEALTHCHECK" in final
    assert "pip install" not in final
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert (ROOT / source).exists(), source
    sent = {
        line[1:].strip("/")
        for line in (HERE / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
        if line[:1] == "!"
    }
    assert "examples/mobile_backend" in sent


def test_the_packages_are_those_that_are_tested() -> None:
    locked = {**read_lock("cpu"), **read_lock("dev")}
    for line in (HERE / "requirements.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert locked[name].split()[0].endswith(version), line


def test_compose_keeps_what_was_charged() -> None:
    compose: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text("utf-8"))
    backend, redis = compose["services"]["backend"], compose["services"]["redis"]
    command = " ".join(redis["command"])
    for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert option in command
    assert backend["ports"] == ["127.0.0.1:9000:9000"]
    assert "ports" not in redis
    assert redis["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}
    for service in (backend, redis):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert (HERE / compose["configs"]["plans"]["file"]).exists()
    assert int(backend["stop_grace_period"].rstrip("s")) > Settings.drain
