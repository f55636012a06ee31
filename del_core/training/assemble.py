"""Assembly of a bundle from a trained projection and its variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from del_core.audit.attacks.base import AttackSurface, token_attacks
from del_core.audit.attacks.map import MAP
from del_core.audit.intervals import Rate
from del_core.bundle import BaseModel, ChatFormat, Guarantees, Manifest, Variant, VariantContent, write_bundle
from del_core.decoders import LookupKind
from del_core.lm.model import BaseLM, ModelError
from del_core.lm.progress import UNOBSERVED, Observer
from del_core.mechanism import MAX_LEVEL
from del_core.training.adapter import load_adapter
from del_core.training.codes import is_codes, load_codes
from del_core.training.projection import Projection, load_log_prior, load_projection
from del_core.training.results import VariantResult, perplexities, read_variant_result
from del_core.training.soft_prompt import DECODER_FILE, SOFT_PROMPT_FILE

_SAMPLE = 4096  # tokens of the check of a variant's stated MAP success
_PAIRS = 50_000_000  # of a token and a vocabulary entry: a second
_FAR_OFF = 1.5


def assemble_bundle(
    lm: BaseLM,
    projection_directory: Path,
    variant_directories: Sequence[Path],
    output: Path,
    *,
    name: str,
    max_level: int = MAX_LEVEL,
    chat: ChatFormat | None = None,
    overwrite: bool = False,
    observer: Observer = UNOBSERVED,
) -> Manifest:
    """Write the bundle of ``variant_directories`` in fp16.

    They are outputs of ``train_variant`` and ``train_codes``. Variants of the same codes share a
    code table.

    ``name`` is the model's, and ``chat`` its chat template, which clients then use. With
    ``max_level`` 127 the client's table is stored in int8, half the size; its coordinates are then
    rounded to 1/127 of the clip. ModelError names a directory that is incomplete or does not fit
    the model; BundleError is raised if ``output`` exists and ``overwrite`` is not set.
    ``observer`` hears of every variant, and of the share of all that is done.
    """
    projection = load_projection(projection_directory, lm)
    log_prior = load_log_prior(projection_directory)
    code_tables: dict[str, NDArray[np.uint8]] = {}
    contents, steps = [], len(variant_directories) + 1
    for done, directory in enumerate(variant_directories):
        observer.step(directory.name, done, steps)
        contents.append(
            _content_of_codes(lm, directory, code_tables)
            if is_codes(directory)
            else _content(lm, projection, log_prior, directory)
        )
    observer.step("table and checksums", steps - 1, steps)
    vocabulary_size, hidden_size = lm.embeddings.shape
    return write_bundle(
        output,
        base_model=BaseModel(
            name=name, sha256=lm.checksum, hidden_size=int(hidden_size), vocabulary_size=int(vocabulary_size)
        ),
        table=projection.table(lm.embeddings, max_level).cpu().numpy(),
        max_level=max_level,
        clip=1.0,
        tokenizer_json=lm.tokenizer_json,
        variants=contents,
        log_prior=log_prior.numpy(),
        bos_token_id=lm.bos_token_id,
        code_tables=code_tables,
        chat=chat,
        overwrite=overwrite,
    )


def _check_map(lm: BaseLM, projection: Projection, log_prior: torch.Tensor, result: VariantResult, place: Path) -> None:
    """Run the MAP attack on the table of the bundle. Raises ModelError if it finds much more.

    Training measured it on text; here the tokens are drawn by their frequency in the training text,
    on which it finds about as much, so only a figure that is far off is refused.
    """
    stated = result.recovery.get(MAP)
    if stated is None:
        return
    chance = np.random.default_rng(0)
    prior = np.exp(log_prior.double().numpy())
    tokens = chance.choice(len(prior), size=min(_SAMPLE, max(256, _PAIRS // len(prior))), p=prior / prior.sum())
    nothing = np.zeros((0, 0), np.float32)  # the attack reads the table only
    surface = AttackSurface(
        table=projection.table(lm.embeddings, MAX_LEVEL).cpu().numpy(),
        weight=nothing,
        bias=nothing,
        embeddings=nothing,
        log_prior=log_prior.float().numpy(),
    )
    mechanism = result.trained.mechanism
    counts = surface.release(mechanism, tokens, 0)
    found = Rate.from_hits(token_attacks()[MAP].guess(surface, mechanism, counts) == tokens)
    if found.low > _FAR_OFF * stated.high:
        raise ModelError(
            f"{MAP} of {place} must be what the attack recovers behind this projection, {found.success:.1%}, "
            f"got {stated.success:.1%}: it was trained behind another one"
        )


def _content(lm: BaseLM, projection: Projection, log_prior: torch.Tensor, directory: Path) -> VariantContent:
    result = read_variant_result(directory)
    trained = result.trained
    expected = {
        "model_sha256": lm.checksum,
        "dim": projection.encoder.out_features,
        # Not noted by earlier versions.
        "projection_sha256": None if trained.projection_sha256 is None else projection.checksum,
    }
    for field, wanted in expected.items():
        if (found := getattr(trained, field)) != wanted:
            raise ModelError(f"{field} of {directory} must be that of model and projection, {wanted}, got {found}")
    _check_map(lm, projection, log_prior, result, directory)
    rows = load_file(directory / SOFT_PROMPT_FILE)["soft_prompt"].half().numpy()
    tensors, adapter = load_arrays(directory / DECODER_FILE), load_adapter(directory, lm, trained.config)
    weight, bias = (part.detach().cpu().half().numpy() for part in projection.decoder.parameters())
    rounded = {name: round(value, 3) for name, value in perplexities(trained).items()}
    return VariantContent(
        variant=Variant(
            name=trained.name,
            task=result.task,
            bits=trained.bits,
            ratio_numerator=trained.ratio_numerator,
            soft_prompt_length=trained.config.rows,
            decoder=trained.config.decoder,
            guarantees=result.guarantees,
            audit={**result.audit, "perplexity": rounded},
            adapter=None if adapter is None else adapter.shape,
        ),
        # A variant may have trained D and a' itself.
        weight=tensors.pop("weight", weight),
        bias=tensors.pop("bias", bias),
        norm_limit=trained.norm_limit,
        soft_prompt=rows if len(rows) else None,
        tensors=tensors,
        adapter=adapter,
    )


def _content_of_codes(lm: BaseLM, directory: Path, code_tables: dict[str, NDArray[np.uint8]]) -> VariantContent:
    """Return a variant of codes, whose table is added to ``code_tables`` unless it is there."""
    result, arrays = load_codes(directory, lm)
    known = (name for name, table in code_tables.items() if np.array_equal(table, arrays["levels"]))
    table = next(known, result.name)
    code_tables[table] = arrays["levels"]
    rows, adapter = arrays["soft_prompt"].astype(np.float16), load_adapter(directory, lm, result.config)
    rounded = {name: round(value, 3) for name, value in perplexities(result).items()}
    return VariantContent(
        variant=Variant(
            name=result.name,
            task=result.task,
            bits=result.config.bits,
            ratio_numerator=None,
            soft_prompt_length=len(rows),
            decoder=LookupKind.name,
            guarantees=Guarantees(delta=0.0, epsilon=result.epsilon, epsilon_vocabulary=None, mu=None),
            audit={**result.audit, "perplexity": rounded},
            other=result.spec,
            table=table,
            adapter=None if adapter is None else adapter.shape,
        ),
        weight=None,
        bias=None,
        norm_limit=1.0,
        soft_prompt=rows if len(rows) else None,
        tensors={"codes": arrays["codes"]},
        adapter=adapter,
    )
