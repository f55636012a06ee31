"""Passages under a view: likelihood of the true continuation, and the text that is written.

The view embeds the prompt only. Tokens of the continuation are clean, as if the server wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from del_core.audit.similarity import SentenceSimilarity
from del_core.evaluation.view import ServerView
from del_core.lm.noise import step_generator
from del_core.lm.perplexity import continuation_nll

_BATCH = 32


@torch.no_grad()
def passage_nll(
    model: PreTrainedModel,
    view: ServerView,
    windows: torch.Tensor,
    prompt_tokens: int,
    seed: int,
    *,
    bf16: bool = False,
) -> npt.NDArray[np.float64]:
    """Return the mean negative log-likelihood of every passage's continuation, in nats per token.

    Args:
        windows: token ids (passages, prompt tokens + continuation tokens).
        seed: seed of the noise, which depends on nothing else but the position of the passage.
        bf16: whether matrix products are computed in bfloat16.
    """
    parts = []
    for index, part in enumerate(windows.split(_BATCH)):
        prompt = view.embed(part[:, :prompt_tokens], step_generator(seed, index, part.device))
        with torch.autocast(prompt.device.type, torch.bfloat16, enabled=bf16):
            parts.append(continuation_nll(model, prompt, part[:, prompt_tokens:]))
    return torch.cat(parts).double().cpu().numpy()


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    embedded: torch.Tensor,
    tokens: int,
    generator: torch.Generator | None = None,
    copies: int = 1,
) -> torch.Tensor:
    """Generate ``tokens`` tokens after each prompt (N, T, b): ids (N * copies, tokens).

    Copies of a prompt stand in sequence. Greedy without a ``generator``; with one, the Gumbel-max
    trick draws tokens of the model's distribution, so that views of one seed share random numbers.
    """
    table, written = model.get_input_embeddings().weight, []
    result = model(inputs_embeds=embedded.to(model.dtype), use_cache=True, logits_to_keep=1)
    cache, logits = result.past_key_values, result.logits[:, -1].repeat_interleave(copies, dim=0)
    if copies > 1:
        cache.batch_repeat_interleave(copies)
    while True:
        if generator is not None:
            uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
            logits = logits.float() - (-uniform.clamp_min(1e-30).log()).log()
        written.append(logits.argmax(-1))
        if len(written) == tokens:
            return torch.stack(written, dim=1)
        result = model(inputs_embeds=table[written[-1]][:, None], past_key_values=cache, use_cache=True)
        cache, logits = result.past_key_values, result.logits[:, -1]


def decode_texts(tokenizer: Tokenizer, ids: torch.Tensor) -> list[str]:
    """Decode every row of ``ids`` (N, tokens)."""
    return list(tokenizer.decode_batch(ids.tolist()))


def written_texts(
    model: PreTrainedModel,
    view: ServerView,
    tokenizer: Tokenizer,
    prompts: torch.Tensor,
    tokens: int,
    seed: int,
    *,
    samples: int = 0,
    bf16: bool = False,
) -> list[str]:
    """Return the text of at most ``tokens`` tokens that the model writes after each of ``prompts``.

    There is one greedy text per passage, or ``samples`` sampled texts per passage after one release
    of the noise.
    """
    texts: list[str] = []
    for index, part in enumerate(prompts.split(_BATCH)):
        embedded = view.embed(part, step_generator(seed, index, part.device))
        chance = step_generator(seed + 1, index, embedded.device) if samples else None
        with torch.autocast(embedded.device.type, torch.bfloat16, enabled=bf16):
            written = continuations(model, embedded, tokens, chance, max(1, samples))
        texts += decode_texts(tokenizer, written)
    return texts


@dataclass(frozen=True, eq=False)
class Coherence:
    """Similarity of written texts to the true continuations, one value per passage.

    Attributes:
        coh: cosine of the sentence embeddings of written and true continuation (COH), in -1..1.
        lift: ``coh`` minus the mean cosine with the true continuations of the other passages. Text
            that is independent of its prompt has a mean lift of 0, however high its COH.
    """

    coh: npt.NDArray[np.float64]
    lift: npt.NDArray[np.float64]


def coherence(similarity: SentenceSimilarity, written: Sequence[str], true: Sequence[str]) -> Coherence:
    """Return the coherence of ``written``, averaged over the texts of each passage.

    The texts of a passage stand in sequence. ``similarity`` caches embeddings, so use the same
    object for all methods.

    Raises:
        ValueError: there are fewer than two passages, or not equally many texts for each.
    """
    passages = len(true)
    if passages < 2 or len(written) % passages:
        raise ValueError(
            f"written must hold equally many texts for each of at least 2 passages, got {len(written)} for {passages}"
        )
    texts = similarity.embeddings(written).reshape(passages, len(written) // passages, -1)
    cosines = np.einsum("pse,qe->pq", texts, similarity.embeddings(true)) / texts.shape[1]
    own = np.diagonal(cosines).copy()
    others = (cosines.sum(axis=1) - own) / (passages - 1)
    return Coherence(coh=own, lift=own - others)
