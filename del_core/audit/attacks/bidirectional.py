"""The bidirectional attack: the language model itself, taught to read noisy prompts.

A causal model guesses a token from what stands before it. The attacker owns the model, so it can
take away the causal mask and fine-tune the model on simulated releases of its own text. The input
at a position is the posterior mean of the embedding, m_t = sum_v P(v | K_t) E_v, behind a learned
first row; the output at position t - 1, which used to predict token t from the left, then predicts
it from both sides ("masked next token prediction", BehnamGhader et al. 2024, arXiv 2404.05961):

    score_t(v) = log P(K_t | v) + alpha log p(v | m_1 .. m_T) + beta log prior(v).

It works for every kind of mechanism, since counts enter by their likelihood alone. alpha and beta
are learned, too. A family whose mask cannot be replaced is read from the left side alone. Every
step draws fresh noise, so the model can overfit only to the text. Within an audit the training for
one variant starts from the weights that another left.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from del_core.audit.attacks.base import Attack, Counts, Guesses, Ids, Knowledge, Target, register, reproducible_bytes
from del_core.audit.attacks.candidates import candidates

BIDIRECTIONAL = "bidirectional"

_MOST_STEPS = 4000
_BATCH_TOKENS = 256
_LARGE = 50_000_000  # parameters from which the learning rate is lower
_RATE, _LARGE_RATE, _GATE_RATE = 4e-4, 1e-4, 1e-2
_WARMUP, _DECAY = 0.05, 0.3  # shares of the steps
_EVALUATIONS = 5
_GATES = (0.05, 0.1, 0.2, 0.35, 0.6, 0.9)  # of the context, before training


class BidirectionalLM(nn.Module):
    """A copy of the language model without causal mask, from counts to token scores."""

    rows: torch.Tensor
    log_prior: torch.Tensor

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.model = copy.deepcopy(target.lm.model).float().requires_grad_(True)
        self._likelihood = target.likelihood
        self.both_sides = reads_both_sides(self.model)
        rows = target.lm.embeddings.detach().float()
        prior = torch.from_numpy(target.surface.log_prior.astype(np.float32))
        self.register_buffer("rows", rows.detach().clone(), persistent=False)
        self.register_buffer("log_prior", prior, persistent=False)
        bos = target.bos_token_id
        first = rows[bos] if bos is not None else prior.exp() @ rows
        self.first = nn.Parameter(first.detach().clone())
        self.gates = nn.Parameter(torch.tensor([0.3, 0.7]))  # alpha, beta
        for embedding in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            for parameter in embedding.parameters():
                parameter.requires_grad_(False)  # most rows are never read in a short training

    def forward(self, counts: Counts) -> torch.Tensor:
        """Return scores (prompts, tokens, V) of counts (prompts, tokens, dim)."""
        likelihood, context = self.read(counts)
        scores: torch.Tensor = likelihood + self.gates[0] * context + self.gates[1] * self.log_prior
        return scores

    def read(self, counts: Counts) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-likelihoods of the positions, and log-probabilities from their context."""
        likelihood = torch.from_numpy(self._likelihood(counts)).float()
        mean = torch.softmax(likelihood + self.log_prior, dim=-1) @ self.rows
        x = torch.cat([self.first.expand(len(mean), 1, -1), mean], dim=1)
        logits = _logits(self.model, x, both_sides=self.both_sides)[:, :-1].float()
        context = torch.log_softmax(logits, dim=-1)
        return likelihood, context

    @torch.no_grad()
    def set_gates(self, counts: Counts, ids: Ids) -> None:
        """Start from the gates of least loss on other prompts; noise may make context useless."""
        truth, losses = torch.from_numpy(ids).flatten(), dict.fromkeys(_GATES, 0.0)
        for start in range(0, len(ids), 8):
            likelihood, context = self.read(counts[start : start + 8])
            here = truth[start * ids.shape[1] : (start + 8) * ids.shape[1]]
            for gate in _GATES:
                scores = likelihood + gate * context + (1.0 - gate) * self.log_prior
                losses[gate] += float(nn.functional.cross_entropy(scores.flatten(0, 1), here, reduction="sum"))
        best = min(losses, key=losses.__getitem__)
        self.gates.copy_(torch.tensor([best, 1.0 - best]))


def _logits(model: PreTrainedModel, x: torch.Tensor, *, both_sides: bool) -> torch.Tensor:
    if not both_sides:
        causal: torch.Tensor = model(inputs_embeds=x, use_cache=False).logits
        return causal
    # An additive mask of zeros in four dimensions is taken as it is: all positions see all.
    mask = x.new_zeros(len(x), 1, x.shape[1], x.shape[1])
    more = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        more["position_ids"] = torch.arange(x.shape[1]).unsqueeze(0)  # some families count the mask
    found: torch.Tensor = model(inputs_embeds=x, attention_mask=mask, use_cache=False, **more).logits
    return found


@torch.no_grad()
def reads_both_sides(model: PreTrainedModel) -> bool:
    """Return whether the family takes a mask in which positions see what comes after them."""
    width = model.get_input_embeddings().weight.shape[1]
    x = torch.ones(1, 3, width)
    changed = x.clone()
    changed[0, 2] = -torch.linspace(0.5, 2.0, width)
    was_training = model.training
    model.eval()
    try:
        one, two = (_logits(model, each, both_sides=True)[0, 0] for each in (x, changed))
    except (ValueError, RuntimeError, TypeError, IndexError):  # the family wants a mask of two dimensions
        return False
    finally:
        model.train(was_training)
    return bool((one - two).abs().max() > 1e-7)


@dataclass(frozen=True, eq=False)
class TrainedReader:
    """The trained model, and what its training took and reached, in nats per token."""

    model: BidirectionalLM
    steps: int
    tokens: int
    loss: float
    untrained_loss: float

    @torch.no_grad()
    def scores(self, counts: Counts) -> torch.Tensor:
        """Return scores (prompts, tokens, V) of counts (prompts, tokens, dim)."""
        found: torch.Tensor = self.model(counts)
        return found


def train_reader(target: Target, progress: Callable[[float], None] = lambda share: None) -> TrainedReader:
    """Fine-tune the language model within the budget on simulated releases of the attacker's text.

    The weights of least loss on ``target.stopping`` are kept, those from before the training too.
    A seed reproduces the result on the same machine.
    """
    length = target.counts.shape[1]
    large = target.parameters >= _LARGE
    batch = max(1, _BATCH_TOKENS // length)
    per_token = 6.0 * target.parameters + 2.0 * target.surface.table.size + 2.0 * target.surface.embeddings.size
    steps = target.config.attacker.steps(per_token * batch * length, _MOST_STEPS)
    random = np.random.Generator(np.random.PCG64(target.config.seed + 11))
    noise = reproducible_bytes(1000 * target.config.seed + 12)

    def release(ids: Ids) -> Counts:
        levels = target.surface.table[ids.reshape(-1)]
        return target.mechanism.sample(levels, noise).reshape(*ids.shape, -1)

    held_out_ids = target.stopping
    held_out = target.release(held_out_ids, 13)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(target.config.seed)
        model = BidirectionalLM(target)
        if BIDIRECTIONAL in target.carried:
            _restore(model, target.carried[BIDIRECTIONAL])
        else:
            model.eval()
            model.set_gates(held_out, held_out_ids)
        weights = [one for name, one in model.named_parameters() if name != "gates" and one.requires_grad]
        rate = _LARGE_RATE if large else _RATE
        groups = [{"params": weights, "lr": rate}, {"params": [model.gates], "lr": _GATE_RATE}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        untrained = best = _loss(model, held_out_ids, held_out)
        kept, read = _trainable(model), 0
        every = max(1, steps // _EVALUATIONS)
        for step in range(1, steps + 1):
            share = step / steps
            factor = min(1.0, share / _WARMUP, (1.0 - share) / _DECAY + 1.0 / steps)
            for group, full in zip(optimizer.param_groups, (rate, _GATE_RATE), strict=True):
                group["lr"] = full * factor
            ids = target.windows(random, batch, length)
            model.train()
            scores = model(release(ids))
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), torch.from_numpy(ids).flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            read += ids.size
            progress(share)
            if step % every == 0 or step == steps:
                value = _loss(model, held_out_ids, held_out)
                if value < best:
                    best, kept = value, _trainable(model)
    _restore(model, kept)
    model.eval()
    target.carried[BIDIRECTIONAL] = kept
    return TrainedReader(model, steps, read, best, untrained)


def shared_reader(target: Target) -> TrainedReader:
    """Return the trained model of this target; attacks that use it train it once."""
    found = target.shared.get(BIDIRECTIONAL)
    if not isinstance(found, TrainedReader):
        found = target.shared[BIDIRECTIONAL] = train_reader(target, target.progress)
    return found


def _trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


@torch.no_grad()
def _restore(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


@torch.no_grad()
def _loss(model: BidirectionalLM, ids: Ids, counts: Counts) -> float:
    model.eval()
    total = 0.0
    for start in range(0, len(ids), 8):
        truth = torch.from_numpy(ids[start : start + 8]).flatten()
        scores = model(counts[start : start + 8]).flatten(0, 1)
        total += float(nn.functional.cross_entropy(scores, truth, reduction="sum"))
    return total / ids.size


class BidirectionalAttack(Attack):
    """The language model without causal mask, fine-tuned on noisy prompts of another text."""

    name = BIDIRECTIONAL
    label = "Language model that reads both sides (fine-tuned on noise)"
    explanation = (
        "Takes the causal mask from a copy of the language model and fine-tunes it on simulated releases of the "
        "attacker's text, so that it reads a noisy prompt from both sides."
    )
    needs = "word frequencies, the language model, text of the same kind"
    knowledge = Knowledge.TEXT

    def run(self, target: Target) -> Guesses:
        """Train, then take the best-scored token of every position."""
        trained = shared_reader(target)
        size = len(target.surface.table)
        found = candidates(trained.scores, target.counts, 1, size, whole_prompts=True)
        return Guesses(
            found.best(),
            parameters=target.parameters,
            settings={
                "reads": "both sides" if trained.model.both_sides else "the left side",
                "loss": round(trained.loss, 4),
                "untrained_loss": round(trained.untrained_loss, 4),
            },
            steps=trained.steps,
            trained_tokens=trained.tokens,
        )


register(BidirectionalAttack())
