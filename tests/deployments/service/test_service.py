"""The service over a scripted engine: prompts, completions, resumption, stops, slots."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from del_core.bundle import Bundle
from del_core.decoders import LinearDecoder
from del_core.errors import FrameError
from del_core.wire import PrivateSegment, PublicSegment
from deployments.engines.base import EncodedPrompt, EngineDeadError, LookUp, variant_name
from deployments.service.base_model import EmbeddingTable
from deployments.service.service import Capacity, OverloadedError, PrivateLMService, ServedModel
from tests.support.scripted_engine import CONTEXT_LENGTH, ScriptedEngine
from tests.support.serving_frames import encode, make_frame, make_request, private_segment
from tests.support.tiny import BOS, BOS_ID, EOS_ID, SOFT_PROMPT_LENGTH

ServiceMaker = Callable[..., PrivateLMService]


async def test_private_prompt_is_soft_prompt_then_segments_in_order(
    make_service: ServiceMaker, bundle: Bundle, table: EmbeddingTable
) -> None:
    engine = ScriptedEngine()
    service = make_service(engine)
    first, second = private_segment(bundle, "strict", 7, seed=3), private_segment(bundle, "strict", 2, seed=4)
    segments = (PublicSegment((BOS_ID,)), first, PublicSegment((9, 8)), second)
    request = make_request(
        bundle, "strict", segments=segments, resume=(11, 12), max_tokens=5, sampling_seed=77, top_p=0.5
    )
    await service.complete(await service.parse(encode(bundle, request)))
    (call,) = engine.calls
    decoder = bundle.build_decoder("strict")
    expected = [
        bundle.soft_prompt("strict"),
        table.rows((BOS_ID,)),
        decoder.decode(first.codes),
        table.rows((9, 8)),
        decoder.decode(second.codes),
        table.rows((11, 12)),
    ]
    assert call.embeddings.dtype == np.float32
    np.testing.assert_array_equal(call.embeddings, np.concatenate(expected))
    assert call.sampling.max_tokens == 3
    assert (call.sampling.top_p, call.sampling.temperature, call.sampling.seed) == (0.5, 0.0, 77)
    assert call.sampling.stop_token_ids == (EOS_ID,)
    assert call.cache_salt is None


async def test_clear_has_no_soft_prompt(make_service: ServiceMaker, bundle: Bundle, table: EmbeddingTable) -> None:
    engine = ScriptedEngine()
    service = make_service(engine)
    request = make_request(bundle, "clear", segments=(PublicSegment((BOS_ID, 7, 8)),))
    await service.complete(await service.parse(encode(bundle, request)))
    np.testing.assert_array_equal(engine.calls[0].embeddings, table.rows((BOS_ID, 7, 8)))


async def test_the_decoding_of_a_long_prompt_holds_no_other_request(
    make_service: ServiceMaker, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that waits for the other requests: on the event loop it would wait for ever."""
    others_done = threading.Event()
    decode = LinearDecoder.decode

    def patient(decoder: LinearDecoder, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert len(codes) < 400 or others_done.wait(10)
        return decode(decoder, codes)

    monkeypatch.setattr(LinearDecoder, "decode", patient)
    monkeypatch.setattr("deployments.service.service.LARGE_DECODE_PRODUCTS", 100_000)
    service = make_service(ScriptedEngine())
    long = asyncio.ensure_future(service.complete(make_request(bundle, "open", tokens=400)))
    for seed in range(5):
        await service.complete(make_request(bundle, "open", tokens=20, seed=seed))
    assert not long.done()
    others_done.set()
    assert (await long).finish_reason == "length"


async def test_an_engine_that_decodes_gets_the_integers(make_service: ServiceMaker, bundle: Bundle) -> None:
    """And no decoder is built for it."""

    class Decoding(ScriptedEngine):
        def add_bundle(self, bundle: Bundle) -> None:
            pass

        async def decode(self, prompt: EncodedPrompt) -> LookUp:
            raise AssertionError("only the self-test asks")

    engine = Decoding()
    service = make_service(engine)
    segment = private_segment(bundle, "open", 30, seed=4)
    request = make_request(bundle, "open", segments=(PublicSegment((BOS_ID, 7)), segment), resume=(5, 6))
    await service.complete(await service.parse(encode(bundle, request)))
    prompt: Any = engine.calls[0].embeddings
    assert prompt.variant == variant_name(bundle, "open")
    first, counts, resumed = prompt.segments
    assert (first, resumed) == ((BOS_ID, 7), (5, 6))
    np.testing.assert_array_equal(counts, segment.codes)
    await service.complete(make_request(bundle, "clear", tokens=3))
    assert engine.calls[1].embeddings.variant is None  # type: ignore[attr-defined]


async def test_large_prompts_are_decoded_alike_and_beside_the_event_loop(
    make_service: ServiceMaker, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.service.service.LARGE_DECODE_PRODUCTS", 0)
    monkeypatch.setattr("deployments.service.service.LARGE_FRAME_BYTES", 0)
    engine = ScriptedEngine()
    service = make_service(engine)
    requests = [make_request(bundle, "open", tokens=100, seed=seed) for seed in range(8)]
    parsed = await asyncio.gather(*(service.parse(encode(bundle, request)) for request in requests))
    await asyncio.gather(*(service.complete(request) for request in parsed))
    decoder = bundle.build_decoder("open")
    given = {call.embeddings[SOFT_PROMPT_LENGTH + 1 : SOFT_PROMPT_LENGTH + 101].tobytes() for call in engine.calls}
    private = [request.segments[1] for request in requests]
    assert given == {
        decoder.decode(segment.codes).tobytes() for segment in private if isinstance(segment, PrivateSegment)
    }


async def test_stream_and_whole_agree(make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("日本語 and 🙂 the story of the fox.").ids
    engine = ScriptedEngine(tokens=ids, group=3)
    service = make_service(engine)
    request = make_request(bundle, max_tokens=len(ids))
    whole = await service.complete(request)
    pieces = [piece async for piece in service.stream(request)]
    assert whole.token_ids == tuple(ids) == sum((piece.token_ids for piece in pieces), ())
    assert whole.text == tokenizer.decode(ids) == "".join(piece.text for piece in pieces)
    assert whole.finish_reason == "length"
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    # The whole asks the engine for one delta, the stream for many.
    assert [call.sampling.incremental for call in engine.calls] == [False, True]


@pytest.mark.parametrize("group", [1, 4, 100])
async def test_stop_string_ends_the_engines_work(
    make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer, group: int
) -> None:
    ids = tokenizer.encode("She said that she had seen the sea, and more.").ids
    engine = ScriptedEngine(tokens=ids, group=group)
    service = make_service(engine)
    done = await service.complete(make_request(bundle, max_tokens=len(ids), stop=("seen",)))
    assert done.text == "She said that she had "
    assert done.finish_reason == "stop"
    assert "seen" in tokenizer.decode(done.token_ids)
    assert "seen" not in tokenizer.decode(done.token_ids[:-1])
    assert engine.calls[0].closed
    assert not engine.calls[0].finished


async def test_end_of_text_is_among_the_ids_but_not_in_the_text(
    make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer
) -> None:
    engine = ScriptedEngine(tokens=[20, 21, EOS_ID, 22])
    service = make_service(engine)
    done = await service.complete(make_request(bundle, max_tokens=10))
    assert (done.token_ids, done.finish_reason) == ((20, 21, EOS_ID), "stop")
    assert done.text == tokenizer.decode([20, 21])


async def test_stop_token_ids_and_ignore_eos(make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(tokens=[20, EOS_ID, 21, 22, 23])
    service = make_service(engine)
    done = await service.complete(make_request(bundle, max_tokens=10, stop_token_ids=(22,), ignore_eos=True))
    assert (done.token_ids, done.finish_reason) == ((20, EOS_ID, 21, 22), "stop")
    assert done.text == tokenizer.decode([20, 21])
    assert engine.calls[0].sampling.stop_token_ids == (22,)


async def test_a_stop_string_that_is_a_special_token(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine(tokens=[20, EOS_ID, 21, BOS_ID, 22])
    service = make_service(engine)
    stop, options = (BOS, "no such text"), {"max_tokens": 10, "ignore_eos": True}
    done = await service.complete(make_request(bundle, stop=stop, **options))
    assert (done.token_ids, done.finish_reason) == ((20, EOS_ID, 21, BOS_ID), "stop")
    assert engine.calls[0].sampling.stop_token_ids == (BOS_ID,)
    ended = await service.complete(make_request(bundle, stop=stop, resume=(20, BOS_ID), **options))
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("", (), "stop")


@pytest.mark.parametrize("stop", [(), ("story",)])
async def test_a_resumed_completion_is_the_rest_of_the_whole(
    make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer, stop: tuple[str, ...]
) -> None:
    ids = tokenizer.encode("日本語 🙂 nobody believed the story of the fox.").ids
    request = make_request(bundle, max_tokens=len(ids), stop=stop)
    whole = await make_service(ScriptedEngine(tokens=ids)).complete(request)
    for k in range(1, len(whole.token_ids)):
        streamed = make_service(ScriptedEngine(tokens=ids)).stream(request)
        seen = ""
        received: tuple[int, ...] = ()
        async with contextlib.aclosing(streamed):
            async for piece in streamed:
                seen, received = seen + piece.text, received + piece.token_ids
                if len(received) == k:
                    break
        engine = ScriptedEngine(tokens=ids[k:])
        rest = await make_service(engine).complete(replace(request, resume=received))
        assert seen + rest.text == whole.text, k
        assert received + rest.token_ids == whole.token_ids
        assert rest.finish_reason == whole.finish_reason
        assert engine.calls[0].sampling.max_tokens == len(ids) - k


async def test_a_completion_that_had_ended_is_not_continued(
    make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer
) -> None:
    engine = ScriptedEngine()
    service = make_service(engine)
    ended = await service.complete(make_request(bundle, max_tokens=9, resume=(20, EOS_ID)))
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("", (), "stop")
    ids = tuple(tokenizer.encode("the story").ids)
    ended = await service.complete(make_request(bundle, max_tokens=len(ids) + 1, resume=ids, stop=("story",)))
    assert (ended.text, ended.token_ids, ended.finish_reason) == ("", (), "stop")
    assert not engine.calls


@pytest.mark.parametrize(("variant", "soft"), [("open", SOFT_PROMPT_LENGTH), ("clear", 0)])
async def test_context_length_counts_soft_prompt_prompt_and_output(
    make_service: ServiceMaker, bundle: Bundle, variant: str, soft: int
) -> None:
    service = make_service(ScriptedEngine())
    prompt = make_request(bundle, variant).prompt_tokens
    room = CONTEXT_LENGTH - soft - prompt
    await service.parse(make_frame(bundle, variant, max_tokens=room))
    with pytest.raises(FrameError) as caught:
        await service.parse(make_frame(bundle, variant, max_tokens=room + 1))
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.field == "header.max_tokens"
    assert str(room) in str(caught.value)


async def test_fingerprint_of_another_bundle_is_refused(make_service: ServiceMaker, bundle: Bundle) -> None:
    service = make_service(ScriptedEngine())
    request = replace(make_request(bundle, "clear"), fingerprint="0" * 64)
    with pytest.raises(FrameError) as caught:
        await service.parse(encode(bundle, request))
    assert caught.value.code == "bundle_outdated"
    assert "fetch the bundle again" in str(caught.value)


async def test_closing_a_stream_closes_the_engines(make_service: ServiceMaker, bundle: Bundle) -> None:
    engine = ScriptedEngine()
    stream = make_service(engine).stream(make_request(bundle))
    await anext(stream)
    await stream.aclose()
    assert engine.calls[0].closed
    assert not engine.calls[0].finished


async def test_dead_engine(make_service: ServiceMaker, bundle: Bundle) -> None:
    service = make_service(ScriptedEngine(dead=True))
    with pytest.raises(EngineDeadError):
        await service.complete(make_request(bundle))
    with pytest.raises(EngineDeadError):
        await service.check_health()


def test_slots(make_service: ServiceMaker) -> None:
    service = make_service(ScriptedEngine(), requests=2)
    with service.slot(), service.slot():
        with pytest.raises(OverloadedError, match="must be at most 2"), service.slot():
            pass
        assert service.in_flight == 2
    assert service.in_flight == 0
    with service.slot():
        pass


def test_models(make_service: ServiceMaker, bundle: Bundle) -> None:
    *private, clear = make_service(ScriptedEngine()).models()
    assert [entry["id"] for entry in private] == list(bundle.variants)
    for entry in private:
        variant = bundle.variants[entry["id"]]
        assert entry["private"] is True
        assert entry["guarantees"]["epsilon"] == variant.guarantees.epsilon
        assert entry["guarantees"]["delta"] == variant.guarantees.delta
        assert entry["ratio_numerator"] == variant.ratio_numerator
        assert entry["audit"] == dict(variant.audit)
    assert clear["id"] == "clear"
    assert clear["private"] is False
    assert clear["guarantees"] is None
    assert "No privacy" in clear["description"]


async def test_shutdown_stops_the_engine(make_service: ServiceMaker) -> None:
    engine = ScriptedEngine()
    await make_service(engine).shutdown()
    assert engine.stopped


class Watched:
    """A tokenizer that notes the threads in which it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.threads: set[threading.Thread] = set()

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.threads.add(threading.current_thread())
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


async def test_long_resumptions_are_replayed_beside_the_event_loop(
    bundle: Bundle, table: EmbeddingTable, tokenizer: Tokenizer
) -> None:
    engine, watched = ScriptedEngine(), Watched(tokenizer)
    service = PrivateLMService(
        ServedModel(bundle=bundle, table=table, tokenizer=watched, end_of_text=(EOS_ID,)),
        engine,
        Capacity(requests=4, max_frame_bytes=1 << 20),
    )
    for resume, beside in (((), False), ((20,) * 400, True)):
        watched.threads.clear()
        request = make_request(bundle, max_tokens=len(resume) + 1, resume=resume)
        await service.complete(await service.parse(encode(bundle, request)))
        assert any(thread is not threading.main_thread() for thread in watched.threads) == beside
    stopped = make_request(bundle, max_tokens=402, resume=(20,) * 399 + (EOS_ID, 20))
    ended = await service.complete(await service.parse(encode(bundle, stopped)))
    assert (ended.finish_reason, len(engine.calls)) == ("stop", 2)


@pytest.mark.parametrize("stop", [(), ("the 9th", "never")])
async def test_resuming_anywhere_gives_the_rest_of_the_text(
    make_service: ServiceMaker, bundle: Bundle, tokenizer: Tokenizer, stop: tuple[str, ...]
) -> None:
    ids = tokenizer.encode(" ".join(f"the {number}th 🙂 日本" for number in range(60))).ids[:300]
    whole_service = make_service(ScriptedEngine(tokens=ids))
    whole = await whole_service.complete(make_request(bundle, max_tokens=len(ids), stop=stop))
    assert whole.finish_reason == ("stop" if stop else "length")
    for cut in (1, 15, 16, 17, 63, 64, 65, 80, 129, len(whole.token_ids) - 1):
        interrupted = make_service(ScriptedEngine(tokens=ids))
        first = [piece async for piece in interrupted.stream(make_request(bundle, max_tokens=len(ids), stop=stop))][
            :cut
        ]
        received = tuple(token_id for piece in first for token_id in piece.token_ids)
        rest_service = make_service(ScriptedEngine(tokens=ids[len(received) :]))
        rest = await rest_service.complete(make_request(bundle, max_tokens=len(ids), stop=stop, resume=received))
        assert "".join(piece.text for piece in first) + rest.text == whole.text
        assert rest.finish_reason == whole.finish_reason
