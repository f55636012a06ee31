"""An exported model: in transformers, and behind vLLM's own server with the client in front."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.serving.systems import stop_tree
from client_lib import Client, EncodedPrompt, InvalidRequestError, private, public
from cluster.local import free_port
from del_core.bundle import Bundle
from del_core.bundle.code_ids import code_ids
from del_core.lm.adapter import adapted
from del_core.lm.export import Exported, export_model
from del_core.lm.model import ModelError
from del_core.lm.progress import Observer
from del_core.wire import PrivateSegment
from delctl.commands.export import export
from tests.support.coded import BITS, make_coded
from tests.support.tiny import EOS_ID, SOFT_PROMPT_LENGTH, VOCABULARY_SIZE, Tiny

VARIANTS = ("codes", "plain")
PROMPT = [public("She said that "), private("the old house by the river"), public(" runs")]
_SAMPLED, _EACH = 100_000, 400


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_coded(tiny, Path(tmp_path_factory.mktemp("coded")) / "bundle")


@pytest.fixture(scope="module")
def exported(tiny: Tiny, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    shares: list[float] = []
    observer = Observer(progress=shares.append)
    made = export_model(bundle, tiny.model, Path(tmp_path_factory.mktemp("exported")), observer=observer)
    assert shares == [0.0, 0.25, 0.5, 0.75]
    return made


def ids_of(bundle: Bundle, encoded: EncodedPrompt) -> list[int]:
    """Return the ids of a prompt, counted out here once more."""
    start = VOCABULARY_SIZE + VARIANTS.index(encoded.variant) * ((1 << BITS) + SOFT_PROMPT_LENGTH)
    found = [start + (1 << BITS) + row for row in range(SOFT_PROMPT_LENGTH)]
    for segment in encoded.segments:
        if isinstance(segment, PrivateSegment):
            found += [start + int(code) for code in segment.codes[:, 0]]
        else:
            found += segment.token_ids
    return found


def greedy(bundle: Bundle, model: Any, encoded: EncodedPrompt, most: int) -> list[int]:
    """Return the tokens of transformers on the embeddings that the bundle's decoder makes."""
    embed = model.get_input_embeddings()
    rows = [torch.from_numpy(bundle.soft_prompt(encoded.variant))]
    for segment in encoded.segments:
        if isinstance(segment, PrivateSegment):
            rows.append(torch.from_numpy(bundle.build_decoder(encoded.variant).decode(segment.codes)))
        else:
            rows.append(embed(torch.tensor(segment.token_ids)))
    with torch.no_grad(), adapted(model, bundle.adapter(encoded.variant)):
        inputs = torch.cat(rows)[None]
        out = model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=EOS_ID,
            pad_token_id=EOS_ID,
        )
    return [int(token) for token in out[0]]


@pytest.fixture(scope="module")
def lm(tiny: Tiny) -> Any:
    return LlamaForCausalLM.from_pretrained(tiny.model, dtype=torch.float32).eval()


def offline(bundle: Bundle, bodies: list[dict[str, Any]] | None = None) -> Client:
    """Return a client of a server of OpenAI's API that answers one token and keeps the bodies."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "codes", "max_model_len": 128}]})
        assert bodies is not None, "nothing may be sent"
        bodies.append(json.loads(request.content))
        choice = {"text": "a", "token_ids": [5], "finish_reason": "length"}
        return httpx.Response(200, json={"id": "x", "choices": [choice]})

    place, transport = bundle.path / "client", httpx.MockTransport(answer)
    return Client("http://127.0.0.1:9", upstream="openai", bundle=place, max_retries=0, transport=transport)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_the_exported_model_are_those_of_the_bundle(
    bundle: Bundle, exported: Exported, lm: Any, variant: str
) -> None:
    """Embeddings by id equal the decoder's, and the base model's tokens are as they were."""
    model = AutoModelForCausalLM.from_pretrained(exported.directory / "model")
    with offline(bundle) as client:
        encoded = client.encode(PROMPT, variant=variant)
    ids = ids_of(bundle, encoded)
    assert [*exported.variants[variant].soft_prompt] == ids[:SOFT_PROMPT_LENGTH]
    assert model.config.vocab_size == VOCABULARY_SIZE + 2 * ((1 << BITS) + SOFT_PROMPT_LENGTH)
    rows = model.get_input_embeddings()(torch.tensor(ids))
    assert torch.allclose(rows[:SOFT_PROMPT_LENGTH], torch.from_numpy(bundle.soft_prompt(variant)))
    (hidden,) = (segment for segment in encoded.segments if isinstance(segment, PrivateSegment))
    first = SOFT_PROMPT_LENGTH + encoded.segments[0].tokens + encoded.segments[1].tokens
    decoded = torch.from_numpy(bundle.build_decoder(variant).decode(hidden.codes))
    assert torch.allclose(rows[first : first + hidden.tokens], decoded)
    logits = model(torch.tensor([[0, 5, 9]])).logits
    assert torch.allclose(logits[..., :VOCABULARY_SIZE], lm(torch.tensor([[0, 5, 9]])).logits, atol=1e-4)
    assert not logits[..., VOCABULARY_SIZE:].any()


def test_a_merged_adapter_answers_as_the_adapter_beside_the_model(
    tiny: Tiny, bundle: Bundle, exported: Exported, lm: Any, tmp_path: Path
) -> None:
    """Same ids, same tokens, and nothing but this variant is served."""
    with pytest.raises(ModelError, match="merge must be a variant of codes with an adapter: codes; got plain"):
        export_model(bundle, tiny.model, tmp_path / "merged", merge="plain")
    merged = export_model(bundle, tiny.model, tmp_path / "merged", merge="codes")
    assert (merged.merged, merged.adapters, merged.variants) == ("codes", (), exported.variants)
    assert merged.arguments == [str(tmp_path / "merged" / "model"), "--served-model-name", "codes"]
    assert json.loads((tmp_path / "merged" / "del-serve.json").read_text())["merged"] == "codes"
    with offline(bundle) as client:
        encoded = client.encode(PROMPT, variant="codes")
    ids = torch.tensor([ids_of(bundle, encoded)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model").eval()
    found = model.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=EOS_ID, pad_token_id=EOS_ID)
    assert found[0, ids.shape[1] :].tolist() == greedy(bundle, lm, encoded, 16)
    with torch.no_grad():
        beside = AutoModelForCausalLM.from_pretrained(exported.directory / "model").eval()
        assert not torch.allclose(model(ids).logits, beside(ids).logits, atol=0.1)


def test_what_cannot_be_exported_is_refused(tiny: Tiny, bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    arguments = [str(tiny.bundle), "--model", str(tiny.model), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(export, arguments)
    assert "bundle must have a variant that sends one code for a token, got none" in str(refused.exception)
    full = CliRunner().invoke(export, [str(bundle.path), *arguments[1:4], str(exported.directory)])
    assert isinstance(full.exception, FileExistsError)
    shown = CliRunner().invoke(export, [str(bundle.path), *arguments[1:4], str(tmp_path / "new"), "--json"])
    assert shown.exit_code == 0, shown.output
    report = json.loads(shown.stdout)
    assert report["variants"]["codes"]["codes"] == [VOCABULARY_SIZE, VOCABULARY_SIZE + (1 << BITS)]
    assert "--served-model-name clear plain" in report["command"]


def test_requests_name_the_ids_and_block_them_in_the_answer(bundle: Bundle) -> None:
    bodies: list[dict[str, Any]] = []
    with offline(bundle, bodies) as client:
        encoded = client.encode(PROMPT, variant="codes")
        client.complete(encoded, variant="codes", max_tokens=1, top_p=0.5, stop=["x"], logit_bias={7: 1.5})
    body = bodies[-1]
    assert body["prompt"] == ids_of(bundle, encoded)
    assert (body["model"], body["max_tokens"], body["top_p"], body["stop"]) == ("codes", 1, 0.5, ["x"])
    blocked = {str(one) for one in range(VOCABULARY_SIZE, VOCABULARY_SIZE + 2 * ((1 << BITS) + SOFT_PROMPT_LENGTH))}
    assert body["logit_bias"] == {"7": 1.5, **dict.fromkeys(blocked, -100.0)}


def test_what_such_a_server_cannot_do_is_refused_before_anything_is_sent(bundle: Bundle) -> None:
    with offline(bundle) as client:
        assert set(client.variants()) == set(VARIANTS)
        with pytest.raises(InvalidRequestError, match="variant must be one that sends one code for a token"):
            client.complete(PROMPT, variant="open")
        with pytest.raises(InvalidRequestError, match="logprobs must be None with upstream openai"):
            client.complete(PROMPT, variant="codes", logprobs=1)
        assert client.room(variant="codes") == 128 - SOFT_PROMPT_LENGTH
    with pytest.raises(InvalidRequestError, match="bundle must be given with upstream openai"):
        Client("http://127.0.0.1:9", upstream="openai")
    with pytest.raises(InvalidRequestError, match="upstream must be one of del, openai, got 'vllm'"):
        Client("http://127.0.0.1:9", upstream="vllm")


@pytest.fixture(scope="module")
def server(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own OpenAI server with the exported model, started as ``delctl export`` says."""
    port, log = free_port(), Path(tmp_path_factory.mktemp("log")) / "log"
    place = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", "--dtype", "float32"]
    options = ["--enforce-eager", "--disable-uvicorn-access-log", "--kv-cache-memory-bytes", str(64 << 20)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *exported.arguments]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *place, *options], stdout=subprocess.PIPE, stderr=file, text=True)
    ended = threading.Event()
    assert process.stdout is not None
    reading = threading.Thread(target=lambda: (process.stdout.read(), ended.set()))
    reading.start()
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                assert not ended.wait(0.2), log.read_text()[-2000:]
        yield url
    finally:
        stop_tree(process)
        reading.join()


@pytest.mark.cluster
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_server_of_others_answers_as_transformers_does(server: str, bundle: Bundle, lm: Any, variant: str) -> None:
    """Whole, streamed, and resumed after six tokens."""
    with Client(server, upstream="openai", bundle=bundle.path / "client", max_retries=0) as client:
        encoded = client.encode(PROMPT, variant=variant)
        expected = greedy(bundle, lm, encoded, 16)
        options: dict[str, Any] = {"variant": variant, "temperature": 0.0, "max_tokens": 16}
        assert list(client.complete(encoded, **options).token_ids) == expected
        with client.stream(encoded, **options) as stream:
            assert [token for chunk in stream for token in chunk.token_ids] == expected
        request = {"model": variant, "prompt": [*ids_of(bundle, encoded), *expected[:6]], "temperature": 0}
        rest = httpx.post(
            f"{server}/v1/completions", json={**request, "max_tokens": 10, "return_token_ids": True}, timeout=60
        )
        assert rest.json()["choices"][0]["token_ids"] == expected[6:]


@pytest.mark.cluster
def test_no_token_of_a_code_is_ever_generated(server: str, bundle: Bundle) -> None:
    """10^5 tokens at temperature 2; a code among them would have a probability near e^-50."""
    with Client(server, upstream="openai", bundle=bundle.path / "client", max_retries=0, timeout=240) as client:
        encoded = client.encode(PROMPT, variant="codes")

        def sample(seed: int) -> tuple[int, ...]:
            options = {"temperature": 2.0, "max_tokens": _EACH, "seed": seed, "ignore_eos": True}
            return client.complete(encoded, variant="codes", **options).token_ids

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(sample, range(_SAMPLED // _EACH)))
    assert sum(map(len, answers)) == _SAMPLED
    assert max(map(max, answers)) < VOCABULARY_SIZE
    assert len(code_ids(bundle.manifest)) == 2
