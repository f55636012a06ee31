"""Settings of an engine of another distribution."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.toys import install_plugin

ROOT = Path(__file__).resolve().parents[2]


def test_settings_of_a_plugin(tmp_path: Path) -> None:
    """Settings of a plugin are typed, validated and documented as those of shipped kinds."""
    plugin = install_plugin(tmp_path / "packages", "register_engine")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(plugin), str(ROOT)))}
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
