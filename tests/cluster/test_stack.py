"""HTTP to Serve to vLLM: greedy tokens equal those of transformers on the same embeddings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from cluster.local import LocalServer
from del_core.bundle import Bundle, unpack_client
from del_core.wire import PrivateSegment, Request
from tests.support.serving_frames import HEADERS, PATH, encode, make_frame, make_request
from tests.support.tiny import BOS_ID, EOS_ID, Tiny

VARIANTS = ("open", "strict", "clear")
LENGTH = 40


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Any:
    """The tiny model in transformers, float32."""
    return LlamaForCausalLM.from_pretrained(tiny.model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def embeddings_of(bundle: Bundle, model: Any, request: Request) -> NDArray[np.float32]:
    """Return the prompt's rows by transformers' own embedding layer."""
    embed = model.get_input_embeddings()
    rows = []
    if request.variant != "clear":
        rows.append(bundle.soft_prompt(request.variant))
    for segment in request.segments:
        if isinstance(segment, PrivateSegment):
            rows.append(bundle.build_decoder(request.variant).decode(segment.codes))
        else:
            rows.append(embed(torch.tensor(segment.token_ids)).detach().numpy())
    return np.concatenate(rows)


def expected_tokens(bundle: Bundle, model: Any, request: Request, *, ignore_eos: bool = False) -> list[int]:
    """Return greedy tokens by transformers' ``generate(inputs_embeds=...)``."""
    inputs = torch.from_numpy(embeddings_of(bundle, model, request))[None]
    with torch.no_grad():
        out = model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            max_new_tokens=request.sampling.max_tokens,
            do_sample=False,
            eos_token_id=None if ignore_eos else EOS_ID,
            pad_token_id=BOS_ID,
        )
    return [int(token) for token in out[0]]


def complete(client: httpx.Client, bundle: Bundle, request: Request) -> Any:
    response = client.post(PATH, content=encode(bundle, request), headers=HEADERS)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def stream(client: httpx.Client, bundle: Bundle, request: Request) -> list[Any]:
    """Return the choices of a stream's chunks."""
    with client.stream("POST", PATH, content=encode(bundle, request), headers=HEADERS) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_tokens_are_those_of_transformers(
    client: httpx.Client, bundle: Bundle, model: Any, tokenizer: Tokenizer, variant: str, seed: int
) -> None:
    request = make_request(bundle, variant, tokens=5 + 17 * seed, seed=seed, max_tokens=LENGTH)
    expected = expected_tokens(bundle, model, request)
    choice = complete(client, bundle, request)
    assert choice["token_ids"] == expected
    assert choice["text"] == tokenizer.decode(expected)
    assert choice["finish_reason"] == ("stop" if expected[-1] == EOS_ID else "length")

    streamed = make_request(bundle, variant, tokens=5 + 17 * seed, seed=seed, max_tokens=LENGTH, stream=True)
    chunks = stream(client, bundle, streamed)
    assert [token_id for chunk in chunks for token_id in chunk["token_ids"]] == expected
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]
    assert len(chunks[0]["token_ids"]) < len(expected)


def test_the_expected_tokens_tell_prompts_and_variants_apart(bundle: Bundle, model: Any) -> None:
    """Guard of the test above: the tokens depend on the prompt."""
    requests = [make_request(bundle, variant, seed=seed, max_tokens=12) for variant in VARIANTS for seed in (1, 2, 3)]
    assert len({tuple(expected_tokens(bundle, model, request)) for request in requests}) == len(requests)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_greedy_completions_are_the_rest(
    client: httpx.Client, bundle: Bundle, model: Any, variant: str
) -> None:
    request = make_request(bundle, variant, max_tokens=LENGTH, ignore_eos=True)
    expected = expected_tokens(bundle, model, request, ignore_eos=True)
    whole = complete(client, bundle, request)
    assert whole["token_ids"] == expected
    for k in (1, 7, LENGTH // 2, LENGTH - 1):
        received: tuple[int, ...] = tuple(expected[:k])
        resumed = make_request(bundle, variant, max_tokens=LENGTH, ignore_eos=True, resume=received)
        rest = complete(client, bundle, resumed)
        assert rest["token_ids"] == expected[k:]
        assert rest["finish_reason"] == "length"
        assert whole["text"].endswith(rest["text"])


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_resumed_seeded_completions_are_the_rest(client: httpx.Client, bundle: Bundle, top_p: float) -> None:
    options: Any = {"max_tokens": LENGTH, "ignore_eos": True, "temperature": 1.5, "top_p": top_p, "sampling_seed": 8}
    whole = complete(client, bundle, make_request(bundle, "open", **options))["token_ids"]
    greedy = complete(client, bundle, make_request(bundle, "open", max_tokens=LENGTH, ignore_eos=True))["token_ids"]
    assert len(whole) == LENGTH
    assert whole != greedy
    for k in (1, 13, LENGTH - 1):
        rest = complete(client, bundle, make_request(bundle, "open", resume=tuple(whole[:k]), **options))
        assert rest["token_ids"] == whole[k:]


def test_prompts_computed_together_do_not_mix(server: LocalServer, bundle: Bundle, model: Any) -> None:
    """Forty requests at once of all variants and lengths, more than one step computes."""
    requests = [make_request(bundle, VARIANTS[n % 3], tokens=3 + n, seed=n, max_tokens=12) for n in range(40)]

    async def run() -> list[Any]:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=40)
        ) as client:
            posts = (client.post(PATH, content=encode(bundle, request), headers=HEADERS) for request in requests)
            return [response.json()["choices"][0]["token_ids"] for response in await asyncio.gather(*posts)]

    assert asyncio.run(run()) == [expected_tokens(bundle, model, request) for request in requests]


def test_seeded_sampling_is_repeatable(client: httpx.Client, bundle: Bundle) -> None:
    def sample(seed: int | None) -> tuple[int, ...]:
        request = make_request(bundle, "open", temperature=2.0, max_tokens=24, ignore_eos=True, sampling_seed=seed)
        return tuple(complete(client, bundle, request)["token_ids"])

    assert sample(5) == sample(5)
    assert sample(-1) == sample(-1)
    assert len({sample(5), sample(6), sample(-1), sample(None), sample(None)}) == 5


def test_stop_strings(client: httpx.Client, bundle: Bundle) -> None:
    whole = complete(client, bundle, make_request(bundle, "clear", max_tokens=LENGTH, ignore_eos=True))
    text = whole["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = complete(client, bundle, make_request(bundle, "clear", max_tokens=LENGTH, ignore_eos=True, stop=(stop,)))
    assert stopped["text"] == text[: text.find(stop)]
    assert stopped["finish_reason"] == "stop"
    assert len(stopped["token_ids"]) < LENGTH


def test_listings_and_bundle(client: httpx.Client, bundle: Bundle, tmp_path: Any) -> None:
    models = client.get("/v1/models").json()
    assert [entry["id"] for entry in models["data"]] == [*bundle.variants, "clear"]
    archive = client.get("/v1/bundle")
    assert unpack_client(archive.content, tmp_path / "client").fingerprint == bundle.fingerprint
    assert client.get("/v1/bundle", headers={"if-none-match": archive.headers["etag"]}).status_code == 304
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_errors_through_the_whole_stack(client: httpx.Client, bundle: Bundle) -> None:
    frame = make_frame(bundle)
    cases = [
        (client.post(PATH, content=b"XXXX" + frame[4:], headers=HEADERS), 400, "invalid_magic"),
        (
            client.post(PATH, content=frame.replace(bundle.fingerprint.encode(), b"0" * 64), headers=HEADERS),
            409,
            "bundle_outdated",
        ),
        (client.post(PATH, content=b"\0" * (16 * 1024 * 1024 + 1), headers=HEADERS), 413, "frame_too_large"),
        (client.post(PATH, content=frame), 415, "unsupported_media_type"),
        (client.get("/nowhere"), 404, "not_found"),
        (client.get(PATH), 405, "method_not_allowed"),
    ]
    for response, status, code in cases:
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert response.headers["content-type"] == "application/json"
        assert len(response.headers.get_list("x-request-id")) == 1
    assert client.get("/healthz", headers={"x-request-id": "mine"}).headers.get_list("x-request-id") == ["mine"]
    assert client.get("/healthz", headers={"x-request-id": "not mine"}).headers.get_list("x-request-id") != ["not mine"]


def test_abandoned_streams_free_their_slots(server: LocalServer, client: httpx.Client, bundle: Bundle) -> None:
    """Abandoned streams free their slots."""
    frame = make_frame(bundle, max_tokens=400, stream=True, ignore_eos=True)
    for _ in range(80):
        with client.stream("POST", PATH, content=frame, headers=HEADERS) as response:
            assert response.status_code == 200, response.read()
            next(response.iter_lines())
    assert client.post(PATH, content=make_frame(bundle), headers=HEADERS).status_code == 200
