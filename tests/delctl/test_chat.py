"""``delctl chat`` and ``delctl ask --chat`` against a scripted server."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from del_core import accounting
from del_core.bundle import ChatFormat, ClientBundle
from del_core.wire import PrivateSegment, PublicSegment, Request
from delctl.main import run
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, error, expected_text, expected_tokens

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}<assistant>"
ANSWER = expected_text(expected_tokens(3))
FIRST, SECOND = "my doctor told me that the test was positive", "the quick brown fox jumps over the lazy dog"

Say = Callable[..., str]


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> ClientBundle:
    return make_bundle(tmp_path_factory.mktemp("offered") / "bundle", chat=ChatFormat(TEMPLATE, {}, (7,)))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a chat of these lines; return what it prints."""

    def said(*lines: str, options: tuple[str, ...] = ("--variant", "open")) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert run(["chat", "--max-tokens", "3", *options]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return said


def private_counts(request: Request) -> list[bytes]:
    return [part.codes.tobytes() for part in request.segments if isinstance(part, PrivateSegment)]


def test_a_conversation_hides_each_message_once(say: Say, scripted: ScriptedServer) -> None:
    out = say(FIRST, "", SECOND)
    first, second = (scripted.decode(frame) for frame in scripted.frames)
    assert len(private_counts(first)) == 1
    assert len(private_counts(second)) == 2  # the answer is public
    assert private_counts(second)[:1] == private_counts(first)
    assert first.sampling.stop_token_ids == (7,)
    tokens = sum(part.tokens for part in second.segments if isinstance(part, PrivateSegment))
    whole = accounting.epsilon(scripted.bundle.mechanism("open"), 1e-6, tokens)
    assert f"epsilon {whole:.2f} so far" in out
    assert out.count(ANSWER.strip()) == 2
    assert out.count("cut at --max-tokens") == 2
    assert "The template, the roles and the model's answers are public" in out
    assert FIRST not in out


def test_quiet_prints_the_answers_alone(say: Say, scripted: ScriptedServer) -> None:
    assert say(FIRST, options=("--variant", "open", "--quiet")) == ANSWER.lstrip() + "\n"


def test_the_most_private_variant_is_the_default(say: Say, scripted: ScriptedServer) -> None:
    out = say(FIRST, options=())
    epsilons = {name: accounting.epsilon(scripted.bundle.mechanism(name), 1e-6) for name in ("strict", "open")}
    least = min(epsilons, key=lambda name: epsilons[name])
    assert scripted.decode(scripted.frames[0]).variant == least
    assert out.startswith(f"{least}: epsilon {epsilons[least]:.2f} a private token")


def test_the_commands(say: Say, scripted: ScriptedServer, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    out = say(
        "/help", "/spans", FIRST, "/spans", f"/save {saved}", f"/save {saved}", "/variant", "/variant nothing",
        "/variant strict", "/spans", "/what", "/new", "/quit", "never read",
    )  # fmt: skip
    for words in (
        "/variant  NAME", "nothing has been said yet", f'private "{FIRST}"', 'public  "<user>"',
        "2 messages are in", "File exists", "* open", "must be one of strict, open, clear, got nothing",
        "/what is no command",
    ):  # fmt: skip
        assert words in out
    assert f"public  {json.dumps(ANSWER.strip(), ensure_ascii=False)}\n" in out
    assert json.loads(saved.read_text("utf-8")) == [
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": ANSWER.strip()},
    ]
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert len(scripted.frames) == 1


def test_the_oldest_turns_are_left_out_of_a_full_context(say: Say, scripted: ScriptedServer) -> None:
    scripted.context_length = 90
    out = say(FIRST, SECOND, FIRST, SECOND)
    assert "the 1 oldest turns are left out, as the context is full" in out
    assert [len(private_counts(scripted.decode(frame))) for frame in scripted.frames][-1] < 4


def test_a_failure_does_not_end_the_chat(say: Say, scripted: ScriptedServer) -> None:
    scripted.script.append(error(500, "internal_error", {"retry-after": "61"}, message="it broke"))
    out = say(FIRST, SECOND)
    assert "it broke" in out
    assert len(private_counts(scripted.decode(scripted.frames[1]))) == 1  # the first message was not answered


def test_the_clear_variant_promises_nothing(say: Say, scripted: ScriptedServer) -> None:
    out = say(FIRST, options=("--variant", "clear"))
    assert out.startswith("clear: no protection")
    assert "Your messages are private" not in out
    assert "sent in the clear" in out


def test_a_system_message(say: Say, scripted: ScriptedServer) -> None:
    say(FIRST, options=("--variant", "open", "--system", "be brief"))
    say(FIRST, options=("--variant", "open", "--system", "be brief", "--public-system"))
    assert [len(private_counts(scripted.decode(frame))) for frame in scripted.frames] == [2, 1]


def test_ask_shows_what_is_private(scripted: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--variant", "open", "--max-tokens", "3", "--quiet", "--show-spans"]
    assert run(["ask", FIRST, *options, "--chat", "--system", "be brief", "--public-system"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ANSWER + "\n"
    assert captured.err.splitlines() == [
        'public  "<system>"',
        'public  "be brief"',
        'public  "</s><user>"',
        f'private "{FIRST}"',
        'public  "</s><assistant>"',
    ]
    request = scripted.decode(scripted.frames[0])
    assert request.sampling.stop_token_ids == (7,)
    assert isinstance(request.segments[-1], PublicSegment)
    assert run(["ask", FIRST, *options]) == 0
    assert capsys.readouterr().err.splitlines() == [f'private "{FIRST}"']


def test_another_template(scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "tokenizer_config.json"
    own.write_text(json.dumps({"chat_template": "{{ messages[-1].content }}?"}), "utf-8")
    options = ["--variant", "open", "--quiet", "--show-spans", "--chat-template", str(own)]
    assert run(["ask", FIRST, *options]) == 2
    assert "need --chat" in capsys.readouterr().err
    own.write_text(json.dumps({"chat_template": "{% for m in messages %}{{ m.content }}?{% endfor %}"}), "utf-8")
    assert run(["ask", FIRST, "--chat", *options]) == 0
    assert capsys.readouterr().err.splitlines() == [f'private "{FIRST}"', 'public  "?"']


def test_a_bundle_without_a_template_is_said_before_anybody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{FIRST}\n"))
    with ScriptedServer(make_bundle(tmp_path / "bundle")).running() as server:
        assert run(["chat", "--url", server.url]) == 2
        assert "template must be given for prompts of messages" in capsys.readouterr().err
        assert not server.frames
        assert run(["chat", "--url", server.url, "--public-system"]) == 2
        assert "--public-system needs --system" in capsys.readouterr().err
