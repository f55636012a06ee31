"""An engine of another distribution is served end to end, without a change here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client_lib import Client, public
from tests.support.toys import ENGINE_PLUGIN

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which a distribution with a plugin is installed."""
    packages = tmp_path / "packages"
    metadata = packages / "toy_engine-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[del_serve.plugins]\ntoy = toy_engine\n")
    (packages / "toy_engine.py").write_text(ENGINE_PLUGIN)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}


def test_settings_of_a_plugin(environment: dict[str, str]) -> None:
    """Settings of a plugin are typed, validated and documented as those of shipped kinds."""
    program = (
        "import json\n"
        "from deployments.engines import ENGINES\n"
        "from deployments.settings import SettingsError, parse_settings\n"
        "fields = ENGINES['toy'].settings.model_fields\n"
        "print(json.dumps([[name, field.default, field.description] for name, field in fields.items()]))\n"
        "try:\n"
        "    parse_settings({'engine': {'kind': 'toy', 'token': -1, 'dtype': 'float32'}})\n"
        "except SettingsError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    table, refusal = done.stdout.splitlines()
    fields = {name: (default, description) for name, default, description in json.loads(table)}
    assert fields["token"] == (5, "Token id that every completion repeats.")
    assert {"kind", "max_model_len", "max_num_seqs", "token"} == set(fields)
    assert all(description for _, description in fields.values())
    assert "engine.token must be greater than or equal to 0, got -1" in refusal
    assert "engine.dtype must be left out" in refusal


def test_an_engine_of_a_plugin_is_served(environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("engine: {kind: toy, token: 9}\n")
    command = [sys.executable, "-m", "delctl.main", "serve", "--config", str(config), "--port", "0"]
    # A suite that runs in the background of a shell ignores SIGINT, and its children inherit that.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with Client(url, cache_dir=tmp_path / "cache") as client:
            completion = client.complete([public("the sea")], variant="clear", max_tokens=6)
        assert completion.token_ids == (9,) * 6
        assert completion.finish_reason == "length"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
