"""Export of a model for servers of others: codes and soft prompts become tokens of its vocabulary.

A variant that sends one code for a token needs no decoder in the server: each code, and each row of
the soft prompt, is one more row of the embedding layer. A prompt is then a list of token ids, which
any server takes. The output layer gets rows of zeros for these tokens; the client lowers their
logits (:mod:`client_lib.protocol.upstream`), so that none is ever generated.

An adapter can be merged into the weights, which serves its variant without the cost of an adapter,
and that variant alone.

The embedding rows are divided by the factor of families whose embedding layer scales its rows, so
that the model reads what the bundle holds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from del_core.bundle import Bundle, checksum_model
from del_core.bundle.code_ids import CodeIds, code_ids
from del_core.lm.adapter import merge as merge_adapter
from del_core.lm.check import check_model
from del_core.lm.families import row_scale
from del_core.lm.model import ModelError
from del_core.lm.peft_files import reserved_rank, write_peft
from del_core.lm.progress import UNOBSERVED, Observer

__all__ = ["ADAPTERS", "CLEAR", "DESCRIPTION", "MODEL", "Exported", "export_model"]

MODEL, ADAPTERS, DESCRIPTION = "model", "adapters", "del-serve.json"
CLEAR = "clear"
"""The name under which clear prompts ask the exported model."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@dataclass(frozen=True)
class Exported:
    """What was written: ``model`` and the adapters of the variants that have one."""

    directory: Path
    variants: Mapping[str, CodeIds]
    adapters: tuple[str, ...]
    """The variants whose adapters were written."""
    rank: int
    """Rank to reserve for the adapters, 0 without any."""
    merged: str | None = None
    """The variant whose adapter is in the weights; no other name is served."""

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``vllm serve`` that serve the exported variants by their names."""
        names = [self.merged] if self.merged else [CLEAR, *(one for one in self.variants if one not in self.adapters)]
        found = [str(self.directory / MODEL), "--served-model-name", *names]
        if self.adapters:
            found += ["--enable-lora", "--max-loras", str(len(self.adapters) + 1)]
            found += ["--max-lora-rank", str(self.rank), "--lora-modules"]
            found += [f"{name}={self.directory / ADAPTERS / name}" for name in self.adapters]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the ids of each variant, first and one behind the last."""
        variants = {
            name: {
                "codes": [one.codes.start, one.codes.stop],
                "soft_prompt": [one.soft_prompt.start, one.soft_prompt.stop],
                "adapter": name in self.adapters,
            }
            for name, one in self.variants.items()
        }
        return {"variants": variants, "merged": self.merged}


def export_model(
    bundle: Bundle, model: Path, out: Path, *, merge: str | None = None, observer: Observer = UNOBSERVED
) -> Exported:
    """Write the model with the tokens of a bundle's codes, and the adapters, into a new directory.

    Args:
        merge: A variant whose adapter is added to the weights, in place of all adapters. The model
            then serves this variant alone. The ids of all variants stay what they are.
        observer: Hears of every step, and of the share of all that is done.

    Raises:
        BundleError: the bundle was made for another model.
        ModelError: no variant can be exported, ``merge`` is none of those with an adapter, or the
            model's layers are not of a known form.
        FileExistsError: ``out`` exists and is not empty.
    """
    ids = code_ids(bundle.manifest)
    if not ids:
        raise ModelError("bundle must have a variant that sends one code for a token, got none")
    adapters = {name: adapter for name in ids if (adapter := bundle.adapter(name)) is not None}
    if merge is not None and merge not in adapters:
        raise ModelError(f"merge must be a variant of codes with an adapter: {', '.join(adapters)}; got {merge}")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(17, "exists and is not empty", str(out))
    steps = 4
    observer.step("checking the model", 0, steps)
    check_model(model)
    bundle.check_model(checksum_model(model))
    observer.step("reading the model", 1, steps)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    _extend(lm, _rows(bundle, ids))
    if merge is not None:
        merge_adapter(lm, adapters[merge])
        adapters = {}
    observer.step("writing the model", 2, steps)
    lm.save_pretrained(out / MODEL)
    for name in _TOKENIZER_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, out / MODEL / name)
    observer.step("writing the adapters", 3, steps)
    for name, adapter in adapters.items():
        write_peft(out / ADAPTERS / name, adapter)
    exported = Exported(out, ids, tuple(adapters), reserved_rank(adapters.values()) if adapters else 0, merge)
    about = {"bundle": bundle.fingerprint, **exported.to_json()}
    (out / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return exported


def _rows(bundle: Bundle, ids: Mapping[str, CodeIds]) -> torch.Tensor:
    """Return the rows (tokens, b) of all codes and soft prompts, in the order of their ids."""
    parts = []
    for name in ids:
        parts.append(torch.from_numpy(bundle.decoder(name)["codes"][0]))
        parts.append(torch.from_numpy(bundle.soft_prompt(name)))
    return torch.cat(parts)


def _extend(lm: PreTrainedModel, rows: torch.Tensor) -> None:
    """Put ``rows`` behind the embedding layer, and as many zeros behind the output layer."""
    config: Any = lm.config
    embedding, output = lm.get_input_embeddings(), lm.get_output_embeddings()
    if output is None or getattr(output, "bias", None) is not None or len(embedding.weight) != config.vocab_size:
        raise ModelError("model must have an output layer without bias and a row for each of vocab_size tokens")
    before, last = embedding.weight.detach(), output.weight.detach()
    scale = row_scale(config.to_dict(), str(before.dtype).removeprefix("torch."))
    added = (rows / scale).to(before.dtype)
    config.tie_word_embeddings = False
    config.vocab_size += len(rows)
    embedding.weight = torch.nn.Parameter(torch.cat([before, added]), requires_grad=False)
    embedding.num_embeddings = config.vocab_size
    zeros = last.new_zeros(len(rows), last.shape[1])
    output.weight = torch.nn.Parameter(torch.cat([last, zeros]), requires_grad=False)
    output.out_features = config.vocab_size
