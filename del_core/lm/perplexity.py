"""Perplexity of the true continuation of a prompt, given the prompt that the server sees."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

IGNORED = -100
"""Target of a position whose next token is not judged."""


def continuation_nll(
    model: PreTrainedModel, prompt: torch.Tensor, continuation: torch.Tensor, soft_prompt: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean negative log-likelihood in nats per continuation token, (batch,).

    The model reads embeddings ``soft_prompt`` (rows, hidden size), embeddings ``prompt`` (batch,
    prompt tokens, hidden size) and the token ids ``continuation``, clean as on the server. The
    prompt has at least one token.
    """
    clean = model.get_input_embeddings()(continuation[:, :-1])
    targets = torch.nn.functional.pad(continuation, (prompt.shape[1] - 1, 0), value=IGNORED)
    return targets_nll(model, torch.cat([prompt.to(clean.dtype), clean], dim=1), targets, soft_prompt)


def targets_nll(
    model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor, prefix: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean negative log-likelihood in nats per judged token of every row, (batch,).

    Arguments as of :func:`judged_logits`.
    """
    logits = judged_logits(model, inputs, targets, prefix)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets[:, -logits.shape[1] :].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(logits.shape[:2]).sum(dim=1) / (targets != IGNORED).sum(dim=1)


def judged_logits(
    model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor, prefix: torch.Tensor | None = None
) -> torch.Tensor:
    """Return logits (batch, columns, V), float32, from the first judged column on.

    Rows of different length are padded on the right: with causal attention, no position reads what
    stands behind it, so there is no mask.

    Args:
        inputs: embeddings (batch, tokens, hidden size).
        targets: the token that follows each position (batch, tokens), or :data:`IGNORED`. Every row
            has a judged token.
        prefix: embeddings (rows, hidden size) in front of every row. Their keys and values are the
            same for the whole batch: they are computed once, with gradient, and shared.
    """
    judged = targets != IGNORED
    columns = int(judged.any(dim=0).flip(0).nonzero().max()) + 1  # from the first judged one to the end
    cache = None
    if prefix is not None and len(prefix):
        cache = model.base_model(inputs_embeds=prefix.to(inputs.dtype)[None], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(inputs))
    found: torch.Tensor = model(
        inputs_embeds=inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=columns
    ).logits
    return found.float()


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
