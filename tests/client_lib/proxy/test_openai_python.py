"""OpenAI's own Python package, unchanged, against the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from tokenizers import Tokenizer

from client_lib.proxy import ProxySettings
from del_core.wire import PublicSegment
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, cut, error, expected_text, expected_tokens, raw

MESSAGES = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "my doctor told me that the test was positive"},
]


@pytest.fixture
def api(proxy: RunningProxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_chat(api: openai.OpenAI, server: ScriptedServer) -> None:
    answer = api.chat.completions.create(model="open", messages=MESSAGES, max_completion_tokens=12)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "open"
    assert answer.system_fingerprint == f"fp_{server.bundle.fingerprint[:16]}"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected_text(expected_tokens(12))
    assert choice.finish_reason == "length"
    sent = server.decode(server.frames[0])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sent.prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == sent.prompt_tokens + 12
    assert answer._request_id is not None


def test_chat_in_a_stream(api: openai.OpenAI) -> None:
    with api.chat.completions.create(model="open", messages=MESSAGES, max_tokens=9, stream=True) as stream:
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == expected_text(expected_tokens(9))
    assert len([text for text in texts if text]) > 2  # in pieces, not at once
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_the_helper_that_collects_a_stream(api: openai.OpenAI, server: ScriptedServer) -> None:
    event = b'data: {"id":"c","choices":[{"index":0,"text":"%s","token_ids":[1],"finish_reason":%s}]}\n\n'
    server.script.append(raw(event % (b"a", b"null") + event % (b"b", b'"stop"') + b"data: [DONE]\n\n"))
    with api.chat.completions.stream(
        model="open", messages=MESSAGES, max_tokens=7, stream_options={"include_usage": True}
    ) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == "ab"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 2


def test_completion(api: openai.OpenAI) -> None:
    answer = api.completions.create(model="strict", prompt="the quick brown fox", temperature=0, top_p=0.5, seed=3)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == expected_text(expected_tokens(16))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_completion_in_a_stream_with_usage(api: openai.OpenAI) -> None:
    stream = api.completions.create(
        model="open", prompt=["the lazy dog"], max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = list(stream)
    assert "".join(piece.choices[0].text for piece in pieces) == expected_text(expected_tokens(6))
    assert all(piece.usage is None for piece in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 6


def test_sampling_arrives(api: openai.OpenAI, server: ScriptedServer) -> None:
    api.completions.create(
        model="open",
        prompt="a",
        max_tokens=5,
        temperature=0.25,
        top_p=0.5,
        seed=-3,
        stop=["x", "yy"],
        n=1,
        extra_body={"stop_token_ids": [7, 9]},
    )
    sampling = server.decode(server.frames[0]).sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (5, 0.25, 0.5, -3)
    assert (sampling.stop, sampling.stop_token_ids) == (("x", "yy"), (7, 9))


def test_the_length_of_an_answer_that_names_none(api: openai.OpenAI, server: ScriptedServer) -> None:
    api.completions.create(model="open", prompt="a")
    api.chat.completions.create(model="open", messages=MESSAGES)
    lengths = [server.decode(frame).sampling.max_tokens for frame in server.frames]
    assert lengths == [16, ProxySettings().chat_max_tokens]


def test_models(api: openai.OpenAI, server: ScriptedServer) -> None:
    models = api.models.list().data
    assert [model.id for model in models] == list(server.bundle.variants)  # clear has to be asked for
    assert api.models.retrieve("strict").id == "strict"
    assert all(model.model_extra and model.model_extra["epsilon"] > 0 for model in models)
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


def test_an_alias_stands_for_a_variant(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(aliases={"gpt-4o": "strict"}, variants=("strict",))
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as api:
        assert [model.id for model in api.models.list()] == ["strict", "gpt-4o"]
        assert api.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=2).model == "strict"
        assert server.decode(server.frames[0]).variant == "strict"
        with pytest.raises(openai.NotFoundError, match="one of strict, gpt-4o"):
            api.chat.completions.create(model="open", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError):
            api.completions.create(model="clear", prompt="a")
    assert len(server.frames) == 1


def test_everything_that_somebody_wrote_is_private(api: openai.OpenAI, server: ScriptedServer) -> None:
    conversation = [*MESSAGES, {"role": "assistant", "content": "I am sorry."}, {"role": "user", "content": "thanks"}]
    api.chat.completions.create(model="open", messages=conversation)
    api.completions.create(model="open", prompt="the quick brown fox")
    tokenizer = Tokenizer.from_file(str(server.bundle.tokenizer_path))
    for frame in server.frames:
        request = server.decode(frame)
        public = [segment.token_ids for segment in request.segments if isinstance(segment, PublicSegment)]
        text = " ".join(tokenizer.decode(list(token_ids)) for token_ids in public)
        assert not any(word in text for word in ("kind", "doctor", "positive", "sorry", "thanks", "fox"))
        assert request.private_tokens > 0


def test_the_asynchronous_client(proxy: RunningProxy) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as api:
            stream = await api.chat.completions.create(model="open", messages=MESSAGES, max_tokens=5, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == expected_text(expected_tokens(5))


def test_a_server_without_room(api: openai.OpenAI, server: ScriptedServer) -> None:
    server.script.extend([error(503, "overloaded", {"retry-after": "61"})])
    with pytest.raises(openai.InternalServerError) as caught:
        api.chat.completions.create(model="open", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["retry-after"] == "61"


def test_a_server_that_refuses_the_key(api: openai.OpenAI, server: ScriptedServer) -> None:
    server.script.append(error(401, "invalid_api_key"))
    with pytest.raises(openai.InternalServerError) as caught:
        api.completions.create(model="open", prompt="a")
    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_permission_denied"


def test_a_stream_that_breaks_is_one_stream_to_the_caller(api: openai.OpenAI, server: ScriptedServer) -> None:
    server.script.append(cut(700))
    stream = api.chat.completions.create(model="open", messages=MESSAGES, max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected_text(expected_tokens(20))
    assert len(server.frames) == 2


def test_a_failure_before_the_first_piece_has_a_status(api: openai.OpenAI, server: ScriptedServer) -> None:
    server.script.append(error(400, "context_length_exceeded"))
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="open", messages=MESSAGES, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_a_failure_in_the_middle_is_an_event(api: openai.OpenAI, server: ScriptedServer) -> None:
    event = b'data: {"id":"c","choices":[{"index":0,"text":"abc","token_ids":[1],"finish_reason":null}]}\n\n'
    server.script.append(raw(event + b"data: nonsense\n\n"))
    stream = api.chat.completions.create(model="open", messages=MESSAGES, stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content == "abc"
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "upstream_protocol_error"


def test_answers_can_be_sent_back_as_they_came(api: openai.OpenAI, server: ScriptedServer) -> None:
    first = api.chat.completions.create(model="open", messages=MESSAGES, max_tokens=3)
    messages = [*MESSAGES, first.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "thanks"}]}]
    api.chat.completions.create(model="open", messages=messages, max_tokens=3)
    assert len(server.frames) == 2
