"""Attackers who train a model, on the noises of the comparison: the attacks of an audit.

The comparison sets its levels by attacks that train nothing. Those that train a model cost more
than the training of a method does, so they run on chosen noises alone, on the same prompts and with
the budget of the audit of the bundle that ships (``examples/smollm2/recipe.sh``).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.privacy_utility.plan import PUBLISHED
from benchmarks.privacy_utility.pretrained.bench import PretrainedBench
from benchmarks.privacy_utility.pretrained.plan import CODES, COUNTS, Piece, Plan, pieces_of
from del_core.audit.attacks import ATTACKS
from del_core.audit.attacks.base import AttackSurface, Target
from del_core.audit.attacks.bidirectional import BIDIRECTIONAL
from del_core.audit.attacks.combined import COMBINED
from del_core.audit.attacks.map import MAP
from del_core.audit.attacks.sequence import SEQUENCE
from del_core.audit.corpus import Corpus
from del_core.audit.intervals import Rate
from del_core.audit.settings import QUICK, parse_budget
from del_core.mechanism import TokenMechanism

__all__ = ["AttackerBench", "attacked_pieces"]

_BUDGET = "standard,training=20,search=10"
_NAMES = (MAP, SEQUENCE, BIDIRECTIONAL, COMBINED)


def attacked_pieces(plan: Plan) -> tuple[Piece, ...]:
    """Return a piece for each noise of codes and of counts as published, without training."""
    return tuple(
        piece for piece in pieces_of(plan) if not piece.trained and (piece.family == CODES or piece.method == PUBLISHED)
    )


class AttackerBench:
    """Attacks noises of ``bench`` with models that are trained on ``texts``, one file a noise.

    Args:
        texts: what the attacker trains on: text of the kind that the prompts are from.
        out: directory of the files.
    """

    def __init__(self, bench: PretrainedBench, texts: list[str], out: Path, budget: str = _BUDGET) -> None:
        self.bench, self.texts, self.out = bench, texts, out
        self.config = replace(QUICK, attacker=parse_budget(budget))
        out.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _corpus(self) -> Corpus:
        return self.bench.corpus(self.texts)

    def results(self) -> dict[str, Any]:
        """Return what was found of every noise that has been attacked, in the order of the plan."""
        paths = (self.out / f"{piece.name}.json" for piece in attacked_pieces(self.bench.plan))
        return {"noises": [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]}

    def run(self, piece: Piece) -> None:
        """Attack the noise of a piece, unless its file exists."""
        path = self.out / f"{piece.name}.json"
        if path.exists():
            return
        bench, corpus = self.bench, self._corpus
        point = bench.noise_of(piece)
        assert point is not None
        mechanism: TokenMechanism
        if piece.table is None:
            mechanism, table = bench.mechanism(point["strength"]), bench.counted_table
        else:
            mechanism, table = bench.coded_mechanism(piece.table), bench.formed(piece.table)[0].numpy().astype(np.uint8)
        surface = AttackSurface(
            table=table,
            weight=None,
            bias=None,
            embeddings=bench.lm.embeddings.detach().float().cpu().numpy(),
            log_prior=bench.bundle.log_prior,
        )
        target = Target.of_corpus(
            corpus, mechanism, surface, bench.lm, bench.lm.bos_token_id, self.config, lambda share: None
        )
        rates = {}
        for name in _NAMES:
            guesses = ATTACKS[name].run(target)
            rates[name] = Rate.from_hits(guesses.token_ids == corpus.prompts).to_json()
            bench.say(f"{piece.name}, {name}: {rates[name]['success']:.3f}")
        found = {
            "piece": piece.name,
            "family": COUNTS if piece.table is None else CODES,
            "level": piece.level,
            "noise": {key: point.get(key) for key in ("strength", "codes", "epsilon", "delta")},
            "attacks": rates,
            "budget": asdict(self.config.attacker),
        }
        bench.write(path, found)
