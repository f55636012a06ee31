"""A running server observed from outside: a real Prometheus scrapes it, a collector takes its
traces, and nothing that derives from a prompt is found anywhere afterwards: not in logs,
tracebacks, session files, metrics, traces or what Ray's dashboard serves."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.support.prometheus import prometheus
from client_lib import Client, DELClientError, private, public
from cluster.local import LocalServer, start_local
from del_core.wire import MEDIA_TYPE
from deployments.settings import parse_settings
from deployments.telemetry.metrics import METRICS
from scripts.dashboard import PANELS
from tests.support.serving_frames import PATH

CANARY = "Xylophonic canary quagmire beside Zwieback"
PUBLIC_CANARY = "Dear Quetzalcoatl of Uxmal,"
STOP_CANARY = "jabberwocky-stop"
VARIANTS = ("strict", "open")
SCRAPED_WITHIN_S = 60.0


@dataclass
class Evidence:
    """Outputs of a run, and the secrets that must not be in them."""

    server: LocalServer
    spans: list[Any]
    secrets: dict[str, str | bytes | re.Pattern[bytes]]
    completions: int = 0
    metrics: str = ""
    dashboard: dict[str, bytes] = field(default_factory=dict)
    queries: dict[str, Any] = field(default_factory=dict)


def ids_pattern(token_ids: tuple[int, ...]) -> re.Pattern[bytes]:
    """Return these ids as a pattern for any notation of a list."""
    return re.compile(rb"[^0-9a-zA-Z]{1,3}".join(str(token).encode() for token in token_ids))


def found_in(secrets: dict[str, Any], content: bytes) -> list[str]:
    """Return the names of the secrets that are in ``content``."""
    names = []
    for name, secret in secrets.items():
        if isinstance(secret, re.Pattern):
            hit = secret.search(content) is not None
        else:
            hit = (secret.encode() if isinstance(secret, str) else secret) in content
        if hit:
            names.append(name)
    return names


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP/HTTP collector: its URL for traces, and the received requests."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SCRAPED_WITHIN_S
    while True:
        with suppress(httpx.HTTPError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, f"{what} not within {SCRAPED_WITHIN_S} s"
        time.sleep(0.1)


def query(url: str, expression: str) -> list[Any]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    result: list[Any] = answer["data"]["result"]
    return result


def total(url: str, expression: str) -> float:
    return sum(float(sample["value"][1]) for sample in query(url, expression))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    """The demo under requests that succeed and fail in every way, with all observers."""
    directory = tmp_path_factory.mktemp("prometheus")
    with collector() as (endpoint, spans), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEL_METRICS_INTERVAL_MS", "500")
        settings = parse_settings({"telemetry": {"traces": endpoint, "request_log": True}})
        with start_local(settings, dashboard=True) as server, prometheus(directory, server.metrics) as url:
            run = Evidence(server, spans, {})
            _use(run)
            _past_haproxy(run)
            counted = 'sum(ray_del_requests_total{code="ok"})'
            eventually(lambda: total(url, counted) >= run.completions, "the metrics of every completion")
            eventually(lambda: total(url, "sum(ray_del_requests_in_flight)") == 0, "the gauge")
            for panel in PANELS:
                for legend, expression in panel.targets:
                    filled = expression.replace("$__rate_interval", "30s").replace('"$application"', '".*"')
                    filled = filled.replace('"$variant"', '".*"')
                    # A rate needs two samples, and Serve's controller passes its figures on when it
                    # likes.
                    result = eventually(lambda: query(url, filled), f"{panel.title}: {filled}")  # noqa: B023
                    run.queries[f"{panel.title}: {legend}"] = result
            run.queries["codes"] = {
                sample["metric"]["code"]: float(sample["value"][1])
                for sample in query(url, "sum by (code) (ray_del_requests_total)")
            }
            names = {
                name: httpx.get(f"{url}/api/v1/series", params={"match[]": name}).json()["data"] for name in _names()
            }
            run.queries["series"] = names
            run.metrics = "".join(httpx.get(f"http://{target}/metrics").text for target in server.metrics)
            _break(run)
            run.dashboard = _seen_on_the_dashboard(server)
            eventually(lambda: any(_codes(spans)), "traces")
            yield run


def _names() -> list[str]:
    suffix = {"counter": "_total", "gauge": "", "histogram": "_count"}
    return [f"ray_{name}{suffix[metric.kind]}" for name, metric in METRICS.items()]


def _codes(spans: list[Any]) -> Iterator[str]:
    for export in list(spans):
        for resource in export.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    yield from (item.value.string_value for item in span.attributes if item.key == "del.code")


def _use(run: Evidence) -> None:
    """Send completions under every variant and refusals of every kind, with the canary."""
    prompt = [public(PUBLIC_CANARY), private(CANARY)]
    with Client(run.server.url) as client:
        for variant in VARIANTS:
            encoded = client.encode(prompt, variant=variant)
            for number in range(3):
                completion = client.complete(
                    encoded, variant=variant, max_tokens=12, stop=[STOP_CANARY], ignore_eos=True
                )
                streamed = list(client.stream(encoded, variant=variant, max_tokens=12, ignore_eos=True))
                run.completions += 2
                run.secrets[f"ids out, {variant} {number}"] = ids_pattern(completion.token_ids[:6])
                for name, text in (("whole", completion.text), ("streamed", "".join(chunk.text for chunk in streamed))):
                    longest = max(text.splitlines(), key=len)
                    if len(longest) >= 10:
                        run.secrets[f"text {name}, {variant} {number}"] = longest
        run.secrets |= {"canary": "Xylophonic", "public canary": "Quetzalcoatl", "stop canary": "jabberwocky"}
        bundle = client.bundle()
        tokenizer = _tokenizer(bundle)
        for name, text in (("canary's ids", CANARY), ("public canary's ids", PUBLIC_CANARY)):
            run.secrets[name] = ids_pattern(tuple(tokenizer.encode(text, add_special_tokens=False).ids[:6]))
    header = {"fingerprint": bundle.fingerprint, "variant": "strict", "segments": [{"public": [7, 8]}]}
    for extra in (
        {CANARY: 1},
        {"stop": [CANARY, 5]},
        {"variant": CANARY},
        {"max_tokens": CANARY},
        {"max_tokens": 100_000, "stop": [CANARY]},
        {"stop": [CANARY] * 9},
    ):
        _send(run, json.dumps({**header, **extra}).encode())
    _send(run, CANARY.encode())  # the prompt itself, sent by mistake
    httpx.post(run.server.url + PATH, content=CANARY.encode(), headers={"content-type": MEDIA_TYPE})
    httpx.post(run.server.url + PATH, json={"prompt": CANARY})


def _send(run: Evidence, header: bytes) -> None:
    frame = b"DELF\x01" + len(header).to_bytes(4, "little") + header
    run.secrets[f"frame {len(run.secrets)}"] = base64.b64encode(frame)[20:60]
    answer = httpx.post(run.server.url + PATH, content=frame, headers={"content-type": MEDIA_TYPE})
    assert answer.status_code == 400, answer.text


def _tokenizer(bundle: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(bundle.tokenizer_path))


def _secret(server: LocalServer, name: str) -> str:
    """Return a variable of the cluster's environment."""
    for process in server.processes():
        with suppress(psutil.Error):
            if value := process.environ().get(name):
                return value
    raise AssertionError(f"no process has {name}")


def _past_haproxy(run: Evidence) -> None:
    """A completion by the way that requests take while there is no replica: Serve's own proxy and
    its handle, which passes them on through Ray."""
    port = _secret(run.server, "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
    with Client(f"http://127.0.0.1:{port}") as client:
        client.complete([public(PUBLIC_CANARY), private(CANARY)], variant="open", max_tokens=12, stop=[STOP_CANARY])
        run.completions += 1


def _seen_on_the_dashboard(server: LocalServer) -> dict[str, bytes]:
    """What Ray's dashboard answers: every listing of its state API with all details, Serve's
    status, events, and every file that it lists as a log. Profiles and stack traces are not among
    them: they need py-spy, which is not there."""
    assert server.dashboard_url is not None
    assert httpx.get(f"{server.dashboard_url}/api/v0/tasks").status_code in (401, 403)
    seen: dict[str, bytes] = {}
    token = {"authorization": f"Bearer {_secret(server, 'RAY_AUTH_TOKEN')}"}
    with httpx.Client(base_url=server.dashboard_url, headers=token, timeout=SCRAPED_WITHIN_S) as client:

        def answered(path: str, params: dict[str, Any]) -> httpx.Response | None:
            answer = client.get(path, params=params)
            return None if answer.status_code >= 500 else answer  # the node's agent may be busy for a while

        def look(path: str, **params: Any) -> Any:
            answer = eventually(lambda: answered(path, params), f"{path} {params}")
            assert answer.status_code == 200, (path, params, answer.status_code, answer.text[:500])
            seen[str(answer.url)] = answer.content
            return answer

        everything = {"detail": True, "limit": 10_000}
        # Processes report what they do once a second.
        eventually(lambda: b"ServeReplica:del-serve" in look("/api/v0/actors", **everything).content, "actors")
        for kind in ("jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks", "workers"):
            look(f"/api/v0/{kind}", **everything)
        for kind in ("actors", "objects", "tasks"):
            look(f"/api/v0/{kind}/summarize")
        for path in ("/api/v0/cluster_events", "/api/v0/cluster_metadata", "/api/v0/tasks/timeline", "/events"):
            look(path)
        for path in ("/api/serve/applications/", "/api/cluster_status", "/api/component_activities", "/api/jobs/"):
            look(path)
        look("/logical/actors")
        look("/nodes", view="summary")
        for node in look("/api/v0/nodes").json()["data"]["result"]["result"]:
            look(f"/nodes/{node['node_id']}")
            for directory in ("", "serve/", "events/", "export_events/"):
                listing = client.get("/api/v0/logs", params={"node_id": node["node_id"], "glob": f"{directory}*"})
                if listing.status_code >= 500:
                    # Some nodes' agents never list their logs. What it would have shown are these
                    # files.
                    seen |= _log_files(server, directory)
                    continue
                for names in listing.json()["data"]["result"].values():
                    for name in {name for name in names if not name.endswith("/")}:
                        look("/api/v0/logs/file", node_id=node["node_id"], filename=name, lines=-1)
    return seen


def _log_files(server: LocalServer, directory: str) -> dict[str, bytes]:
    found = {}
    for path in server.directory.glob(f"r/session_2*/logs/{directory}*"):
        with suppress(OSError):
            found[f"/api/v0/logs/file: {path.name}"] = path.read_bytes()
    return found


def _break(run: Evidence) -> None:
    """Kill the engine while a stream with the canary is in flight: tracebacks are written."""
    engines = [p for p in run.server.processes() if " ".join(p.cmdline()).startswith("VLLM::EngineCore")]
    assert engines
    # Without retries: the client would wait for the next replica and resume the stream.
    with Client(run.server.url, max_retries=0) as client, suppress(DELClientError):
        received: tuple[int, ...] = ()
        for chunk in client.stream([private(CANARY)], variant="open", max_tokens=300, ignore_eos=True):
            received += chunk.token_ids
            if len(received) < 6:
                continue
            run.secrets["ids of the broken stream"] = ids_pattern(received[:6])
            for engine in engines:
                with suppress(Exception):
                    engine.kill()


def test_prometheus_has_every_metric_by_variant(evidence: Evidence) -> None:
    for name, series in evidence.queries["series"].items():
        assert series, name
        assert {one["application"] for one in series} == {"del-serve"}
        assert all(one.get("replica") for one in series)
    variants = {one["variant"] for one in evidence.queries["series"]["ray_del_output_tokens_total"]}
    assert variants == set(VARIANTS)
    cached = {(one["variant"], one["cache"]) for one in evidence.queries["series"]["ray_del_soft_prompts_total"]}
    assert {("open", "hit"), ("open", "miss"), ("strict", "hit"), ("strict", "miss")} == cached


def test_requests_are_counted_by_code(evidence: Evidence) -> None:
    codes = evidence.queries["codes"]
    assert codes["ok"] == evidence.completions
    assert {"unknown_field", "invalid_value", "unsupported_media_type"} <= set(codes), codes
    assert codes["unsupported_media_type"] == 1


def test_every_panel_of_the_dashboard_has_data(evidence: Evidence) -> None:
    panels = {name: result for name, result in evidence.queries.items() if ": " in name}
    assert len(panels) == sum(len(panel.targets) for panel in PANELS)
    assert [name for name, result in panels.items() if not result] == []


def test_traces_reach_the_collector(evidence: Evidence) -> None:
    def complete() -> bool:
        codes = list(_codes(evidence.spans))
        return codes.count("ok") >= evidence.completions and "unknown_field" in codes

    eventually(complete, "a span for every completion")


def test_the_log_has_a_line_of_json_for_every_request(evidence: Evidence) -> None:
    lines = []
    for file in evidence.server.directory.glob("r/session_2*/logs/serve/replica_*.log"):
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    completions = [line for line in lines if line.get("logger") == "deployments.requests"]
    assert sum(line["code"] == "ok" for line in completions) >= evidence.completions
    assert all(line["request_id"] for line in completions)


def test_nothing_of_a_prompt_is_left_anywhere(evidence: Evidence) -> None:
    """No secret is in any file of the cluster, in the metrics or in the traces."""
    assert len(evidence.secrets) > 20
    searched = 0
    leaks = []
    for path in evidence.server.directory.rglob("*"):
        if path.is_file():
            with suppress(OSError):
                content = path.read_bytes()
                searched += len(content)
                leaks += [f"{name} in {path.name}" for name in found_in(evidence.secrets, content)]
    assert searched > 50_000
    leaks += [f"{name} in metrics" for name in found_in(evidence.secrets, evidence.metrics.encode())]
    assert "ray_del_requests_total" in evidence.metrics
    for export in evidence.spans:
        leaks += [f"{name} in traces" for name in found_in(evidence.secrets, export.SerializeToString())]
    assert leaks == []


def test_nothing_of_a_prompt_is_on_rays_dashboard(evidence: Evidence) -> None:
    """No secret is in tasks, actors, status, events or logs of Ray's dashboard."""
    seen = evidence.dashboard
    everything = b"".join(seen.values())
    # What the search would be worth nothing without: the replica's actor, Serve's status, and a
    # replica's log. (Serve's own calls are not among the tasks, as long as nobody sets
    # RAY_SERVE_ENABLE_TASK_EVENTS.)
    for expected in (b"ServeReplica:del-serve", b'"del-serve"', b"deployments.requests"):
        assert expected in everything, expected
    assert sum("/api/v0/logs/file" in url for url in seen) >= 10
    leaks = [f"{name} in {url}" for url, content in seen.items() for name in found_in(evidence.secrets, content)]
    assert leaks == []


def test_what_would_be_a_leak_is_seen(evidence: Evidence) -> None:
    for text in (f"prompt={CANARY!r}", PUBLIC_CANARY):
        assert found_in(evidence.secrets, text.encode())
    pattern = evidence.secrets["canary's ids"]
    assert isinstance(pattern, re.Pattern)
    ids = [int(part) for part in re.findall(rb"\d+", pattern.pattern.replace(b"[^0-9a-zA-Z]{1,3}", b" "))]
    for written in (str(ids), str(tuple(ids)), json.dumps(ids, separators=(",", ":")), " ".join(map(str, ids))):
        assert "canary's ids" in found_in(evidence.secrets, written.encode())
