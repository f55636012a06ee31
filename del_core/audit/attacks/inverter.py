"""The trained inverter: a small transformer that maps the counts of a whole prompt to its tokens.

It starts as the optimal attack on a single position and learns what the neighbors add:

    logits_t = log P(K_t | .) + log prior + W h_t,
    h = transformer([2K/u - 1 ; posterior mean of W]),

with W the language model's embedding table. The last map of the transformer starts at zero, so the
untrained inverter is the MAP attack. Unlike the beam search it uses context in both directions.
Every step draws fresh noise, so it can overfit only to the text.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from del_core.audit.attacks.base import (
    Attack,
    AttackSurface,
    Counts,
    Guesses,
    Ids,
    Knowledge,
    Target,
    register,
    reproducible_bytes,
)
from del_core.audit.results import ModelCost
from del_core.audit.settings import InverterConfig
from del_core.mechanism import TokenMechanism

_SHARE = 0.25  # of the training budget; the attack is the weakest of the trained ones


class Inverter(nn.Module):
    """Network from counts (batch, tokens, dim) to token logits (batch, tokens, V)."""

    embeddings: torch.Tensor
    log_prior: torch.Tensor

    def __init__(
        self,
        mechanism: TokenMechanism,
        surface: AttackSurface,
        length: int,
        config: InverterConfig,
    ) -> None:
        super().__init__()
        embeddings = surface.embeddings
        dim, hidden = mechanism.dim, embeddings.shape[1]
        self._likelihood, self._largest = mechanism.likelihood(surface.table), mechanism.largest_count
        scale = float(np.sqrt(np.mean(np.square(embeddings))))
        self.register_buffer("embeddings", torch.from_numpy(embeddings / np.float32(max(scale, 1e-12))))
        self.register_buffer("log_prior", torch.from_numpy(surface.log_prior.astype(np.float32)))
        self.read = nn.Linear(dim + hidden, config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width,
            nhead=max(1, config.width // 32),
            dim_feedforward=4 * config.width,
            dropout=0.1,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.write = nn.Linear(config.width, hidden)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, counts: Counts) -> torch.Tensor:
        """Return log posteriors (batch, tokens, V) up to a constant, of counts."""
        posterior = torch.from_numpy(self._likelihood(counts)) + self.log_prior
        mean = torch.softmax(posterior, dim=-1) @ self.embeddings
        centered = torch.from_numpy(counts.astype(np.float32) * np.float32(2.0 / self._largest) - np.float32(1.0))
        x = self.read(torch.cat([centered, mean], dim=-1)) + self.positions[: counts.shape[1]]
        h = self.write(self.norm(self.encoder(x)))
        logits: torch.Tensor = posterior + (h @ self.embeddings.T) * self.embeddings.shape[1] ** -0.5
        return logits


@dataclass(frozen=True, eq=False)
class TrainedInverter:
    """A trained inverter, its cost and steps, and its exact ``loss`` on the validation text."""

    model: Inverter
    cost: ModelCost
    loss: float
    steps: int = 0

    @torch.no_grad()
    def tokens(self, counts: Counts, batch: int = 16) -> Ids:
        """Return guesses (prompts, tokens) for counts (prompts, tokens, dim)."""
        parts = [self.model(counts[at : at + batch]).argmax(dim=-1).numpy() for at in range(0, len(counts), batch)]
        return np.concatenate(parts) if parts else np.empty(counts.shape[:2], np.int64)


def train_inverter(
    mechanism: TokenMechanism,
    surface: AttackSurface,
    windows: Callable[[np.random.Generator, int, int], Ids],
    validation: Ids,
    config: InverterConfig,
    progress: Callable[[float], None] = lambda share: None,
) -> TrainedInverter:
    """Train on random ``windows``, early-stopped on ``validation`` prompts.

    ``windows`` returns token ids (count, length) of a generator, a count and a length. ``progress``
    is called with the share of the steps that is done. A seed reproduces the result on
    the same machine.
    """
    started = time.perf_counter()
    length = validation.shape[1]
    random = np.random.Generator(np.random.PCG64(config.seed))
    noise = reproducible_bytes(config.seed + 1)

    def release(ids: Ids) -> Counts:
        return mechanism.sample(surface.table[ids.reshape(-1)], noise).reshape(*ids.shape, mechanism.dim)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Inverter(mechanism, surface, length, config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.05)
        held_out = release(validation)
        untrained = best = _loss(model, validation, held_out, config.batch)
        best_state, waited, done = copy.deepcopy(model.state_dict()), 0, 0
        for step in range(1, config.steps + 1):
            rate = config.learning_rate * min(1.0, step / 20, (config.steps - step + 1) / (0.3 * config.steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids = windows(random, config.batch, length)
            model.train()
            logits = model(release(ids))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(ids).flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress(step / config.steps)
            done = step
            if step % config.evaluate_every == 0 or step == config.steps:
                value = _loss(model, validation, held_out, config.batch)
                if value < best:
                    best, best_state, waited = value, copy.deepcopy(model.state_dict()), 0
                else:
                    waited += 1
                    if waited >= config.patience:
                        break
    model.load_state_dict(best_state)
    model.eval()
    cost = ModelCost(
        width=config.width,
        layers=config.layers,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=round(time.perf_counter() - started, 1),
        validation_loss=round(best, 4),
        untrained_loss=round(untrained, 4),
    )
    return TrainedInverter(model, cost, best, done)


@torch.no_grad()
def _loss(model: Inverter, ids: Ids, counts: Counts, batch: int) -> float:
    model.eval()
    total = 0.0
    for start in range(0, len(ids), batch):
        logits = model(counts[start : start + batch])
        target = torch.from_numpy(ids[start : start + batch])
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
    return total / ids.size


class InverterAttack(Attack):
    """Transformers of several sizes, of which the one with the least validation loss attacks."""

    name = "inverter"
    label = "Trained inverter (transformer)"
    explanation = (
        "Trains a small transformer on simulated releases of the attacker's text, starting from the `map` posterior "
        "and the language model's embeddings, with early stopping on other text."
    )
    needs = "word frequencies, embeddings, text of the same kind"
    knowledge = Knowledge.TEXT

    def run(self, target: Target) -> Guesses:
        """Train every size, for as many steps as the budget allows, and attack with the best."""
        length, table, rows = target.counts.shape[1], target.surface.table, target.surface.embeddings
        # The small network costs little beside the products with the whole vocabulary.
        per_token = 2.0 * table.size + 8.0 * rows.size
        sizes = target.config.inverters
        trained, read = [], 0
        for size in sizes:
            operations = len(sizes) * per_token * size.batch * length / _SHARE
            steps = target.config.attacker.steps(operations, size.steps)
            config = replace(size, steps=steps, evaluate_every=min(size.evaluate_every, max(1, steps)))
            one = train_inverter(
                target.mechanism, target.surface, target.windows, target.stopping, config, target.progress
            )
            trained.append(one)
            read += one.steps * size.batch * length
        best = min(trained, key=lambda one: one.loss)
        return Guesses(
            best.tokens(target.counts),
            best.cost.parameters,
            sizes=tuple(one.cost for one in trained),
            steps=sum(one.steps for one in trained),
            trained_tokens=read,
        )


register(InverterAttack())
