"""Files for clusters without Kubernetes: each is read by the tool that reads it in use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.env import cluster_environment

MACHINES = Path(__file__).resolve().parents[2] / "cluster/machines"
LAUNCHER = sorted(MACHINES.glob("ray-cluster*.yaml"))
UNITS = sorted(MACHINES.glob("*.service"))


def shell_environment() -> dict[str, str]:
    """Return the variables that a shell has after it has read the environment file."""
    script = f"set -a; . {MACHINES}/environment; env -0"
    done = subprocess.run(["sh", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    pairs = (entry.partition("=") for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, _, value in pairs if name.startswith(("RAY_", "DEL_"))}


def test_the_environment_is_that_of_every_cluster() -> None:
    found, expected = shell_environment(), cluster_environment()
    assert found.pop("RAY_AUTH_TOKEN_PATH") == "/etc/del/ray-token"
    del expected["RAY_AUTH_TOKEN_PATH"]
    assert found == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.stem)
def test_rays_launcher_reads_its_files(file: Path) -> None:
    """With the schema and the defaults that `ray up` uses."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    values: dict[str, Any] = yaml.safe_load(file.read_text())
    config = prepare_config(values)
    validate_config(config)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        stop, start = commands
        assert stop.endswith("ray stop")
        assert ". /opt/del-serve/environment" in start
        subprocess.run(["sh", "-n", "-c", start], check=True)
    assert list(config["file_mounts"]) == ["/opt/del-serve/environment"]
    assert (MACHINES / values["file_mounts"]["/opt/del-serve/environment"]).is_file()
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_units_start_ray_with_the_environment(file: Path) -> None:
    text = file.read_text()
    assert "EnvironmentFile=/etc/del/environment\n" in text
    (start,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    assert start.startswith("/opt/del-serve/.venv/bin/ray start --block ")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_systemd_accepts_the_units(file: Path, tmp_path: Path) -> None:
    program = tmp_path / "ray"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / file.name
    unit.write_text(file.read_text().replace("/opt/del-serve/.venv/bin/ray", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_slurm_script_starts_a_node_on_every_host_and_cleans_up(tmp_path: Path) -> None:
    """With stand-ins for Slurm and Ray that write down how they were called."""
    home, log = tmp_path / "home", tmp_path / "calls"
    tools = {
        tmp_path / "bin/scontrol": "printf 'one\\ntwo\\nthree\\n'",
        tmp_path / "bin/srun": f'echo "srun $*" >> {log}; echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH" >> {log}.token; '
        f'cat "$RAY_AUTH_TOKEN_PATH" >> {log}.secret; exec sleep 60',
        home / ".venv/bin/delctl": f'echo "delctl $*" >> {log}; case $1 in deploy) kill -TERM $PPID;; '
        f'status) [ "$(grep -c ^srun {log})" = 3 ];; esac',  # when every step has been called
        home / ".venv/bin/serve": f'echo "serve $*" >> {log}',
    }
    for path, body in tools.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    shutil.copy(MACHINES / "environment", home)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "DEL_HOME": str(home),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "one,two,three",
        "SLURM_CPUS_PER_TASK": "8",
    }
    done = subprocess.run(
        ["bash", str(MACHINES / "del-serve.slurm")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    starts = sorted(call for call in calls if call.startswith("srun"))
    one = "srun --nodes=1 --ntasks=1 --nodelist="
    ray = f"{home}/.venv/bin/ray start"
    assert starts == [
        f"{one}one {ray} --head --block --port=6379 --dashboard-host=127.0.0.1 --num-cpus=8",
        f"{one}three {ray} --block --address=one:6379 --num-cpus=8",
        f"{one}two {ray} --block --address=one:6379 --num-cpus=8",
    ]
    assert calls[-2:] == [
        f"delctl deploy {home}/serve.yaml --address http://127.0.0.1:8265",
        "serve shutdown --yes --address http://127.0.0.1:8265",
    ]
    token = home / "jobs/7.token"
    assert set((tmp_path / "calls.token").read_text().splitlines()) == {f"token {token}"}
    assert not token.exists()
    (secret,) = {(tmp_path / "calls.secret").read_text()[:64]}
    assert re.fullmatch("[0-9a-f]{64}", secret)
