"""The images and compose.yaml, checked without a container engine; their scripts run here."""

from __future__ import annotations

import http.server
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.settings import parse_settings
from scripts.lock import read_lock
from tests.cluster.test_alerts import promtool

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "cluster/docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
DIGEST = r"@sha256:[0-9a-f]{64}"
IMAGES = ("cpu", "gpu", "proxy")


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Return the stages of the Dockerfile: what each is built from, and its instructions."""
    text = (DOCKER / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            parent, _, name = rest.partition(" AS ")
            found[name] = (parent, [])
        elif name:
            found[name][1].append((instruction, rest.strip()))
        else:
            found[""] = (rest, [])  # the argument before the first stage
    return found


def instructions(stage: str) -> list[tuple[str, str]]:
    """Return the instructions of a stage and of those that it continues."""
    parent, own = stages()[stage]
    return [*(instructions(parent) if parent in stages() else []), *own]


def test_the_base_is_one_image_by_digest() -> None:
    found = stages()
    assert re.fullmatch(r"PYTHON=python:3\.11-slim-bookworm" + DIGEST, found.pop("")[0])
    assert {parent for parent, _ in found.values()} - set(found) == {"${PYTHON}"}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_confined_and_says_whether_it_is_healthy(image: str) -> None:
    found = instructions(image)
    assert [rest for name, rest in found if name == "USER"][-1] == "10001:10001"
    assert [name for name, _ in found].count("HEALTHCHECK") == 1
    (entry,) = [json.loads(rest) for name, rest in found if name == "ENTRYPOINT"]
    assert entry[0] in ("bash", "delctl")
    labels = " ".join(rest for name, rest in found if name == "LABEL")
    assert "del-serve.sbom=/opt/del-serve/sbom.cdx.json" in labels
    # Nothing of the build but the environment, in which the image's user may change nothing.
    copied = [rest for name, rest in found if name == "COPY" and "--from" in rest]
    assert copied == [f"--from=build-{image} /opt/del-serve /opt/del-serve"]
    assert not any("install.sh" in rest for _, rest in found)


def test_every_copied_file_exists_and_is_sent_to_the_build() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in sent)
    for _, own in stages().values():
        for name, rest in own:
            if name == "COPY" and "--from" not in rest:
                *sources, _ = [part for part in rest.split() if not part.startswith("--")]
                for source in sources:
                    assert (ROOT / source).exists(), source
                    assert source == "." or source.split("/")[0] in sent, source


def test_cpu_and_gpu_images_can_be_nodes_of_one_cluster() -> None:
    cpu, gpu = read_lock("cpu"), read_lock("gpu")
    for name in ("ray", "pydantic", "starlette", "numpy", "cloudpickle"):
        assert cpu[name].split()[0] == gpu[name].split()[0]


def test_the_bill_of_materials_names_what_is_installed() -> None:
    done = subprocess.run([sys.executable, DOCKER / "sbom.py"], capture_output=True, text=True, check=True)
    bill = json.loads(done.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = {one["name"]: one for one in bill["components"]}
    assert {"numpy", "del-serve", "ray"} <= set(found)
    assert all(one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in found.values())


@pytest.fixture
def answers() -> Iterator[tuple[str, list[int]]]:
    """A URL, and the status that it answers next."""
    status = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/readyz", status
        server.shutdown()
        thread.join()


def test_the_health_check_follows_the_answer(answers: tuple[str, list[int]]) -> None:
    url, status = answers
    for status[0], code in ((200, 0), (503, 1)):
        assert subprocess.run([sys.executable, DOCKER / "healthy.py", url], check=False).returncode == code
    gone = [sys.executable, DOCKER / "healthy.py", "http://127.0.0.1:1/readyz"]
    assert subprocess.run(gone, check=False).returncode == 1


@pytest.fixture
def container(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """serve.sh with paths of this machine, and programs that record how they are called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    record = f'echo "$(basename $0) $@" >> {tmp_path}/calls\n'
    bodies = {
        "ray": 'trap "exit 0" TERM; sleep 60 & wait',
        "delctl": f'[ "$1" != status ] || [ -e {tmp_path}/status ] || {{ touch {tmp_path}/status; exit 1; }}',
        "serve": "",
    }
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/bash\n{record}{body}\n")
        (programs / name).chmod(0o755)
    script = (DOCKER / "serve.sh").read_text("utf-8")
    script = script.replace("/tmp/ray-token", f"{tmp_path}/ray-token")
    script = script.replace("/usr/local/lib/del-serve/environment", str(ROOT / "cluster/machines/environment"))
    (tmp_path / "serve.sh").write_text(script)
    return tmp_path, {"PATH": f"{programs}:/usr/bin:/bin", "DEL_CPUS": "3"}


def test_the_server_deploys_and_finishes_its_requests_before_it_ends(container: tuple[Path, dict[str, str]]) -> None:
    directory, environment = container
    calls = directory / "calls"
    with subprocess.Popen(["bash", directory / "serve.sh"], env=environment) as process:
        end = time.monotonic() + 60
        while not (calls.exists() and "delctl deploy" in calls.read_text()):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    address = "--address http://127.0.0.1:8265"
    others = calls.read_text().splitlines()
    # In the background, so it may be the second.
    others.remove("ray start --head --block --dashboard-host=127.0.0.1 --metrics-export-port=8080 --num-cpus=3")
    assert others == [
        f"delctl status {address}",
        f"delctl status {address}",
        f"delctl deploy /etc/del-serve/serve.yaml {address}",
        f"serve shutdown --yes {address}",
    ]
    token = directory / "ray-token"
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
    assert token.stat().st_mode & 0o077 == 0


def test_arguments_of_the_server_are_a_command(container: tuple[Path, dict[str, str]]) -> None:
    directory, environment = container
    command = ["bash", directory / "serve.sh", "serve", "--version"]
    subprocess.run(command, env=environment, check=True)
    assert (directory / "calls").read_text() == "serve --version\n"


def test_the_default_configuration_is_valid_for_the_application() -> None:
    (application,) = yaml.safe_load((DOCKER / "serve.yaml").read_text("utf-8"))["applications"]
    parse_settings(application["args"]).keys.check(loopback=False)


def test_compose_confines_every_service_and_publishes_on_loopback_only() -> None:
    for name, one in COMPOSE["services"].items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), name
        if "build" in one:
            assert one["build"]["target"] in IMAGES
            assert (DOCKER / one["build"]["context"] / one["build"]["dockerfile"]).is_file()
        else:
            assert re.search(DIGEST + "$", one["image"]), name
    # The server reaches nothing outside, and nothing outside reaches it.
    assert COMPOSE["services"]["server"]["networks"] == ["serving"]
    assert COMPOSE["networks"]["serving"] == {"internal": True}
    assert "ports" not in COMPOSE["services"]["server"]


def test_the_command_of_the_proxy_is_one() -> None:
    from delctl.commands.proxy import proxy

    service = COMPOSE["services"]["proxy"]
    (entry,) = [json.loads(rest) for name, rest in instructions("proxy") if name == "ENTRYPOINT"]
    assert entry[:2] == ["delctl", "proxy"]
    values = proxy.make_context("proxy", [*entry[2:], *service["command"]]).params
    assert values["ledger_place"].startswith("/var/lib/del-proxy/")
    assert "DEL_PROXY_KEY" in service["environment"]


def test_compose_mounts_files_that_exist_and_prometheus_reads_its_own(tmp_path: Path) -> None:
    files = {name: DOCKER / one["file"] for name, one in COMPOSE["configs"].items()}
    for name, one in COMPOSE["services"].items():
        for mounted in one.get("configs", []):
            assert files[mounted["source"]].is_file(), name
    # As Prometheus sees them.
    for mounted in COMPOSE["services"]["prometheus"]["configs"]:
        text = files[mounted["source"]].read_text("utf-8").replace("/run/secrets/", f"{tmp_path}/")
        (tmp_path / Path(mounted["target"]).name).write_text(text)
    (tmp_path / "proxy-key").write_text("key")
    promtool("check", "config", tmp_path / "prometheus.yml")
    board = json.loads((DOCKER / COMPOSE["configs"]["dashboard"]["file"]).read_text("utf-8"))
    assert board["title"]
