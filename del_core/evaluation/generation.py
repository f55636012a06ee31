"""Passages under a view: the likelihood of the true continuation, and what the LM writes instead.

The prompt is what the view makes of it; the continuation's tokens are clean, as they are when the server itself has
generated them. Where the view has an LM of its own on the client, that one reads and writes.
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
from del_core.evaluation.view import PromptView
from del_core.lm.noise import step_generator
from del_core.lm.perplexity import continuation_nll

__all__ = ["Coherence", "coherence", "continuations", "decode_texts", "passage_nll", "written_texts"]

_BATCH = 32


@torch.no_grad()
def passage_nll(
    model: PreTrainedModel,
    view: PromptView,
    windows: torch.Tensor,
    prompt_tokens: int,
    seed: int,
    *,
    bf16: bool = False,
) -> npt.NDArray[np.float64]:
    """Mean negative log-likelihood in nats per continuation token of every passage, (passages,).

    Args:
        model: the server's LM.
        windows: token ids (passages, prompt tokens + continuation tokens).
        seed: of the noise, which is a function of it and of the passage's place alone.
        bf16: matrix products in bfloat16, for processors that have them.
    """
    reader, parts = view.local_model or model, []
    for index, part in enumerate(windows.split(_BATCH)):
        prompt = view.embed(part[:, :prompt_tokens], step_generator(seed, index, part.device))
        with torch.autocast(prompt.device.type, torch.bfloat16, enabled=bf16):
            parts.append(continuation_nll(reader, prompt, part[:, prompt_tokens:]))
    return torch.cat(parts).double().cpu().numpy()


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    embedded: torch.Tensor,
    tokens: int,
    generator: torch.Generator | None = None,
    copies: int = 1,
) -> torch.Tensor:
    """The next ``tokens`` tokens after each prompt, with a KV cache: ids (N * copies, tokens), a prompt's together.

    The likeliest at every place; with a ``generator`` draws from the LM's own distribution (temperature 1), by the
    Gumbel-max trick, so that two views with generators of the same seed meet the same chance.

    Args:
        embedded: what the model reads, (N, T, b), without padding.
        copies: draws for each prompt, which is read once.
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


def decode_texts(tokenizer: Tokenizer, ids: torch.Tensor, end: int | None = None) -> list[str]:
    """The text of every row of ``ids`` (N, tokens), up to the first ``end`` where there is one."""
    rows = ids.tolist()
    if end is not None:
        rows = [row[: row.index(end)] if end in row else row for row in rows]
    return list(tokenizer.decode_batch(rows))


def written_texts(
    model: PreTrainedModel,
    view: PromptView,
    tokenizer: Tokenizer,
    prompts: torch.Tensor,
    tokens: int,
    seed: int,
    end: int | None = None,
    *,
    samples: int = 0,
    bf16: bool = False,
) -> list[str]:
    """What is written after each of ``prompts`` (passages, T): at most ``tokens`` tokens, as text.

    Greedily, one text a passage; or ``samples`` texts a passage, one after the other, drawn from the LM's distribution
    behind one release of the noise. ``bf16`` as for ``passage_nll``.
    """
    reader, texts = view.local_model or model, []
    for index, part in enumerate(prompts.split(_BATCH)):
        embedded = view.embed(part, step_generator(seed, index, part.device))
        chance = step_generator(seed + 1, index, embedded.device) if samples else None
        with torch.autocast(embedded.device.type, torch.bfloat16, enabled=bf16):
            written = continuations(reader, embedded, tokens, chance, max(1, samples))
        texts += decode_texts(tokenizer, written, end)
    return texts


@dataclass(frozen=True, eq=False)
class Coherence:
    """How near written texts come to the true continuations in meaning, one value for each passage.

    Attributes:
        coh: cosine of the sentence embeddings of the written and the true continuation (COH), in -1..1.
        lift: ``coh`` less the mean cosine with the true continuations of the other passages. That much comes of the
            corpus' style and of its common subjects; a text that owes nothing to its own prompt has a lift of 0 in the
            mean, however high its COH.
    """

    coh: npt.NDArray[np.float64]
    lift: npt.NDArray[np.float64]


def coherence(similarity: SentenceSimilarity, written: Sequence[str], true: Sequence[str]) -> Coherence:
    """Coherence of ``written``: as many texts for every passage as for any other, a passage's together, averaged.

    ``similarity`` keeps the embeddings of texts that it has seen, so give every method the same one.

    Raises:
        ValueError: fewer than two passages, or not as many texts for each.
    """
    passages = len(true)
    if passages < 2 or len(written) % passages:
        raise ValueError(f"written: {len(written)} texts for {passages} passages; as many for each of at least 2")
    texts = similarity.embeddings(written).reshape(passages, len(written) // passages, -1)
    cosines = np.einsum("pse,qe->pq", texts, similarity.embeddings(true)) / texts.shape[1]
    own = np.diagonal(cosines).copy()
    others = (cosines.sum(axis=1) - own) / (passages - 1)
    return Coherence(coh=own, lift=own - others)
