"""Stage 1: trains encoder and decoder of the projection through the frozen LM (DESIGN section 6)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from del_core.lm.model import BaseLM, FrozenLM, ModelError
from del_core.lm.perplexity import continuation_nll, evaluate_perplexity
from del_core.lm.precision import products
from del_core.lm.text import TokenWindows
from del_core.training.loop import Schedule, fit, identity
from del_core.training.parallel import current_shard

__all__ = ["Projection", "ProjectionConfig", "default_dim", "load_log_prior", "load_projection", "train_projection"]


def default_dim(hidden_size: int) -> int:
    """Projected dimension d for an LM of hidden size b: b / 32, at least 32, at most b."""
    return min(hidden_size, max(32, hidden_size // 32))


class Projection(nn.Module):
    """Encoder with clipping, and affine decoder.

    ``encoder`` maps (..., b) to (..., d), ``decoder`` maps (..., d) to (..., b). The paper's encoder is affine. With
    ``width`` it is x = clip(E e + a + F silu(G e / rms(e)), -1, 1): the client's table can hold any function of the
    token, so a bent one costs it nothing. F starts at zero.
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
        """Clipped coordinates in [-1, 1], (..., d)."""
        x = self.encoder(embeddings)
        if self.width:
            x = x + self.outer(functional.silu(self.inner(functional.rms_norm(embeddings, embeddings.shape[-1:]))))
        return x.clamp(-1.0, 1.0)

    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """What the encoder trains, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("decoder.")}

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings after encoding and decoding without noise, (..., b)."""
        return self.decoder(self.encode(embeddings))

    @torch.no_grad()
    def table(self, embeddings: torch.Tensor, max_level: int) -> torch.Tensor:
        """Integer levels (V, d) of the clipped coordinates of a whole vocabulary (V, b)."""
        return (self.encode(embeddings.float()) * max_level).round().to(torch.int16)

    @classmethod
    def from_pca(cls, embeddings: torch.Tensor, weights: torch.Tensor, dim: int, inside: float = 0.98) -> Projection:
        """Principal components of the embedding table, every token counted by its frequency.

        E = s U^T and D = U / s with the top ``dim`` eigenvectors U of the weighted covariance, a and a' such that
        the mean embedding maps to 0 and back. One scale s for all coordinates keeps distances; it is set such that
        the share ``inside`` of all coordinate values, by frequency, is not clipped.

        Args:
            embeddings: (V, b).
            weights: (V,) non-negative, unigram counts or probabilities.
        """
        table = embeddings.detach().double()
        weights = weights.double() / weights.sum()
        mean = weights @ table
        centred = table - mean
        covariance = (centred * weights[:, None]).T @ centred
        components = torch.linalg.eigh(covariance).eigenvectors[:, -dim:].flip(1)  # descending
        magnitudes, order = (centred @ components).abs().flatten().sort()
        mass = (weights / dim).repeat_interleave(dim)[order].cumsum(0)
        scale = 1.0 / magnitudes[int((mass < inside).sum().clamp(max=len(mass) - 1))]
        projection = cls(table.shape[1], dim)
        with torch.no_grad():
            projection.encoder.weight.copy_(components.T * scale)
            projection.encoder.bias.copy_(-(mean @ components) * scale)
            projection.decoder.weight.copy_(components / scale)
            projection.decoder.bias.copy_(mean)
        return projection


@dataclass(frozen=True)
class ProjectionConfig:
    """Sizes and schedule of stage 1. ``dim`` None is the default of the LM's hidden size."""

    dim: int | None = None
    prompt_tokens: int = 96
    continuation_tokens: int = 32
    batch: int = 16
    steps: int = 300
    learning_rate: float = 1e-3
    evaluation_windows: int = 128
    bf16: bool = False
    seed: int = 0


def train_projection(
    lm: FrozenLM, output: Path, config: ProjectionConfig | None = None, *, progress: bool = True
) -> dict[str, float]:
    """Trains the projection and writes ``projection.safetensors`` and ``projection.json`` into ``output``.

    The prompt's tokens pass through encoder and decoder, the continuation's stay clean, and the loss is on the
    continuation alone: exactly what the server does with a prompt, less the noise.

    Returns:
        Perplexities on the test part: ``ppl_clean`` and ``ppl_pca`` (the initialisation) and ``ppl_projected``.
    """
    config = config or ProjectionConfig()
    dim = config.dim or default_dim(lm.embeddings.shape[1])
    torch.manual_seed(config.seed)
    projection = Projection.from_pca(lm.embeddings, lm.unigram().to(lm.embeddings.device), dim).to(lm.embeddings.device)
    shard = current_shard()
    length = config.prompt_tokens + config.continuation_tokens
    train = TokenWindows(lm.train, length, config.seed)
    validation = lm.windows(lm.validation, length, config.evaluation_windows)
    test = lm.windows(lm.test, length, config.evaluation_windows)

    def project(tokens: torch.Tensor) -> torch.Tensor:
        return projection(lm.embeddings[tokens])

    def loss(step: int) -> torch.Tensor:
        tokens = shard.of(train.batch(step, config.batch))
        prompt, continuation = tokens[:, : config.prompt_tokens], tokens[:, config.prompt_tokens :]
        with products(prompt.device, config.bf16):
            return continuation_nll(lm.model, project(prompt), continuation).mean()

    def perplexity(windows: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor] = project) -> float:
        return evaluate_perplexity(lm.model, windows, config.prompt_tokens, embed)

    figures = {"ppl_clean": perplexity(test, lambda tokens: lm.embeddings[tokens]), "ppl_pca": perplexity(test)}
    fit(
        projection.named_parameters(),
        loss,
        Schedule(config.steps, config.learning_rate),
        name="projection",
        directory=output / "checkpoints",
        run={**identity(config), "model": lm.checksum, "text": lm.text_sha256},
        evaluate=lambda: float(torch.tensor(perplexity(validation)).log()),
        evaluate_every=50,
        progress=progress,
    )
    figures["ppl_projected"] = perplexity(test)
    if not shard.first:
        shard.wait()
        return figures
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in projection.named_parameters()},
        output / "projection.safetensors",
    )
    save_file({"log_prior": lm.unigram().log().float().cpu()}, output / "prior.safetensors")
    summary = {**asdict(config), "dim": dim, "model_sha256": lm.checksum, "text_sha256": lm.text_sha256, **figures}
    partial = output / "projection.json.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, output / "projection.json")
    shard.wait()  # what follows reads these files
    return figures


def load_log_prior(directory: Path) -> torch.Tensor:
    """Natural-log unigram probabilities (V,), float32, of the text that ``directory``'s projection was trained on."""
    return load_file(directory / "prior.safetensors")["log_prior"]


def load_projection(directory: Path, lm: BaseLM) -> Projection:
    """Loads what ``train_projection`` wrote.

    Raises:
        ModelError: if the stage has not been run to its end, or was for another LM.
    """
    summary_path = directory / "projection.json"
    if not summary_path.is_file():
        raise ModelError(f"{summary_path}: not found; run `delctl train projection` to its end first")
    summary = json.loads(summary_path.read_text(encoding="utf-8"))
    if summary["model_sha256"] != lm.checksum:
        raise ModelError(
            f"{summary_path}: model_sha256 {summary['model_sha256']} is not that of the given model, {lm.checksum}"
        )
    projection = Projection(lm.embeddings.shape[1], summary["dim"], summary.get("width", 0))
    projection.load_state_dict(load_file(directory / "projection.safetensors"))
    return projection.to(lm.embeddings.device).requires_grad_(False)
