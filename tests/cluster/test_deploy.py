"""Deployment through a dashboard: configs as ``serve deploy`` would send them, and what changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.deploy import ClusterError, Dashboard, changes, deploy, read_config, token_from_environment
from cluster.local.background import local_config
from delctl.main import run
from deployments.settings import Settings, SettingsError, parse_settings

ARGS = {"bundle": "/bundles/a", "base_model": "/models/m", "keys": {"file": "/etc/keys.yaml"}}
TOKEN = "the-token-of-the-cluster"


def config_of(**args: Any) -> dict[str, Any]:
    application = {
        "name": "chat",
        "route_prefix": "/",
        "import_path": "deployments.app:build",
        "args": {**ARGS, **args},
    }
    return {"applications": [application]}


def details_of(config: dict[str, Any], status: str = "RUNNING") -> dict[str, Any]:
    """Return what a dashboard answers when a config is deployed."""
    applications = {
        one["name"]: {
            "status": status,
            "message": "",
            "source": "declarative",
            "deployed_app_config": one,
            "deployments": {"PrivateLM": {"message": "", "replicas": [], "target_num_replicas": 1}},
        }
        for one in config["applications"]
    }
    http_options = {"host": "0.0.0.0", "port": 8000, "root_path": ""}
    return {"applications": applications, "http_options": http_options, "proxy_location": "EveryNode"}


def test_the_same_config_changes_nothing() -> None:
    assert changes(details_of(config_of()), config_of()) == []


def test_a_default_that_is_written_out_is_no_change() -> None:
    written = config_of(scaling={"max_replicas": 1, "min_replicas": 1}, engine={"kind": "vllm"})
    assert changes(details_of(config_of()), written) == []
    assert changes(details_of(written), config_of()) == []


def test_a_change_names_the_field_and_both_values() -> None:
    (one,) = changes(details_of(config_of()), config_of(scaling={"max_replicas": 4}))
    assert (one.application, one.field, one.before, one.after) == ("chat", "args.scaling.max_replicas", 1, 4)
    assert one.to_json()["effect"] == "replicas are replaced one after another"


def test_applications_come_and_go() -> None:
    other = config_of()
    other["applications"][0] = {**other["applications"][0], "name": "drafts"}
    found = {(one.application, one.effect) for one in changes(details_of(config_of()), other)}
    assert found == {("chat", "stops"), ("drafts", "starts")}


def test_options_of_the_proxy_need_a_new_start_of_serve() -> None:
    moved = {**config_of(), "http_options": {"port": 9000, "host": "0.0.0.0"}}
    (one,) = changes(details_of(config_of()), moved)
    assert (one.application, one.field, one.before, one.after) == (None, "http_options.port", 8000, 9000)
    assert changes({**details_of({"applications": []}), "http_options": None}, moved)[0].effect == "starts"


def test_hashes_of_keys_are_not_shown() -> None:
    def names(letter: str) -> dict[str, Any]:
        return {"names": {"alice": {"hashes": [f"sha256:{letter * 64}"]}}}

    (one,) = changes(details_of(config_of(keys=names("a"))), config_of(keys=names("b")))
    assert (one.before, one.after) == ("...", "...")
    assert one.field == "args.keys.names.alice.hashes"


def test_a_config_of_another_version_is_compared_as_it_is() -> None:
    running = config_of(field_of_the_future=3)
    found = {one.field for one in changes(details_of(running), config_of())}
    assert "args.field_of_the_future" in found


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "min_replicas": st.integers(0, 1),
            "max_replicas": st.integers(3, 6),
            "num_gpus": st.integers(0, 4),
            "downscale_delay_s": st.integers(0, 500),
        },
    ),
    st.integers(1, 500),
)
def test_exactly_the_fields_that_differ_are_changes(scaling: dict[str, Any], max_num_seqs: int) -> None:
    wanted = config_of(scaling=scaling, engine={"max_num_seqs": max_num_seqs})
    before = parse_settings(ARGS).model_dump(mode="json")
    after = parse_settings({**ARGS, "scaling": scaling, "engine": {"max_num_seqs": max_num_seqs}}).model_dump(
        mode="json"
    )
    expected = {
        f"args.{section}.{name}"
        for section in ("scaling", "engine")
        for name in before[section]
        if before[section][name] != after[section][name]
    }
    assert {one.field for one in changes(details_of(config_of()), wanted)} == expected
    assert changes(details_of(wanted), wanted) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"bundle": "bundles/a"}, "args.bundle must be a URL, or an absolute path on every node, got bundles/a"),
        ({"extra_bundles": ["/b", "c"]}, "args.extra_bundles.1 must be a URL, or an absolute path"),
        ({"keys": {"file": "keys.yaml"}}, "args.keys.file must be an absolute path"),
        ({"gateway": {"key_file": "key.json"}}, "args.gateway.key_file must be an absolute path"),
        ({"passes": {"key_file": "key.json"}}, "args.passes.key_file must be an absolute path"),
        ({"keys": {}}, "keys.file or keys.names must be given"),
        ({"scaling": {"max_replicas": 0}}, "scaling.max_replicas"),
        ({"config": "settings.yaml"}, "args.config must be an absolute path"),
    ],
)
def test_a_config_that_cannot_work_on_other_machines_is_refused(
    args: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "serve.yaml"
    values = config_of(**args)
    if "config" in args:
        values["applications"][0]["args"] = args
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError, match=words):
        read_config(path)


def test_a_good_config_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    values = {**config_of(scaling={"max_replicas": 3}), "proxy_location": "EveryNode"}
    path.write_text(yaml.safe_dump(values))
    assert read_config(path) == values
    path.write_text(
        yaml.safe_dump(
            {**config_of(), "applications": [{**config_of()["applications"][0], "args": {"config": "/etc/a.yaml"}}]}
        )
    )
    assert read_config(path)["applications"][0]["args"] == {"config": "/etc/a.yaml"}


def test_a_file_without_applications_is_no_config_for_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("bundle: demo\n")
    with pytest.raises(SettingsError, match="applications must be given"):
        read_config(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
def test_the_config_of_a_local_cluster_is_valid_for_serve_and_for_the_application(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    settings = parse_settings(
        {"bundle": str(tmp_path / "b"), "base_model": str(tmp_path / "m"), "engine": {"kind": "mock"}}
    )
    config = local_config(settings, {"host": "127.0.0.1", "port": 1234})
    (application,) = ServeDeploySchema.model_validate(config).applications
    sent = parse_settings(application.args)
    sent.keys.check(loopback=False)
    assert (sent.bundle_path, sent.base_model_path, sent.engine.kind) == (tmp_path / "b", tmp_path / "m", "mock")
    (demo,) = local_config(Settings(), {})["applications"]
    assert demo["args"] == {"keys": {"open": True}}


Answer = tuple[int, Any]


class FakeDashboard:
    """A dashboard that answers from a script, for behavior that a real one shows rarely."""

    def __init__(self, answers: Callable[[str, str, Any], Answer]) -> None:
        seen = self.seen = []  # type: list[tuple[str, str, str | None]]

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                seen.append((self.command, self.path, self.headers.get("authorization")))
                status, answer = answers(self.command, self.path, json.loads(body) if body else None)
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = handle_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeDashboard]]:
    made: list[FakeDashboard] = []

    def make(answers: Callable[[str, str, Any], Answer]) -> FakeDashboard:
        made.append(FakeDashboard(answers))
        made[-1].thread.start()
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def test_a_deployment_waits_until_everything_runs(fake: Callable[..., FakeDashboard]) -> None:
    states = iter(["DEPLOYING", "DEPLOYING", "RUNNING"])

    def answer(method: str, path: str, body: Any) -> Answer:
        return (200, "") if method == "PUT" else (200, details_of(config_of(), next(states)))

    one = fake(answer)
    with Dashboard(one.url, TOKEN) as dashboard:
        deploy(dashboard, config_of(), timeout_s=30)
    assert [seen[0] for seen in one.seen] == ["PUT", "GET", "GET", "GET"]
    assert {seen[2] for seen in one.seen} == {f"Bearer {TOKEN}"}


def test_a_deployment_waits_for_the_end_of_what_stops_and_for_nothing_else(fake: Callable[..., FakeDashboard]) -> None:
    leaving = details_of(config_of())
    leaving["applications"]["old"] = {**leaving["applications"]["chat"], "status": "DELETING"}
    beside = details_of(config_of())
    beside["applications"]["program"] = {
        **beside["applications"]["chat"],
        "source": "imperative",
        "status": "DEPLOYING",
    }
    answers = iter([leaving, leaving, beside])
    one = fake(lambda method, path, body: (200, "") if method == "PUT" else (200, next(answers)))
    with Dashboard(one.url) as dashboard:
        deploy(dashboard, config_of(), timeout_s=30)
    assert next(answers, None) is None


def test_an_application_that_does_not_start_is_reported_with_its_reason(fake: Callable[..., FakeDashboard]) -> None:
    failed = details_of(config_of(), "DEPLOY_FAILED")
    failed["applications"]["chat"]["deployments"]["PrivateLM"]["message"] = (
        'ray::ServeReplica (pid=1)\n  File "/a/replica.py", line 1\nx.BundleError: /bundles/a: must be present\n'
    )
    one = fake(lambda method, path, body: (200, "") if method == "PUT" else (200, failed))
    with Dashboard(one.url) as dashboard, pytest.raises(ClusterError) as caught:
        deploy(dashboard, config_of(), timeout_s=30)
    assert str(caught.value) == "application chat was not deployed: /bundles/a: must be present"


def test_a_deployment_does_not_wait_for_ever(fake: Callable[..., FakeDashboard]) -> None:
    one = fake(lambda method, path, body: (200, "") if method == "PUT" else (200, details_of(config_of(), "DEPLOYING")))
    with Dashboard(one.url) as dashboard, pytest.raises(ClusterError, match="within 0 s: chat DEPLOYING"):
        deploy(dashboard, config_of(), timeout_s=0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, "no"), "needs the cluster's token, in RAY_AUTH_TOKEN"),
        ((400, "ValidationError: route_prefix"), "answered 400: ValidationError: route_prefix"),
        ((200, "<html>hello</html>"), "must be a Ray dashboard, got another answer"),
    ],
)
def test_what_a_dashboard_refuses_is_told(answer: Answer, words: str, fake: Callable[..., FakeDashboard]) -> None:
    one = fake(lambda method, path, body: answer)
    with Dashboard(one.url) as dashboard, pytest.raises(ClusterError, match=words):
        dashboard.serve_details()


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "8265"])
def test_an_address_is_that_of_a_dashboard(address: str) -> None:
    with pytest.raises(ClusterError, match="address must be that of a Ray dashboard, http://HOST:PORT, got"):
        Dashboard(address)


def test_no_dashboard_at_all() -> None:
    with Dashboard("http://127.0.0.1:9") as dashboard, pytest.raises(ClusterError, match="no answer from"):
        dashboard.serve_details()


def test_the_token_is_found_where_ray_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert token_from_environment() is None
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert token_from_environment() == "from-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "direct")
    assert token_from_environment() == "direct"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH must name a readable file"):
        token_from_environment()


def test_the_command_says_what_would_change_and_sends_nothing(
    fake: Callable[..., FakeDashboard], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fake(lambda method, path, body: (200, details_of(config_of())))
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config_of(bundle="/bundles/b")))
    assert run(["deploy", str(path), "--address", one.url, "--check"]) == 0
    output = capsys.readouterr().out
    assert output.strip() == (
        'chat: args.bundle: "/bundles/a" -> "/bundles/b" (replicas are replaced one after another)'
    )
    assert run(["deploy", str(path), "--address", one.url, "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["deployed"] is False
    assert [change["field"] for change in found["changes"]] == ["args.bundle"]
    assert {seen[0] for seen in one.seen} == {"GET"}


@pytest.mark.parametrize(
    ("applications", "words"),
    [
        (3, "applications must be"),
        ([{"route_prefix": "/"}], "name"),
        ([{"name": "a", "route_prefix": "/", "args": 3}], "args"),
    ],
)
def test_a_malformed_config_is_refused_in_a_sentence(applications: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": applications}))
    with pytest.raises(SettingsError, match=words):
        read_config(path)


def test_a_file_of_settings_on_the_nodes_does_not_excuse_the_other_applications(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    in_a_file = {"name": "a", "route_prefix": "/a", "args": {"config": "/etc/a.yaml"}}
    open_to_all = {"name": "b", "route_prefix": "/b", "args": {**ARGS, "keys": {}}}
    path.write_text(yaml.safe_dump({"applications": [in_a_file, open_to_all]}))
    with pytest.raises(SettingsError, match=r"keys\.file or keys\.names must be given"):
        read_config(path)


def test_variables_of_the_environment_are_not_shown() -> None:
    def with_token(token: str) -> dict[str, Any]:
        config = config_of()
        config["applications"][0]["runtime_env"] = {"env_vars": {"HF_TOKEN": token}}
        return config

    (one,) = changes(details_of(with_token("a")), with_token("b"))
    assert (one.field, one.before, one.after) == ("runtime_env.env_vars.HF_TOKEN", "...", "...")


def test_the_token_of_a_local_cluster_goes_to_no_proxy(
    fake: Callable[..., FakeDashboard], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = fake(lambda *_: (200, {}))
    cluster = fake(lambda *_: (200, details_of(config_of())))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Dashboard(cluster.url, TOKEN) as dashboard:
        assert dashboard.serve_details()["applications"]
    assert proxy.seen == []
    assert cluster.seen[0][2] == f"Bearer {TOKEN}"
