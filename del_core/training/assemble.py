"""Puts a trained projection and its variants together into a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import load_file as load_decoder
from safetensors.torch import load_file

from del_core.bundle import BaseModel, Guarantees, Manifest, Variant, VariantContent, write_bundle
from del_core.lm.model import BaseLM, ModelError
from del_core.mechanism import MAX_LEVEL
from del_core.training.projection import load_log_prior, load_projection

__all__ = ["assemble_bundle"]


def assemble_bundle(
    lm: BaseLM,
    projection_directory: Path,
    variant_directories: Sequence[Path],
    output: Path,
    *,
    name: str,
    overwrite: bool = False,
) -> Manifest:
    """Writes the bundle of ``variant_directories`` (outputs of ``train_variant``) for the model called ``name``.

    Decoder and soft prompts are stored as fp16, the precision that LMs are served in.

    Raises:
        ModelError: naming the directory and what does not fit.
        BundleError: if ``output`` exists and ``overwrite`` is not set.
    """
    projection = load_projection(projection_directory, lm)
    contents = []
    for directory in variant_directories:
        path = directory / "variant.json"
        if not path.is_file():
            raise ModelError(f"{path}: not found; run `delctl train soft-prompt` to its end first")
        summary = json.loads(path.read_text(encoding="utf-8"))
        for key, expected in (("model_sha256", lm.checksum), ("dim", projection.encoder.out_features)):
            if summary[key] != expected:
                raise ModelError(f"{path}: {key} is {summary[key]}; the given model and projection have {expected}")
        if "guarantees" not in summary:
            raise ModelError(f"{path}: the attacks were not measured; run `delctl train soft-prompt` to its end first")
        rows = load_file(directory / "soft_prompt.safetensors")["soft_prompt"].half().numpy()
        perplexities = {key: round(value, 3) for key, value in summary.items() if key.startswith("ppl_")}
        contents.append(
            VariantContent(
                variant=Variant(
                    name=summary["name"],
                    task=summary["task"],
                    bits=summary["bits"],
                    ratio_numerator=summary["ratio_numerator"],
                    soft_prompt_length=summary["rows"],
                    decoder=summary["decoder"],
                    guarantees=Guarantees(**summary["guarantees"]),
                    audit={**summary["audit"], "perplexity": perplexities},
                ),
                weight=projection.decoder.weight.detach().cpu().half().numpy(),
                bias=projection.decoder.bias.detach().cpu().half().numpy(),
                norm_limit=summary["norm_limit"],
                soft_prompt=rows if len(rows) else None,
                tensors=load_decoder(directory / "decoder.safetensors"),
            )
        )
    vocabulary_size, hidden_size = lm.embeddings.shape
    return write_bundle(
        output,
        base_model=BaseModel(
            name=name, sha256=lm.checksum, hidden_size=int(hidden_size), vocabulary_size=int(vocabulary_size)
        ),
        table=projection.table(lm.embeddings, MAX_LEVEL).cpu().numpy(),
        max_level=MAX_LEVEL,
        clip=1.0,
        tokenizer_json=lm.tokenizer_json,
        variants=contents,
        log_prior=load_log_prior(projection_directory).numpy(),
        bos_token_id=lm.bos_token_id,
        overwrite=overwrite,
    )
