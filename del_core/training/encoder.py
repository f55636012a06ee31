"""Stage 1 with noise: an encoder that is trained for one attack success, through the frozen LM.

The published method fits the encoder to clean embeddings. Here encoder, noise scale and decoder are
trained together under a constraint on the optimal attacker:

    minimize   E[ NLL(continuation | decode(K_1 .. K_T)) ],   K_j ~ Binomial(u, (1 + r x_j) / 2)
    subject to E[ max_v P(v | K) ] = s

E max_v P(v | K) is exactly the success rate of the MAP attack, which guesses a token from its own
counts and a unigram prior; with ``attack_success``, P(v | K) is that of the attacker who has the LM
(``del_core.training.attacker``). A Lagrange multiplier on log(success / s) keeps the constraint:
gradient ascent raises it during the descent (Arrow, Hurwicz and Uzawa, 1958). Gradients pass the
binomial straight through its mean (Bengio et al., 2013, arXiv 1308.3432). They reach the table also
through the posterior over the vocabulary, which the constraint reads, and so does every decoder but
the linear one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from del_core.audit.attacks.map import MAP
from del_core.audit.calibration import Calibration, Search, bisect, calibrate
from del_core.lm.device import products
from del_core.lm.model import FrozenLM, ModelError
from del_core.lm.noise import NoisyTable, TorchLikelihood, step_generator
from del_core.lm.perplexity import continuation_nll
from del_core.lm.text import TokenWindows
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.attacker import LANGUAGE_MODEL, ContextAttack, expected_tokens
from del_core.training.config import EncoderConfig
from del_core.training.decoders import TrainableDecoder, new_decoder
from del_core.training.loop import Run, Schedule, fit
from del_core.training.parallel import Shard, current_shard
from del_core.training.projection import Projection, attack_surface, calibration_tokens, save_projection
from del_core.training.results import CalibratedRate, EncoderResult
from del_core.training.start import START_FILE, Stage1, calibrate_norm_limit, first_rows

_QUICK_TOKENS = 4_000  # attacked at every evaluation
_ALONE = Shard()


class NoisyEncoder(nn.Module):
    """Encoder and noise scale with gradients; ``values`` (V, rank) are the decoder's, if any."""

    def __init__(self, lm: FrozenLM, projection: Projection, mechanism: Mechanism, values: torch.Tensor | None) -> None:
        super().__init__()
        device = lm.embeddings.device
        self.projection, self.trials, self.values = projection, mechanism.trials, values
        self.embeddings, self.log_prior = lm.embeddings.float(), lm.unigram().log().float().to(device)
        self.log_odds_of_ratio = nn.Parameter(torch.logit(torch.tensor(mechanism.ratio, device=device)))

    def forward(
        self,
        tokens: torch.Tensor,
        generator: torch.Generator,
        shard: Shard = _ALONE,
        expected: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Return y (rows, ..., d), the posterior mean (rows, ..., rank) and the attacker's success.

        The rows are ``shard``'s rows of ``tokens``. Noise is drawn for all rows, so that a row's
        noise is the same for any number of workers. With ``expected`` (rows, ..., V), the attacker
        knows these log probabilities; otherwise, as the decoder does, how often tokens occur.
        """
        ratio = torch.sigmoid(self.log_odds_of_ratio).clamp(max=1 - 2.0**-16)
        q = 0.5 + 0.5 * ratio * self.projection.encode(self.embeddings)
        likelihood = TorchLikelihood.from_probabilities(q, self.trials)
        with torch.no_grad():
            everyone = q[tokens]
            drawn = torch.binomial(torch.full_like(everyone, float(self.trials)), everyone, generator=generator)
        drawn, mine = shard.of(drawn), q[shard.of(tokens)]
        counts = drawn + self.trials * (mine - mine.detach())  # straight through the mean
        centered = counts - 0.5 * self.trials
        y = (2.0 * counts / self.trials - 1.0) / ratio
        attackers = likelihood.posterior(centered, self.log_prior if expected is None else expected)
        mean = None
        if self.values is not None:
            decoders = attackers if expected is None else likelihood.posterior(centered, self.log_prior)
            mean = decoders @ self.values
        return y, mean, attackers.amax(dim=-1).mean()


class _Training:
    """Encoder, decoder and soft prompt of one run, with their loss and calibration."""

    def __init__(self, lm: FrozenLM, stage1: Stage1, config: EncoderConfig) -> None:
        start, self.stage1 = stage1.projection, stage1
        if start.width not in (0, config.width):
            raise ModelError(f"width must be {start.width}, as in the encoder to continue from, got {config.width}")
        self.lm, self.config, self.shard = lm, config, current_shard()
        device, dim = lm.embeddings.device, start.encoder.out_features
        self.projection = Projection(lm.embeddings.shape[1], dim, config.width).to(device)
        self.projection.load_state_dict(start.state_dict(), strict=False)
        self.windows = TokenWindows(lm.train, config.length, config.seed)
        self.validation = lm.windows(lm.validation, config.length, config.evaluation_windows)
        self.tokens = calibration_tokens(lm)
        self.attack = None if config.attack_success is None else ContextAttack.prepare(lm, config.prompt_tokens)
        mechanism = self.calibrate(12, at_most=stage1.start is not None).mechanism
        self.decoder = self._new_decoder(mechanism)
        if stage1.start is not None:
            self.decoder.start_from(stage1.start.tensors)
        self.encoder = NoisyEncoder(lm, self.projection, mechanism, self.decoder.values)
        self.soft_prompt = nn.Parameter(first_rows(lm, stage1.start, config.rows))
        self.log_multiplier = nn.Parameter(torch.tensor(math.log(config.multiplier), device=device))

    def _new_decoder(self, mechanism: Mechanism) -> TrainableDecoder:
        noisy = NoisyTable(self.projection.table(self.lm.embeddings, MAX_LEVEL), mechanism)
        if start := self.stage1.start_for(self.config.decoder):
            norm_limit = start.norm_limit
        else:
            norm_limit = calibrate_norm_limit(self.lm, self.stage1, noisy, self.validation, self.config)
        decoder = new_decoder(self.config.decoder, self.stage1.inputs(self.lm, noisy, norm_limit))
        decoder.set_blend(0.5)
        decoder.train_jointly()
        return decoder

    def calibrate(self, iterations: int, *, quick: bool = False, at_most: bool = True) -> Calibration:
        """Calibrate the noise to the target on the validation part; see :func:`bisect`."""
        config = self.config
        if self.attack is not None:
            table = self.projection.table(self.lm.embeddings, MAX_LEVEL).cpu().numpy()
            search = Search(config.bits, table.shape[1], MAX_LEVEL, iterations=iterations, at_most=at_most)
            return bisect(LANGUAGE_MODEL, config.target, self.attack.rate(table), search)
        tokens: np.ndarray = self.tokens
        if quick:
            tokens = tokens[:: max(1, len(tokens) // _QUICK_TOKENS)]
        return calibrate(
            MAP, config.target, config.bits, attack_surface(self.lm, self.projection), tokens,
            max_level=MAX_LEVEL, iterations=iterations, at_most=at_most,
        )  # fmt: skip

    def map_asr(self, found: Calibration) -> float:
        """Return the success of the MAP attack against a calibrated mechanism."""
        if found.attack == MAP:
            return found.success
        surface = attack_surface(self.lm, self.projection)
        return surface.hits(MAP, found.mechanism, self.tokens, seed=1) / len(self.tokens)

    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of encoder and noise by name."""
        own = {f"encoder.{name}": parameter for name, parameter in self.projection.encoder_parameters().items()}
        return {**own, "log_odds_of_ratio": self.encoder.log_odds_of_ratio}

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return all trained parameters by name."""
        prompted = [("soft_prompt", self.soft_prompt)] if self.config.rows else []
        multiplier = ("log_multiplier", self.log_multiplier)
        return [*self.encoder_parameters().items(), *self.decoder.trained(), *prompted, multiplier]

    def _nll(self, y: torch.Tensor, mean: torch.Tensor | None, continuation: torch.Tensor) -> torch.Tensor:
        prompt = self.lm.begin(self.decoder(y, mean))
        return continuation_nll(self.lm.model, prompt, continuation, self.soft_prompt)

    def loss(self, step: int) -> torch.Tensor:
        """Return the Lagrangian of a batch."""
        config, shard = self.config, self.shard
        private, continuation = config.batch_of(self.windows, step)
        device = private.device
        expected = None if self.attack is None else expected_tokens(self.lm, shard.of(private))
        y, mean, success = self.encoder(private, step_generator(config.seed, step, device), shard, expected)
        with products(device, config.bf16):
            utility = self._nll(y, mean, shard.of(continuation)).mean()
        # The logarithm is of all workers' success, its gradient each worker's own share of that.
        everyones = shard.mean(success)
        excess = torch.log(everyones / config.target) + (success - success.detach()) / everyones
        # Ascent in the multiplier only: its term enters with the other sign.
        return utility + self.log_multiplier.detach().exp() * excess - self.log_multiplier.exp() * excess.detach()

    @torch.no_grad()
    def held_out(self) -> float:
        """Return the validation loss at the target success, independently of the multiplier."""
        tokens, seed = self.config.prompt_tokens, self.config.seed + 1
        found = self.calibrate(9, quick=True).mechanism.ratio
        kept = self.encoder.log_odds_of_ratio.clone()
        self.encoder.log_odds_of_ratio.copy_(torch.logit(torch.tensor(found)))
        losses = []
        for index, part in enumerate(self.validation.split(16)):
            y, mean, _ = self.encoder(part[:, :tokens], step_generator(seed, index, part.device))
            losses.append(self._nll(y, mean, part[:, tokens:]))
        self.encoder.log_odds_of_ratio.copy_(kept)
        return float(torch.cat(losses).mean())


def train_encoder(
    lm: FrozenLM, stage1: Stage1, output: Path, config: EncoderConfig, *, progress: bool = True
) -> EncoderResult:
    """Train the encoder of ``stage1`` for ``config.target`` and write it to ``output``.

    ``stage1`` is a projection that was trained without noise, or an encoder of the same width that
    was trained for another success, from which encoder and decoder continue. ``output`` gets the
    files of ``train_projection`` and ``decoder_start.safetensors``, the start of stage 2.
    """
    torch.manual_seed(config.seed)
    training = _Training(lm, stage1, config)
    projection, decoder = training.projection, training.decoder
    first_loss = training.held_out()
    best = fit(
        training.parameters(),
        training.loss,
        Run(
            "encoder",
            output / "checkpoints",
            Schedule(config.steps, config.learning_rate),
            identity={**config.identity(lm), "start": "projection" if stage1.start is None else "encoder"},
            evaluate_every=50,
            keep_start=stage1.start is not None,
            rates={
                **dict.fromkeys(training.encoder_parameters(), config.encoder_rate),
                "soft_prompt": config.soft_prompt_rate,
                "log_multiplier": config.multiplier_rate,
            },
            progress=progress,
        ),
        training.held_out,
    )
    scale = _fill_clip(lm, projection)
    tensors = _rescaled(decoder, scale)
    if "weight" in tensors:
        projection.decoder.load_state_dict({"weight": tensors["weight"], "bias": tensors["bias"]})
    else:
        _refit_linear_decoder(lm, projection)
    found = training.calibrate(14)
    result = EncoderResult(
        config=config,
        dim=projection.encoder.out_features,
        norm_limit=decoder.norm_limit * scale,
        model_sha256=lm.checksum,
        text_sha256=lm.text_sha256,
        calibration=CalibratedRate(found.attack, found.target, found.rate, found.mechanism.ratio_numerator),
        ppl_start=math.exp(first_loss),
        ppl_trained=math.exp(best),
        map_asr=training.map_asr(found),
    )

    def write() -> None:
        start = {**tensors, "soft_prompt": training.soft_prompt.detach()}
        save_file({name: tensor.cpu().contiguous() for name, tensor in start.items()}, output / START_FILE)
        save_projection(lm, projection, output, result)

    training.shard.once(write)
    return result


def _refit_linear_decoder(lm: FrozenLM, projection: Projection) -> None:
    """Fit D and a' to a table that was trained without them, by weighted least squares."""
    weights = lm.unigram().to(lm.embeddings.device).sqrt()[:, None]
    with torch.no_grad():
        x = projection.encode(lm.embeddings.float()).double()
        design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        ridge = 1e-6 * torch.eye(design.shape[1], dtype=torch.float64, device=x.device)
        left = design * weights
        solution = torch.linalg.solve(left.T @ left + ridge, left.T @ (lm.embeddings.double() * weights))
        projection.decoder.weight.copy_(solution[:-1].T)
        projection.decoder.bias.copy_(solution[-1])


def _fill_clip(lm: FrozenLM, projection: Projection) -> float:
    """Scale the encoder up to the clip, whose unused part costs epsilon, and return the factor."""
    with torch.no_grad():
        scale = 1.0 / float(projection.encode(lm.embeddings.float()).abs().max().clamp_min(1e-6))
        if scale > 1.0:
            for name, parameter in projection.encoder_parameters().items():
                if not name.startswith("inner."):
                    parameter.mul_(scale)
    return max(1.0, scale)


def _rescaled(decoder: TrainableDecoder, scale: float) -> Mapping[str, torch.Tensor]:
    """Return the decoder's tensors for coordinates that have become ``scale`` times as long."""
    tensors = decoder.start_tensors()
    dim = decoder.shapes["weight"][1]
    for name in decoder.scaled:
        if name in tensors:
            tensors[name][:, :dim] /= scale
    return tensors
