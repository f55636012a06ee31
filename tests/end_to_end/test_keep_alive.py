"""A slow first token behind relays that cut idle connections: answered at the first try."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from client_lib import Client, public
from client_lib.proxy import ProxySettings
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.sections import StreamingSettings
from tests.support.relay import Relay
from tests.support.running_app import running
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_engine import ScriptedEngine

IDLE_S, KEEP_ALIVE_S, PREFILL_S, TOKENS = 1.0, 0.2, 2.5, 4


async def prefill(number: int) -> None:
    """Take as long before the first token as before a later one."""
    if number in (0, 2):
        await asyncio.sleep(PREFILL_S)


def relay_to(stack: contextlib.ExitStack, port: int, idle_s: float = IDLE_S) -> Relay:
    return stack.enter_context(Relay(port, random.Random(1), idle_s=idle_s).running())


@pytest.mark.parametrize("keep_alive_s", [KEEP_ALIVE_S, 60.0])
def test_client_and_proxy_behind_relays(make_service: Callable[..., Any], tmp_path: Path, keep_alive_s: float) -> None:
    engine = ScriptedEngine(before=prefill, tokens=tuple(range(20, 20 + TOKENS)))
    options = APIOptions(streaming=StreamingSettings(max_tokens=1, keep_alive_s=keep_alive_s))
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(running(create_app(make_service(engine), options)))
        relay = relay_to(stack, port)
        if keep_alive_s > IDLE_S:
            # The relay cuts a silent stream again and again: what the comments are for.
            client = stack.enter_context(Client(relay.url, cache_dir=tmp_path, max_retries=0))
            with pytest.raises(Exception, match="closed the connection"):
                list(client.stream([public("one two")], variant="clear", max_tokens=TOKENS))
            assert relay.idle == 1
            return
        client = stack.enter_context(Client(relay.url, cache_dir=tmp_path, max_retries=0, max_resumes=0))
        streamed = client.stream([public("one two")], variant="clear", max_tokens=TOKENS, temperature=0.0)
        tokens = [token_id for chunk in streamed for token_id in chunk.token_ids]
        assert len(tokens) == TOKENS
        settings = ProxySettings(variants=("clear",), keep_alive_s=keep_alive_s)
        proxy = RunningProxy(relay.url, settings, cache_dir=tmp_path, max_retries=0, max_resumes=0)
        proxy_port = int(stack.enter_context(proxy.running()).url.rpartition(":")[2])
        front = relay_to(stack, proxy_port)
        api = stack.enter_context(openai.OpenAI(base_url=f"{front.url}/v1", api_key="unused", max_retries=0))
        events = list(api.completions.create(model="clear", prompt="one two", max_tokens=TOKENS, stream=True))
        assert events[-1].choices[0].finish_reason == "length"
        assert len(engine.calls) == 2
