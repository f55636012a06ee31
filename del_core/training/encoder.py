"""Stage 1 with the noise in the loop: an encoder trained for one attack success, through the frozen LM.

The published method fits the encoder to clean embeddings and lets the noise fall on whatever that keeps. Here encoder,
noise scale and decoder are trained together under a constraint on what the optimal attacker recovers:

    minimise   E[ NLL(continuation | decode(K_1 .. K_T)) ],   K_j ~ Binomial(u, (1 + r x_j) / 2)
    subject to E[ max_v P(v | K) ] = s

E max_v P(v | K) is exactly the success rate of the best guess of a token from its own counts and a unigram prior (the
MAP attack), so privacy and utility are traded in the currency in which they are
reported.
The constraint is kept by a Lagrange multiplier on log(success / s), raised by gradient ascent while descent goes on
(Arrow, Hurwicz and Uzawa, 1958). Tokens that the LM treats alike may then look alike. Gradients pass
the binomial straight through its mean (Bengio et al., 2013, arXiv 1308.3432) and reach the table also through the
posterior over the vocabulary, which the constraint uses and every decoder but the linear one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from del_core.audit.calibration import MAP, Calibration, calibrate
from del_core.decoders.tensors import LINEAR, TRAINED
from del_core.lm.model import FrozenLM, ModelError, check_rows
from del_core.lm.noise import NoisyTable, TorchLikelihood, step_generator
from del_core.lm.perplexity import continuation_nll
from del_core.lm.precision import products
from del_core.lm.text import TokenWindows
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.attack import attack_surface, calibration_tokens
from del_core.training.decoder import DecoderStart, NoisyDecoder, choose_sizes
from del_core.training.loop import Schedule, fit, identity
from del_core.training.parallel import Shard, current_shard
from del_core.training.projection import Projection

__all__ = ["EncoderConfig", "load_decoder_start", "train_encoder"]

_QUICK_TOKENS = 4_000  # at every evaluation
_DECODERS = (TRAINED, LINEAR)  # stage 2 goes on to a contextual one from ``trained``
_START = "decoder_start.safetensors"
_ALONE = Shard()


@dataclass(frozen=True)
class EncoderConfig:
    """Target and schedule: ``map_asr`` s is the attack success aimed at, ``bits`` n, ``width`` the encoder's.

    ``decoder``: the kind that is trained along. ``linear``, the paper's D y + a', costs a server next to nothing.
    ``rows``: of the soft prompt that is trained along, so that decoder and soft prompt learn to work together.
    """

    map_asr: float
    bits: int = 4
    width: int = 256
    decoder: str = TRAINED
    rows: int = 32
    min_prompt_tokens: int = 16
    prompt_tokens: int = 96
    continuation_tokens: int = 32
    batch: int = 16
    steps: int = 800
    learning_rate: float = 3e-3
    encoder_rate: float = 1.0
    soft_prompt_rate: float = 3.0
    multiplier: float = 0.1
    multiplier_rate: float = 10.0
    evaluation_windows: int = 128
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.map_asr < 1.0:
            raise ValueError(f"map_asr: {self.map_asr} is outside (0, 1)")
        if self.decoder not in _DECODERS:
            raise ValueError(f"decoder: {self.decoder} is not one of {', '.join(_DECODERS)}")
        check_rows(self.rows)


class _NoisyEncoder(nn.Module):
    """Encoder and noise scale with gradients: from tokens to y, posterior mean and the attacker's expected success."""

    def __init__(self, lm: FrozenLM, projection: Projection, mechanism: Mechanism, values: torch.Tensor | None) -> None:
        super().__init__()
        device = lm.embeddings.device
        self.projection, self.trials, self.values = projection, mechanism.trials, values
        self.embeddings, self.log_prior = lm.embeddings.float(), lm.unigram().log().float().to(device)
        self.log_odds_of_ratio = nn.Parameter(torch.logit(torch.tensor(mechanism.ratio, device=device)))

    def forward(
        self, tokens: torch.Tensor, generator: torch.Generator, shard: Shard = _ALONE
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """y (rows, ..., d), the posterior mean of the values, if any (rows, ..., rank), and E max_v P(v | K), a scalar.

        Of ``shard``'s rows of ``tokens``; noise is drawn for all of them, so that each row's is the same for any shard.
        """
        ratio = torch.sigmoid(self.log_odds_of_ratio).clamp(max=1 - 2.0**-16)
        q = 0.5 + 0.5 * ratio * self.projection.encode(self.embeddings)
        likelihood = TorchLikelihood.from_probabilities(q, self.trials)
        with torch.no_grad():
            everyone = q[tokens]
            drawn = torch.binomial(torch.full_like(everyone, float(self.trials)), everyone, generator=generator)
        drawn, mine = shard.of(drawn), q[shard.of(tokens)]
        counts = drawn + self.trials * (mine - mine.detach())  # straight through the mean
        posterior = likelihood.posterior(counts - 0.5 * self.trials, self.log_prior)
        y = (2.0 * counts / self.trials - 1.0) / ratio
        mean = None if self.values is None else posterior @ self.values
        return y, mean, posterior.amax(dim=-1).mean()


def _refit_linear_decoder(lm: FrozenLM, projection: Projection) -> None:
    """D and a' for a table that was trained without them: least squares of the embeddings, tokens by frequency."""
    weights = lm.unigram().to(lm.embeddings.device).sqrt()[:, None]
    with torch.no_grad():
        x = projection.encode(lm.embeddings.float()).double()
        design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        ridge = 1e-6 * torch.eye(design.shape[1], dtype=torch.float64, device=x.device)
        left = design * weights
        solution = torch.linalg.solve(left.T @ left + ridge, left.T @ (lm.embeddings.double() * weights))
        projection.decoder.weight.copy_(solution[:-1].T)
        projection.decoder.bias.copy_(solution[-1])


def _fill_the_clip(lm: FrozenLM, projection: Projection) -> float:
    """Scales the encoder such that its largest coordinate is at the clip, and returns by how much.

    What an unused part of the clip costs is worst-case epsilon: the same counts come from a smaller ratio.
    """
    with torch.no_grad():
        scale = 1.0 / float(projection.encode(lm.embeddings.float()).abs().max().clamp_min(1e-6))
        if scale > 1.0:
            for name, parameter in projection.encoder_parameters().items():
                if not name.startswith("inner."):
                    parameter.mul_(scale)
    return max(1.0, scale)


def _rescaled(tensors: Mapping[str, torch.Tensor], dim: int, scale: float) -> dict[str, torch.Tensor]:
    """A decoder's parameters for coordinates that have become ``scale`` times as long."""
    out = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name in {"weight", "skip", "in_weight"} & out.keys():
        out[name][:, :dim] /= scale
    return out


def train_encoder(
    lm: FrozenLM,
    start: Projection,
    output: Path,
    config: EncoderConfig,
    *,
    start_decoder: DecoderStart | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Trains ``start``, a projection of stage 1 without noise, for ``config.map_asr`` and writes it like that stage.

    With ``start_decoder``, ``start`` is an encoder of this stage for another attack success, and both go on from there.

    ``output`` gets ``projection.safetensors``, ``projection.json`` (with the calibrated ratio and the attack's
    success), ``prior.safetensors`` and ``decoder_start.safetensors``, where stage 2 begins.

    Returns:
        Perplexities on the validation part at equal attack success: ``ppl_start`` and ``ppl_trained``; and ``map_asr``,
        which is less than the target where the table has come to give away less than that even without noise.

    Raises:
        ModelError: if ``start`` is an encoder of another width.
    """
    from del_core.training.soft_prompt import calibrate_norm_limit

    torch.manual_seed(config.seed)
    shard = current_shard()
    device, dim = lm.embeddings.device, start.encoder.out_features
    if start.width not in (0, config.width):
        raise ModelError(f"width: {config.width} is not {start.width}, that of the encoder that training goes on from")
    projection = Projection(lm.embeddings.shape[1], dim, config.width).to(device)
    projection.load_state_dict(start.state_dict(), strict=False)
    length = config.prompt_tokens + config.continuation_tokens
    train = TokenWindows(lm.train, length, config.seed)
    validation = lm.windows(lm.validation, length, config.evaluation_windows)
    tokens = calibration_tokens(lm)
    quick = tokens[:: max(1, len(tokens) // _QUICK_TOKENS)]

    def calibrated(sample: np.ndarray, iterations: int, *, at_most: bool = True) -> Calibration:
        # A table that was trained for little success may be worth less than the target even without noise.
        return calibrate(
            MAP, config.map_asr, config.bits, attack_surface(lm, projection), sample,
            max_level=MAX_LEVEL, iterations=iterations, at_most=at_most,
        )  # fmt: skip

    mechanism = calibrated(tokens, 12, at_most=start_decoder is not None).mechanism
    noisy = NoisyTable(projection.table(lm.embeddings, MAX_LEVEL), mechanism)
    linear = config.decoder == LINEAR
    if start_decoder is None or not start_decoder.is_for(config.decoder):
        norm_limit = calibrate_norm_limit(lm, start, noisy, validation, config.prompt_tokens, config.seed + 1)
    else:
        norm_limit = start_decoder.norm_limit
    sizes = choose_sizes(config.decoder, lm.embeddings.shape[1], dim)
    decoder = NoisyDecoder(
        config.decoder, sizes, start.decoder.weight, start.decoder.bias, noisy, norm_limit, lm.embeddings,
        lm.unigram(), mix=0.5,
    )  # fmt: skip
    if linear:
        decoder.train_linear()
    first_rows = lm.frequent_rows(config.rows)
    if start_decoder is not None:
        decoder.start_from(start_decoder.tensors)
        first_rows = start_decoder.first_rows(lm, config.rows)
    encoder = _NoisyEncoder(lm, projection, mechanism, None if linear else decoder.values)
    soft_prompt = nn.Parameter(first_rows)
    prompted = [("soft_prompt", soft_prompt)] if config.rows else []
    log_multiplier = nn.Parameter(torch.tensor(math.log(config.multiplier), device=device))

    def loss(step: int) -> torch.Tensor:
        generator = step_generator(config.seed, step)
        windows = train.batch(step, config.batch)
        first = int(torch.randint(0, config.prompt_tokens - config.min_prompt_tokens + 1, (), generator=generator))
        private, continuation = windows[:, first : config.prompt_tokens], windows[:, config.prompt_tokens :]
        y, mean, success = encoder(private, step_generator(config.seed, step, device), shard)
        with products(device, config.bf16):
            utility = continuation_nll(lm.model, decoder(y, mean), shard.of(continuation), soft_prompt).mean()
        # The logarithm is of all workers' success; its gradient is each worker's own share of that.
        everyones = shard.mean(success)
        excess = torch.log(everyones / config.map_asr) + (success - success.detach()) / everyones
        # Descent in everything but the multiplier, ascent in that: its term enters with the other sign.
        return utility + log_multiplier.detach().exp() * excess - log_multiplier.exp() * excess.detach()

    @torch.no_grad()
    def held_out() -> float:
        """Validation loss with the noise set to the target, whatever the multiplier has reached."""
        found = calibrated(quick, 9).mechanism.ratio
        kept = encoder.log_odds_of_ratio.clone()
        encoder.log_odds_of_ratio.copy_(torch.logit(torch.tensor(found)))
        losses = []
        for index, part in enumerate(validation.split(16)):
            y, mean, _ = encoder(part[:, : config.prompt_tokens], step_generator(config.seed + 1, index, device))
            losses.append(continuation_nll(lm.model, decoder(y, mean), part[:, config.prompt_tokens :], soft_prompt))
        encoder.log_odds_of_ratio.copy_(kept)
        return float(torch.cat(losses).mean())

    first_loss = held_out()
    own = {f"encoder.{name}": p for name, p in projection.encoder_parameters().items()}
    own["log_odds_of_ratio"] = encoder.log_odds_of_ratio
    best = fit(
        [*own.items(), *decoder.trained(), *prompted, ("log_multiplier", log_multiplier)],
        loss,
        Schedule(config.steps, config.learning_rate),
        name="encoder",
        directory=output / "checkpoints",
        run={
            **identity(config),
            "model": lm.checksum,
            "text": lm.text_sha256,
            "start": "projection" if start_decoder is None else "encoder",
        },
        evaluate=held_out,
        evaluate_every=50,
        keep_start=start_decoder is not None,
        rates={
            **dict.fromkeys(own, config.encoder_rate),
            "soft_prompt": config.soft_prompt_rate,
            "log_multiplier": config.multiplier_rate,
        },
        progress=progress,
    )
    scale = _fill_the_clip(lm, projection)
    decoder_tensors = _rescaled(dict(decoder.trained()), dim, scale)
    if linear:
        projection.decoder.load_state_dict(decoder_tensors)
    else:
        _refit_linear_decoder(lm, projection)
        decoder_tensors["values"] = decoder.values
    found = calibrated(tokens, 14)
    figures = {"ppl_start": math.exp(first_loss), "ppl_trained": math.exp(best), "map_asr": found.success}
    if not shard.first:
        shard.wait()
        return figures
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in projection.named_parameters()},
        output / "projection.safetensors",
    )
    save_file({"log_prior": lm.unigram().log().float().cpu()}, output / "prior.safetensors")
    start_tensors = {**decoder_tensors, "soft_prompt": soft_prompt.detach()}
    save_file({name: t.cpu().contiguous() for name, t in start_tensors.items()}, output / _START)
    summary = {
        **asdict(config),
        "dim": dim,
        "norm_limit": norm_limit * scale,
        "model_sha256": lm.checksum,
        "text_sha256": lm.text_sha256,
        "calibration": {**found.summary(), "ratio_numerator": found.mechanism.ratio_numerator},
        **figures,
    }  # fmt: skip
    partial = output / "projection.json.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, output / "projection.json")
    shard.wait()  # what follows reads these files
    return figures


def load_decoder_start(directory: Path) -> DecoderStart | None:
    """Where stage 2 begins after ``train_encoder``; None for a projection that was trained without noise."""
    if not (directory / _START).is_file():
        return None
    summary = json.loads((directory / "projection.json").read_text(encoding="utf-8"))
    tensors = load_file(directory / _START)
    return DecoderStart(tensors, float(summary["norm_limit"]), tensors.pop("soft_prompt"))
