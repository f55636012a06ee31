"""The record of a cluster in the background, its nodes, and commands without a cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import logs, processes
from cluster.local.background import UpOptions, down, nodes_for, running_cluster
from cluster.local.nodes import Nodes
from cluster.local.state import ClusterRecord, ProcessId, StateError, lock, read_record, write_record
from delctl.main import run
from deployments.settings import as_applications, parse_settings


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "state"
    monkeypatch.setenv("DEL_STATE_DIR", str(directory))
    return directory


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any cluster."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def record_of(keeper: ProcessId, supervisor: ProcessId, directory: Path, token: str = "t" * 32) -> ClusterRecord:
    return ClusterRecord(
        phase="running",
        keeper=keeper,
        supervisor=supervisor,
        token=token,
        ray_token="r" * 64,
        url="http://127.0.0.1:1",
        dashboard_url="http://127.0.0.1:2",
        gcs_address="127.0.0.1:3",
        directory=str(directory),
        proxy="serve",
        nodes=dataclasses.asdict(Nodes()),
        http_options={"host": "127.0.0.1", "port": 1},
    )


def earlier(process: ProcessId) -> ProcessId:
    """Return the process that had this id before it was given again."""
    return dataclasses.replace(process, started=process.started - 1)


def test_a_record_is_read_back_and_private(tmp_path: Path, state: Path) -> None:
    me = ProcessId.of(os.getpid())
    record = record_of(me, me, tmp_path)
    write_record(record)
    assert read_record() == record == running_cluster()
    assert stat.S_IMODE((state / "cluster.json").stat().st_mode) == 0o600
    assert [path.name for path in state.iterdir()] == ["cluster.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_record_is_named(text: str, state: Path) -> None:
    state.mkdir()
    (state / "cluster.json").write_text(text)
    with pytest.raises(StateError, match=r"cluster\.json must be the record of a local cluster"):
        read_record()


def test_a_process_is_known_by_its_start(sleeper: subprocess.Popen[bytes]) -> None:
    found = ProcessId.of(sleeper.pid)
    assert found.alive
    assert not earlier(found).alive
    assert not dataclasses.replace(found, boot="another").alive
    sleeper.kill()
    sleeper.wait()
    assert not found.alive
    with pytest.raises(ProcessLookupError):
        ProcessId.of(sleeper.pid)


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    found = ProcessId.of(process.pid)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.read()  # to its end, but the process is not collected yet
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not found.alive
    process.wait()


def test_an_unrelated_process_with_the_id_of_keeper_and_supervisor_survives(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, state: Path
) -> None:
    reused = earlier(ProcessId.of(sleeper.pid))
    directory = tmp_path / "files"
    directory.mkdir()
    record = record_of(reused, reused, directory)
    write_record(record)
    assert running_cluster() is None
    assert down() == record
    assert sleeper.poll() is None
    assert not directory.exists()
    assert read_record() is None


def test_what_a_crashed_cluster_left_is_ended(tmp_path: Path) -> None:
    """An orphan of a dead supervisor: in its session, or with the cluster's token only."""
    token = "a" * 32
    environment = {**os.environ, processes.MARKER: token}
    script = (
        "import subprocess, sys\n"
        "for new in (False, True):\n"
        "    print(subprocess.Popen(['sleep', '600'], start_new_session=new, stdout=subprocess.DEVNULL).pid)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, start_new_session=True, stdout=subprocess.PIPE, check=True
    )
    orphans = [ProcessId.of(int(pid)) for pid in found.stdout.split()]
    assert [one.alive for one in orphans] == [True, True]
    session = os.getsid(orphans[0].pid)
    dead = ProcessId(session, 1, orphans[0].boot)
    assert processes.is_session_of(token, session, tmp_path / "files")
    assert not processes.is_session_of("b" * 32, session, tmp_path / "files")
    write_record(record_of(dead, dead, tmp_path / "files", token))
    down()
    assert [one.alive for one in orphans] == [False, False]


def test_an_orphan_that_has_overwritten_its_environment_is_known_by_its_directory(tmp_path: Path) -> None:
    """Ray's agents change their title, and outlive a crash for a while."""
    files = tmp_path / "files"
    files.mkdir()
    with subprocess.Popen(["sleep", "600"], start_new_session=True, cwd=files, env={}) as agent:
        orphan = ProcessId.of(agent.pid)
        dead = earlier(orphan)
        assert not processes.is_session_of("a" * 32, agent.pid, tmp_path)
        write_record(record_of(dead, dead, files))
        down()
        assert not orphan.alive
    assert not files.exists()


def test_one_command_at_a_time() -> None:
    with lock(), pytest.raises(StateError, match="another delctl up or down works"), lock():
        pass
    with lock():
        pass


@pytest.mark.parametrize("command", [["status"], ["logs"], ["status", "--json"]])
def test_without_a_cluster_a_command_says_how_to_start_one(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 1
    assert "no cluster is running; start one with: delctl up" in capsys.readouterr().err


def test_down_without_a_cluster_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down"]) == 0
    assert capsys.readouterr().out == "no cluster was running\n"


def test_a_second_up_says_what_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    me = ProcessId.of(os.getpid())
    write_record(record_of(me, me, tmp_path))
    assert run(["up"]) == 1
    assert "a cluster runs already at http://127.0.0.1:1; stop it with: delctl down" in capsys.readouterr().err


def test_fewer_nodes_at_most_than_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--nodes", "3", "--max-nodes", "2"]) == 2
    assert "--max-nodes must be at least --nodes, which is 3, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--nodes", "2", "--max-nodes", "2"]])
def test_an_idle_timeout_without_nodes_to_remove(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", *options, "--idle-timeout", "5"]) == 2
    assert "--idle-timeout needs --max-nodes above --nodes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "replicas", "cpus"),
    [
        (UpOptions(nodes=1), 2, 3),  # and one while another one stops
        (UpOptions(nodes=3), 5, 3),
        (UpOptions(nodes=1, max_nodes=3), 6, 3),  # a node is added for the fourth
        (UpOptions(nodes=2, cpus=7), 6, 7),
    ],
)
def test_nodes_declare_what_the_applications_need(options: UpOptions, replicas: int, cpus: int) -> None:
    nodes = nodes_for(as_applications(parse_settings({"scaling": {"max_replicas": replicas}})), options)
    assert (nodes.minimum, nodes.cpus) == (options.nodes, cpus)
    assert nodes.autoscaled == (options.max_nodes is not None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
def test_rays_autoscaler_reads_the_nodes() -> None:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    nodes = Nodes(minimum=2, maximum=5, cpus=4, idle_timeout_s=90.0)
    read = AutoscalingConfig(nodes.autoscaler_config("127.0.0.1:1"), skip_content_hash=True)
    worker = read.get_node_type_configs()["worker"]
    assert (worker.min_worker_nodes, worker.max_worker_nodes, worker.resources) == (1, 4, {"CPU": 4})
    assert (read.get_idle_timeout_s(), read.get_max_num_worker_nodes()) == (90.0, 4)


def test_logs_are_followed_into_new_files(tmp_path: Path) -> None:
    serve = tmp_path / "r/session_2026/logs/serve"
    serve.mkdir(parents=True)
    first, second = serve / "controller_1.log", serve / "replica_a.log"
    first.write_text("old\nnew\n")
    assert logs.last_lines(first, 1) == ["new"]
    assert logs.log_files(tmp_path, logs.DEFAULT_PARTS) == [first]
    alive = threading.Event()
    alive.set()
    found = logs.follow(tmp_path, logs.DEFAULT_PARTS, alive.is_set)
    with first.open("a") as file:
        file.write("later\nhalf")
    second.write_text("replica\n")
    seen = [next(found)]
    alive.clear()
    assert [*seen, *found] == [(first, "later"), (second, "replica")]


def test_the_record_keeps_its_form(tmp_path: Path, state: Path) -> None:
    """A newer delctl must read what an older one wrote, to stop its cluster."""
    me = ProcessId.of(os.getpid())
    write_record(record_of(me, me, tmp_path))
    assert set(json.loads((state / "cluster.json").read_text())) == {
        "format", "phase", "keeper", "supervisor", "token", "ray_token", "url", "dashboard_url", "gcs_address",
        "directory", "proxy", "nodes", "http_options",
    }  # fmt: skip
