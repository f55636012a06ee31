"""Stage 1: the projection, trained through the frozen LM.

The encoder is x = clip(E e + a, -1, 1), the linear decoder e' = D y + a'. Coordinates are in units
of the clip, so c = 1. Both act on one token at a time: the client gets the encoder as the table of
its values over the vocabulary, and E itself never leaves the training machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from del_core.audit.attacks.base import AttackSurface
from del_core.lm.device import products
from del_core.lm.model import BaseLM, FrozenLM
from del_core.lm.perplexity import continuation_nll, evaluate_perplexity
from del_core.lm.text import TokenWindows
from del_core.mechanism import MAX_LEVEL
from del_core.training.config import ProjectionConfig
from del_core.training.loop import Run, Schedule, fit
from del_core.training.parallel import current_shard
from del_core.training.results import EncoderResult, ProjectionResult, check_model, read_projection_result, write_result

_ATTACKED_TOKENS = 20_000  # a rate of 2 % then has a standard error of 0.1 points
_ATTACKED_PAIRS = 330_000_000  # of a token and a vocabulary entry: seconds an attack
_TENSORS_FILE, _PRIOR_FILE = "projection.safetensors", "prior.safetensors"


def default_dim(hidden_size: int) -> int:
    """Return the projected dimension d for hidden size b: b / 32, at least 32, at most b."""
    return min(hidden_size, max(32, hidden_size // 32))


class Projection(nn.Module):
    """Encoder from (..., b) to (..., d) with clipping, and affine decoder back.

    The published encoder is affine. With ``width`` it is x = clip(E e + a + F silu(G e / rms(e)),
    -1, 1), where F starts at zero; behind its table this costs the client nothing.
    """

    def __init__(self, hidden_size: int, dim: int, width: int = 0) -> None:
        super().__init__()
        self.encoder = nn.Linear(hidden_size, dim)
        self.decoder = nn.Linear(dim, hidden_size)
        self.width = width
        if width:
            self.inner = nn.Linear(hidden_size, width)
            self.outer = nn.Linear(width, dim, bias=False)
            nn.init.zeros_(self.outer.weight)

    def encode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return clipped coordinates in [-1, 1], (..., d)."""
        x = self.encoder(embeddings)
        if self.width:
            x = x + self.outer(functional.silu(self.inner(functional.rms_norm(embeddings, embeddings.shape[-1:]))))
        return x.clamp(-1.0, 1.0)

    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the encoder by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("decoder.")}

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return embeddings after encoding and decoding without noise, (..., b)."""
        return self.decoder(self.encode(embeddings))

    @property
    def checksum(self) -> str:
        """SHA-256, in hexadecimal, of all parameters: what a variant was trained behind."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def table(self, embeddings: torch.Tensor, max_level: int) -> torch.Tensor:
        """Return integer levels (V, d) of the clipped coordinates of a vocabulary (V, b)."""
        return (self.encode(embeddings.float()) * max_level).round().to(torch.int16)

    @classmethod
    def from_pca(cls, embeddings: torch.Tensor, weights: torch.Tensor, dim: int, inside: float = 0.98) -> Projection:
        """Return the projection to principal components of the table, tokens weighted by frequency.

        E = s U^T and D = U / s with the top ``dim`` eigenvectors U of the covariance of
        ``embeddings`` (V, b), weighted by ``weights`` (V,); a and a' map the mean embedding to 0
        and back. One scale s for all coordinates keeps distances. It is set so that the share
        ``inside`` of all coordinate values, by frequency, is not clipped.
        """
        mean, components = principal_components(embeddings, weights, dim)
        centered = embeddings.detach().double() - mean
        weights = weights.double() / weights.sum()
        magnitudes, order = (centered @ components).abs().flatten().sort()
        mass = (weights / dim).repeat_interleave(dim)[order].cumsum(0)
        scale = 1.0 / magnitudes[int((mass < inside).sum().clamp(max=len(mass) - 1))]
        projection = cls(embeddings.shape[1], dim)
        with torch.no_grad():
            projection.encoder.weight.copy_(components.T * scale)
            projection.encoder.bias.copy_(-(mean @ components) * scale)
            projection.decoder.weight.copy_(components / scale)
            projection.decoder.bias.copy_(mean)
        return projection


def principal_components(
    embeddings: torch.Tensor, weights: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted mean (b,) and ``count`` leading eigenvectors (b, count), float64."""
    table, weights = embeddings.detach().double(), (weights.double() / weights.sum()).to(embeddings.device)
    mean = weights @ table
    centered = table - mean
    covariance = (centered * weights[:, None]).T @ centered
    return mean, torch.linalg.eigh(covariance).eigenvectors[:, -count:].flip(1)  # descending


def train_projection(
    lm: FrozenLM, output: Path, config: ProjectionConfig | None = None, *, progress: bool = True
) -> ProjectionResult:
    """Train the projection without noise and write it, with ``projection.json``, to ``output``.

    The prompt's tokens pass through encoder and decoder, the continuation's stay clean, and the
    loss is on the continuation alone, as on the server.
    """
    config = config or ProjectionConfig()
    dim = config.dim or default_dim(lm.embeddings.shape[1])
    torch.manual_seed(config.seed)
    projection = Projection.from_pca(lm.embeddings, lm.unigram().to(lm.embeddings.device), dim).to(lm.embeddings.device)
    shard = current_shard()
    train = TokenWindows(lm.train, config.length, config.seed)
    validation = lm.windows(lm.validation, config.length, config.evaluation_windows)
    test = lm.windows(lm.test, config.length, config.evaluation_windows)

    def project(tokens: torch.Tensor) -> torch.Tensor:
        return lm.begin(projection(lm.embeddings[tokens]))

    def loss(step: int) -> torch.Tensor:
        tokens = shard.of(train.batch(step, config.batch))
        prompt, continuation = tokens[:, : config.prompt_tokens], tokens[:, config.prompt_tokens :]
        with products(prompt.device, config.bf16):
            return continuation_nll(lm.model, project(prompt), continuation).mean()

    def perplexity(windows: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor] = project) -> float:
        return evaluate_perplexity(lm.model, windows, config.prompt_tokens, embed)

    clean, pca = perplexity(test, lambda tokens: lm.begin(lm.embeddings[tokens])), perplexity(test)
    fit(
        projection.named_parameters(),
        loss,
        Run(
            "projection",
            output / "checkpoints",
            Schedule(config.steps, config.learning_rate),
            identity=config.identity(lm),
            evaluate_every=50,
            progress=progress,
        ),
        lambda: float(torch.tensor(perplexity(validation)).log()),
    )
    result = ProjectionResult(config, dim, lm.checksum, lm.text_sha256, clean, pca, perplexity(test))
    shard.once(lambda: save_projection(lm, projection, output, result))
    return result


def save_projection(
    lm: FrozenLM, projection: Projection, output: Path, result: ProjectionResult | EncoderResult
) -> None:
    """Write the tensors of a projection, the prior of the same text and, last, the result."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in projection.named_parameters()}
    save_file(tensors, output / _TENSORS_FILE)
    save_file({"log_prior": lm.unigram().log().float().cpu()}, output / _PRIOR_FILE)
    write_result(output, result)


def load_log_prior(directory: Path) -> torch.Tensor:
    """Load the log-prior (V,), float32, of the text that the projection was trained on."""
    return load_file(directory / _PRIOR_FILE)["log_prior"]


def load_projection(directory: Path, lm: BaseLM) -> Projection:
    """Load the projection of stage 1; raise ModelError if it is unfinished or for another LM."""
    result = read_projection_result(directory)
    check_model(directory, result.model_sha256, lm)
    width = result.config.width if isinstance(result, EncoderResult) else 0
    projection = Projection(lm.embeddings.shape[1], result.dim, width)
    projection.load_state_dict(load_file(directory / _TENSORS_FILE))
    return projection.to(lm.embeddings.device).requires_grad_(False)


def attack_surface(lm: FrozenLM, projection: Projection) -> AttackSurface:
    """Collect the server-side data with which the table of ``projection`` is attacked."""
    return AttackSurface(
        table=projection.table(lm.embeddings, MAX_LEVEL).cpu().numpy(),
        weight=projection.decoder.weight.detach().cpu().numpy(),
        bias=projection.decoder.bias.detach().cpu().numpy(),
        embeddings=lm.embeddings.detach().cpu().numpy(),
        log_prior=lm.unigram().log().float().cpu().numpy(),
    )


def attacked_tokens(part: torch.Tensor, count: int) -> np.ndarray:
    """Return about ``count`` evenly spaced token ids."""
    tokens: np.ndarray = part.cpu().numpy()
    return tokens[:: max(1, len(tokens) // count)]


def attacked_count(lm: FrozenLM) -> int:
    """Return the number of tokens that calibration attacks, less for a large vocabulary."""
    return min(_ATTACKED_TOKENS, _ATTACKED_PAIRS // len(lm.embeddings))


def calibration_tokens(lm: FrozenLM) -> np.ndarray:
    """Return token ids of the validation part, on which no result is reported."""
    return attacked_tokens(lm.validation, attacked_count(lm))
