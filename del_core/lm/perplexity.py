"""Perplexity of the true continuation of a prompt, given the prompt that the server sees."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel


def continuation_nll(
    model: PreTrainedModel, prompt: torch.Tensor, continuation: torch.Tensor, soft_prompt: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean negative log-likelihood in nats per continuation token, (batch,).

    The model reads embeddings ``soft_prompt`` (rows, hidden size), embeddings ``prompt`` (batch,
    prompt tokens, hidden size) and the token ids ``continuation``, clean as on the server.
    """
    clean = model.get_input_embeddings()(continuation[:, :-1])
    parts = [prompt.to(clean.dtype), clean]
    if soft_prompt is not None and len(soft_prompt):
        parts.insert(0, soft_prompt.to(clean.dtype).expand(len(prompt), -1, -1))
    inputs = torch.cat(parts, dim=1)
    logits = model(inputs_embeds=inputs, use_cache=False, logits_to_keep=continuation.shape[1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), continuation, reduction="none").mean(dim=1)


@torch.no_grad()
def evaluate_perplexity(
    model: PreTrainedModel,
    windows: torch.Tensor,
    prompt_tokens: int,
    embed: Callable[[torch.Tensor], torch.Tensor],
    soft_prompt: torch.Tensor | None = None,
    batch: int = 16,
) -> float:
    """Return exp(mean NLL) of all tokens after the first ``prompt_tokens`` of each window.

    ``embed`` maps prompt token ids (batch, prompt tokens) to what the model reads in their place.
    """
    losses = []
    for part in windows.split(batch):
        prompt, continuation = part[:, :prompt_tokens], part[:, prompt_tokens:]
        losses.append(continuation_nll(model, embed(prompt), continuation, soft_prompt))
    return math.exp(float(torch.cat(losses).mean()))
