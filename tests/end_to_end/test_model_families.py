"""Every family through the whole stack: client, frame, service and vLLM against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_lib import public
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.types import EncodedPrompt
from del_core.bundle import Bundle, load_bundle
from del_core.lm.check import check_model
from del_core.lm.families import FAMILIES
from del_core.lm.model import BaseLM, load_base_lm
from del_core.wire import PrivateSegment, Sampling
from deployments.replica import start_service
from deployments.service.service import PrivateLMService
from deployments.settings import parse_settings
from tests.support.families import make_bundle, make_model

TOKENS, RECEIVED = 24, 6
# Each way of making rows, positions and attention once, and vLLM's own models as well as those that
# it takes from transformers; the rest take as long again.
_OFTEN = ("falcon", "gemma2", "gpt2", "gpt_neox", "granite", "llama", "minicpm3", "opt")
PROMPT = "The patient was seen because of a fever"


def rows_of(lm: BaseLM, bundle: Bundle, encoded: EncodedPrompt) -> torch.Tensor:
    """Return the rows of a private prompt (1, rows, b) by transformers' embedding layer."""
    embed = lm.model.get_input_embeddings()
    rows = [torch.from_numpy(np.array(bundle.soft_prompt(encoded.variant), np.float32))]
    for segment in encoded.segments:
        if isinstance(segment, PrivateSegment):
            decoded = bundle.build_decoder(encoded.variant).decode(segment.codes)
            rows.append(torch.from_numpy(np.asarray(decoded, np.float32)))
        else:
            rows.append(embed(torch.tensor(segment.token_ids)))
    return torch.cat(rows)[None]


@torch.no_grad()
def expected(lm: BaseLM, **inputs: torch.Tensor) -> tuple[int, ...]:
    """Return greedy tokens by transformers' ``generate``."""
    (first,) = inputs.values()
    mask = torch.ones(first.shape[:2], dtype=torch.long)
    options: Any = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = lm.model.generate(**inputs, attention_mask=mask, **options)[0]
    return tuple(out.tolist()[-TOKENS:])


async def served(
    service: PrivateLMService, encoder: Encoder, encoded: EncodedPrompt, resume: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Return the tokens that the service answers to the frame of a prompt."""
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    request = await service.parse(encoder.frame(encoded, sampling, resume))
    return (await service.complete(request)).token_ids


@pytest.mark.cluster
@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in _OFTEN else pytest.mark.slow) for name in FAMILIES],
)
async def test_greedy_tokens_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    model = make_model(model_type, tmp_path / "model")
    assert check_model(model) == ()
    lm = load_base_lm(model)
    assert lm.bos_token_id == 0
    bundle = load_bundle(make_bundle(lm, tmp_path / "bundle", model_type))
    encoder = Encoder(bundle.client)
    engine = {"max_model_len": 192, "kv_cache_memory_bytes": 1 << 24, "max_num_seqs": 4}
    settings = parse_settings({"bundle": str(bundle.path), "base_model": str(model), "engine": engine})
    service = await start_service(settings)
    try:
        clear = encoder.encode([public(PROMPT)], "clear")
        (start, text) = clear.segments
        ids = torch.tensor([[*start.token_ids, *text.token_ids]])  # type: ignore[union-attr]
        private = encoder.encode(PROMPT, "open")
        seen: set[int] = set()
        for encoded, tokens in (
            (clear, expected(lm, input_ids=ids)),
            (private, expected(lm, inputs_embeds=rows_of(lm, bundle, private))),
        ):
            assert await served(service, encoder, encoded) == tokens
            assert await served(service, encoder, encoded, tokens[:RECEIVED]) == tokens[RECEIVED:]
            seen |= set(tokens)
        assert len(seen) > 3  # else equality says little; noise may lead to one token again and again
    finally:
        await service.shutdown()
