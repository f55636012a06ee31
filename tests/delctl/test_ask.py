"""``delctl ask`` against a server that plays a model."""

from __future__ import annotations

import io
import json

import pytest

from del_core import accounting
from del_core.bundle import ClientBundle
from del_core.wire import PrivateSegment, PublicSegment
from delctl.main import run
from tests.support.scripted_server import ScriptedServer, error, expected_text, expected_tokens, raw

PROMPT = "the quick brown fox"


def test_streams_the_text_and_sums_up_on_stderr(scripted: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", PROMPT, "--variant", "open", "--max-tokens", "9", "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == expected_text(expected_tokens(9)) + "\n"
    request = scripted.decode(scripted.frames[0])
    assert (request.variant, request.sampling.max_tokens, request.sampling.temperature) == ("open", 9, 0)
    assert request.sampling.stream
    private = sum(segment.tokens for segment in request.segments if isinstance(segment, PrivateSegment))
    mechanism = scripted.bundle.mechanism("open")
    assert f"{private} private tokens" in captured.err
    assert f"{accounting.epsilon(mechanism, 1e-6):.2f} a token" in captured.err
    assert f"{accounting.epsilon(mechanism, 1e-6, private):.2f} the prompt" in captured.err
    assert f"{len(scripted.frames[0])} bytes sent" in captured.err


def test_json_is_one_object_and_nothing_else(scripted: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ("--stop-token-id", "7", "--stop-token-id", "9")
    assert run(["ask", PROMPT, "--variant", "strict", "--max-tokens", "3", "--stop", "x", *ids, "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert captured.err == ""
    assert answer["text"] == expected_text(expected_tokens(3))
    assert answer["token_ids"] == list(expected_tokens(3))
    assert answer["variant"] == "strict"
    assert answer["bytes_sent"] == len(scripted.frames[0])
    assert answer["epsilon"] == accounting.epsilon(scripted.bundle.mechanism("strict"), 1e-6)
    sampling = scripted.decode(scripted.frames[0]).sampling
    assert (sampling.stop, sampling.stop_token_ids) == (("x",), (7, 9))


@pytest.mark.parametrize("mode", ["--stream", "--no-stream"])
def test_quiet_prints_the_text_alone(mode: str, scripted: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", PROMPT, "--variant", "open", "--max-tokens", "4", "--quiet", mode]) == 0
    assert capsys.readouterr() == (expected_text(expected_tokens(4)) + "\n", "")
    assert scripted.decode(scripted.frames[0]).sampling.stream is (mode == "--stream")


def test_clear_is_said_to_be_clear(scripted: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", PROMPT, "--variant", "clear", "--max-tokens", "2"]) == 0
    assert "the prompt was sent in the clear" in capsys.readouterr().err
    assert all(isinstance(part, PublicSegment) for part in scripted.decode(scripted.frames[0]).segments)
    assert run(["ask", PROMPT, "--variant", "clear", "--max-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] is None


def test_the_prompt_from_standard_input(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n"))
    assert run(["ask", "-", "--variant", "clear", "--max-tokens", "2"]) == 0
    assert run(["ask", PROMPT, "--variant", "clear", "--max-tokens", "2"]) == 0
    assert scripted.frames[0] == scripted.frames[1]


def test_a_terminal_is_kept_from_what_the_model_writes(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "open",
        "choices": [{"index": 0, "text": "a\x1b[2Jb\n", "token_ids": [1], "logprobs": None, "finish_reason": "length"}],
    }
    for watched, written in ((True, "a\ufffd[2Jb\n"), (False, "a\x1b[2Jb\n")):
        scripted.script.append(raw(b"data: " + json.dumps(evil).encode() + b"\n\ndata: [DONE]\n\n"))
        monkeypatch.setattr("sys.stdout.isatty", lambda watched=watched: watched)
        assert run(["ask", PROMPT, "--variant", "open", "--max-tokens", "1", "--quiet"]) == 0
        assert capsys.readouterr().out == written + "\n"


def test_a_local_bundle_needs_nothing_from_the_server(
    scripted: ScriptedServer, offered: ClientBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (offered.path, offered.path.parent):
        assert run(["ask", PROMPT, "--variant", "open", "--max-tokens", "1", "--bundle", str(path)]) == 0
    assert not scripted.requests_to("/v1/bundle")


def test_bad_input_is_refused_with_code_2(scripted: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", PROMPT, "--variant", "secret"]) == 2
    assert capsys.readouterr().err == "delctl: variant must be one of strict, open, clear, got 'secret'\n"
    assert run(["ask", "", "--variant", "open"]) == 2
    assert "must be at least one character" in capsys.readouterr().err
    assert run(["ask", PROMPT, "--variant", "open", "--url", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("delctl: base_url must be ")
    assert not scripted.frames


def test_a_failing_server_is_code_1(scripted: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    scripted.script.append(error(500, "internal_error", {"retry-after": "61"}, message="it broke"))
    assert run(["ask", PROMPT, "--variant", "open"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("delctl: ")
    assert "it broke" in said
    assert PROMPT not in said
