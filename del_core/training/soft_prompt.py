"""Stage 2: the soft prompt and the decoder of one variant, trained for that variant's noise.

Projection and LM are frozen; the soft prompt is trained by prompt tuning (arXiv 2104.08691).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from del_core.accounting import mu
from del_core.lm.adapter import AttachedAdapter
from del_core.lm.device import products
from del_core.lm.model import BaseLM, FrozenLM
from del_core.lm.noise import step_generator
from del_core.mechanism import Mechanism
from del_core.training.adapter import save_adapter, training_adapter
from del_core.training.config import SoftPromptConfig, VariantConfig
from del_core.training.decoders import new_decoder
from del_core.training.examples import Conversations, Examples, Read
from del_core.training.loop import Run, Schedule, fit
from del_core.training.parallel import current_shard
from del_core.training.results import SoftPromptResult, read_soft_prompt_result, write_result
from del_core.training.sources import Distilled, Source, source_of
from del_core.training.start import NoisyPrompt, Stage1, first_rows, start_decoder

SOFT_PROMPT_FILE, DECODER_FILE = "soft_prompt.safetensors", "decoder.safetensors"
_QUICK_STEP = 1 << 17  # vocabulary entries times rows; a step of more takes seconds without an accelerator


@dataclass(frozen=True)
class SoftPromptRun:
    """A run of stage 2: the variant's name, its noise and the settings."""

    name: str
    mechanism: Mechanism
    config: SoftPromptConfig


def load_variant(lm: FrozenLM, stage1: Stage1, directory: Path, mechanism: Mechanism | None = None) -> NoisyPrompt:
    """Load a variant that was trained, with ``mechanism`` instead of its noise if given."""
    result = read_soft_prompt_result(directory)
    noisy = stage1.noisy(lm, mechanism or result.mechanism)
    inputs = stage1.inputs(lm, noisy, result.norm_limit)
    decoder = new_decoder(result.config.decoder, inputs, result.config.decoder_options).requires_grad_(False)
    decoder.start_from(load_file(directory / DECODER_FILE))
    rows = load_file(directory / SOFT_PROMPT_FILE)["soft_prompt"]
    return NoisyPrompt(noisy, decoder, rows.to(lm.embeddings.device))


def train_soft_prompt(
    lm: FrozenLM,
    stage1: Stage1,
    run: SoftPromptRun,
    output: Path,
    *,
    chat: Conversations | None = None,
    start: Path | None = None,
    progress: bool = True,
) -> SoftPromptResult:
    """Train soft prompt and decoder and write them, with ``variant.json``, to ``output``.

    Training starts from the variant in ``start``, if it is given. Otherwise, if ``stage1`` has a
    decoder that was trained with its encoder and ``run.config.decoder`` can continue from it, it
    starts there. The best rows by validation loss are kept. With ``chat``, its answers are learned
    and judged instead of the continuations of the LM's text.
    """
    config, mechanism = run.config, run.mechanism
    torch.manual_seed(config.seed)
    device = lm.embeddings.device
    noisy = stage1.noisy(lm, mechanism)
    source = source_of(lm, config, chat)
    validation = lm.windows(lm.validation, config.length, config.evaluation_windows)
    if start is None:
        decoder = start_decoder(lm, stage1, noisy, validation, config)
        first = first_rows(lm, stage1.start_for(config.decoder), config.rows)
    else:
        begun = load_variant(lm, stage1, start, mechanism)
        assert begun.soft_prompt is not None
        decoder, first = begun.decoder.requires_grad_(True), begun.soft_prompt
    if config.train_linear:
        decoder.train_jointly()
    rows = torch.nn.Parameter(first, requires_grad=config.rows > 0)
    prompt = NoisyPrompt(noisy, decoder, rows.detach())  # shares the memory of the rows in training

    def loss(examples: Examples, generator: torch.Generator) -> torch.Tensor:
        shard = current_shard()
        y = shard.of(noisy.sample(examples.prompts, generator))
        with products(device, config.bf16):
            return examples.of(shard).loss(lm.model, lambda pick: decoder(pick(y)), rows)

    untouched = _untrained_perplexities(lm, stage1, prompt, source.test, config.seed + 2)
    with training_adapter(lm, config) as adapter:
        best = train_rows(
            lm,
            source,
            RowsRun(
                run.name,
                output,
                config,
                {
                    "bits": mechanism.bits,
                    "ratio_numerator": mechanism.ratio_numerator,
                    **started_from(start),
                },
                progress,
            ),
            Trained(rows, decoder.trained(), adapter),
            loss,
            lambda parts: math.log(read_noisy(lm, parts, prompt, seed=config.seed + 1)),
        )
        bare = NoisyPrompt(noisy, decoder)
        result = SoftPromptResult(
            name=run.name,
            config=config,
            bits=mechanism.bits,
            dim=mechanism.dim,
            ratio_numerator=mechanism.ratio_numerator,
            mu=mu(mechanism),
            norm_limit=decoder.norm_limit,
            held_out_loss=best,
            model_sha256=lm.checksum,
            text_sha256=lm.text_sha256,
            chat_sha256=None if chat is None else chat.sha256,
            projection_sha256=stage1.projection.checksum,
            **untouched,
            ppl_decoder=read_noisy(lm, source.test, bare, seed=config.seed + 2),
            ppl_soft_prompt=read_noisy(lm, source.test, prompt, seed=config.seed + 2),
        )
        current_shard().once(lambda: save_adapter(output, adapter))

    def write() -> None:
        save_file({"soft_prompt": rows.detach().cpu().contiguous()}, output / SOFT_PROMPT_FILE)
        save_arrays(decoder.tensors(), output / DECODER_FILE)
        write_result(output, result)

    current_shard().once(write)
    return result


def started_from(variant: Path | None) -> dict[str, str]:
    """Return what identifies, in checkpoints, the variant from which a run starts."""
    if variant is None:
        return {}
    return {"start": hashlib.sha256((variant / DECODER_FILE).read_bytes()).hexdigest()}


@dataclass(frozen=True)
class RowsRun:
    """The name, the directory and the settings of a run, and what else identifies it."""

    name: str
    output: Path
    config: VariantConfig
    identity: Mapping[str, object]
    progress: bool


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run changes: rows of a soft prompt, if there are any, a decoder, and an adapter."""

    rows: torch.nn.Parameter
    decoder: Sequence[tuple[str, torch.nn.Parameter]]
    adapter: AttachedAdapter | None


def train_rows(
    lm: FrozenLM,
    source: Source,
    run: RowsRun,
    trained: Trained,
    loss: Callable[[Examples, torch.Generator], torch.Tensor],
    held_out: Callable[[Iterable[Examples]], float],
) -> float:
    """Train what a run changes; return the best held-out loss, of what is learned.

    ``loss`` returns the losses of this worker's examples, ``held_out`` the mean loss of batches.
    The soft prompt has the learning rate of the settings; a decoder and an adapter have rates of
    their own.
    """
    config, device = run.config, lm.embeddings.device
    run.output.mkdir(parents=True, exist_ok=True)
    rows = {"soft_prompt": trained.rows} if len(trained.rows) else {}
    decoder = dict(trained.decoder)
    adapter = {} if trained.adapter is None else trained.adapter.parameters()
    rates = dict.fromkeys(decoder, config.decoder_learning_rate / config.learning_rate)
    rates |= dict.fromkeys(adapter, config.adapter_learning_rate / config.learning_rate)
    batches = Distilled(source, lm.model, trained.adapter, config) if config.distillation else source
    return fit(
        {**rows, **decoder, **adapter}.items(),
        lambda step: loss(batches.batch(step), step_generator(config.seed, step, device)).mean(),
        Run(
            run.name,
            run.output / "checkpoints",
            Schedule(config.steps, config.learning_rate, warmup=min(20, config.steps // 5)),
            identity={**config.identity(lm), **run.identity, **source.identity},
            evaluate_every=50,
            checkpoint_every=10 if len(lm.embeddings) * config.batch > _QUICK_STEP else 50,
            patience=config.patience,
            keep_start=True,
            rates=rates,
            progress=run.progress,
        ),
        lambda: held_out(batches.validation),
    )


@torch.no_grad()
def read_examples(
    lm: BaseLM,
    examples: Examples | Iterable[Examples],
    reading: Callable[[Examples, int], Read],
    soft_prompt: torch.Tensor,
    batch: int = 16,
) -> float:
    """Return the perplexity of ``examples``; ``reading`` maps a batch and its number to reads.

    Of examples that are learned by distillation it is the exponential of their mean divergence.
    """
    given = [examples] if isinstance(examples, Examples) else examples
    parts = itertools.chain.from_iterable(one.split(batch) for one in given)
    losses = [part.loss(lm.model, reading(part, index), soft_prompt) for index, part in enumerate(parts)]
    return math.exp(float(torch.cat(losses).mean()))


def read_clear(lm: BaseLM, examples: Examples | Iterable[Examples], soft_prompt: torch.Tensor) -> float:
    """Return the perplexity of ``examples`` whose private tokens are read in the clear."""
    layer = lm.model.get_input_embeddings()
    return read_examples(lm, examples, lambda part, _: lambda pick: layer(pick(part.tokens)), soft_prompt)


def read_noisy(lm: BaseLM, examples: Examples | Iterable[Examples], prompt: NoisyPrompt, *, seed: int) -> float:
    """Return the perplexity of ``examples`` behind the noise; a seed always draws the same one."""

    def reading(part: Examples, index: int) -> Read:
        y = prompt.noisy.sample(part.prompts, step_generator(seed, index, part.tokens.device))
        return lambda pick: prompt.decoder(pick(y))

    none = lm.embeddings[:0] if prompt.soft_prompt is None else prompt.soft_prompt
    return read_examples(lm, examples, reading, none)


def _untrained_perplexities(
    lm: FrozenLM, stage1: Stage1, prompt: NoisyPrompt, examples: Examples, seed: int
) -> dict[str, float]:
    """Measure the perplexities of :class:`SoftPromptResult` before training."""
    noisy, decoder = prompt.noisy, prompt.decoder
    clean = noisy.levels.float() / noisy.mechanism.max_level
    linear = new_decoder("linear", stage1.inputs(lm, noisy, decoder.norm_limit))
    project, none = stage1.projection.decoder, lm.embeddings[:0]
    return {
        "ppl_clean": read_clear(lm, examples, none),
        "ppl_projected": read_examples(
            lm, examples, lambda part, _: lambda pick: project(clean[pick(part.tokens)]), none
        ),
        "ppl_noisy": read_noisy(lm, examples, NoisyPrompt(noisy, linear), seed=seed),
    }
