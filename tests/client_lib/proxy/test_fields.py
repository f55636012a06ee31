"""Fields that cost no privacy: ignored ones are named, several answers share their counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_lib.ledger import Budget, Ledger, SQLiteStore
from del_core.wire import PrivateSegment
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, error, expected_text, expected_tokens

CANARY = "heliotrope"
CHAT: dict[str, Any] = {"model": "open", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
COMPLETION: dict[str, Any] = {"model": "open", "prompt": "hello", "max_tokens": 3}
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}

IN_VAIN: list[tuple[dict[str, Any], str]] = [
    ({"metadata": {"a": CANARY}}, "metadata"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"verbosity": "low"}, "verbosity"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"prediction": {"type": "content", "content": CANARY}}, "prediction"),
    ({"parallel_tool_calls": True}, "parallel_tool_calls"),
    ({"prompt_cache_key": CANARY}, "prompt_cache_key"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ({"some_new_field": CANARY}, "some_new_field"),
    ({"so me\r\nfield: x": 1}, "so?me??field??x"),
    ({CANARY * 20: 1}, "(a long name)"),
]


def bodies(fields: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(PATHS["chat"], {**CHAT, **fields}), (PATHS["completion"], {**COMPLETION, **fields})]


@pytest.mark.parametrize(("fields", "name"), IN_VAIN)
def test_a_field_without_effect_is_named_and_not_sent(
    proxy: RunningProxy, server: ScriptedServer, fields: dict[str, Any], name: str
) -> None:
    for path, body in bodies(fields):
        answer = proxy.post(path, body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-del-ignored"] == name
    assert not any(CANARY.encode() in frame for frame in server.frames)
    lengths = {len(frame) for frame in server.frames[:1]}
    assert len(proxy.post(PATHS["chat"], CHAT).json()["choices"]) == 1
    assert {len(server.frames[-1])} == lengths


def test_strict_fields_are_refused(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    strict = make_proxy(strict_fields=True)
    for fields, _ in IN_VAIN:
        for path, body in bodies(fields):
            answer = strict.post(path, body)
            assert answer.status_code == 400
            assert CANARY * 2 not in answer.text
    refused = strict.post(PATHS["chat"], {**CHAT, "messages": [{**CHAT["messages"][0], "name": "ann"}]})
    assert refused.json()["error"]["param"] == "messages[0].name"
    assert strict.post(PATHS["chat"], CHAT).status_code == 200
    assert len(server.frames) == 1


def test_many_names_are_cut(proxy: RunningProxy) -> None:
    answer = proxy.post(PATHS["chat"], {**CHAT, **{f"field_{index}": 1 for index in range(300)}})
    names = answer.headers["x-del-ignored"].split(", ")
    assert (names[0], names[-1], len(names)) == ("field_0", "...", 21)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "best_of": None, "top_logprobs": 0, "top_k": -1, "min_p": 0, "repetition_penalty": 1.0},
        {"frequency_penalty": 0.0, "presence_penalty": 0, "tool_choice": "auto", "function_call": "none"},
        {"metadata": {}, "store": False, "service_tier": "auto", "verbosity": None, "user": "ann"},
        {"safety_identifier": "ann", "max_tokens": 9, "max_completion_tokens": 3},
    ],
)
def test_values_of_no_effect_are_not_named(proxy: RunningProxy, server: ScriptedServer, fields: dict[str, Any]) -> None:
    answer = proxy.post(PATHS["chat"], {**CHAT, **fields})
    assert answer.status_code == 200, answer.text
    assert "best_of" in fields or "x-del-ignored" not in answer.headers
    assert server.decode(server.frames[0]).sampling.max_tokens == 3  # the newer name comes first


@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": []}, {"content": "I am sorry"}])
def test_messages_as_openais_answers_have_them(
    proxy: RunningProxy, server: ScriptedServer, content: dict[str, Any]
) -> None:
    sent_back = {"id": "msg_1", "role": "assistant", "refusal": None, "annotations": [], "tool_calls": None, **content}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]},
        {**sent_back, "reasoning_content": None, "function_call": None, "audio": None},
        {"role": "user", "name": "ann", "content": "and now?"},
    ]
    answer = proxy.post(PATHS["chat"], {**CHAT, "messages": messages})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-del-ignored"] == "messages[].content[].cache_control, messages[].id, messages[].name"
    assert len(server.frames) == 1


def counts(server: ScriptedServer, index: int) -> np.ndarray:
    request = server.decode(server.frames[index])
    return np.concatenate([part.codes for part in request.segments if isinstance(part, PrivateSegment)])


@pytest.mark.parametrize("seed", [None, 7, 2**63 - 1])
def test_several_answers_are_charged_once(
    make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Path, seed: int | None
) -> None:
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(1e6, 1e-5))
    proxy = make_proxy({"ledger": ledger}, subject="ann")
    assert proxy.post(PATHS["chat"], CHAT).status_code == 200
    alone = ledger.spent("ann").epsilon
    answer = proxy.post(PATHS["chat"], {**CHAT, "n": 4, "seed": seed}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert all(choice["message"]["content"] == expected_text(expected_tokens(3)) for choice in answer["choices"])
    prompt = server.decode(server.frames[0]).prompt_tokens
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 12, "total_tokens": prompt + 12}
    assert ledger.spent("ann").epsilon == alone
    assert len(server.frames) == 5
    assert all(np.array_equal(counts(server, 0), counts(server, index)) for index in range(5))
    seeds = {server.decode(frame).sampling.seed for frame in server.frames[1:]}
    assert seeds == {None} if seed is None else len(seeds) == 4


def test_one_of_several_answers_fails(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy({"max_retries": 0})
    server.script.append(error(503, "overloaded"))
    answer = proxy.post(PATHS["chat"], {**CHAT, "n": 3})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")


def test_several_prompts(proxy: RunningProxy, server: ScriptedServer) -> None:
    answer = proxy.post(PATHS["completion"], {**COMPLETION, "prompt": ["hello", "the quick fox"], "n": 2}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    lengths = [server.decode(frame).prompt_tokens for frame in server.frames]
    assert len(lengths) == 4
    assert len(set(lengths)) == 2
    assert answer["usage"]["prompt_tokens"] == sum(set(lengths))
    assert answer["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("streams", [False, True])
def test_echo(proxy: RunningProxy, streams: bool) -> None:
    answer = proxy.post(PATHS["completion"], {**COMPLETION, "echo": True, "stream": streams})
    if streams:
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    else:
        text = answer.json()["choices"][0]["text"]
    assert text == "hello" + expected_text(expected_tokens(3))


def test_every_other_model_name_stands_for_the_default(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(default_variant="strict", aliases={"gpt-4o": "open"})
    for model, variant in (("gpt-5-mini", "strict"), ("gpt-4o", "open"), ("open", "open"), ("clear", "strict")):
        answer = proxy.post(PATHS["chat"], {**CHAT, "model": model})
        assert answer.json()["model"] == variant
        assert server.decode(server.frames[-1]).variant == variant
