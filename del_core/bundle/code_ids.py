"""Token ids of codes and soft prompts, in the vocabulary of a model that was exported for them.

An exported model has the base model's tokens and, behind them, one more token for each code and for
each row of the soft prompt of every variant that can be exported, in the order of the manifest:
first the variant's codes, then its rows. Client and export both take the ids from here, so that the
client's part of a bundle is all that a client needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from del_core.bundle.manifest import Manifest
from del_core.mechanism import CategoricalMechanism

__all__ = ["CodeIds", "code_ids"]


@dataclass(frozen=True)
class CodeIds:
    """The ids of a variant."""

    codes: range
    soft_prompt: range

    def of(self, codes: Sequence[int]) -> list[int]:
        """Return the ids of released codes."""
        return [self.codes[code] for code in codes]


def code_ids(manifest: Manifest) -> Mapping[str, CodeIds]:
    """Return the ids of every variant that sends one code for a token; others have no ids."""
    found: dict[str, CodeIds] = {}
    start = manifest.base_model.vocabulary_size
    for variant in manifest.variants:
        mechanism = manifest.mechanism(variant)
        if not isinstance(mechanism, CategoricalMechanism) or mechanism.dim != 1:
            continue
        codes = range(start, start + (1 << mechanism.bits))
        soft_prompt = range(codes.stop, codes.stop + variant.soft_prompt_length)
        found[variant.name] = CodeIds(codes, soft_prompt)
        start = soft_prompt.stop
    return found
