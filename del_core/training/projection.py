"""Stage 1: trains encoder and decoder of the projection through the frozen LM (DESIGN section 6)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from del_core.lm.model import BaseLM, FrozenLM, ModelError
from del_core.lm.perplexity import continuation_nll, evaluate_perplexity
from del_core.lm.precision import products
from del_core.lm.text import TokenWindows
from del_core.projection import Projection, default_dim
from del_core.training.loop import Schedule, fit, identity
from del_core.training.parallel import current_shard

__all__ = ["ProjectionConfig", "load_log_prior", "load_projection", "train_projection"]


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
