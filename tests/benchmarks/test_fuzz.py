"""Short runs of ``python -m benchmarks.fuzz``: the parser, and HTTP of a running server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.fuzz import command as fuzz
from benchmarks.fuzz.archives import small_bundle
from benchmarks.fuzz.frames import good_frames
from benchmarks.fuzz.http import exchange, requests
from benchmarks.fuzz.mutations import mutated
from benchmarks.fuzz.server import fuzz_client
from client_lib import Model
from cluster.local import LocalServer
from del_core.bundle import Bundle
from tests.support.tiny import Tiny

PARSER_RUNS = 15_000
REQUESTS = 2_000


def test_the_parser_guided_by_coverage(tiny: Tiny, bundle: Bundle, tmp_path: Path) -> None:
    """libFuzzer finds no crash, and covers more than valid frames do."""
    report = fuzz.FuzzReport()
    fuzz.fuzz_parser(tiny.bundle, tmp_path, PARSER_RUNS, 7, report)
    assert report.findings == []
    assert report.parser_runs >= PARSER_RUNS
    assert report.parser_coverage > 200
    assert report.parser_corpus > 2 * len(good_frames(bundle))


def test_what_the_parser_should_not_do_is_found(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a module raises an unexpected error, the report holds the input."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(
        "import del_core.wire.frame as frame\n"
        "def unpack(*arguments, **options):\n    raise IndexError('planted')\n"
        "frame.unpack_codes = unpack\n"
    )
    monkeypatch.syspath_prepend(str(planted))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    report = fuzz.FuzzReport()
    fuzz.fuzz_parser(tiny.bundle, corpus, PARSER_RUNS, 7, report)
    assert any(finding.startswith("parser: input 44454c46") for finding in report.findings), report.findings
    assert any("IndexError" in finding for finding in report.findings)


@pytest.mark.cluster
def test_http_of_the_running_server(server: LocalServer, bundle: Bundle) -> None:
    """Wrong requests, through the proxy and directly, cause no 5xx except 503 and no hang."""
    report = fuzz.FuzzReport()
    fuzz.fuzz_http(server, bundle, REQUESTS, 7, report)
    assert report.findings == []
    assert report.requests == REQUESTS
    for answers in report.request_answers.values():
        assert {"200", "400", "404", "405", "413", "415"} <= set(answers)
    assert set(report.request_answers) == ({"proxy", "replica"} if server.proxy == "haproxy" else {"proxy"})


@pytest.mark.cluster
def test_frames_are_judged(server: LocalServer, bundle: Bundle) -> None:
    """The run that sends frames to the server, with few of them (test_faults.py sends more)."""
    report = fuzz.FuzzReport()
    fuzz.fuzz_server(server, bundle, mutated(good_frames(bundle), 300, 11), report)
    assert report.findings == []
    assert report.frames == 300
    assert report.frame_answers["ok"] > 0


async def test_statuses_are_read_as_they_are(bundle: Bundle) -> None:
    """A reply follows provisional answers; closing is no reply; silence is an error."""
    said = b""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(said)
        if said != b"silence":
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        request = next(requests(good_frames(bundle), 1, 1)) or b"x"
        said = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Internal Server Error\r\n\r\n"
        assert await exchange(host, port, request) == 500
        said = b""
        assert await exchange(host, port, request) is None
        said = b"silence"
        with pytest.raises(TimeoutError):
            await exchange(host, port, request, patience_s=0.05, limit_s=0.2)


def test_malicious_servers(tmp_path: Path) -> None:
    """Whatever a server answers, a call ends with a result or with an error of the family."""
    report = fuzz_client(small_bundle(tmp_path / "bundle"), 1500, 90, seed=7)
    assert report.findings == []
    plain, sealed = {"bundle", "chat", "complete", "models", "stream", "turn"}, {"complete", "models", "stream"}
    assert set(report.outcomes) == plain | {f"sealed {name}" for name in sealed}
    assert sum(sum(counts.values()) for counts in report.outcomes.values()) == 1500
    assert all(report.outcomes[name].get("answered") and len(report.outcomes[name]) >= 5 for name in plain)
    # Half of those over sockets are divided among three.
    assert sum(counts.get("answered", 0) for name, counts in report.outcomes.items() if name not in plain)


def test_what_leaves_the_family_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted defect is reported, with the number that makes the answer again."""

    def planted(*_: object) -> None:
        raise IndexError("planted")

    monkeypatch.setattr(Model, "__init__", planted)
    report = fuzz_client(small_bundle(tmp_path / "bundle"), 60, 0, seed=7)
    assert any("models: IndexError('planted')" in finding for finding in report.findings), report.findings
