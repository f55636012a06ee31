"""Controls of stage 2: soft prompts that are trained like a variant's, without its noise.

A soft prompt also adapts the LM to the corpus, which a perplexity alone cannot tell from reading
the prompt. Two controls bound what a variant can gain by its prompt: the clear prompt, and a prompt
that says nothing, each with a soft prompt of the same length, steps and text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from del_core._json import write_json_atomic
from del_core.audit.records import FLAT, OMITTED, from_json, to_json
from del_core.bundle import Adapter
from del_core.lm.device import products
from del_core.lm.model import BaseLM, FrozenLM
from del_core.training.adapter import load_adapter, save_adapter, training_adapter
from del_core.training.codes import load_codes
from del_core.training.config import SoftPromptConfig
from del_core.training.examples import Conversations, Examples
from del_core.training.parallel import current_shard
from del_core.training.results import check_model, read_json
from del_core.training.soft_prompt import SOFT_PROMPT_FILE, RowsRun, Trained, read_clear, started_from, train_rows
from del_core.training.sources import source_of

CLEAR, NOTHING = "clear", "nothing"
KINDS = {CLEAR: "the prompt in the clear", NOTHING: "the end-of-text token in place of the prompt"}
_FILE = "control.json"


@dataclass(frozen=True)
class ControlResult:
    """A trained control; perplexities of the test part."""

    kind: str
    config: SoftPromptConfig = field(metadata=FLAT)
    held_out_loss: float
    model_sha256: str
    text_sha256: str
    ppl_untrained: float  # the LM reads the same without the soft prompt
    ppl_trained: float
    chat_sha256: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, eq=False)
class Control:
    """A control, its soft prompt (rows, b) and its adapter, if it was trained with one."""

    result: ControlResult
    soft_prompt: torch.Tensor
    adapter: Adapter | None = None

    @property
    def method(self) -> str:
        """Its name in tables."""
        return f"{'clear' if self.result.kind == CLEAR else 'no'} prompt, trained alike"


def train_control(
    lm: FrozenLM,
    kind: str,
    config: SoftPromptConfig,
    output: Path,
    *,
    chat: Conversations | None = None,
    start: Path | None = None,
    progress: bool = True,
) -> ControlResult:
    """Train the soft prompt of a control, one of :data:`KINDS`, into ``output``.

    ``chat`` and ``start`` are those of the variants: conversations that are learned, and the
    variant of codes whose soft prompt and adapter are the first ones.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    torch.manual_seed(config.seed)
    device = lm.embeddings.device
    source = source_of(lm, config, chat, silent=kind == NOTHING)
    first, begun = lm.frequent_rows(config.rows), None
    if start is not None:
        known, arrays = load_codes(start, lm, rows=config.rows)
        first, begun = torch.from_numpy(arrays["soft_prompt"]).to(device), load_adapter(start, lm, known.config)
    rows = torch.nn.Parameter(first)
    layer = lm.model.get_input_embeddings()

    def loss(examples: Examples, generator: torch.Generator) -> torch.Tensor:
        own = examples.of(current_shard())
        with products(device, config.bf16):
            return own.loss(lm.model, lambda pick: layer(pick(own.tokens)), rows)

    untrained = read_clear(lm, source.test, lm.embeddings[:0])
    with training_adapter(lm, config, begun) as adapter:
        best = train_rows(
            lm,
            source,
            RowsRun(kind, output, config, {"control": kind, **started_from(start)}, progress),
            Trained(rows, [], adapter),
            loss,
            lambda parts: math.log(read_clear(lm, parts, rows.detach())),
        )
        result = ControlResult(
            kind=kind,
            config=config,
            held_out_loss=best,
            model_sha256=lm.checksum,
            text_sha256=lm.text_sha256,
            chat_sha256=None if chat is None else chat.sha256,
            ppl_untrained=untrained,
            ppl_trained=read_clear(lm, source.test, rows.detach()),
        )
        current_shard().once(lambda: save_adapter(output, adapter))

    def write() -> None:
        save_file({"soft_prompt": rows.detach().cpu().contiguous()}, output / SOFT_PROMPT_FILE)
        write_json_atomic(output / _FILE, to_json(result))

    current_shard().once(write)
    return result


def load_control(directory: Path, lm: BaseLM) -> Control:
    """Load a trained control; raise ModelError if it is unfinished or for another LM."""
    found: Mapping[str, Any] = read_json(directory / _FILE, "control")
    result = from_json(ControlResult, found)
    check_model(directory, result.model_sha256, lm)
    rows = load_file(directory / SOFT_PROMPT_FILE)["soft_prompt"]
    return Control(result, rows, load_adapter(directory, lm, result.config))
