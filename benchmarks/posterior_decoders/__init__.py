"""Decoder kinds that compute a posterior over the vocabulary, as a plugin; for comparisons only.

They cost O(V) for each private token, so the package does not ship them
(docs/design/adr-0023-decoders-without-the-vocabulary.md). README.md describes their tensors.
Importing this package registers them. ``benchmarks.support.plugins`` makes it a plugin of other
processes.
"""

from __future__ import annotations

from benchmarks.posterior_decoders.network import ContextualKind, TrainedKind
from benchmarks.posterior_decoders.posterior import PosteriorKind
from del_core.decoders import DECODERS

__all__ = ["COMPARED"]

_KINDS = (PosteriorKind(), TrainedKind(), ContextualKind())
for _kind in _KINDS:
    DECODERS.register(_kind.name, _kind)

COMPARED = tuple(kind.name for kind in _KINDS)
"""The names of the kinds of the comparison."""
