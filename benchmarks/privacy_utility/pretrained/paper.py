"""The tables of the paper on a pretrained model: DEL as published, text by text and level by level.

A soft prompt is trained on one text at one level of attack success. Measured on the same text it
gives the paper's tables of perplexities (T1, T2), on another text its transfer (T6), and with the
noise of another level what a wrong level costs (T7). A sweep over d has a projection for each width
and no soft prompt (T8). The clear prompt and a control that reads nothing are trained alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.privacy_utility.plan import PUBLISHED
from benchmarks.privacy_utility.pretrained.attack import attack, search
from benchmarks.privacy_utility.pretrained.bench import PretrainedBench
from benchmarks.privacy_utility.pretrained.channels import MechanismChannel
from benchmarks.privacy_utility.pretrained.plan import COUNTS, Piece, Plan
from benchmarks.privacy_utility.pretrained.readers import DecodedReader, Reader
from benchmarks.privacy_utility.views import DELTA
from del_core.accounting import epsilon
from del_core.audit.attacks.base import AttackSurface, recovery
from del_core.audit.calibration import mechanism_at
from del_core.lm.noise import NoisyTable
from del_core.mechanism import MAX_LEVEL, Mechanism, TokenMechanism
from del_core.training.config import ProjectionConfig, SoftPromptConfig, VariantConfig
from del_core.training.projection import Projection, attack_surface, load_projection, train_projection
from del_core.training.start import Stage1, start_decoder

__all__ = ["CONTROLS", "DIMENSION", "NEAREST", "PLAIN", "SOFT_PROMPT", "PaperBench", "PaperPiece", "PaperPlan"]

PLAIN, SOFT_PROMPT, DIMENSION = "without soft prompt", "soft prompt", "dimension"
"""Parts of the reproduction, each of one kind of piece."""
CONTROLS = ("nothing", "clear")
NEAREST = "nearest"
"""Attack by which the paper means its levels, measured beside the strongest."""
_FIRST_LEVEL = 0.2


@dataclass(frozen=True)
class PaperPlan:
    """Extent of a run.

    Attributes:
        levels: success of the strongest attack, in the order of the work. The least is hardly above
            what is guessed blindly.
        dims: widths of the sweep.
        projection_steps: steps of each projection of the sweep.
        rows: of the soft prompts, which start from frequent tokens of their text.
    """

    levels: tuple[float, ...] = (0.2, 0.4, 0.06, 0.6)
    dims: tuple[int, ...] = (18, 128, 64)
    projection_steps: int = 40
    passages: int = 24
    rows: int = 32
    training: VariantConfig = field(
        default_factory=lambda: VariantConfig(
            prompt_tokens=64,
            continuation_tokens=32,
            batch=4,
            steps=24,
            learning_rate=1e-2,
            evaluation_windows=8,
            test_windows=1,
        )
    )

    def comparison(self, texts: tuple[str, ...]) -> Plan:
        """Return the plan of the comparison whose code measures these pieces."""
        passages = tuple((name, self.passages) for name in texts)
        return Plan(levels=self.levels, passages=passages, training=self.training)


@dataclass(frozen=True)
class PaperPiece:
    """One measurement.

    Attributes:
        part: :data:`PLAIN`, :data:`SOFT_PROMPT` or :data:`DIMENSION`.
        read: ``counts``, or one of :data:`CONTROLS`.
        text: the text on which a soft prompt is trained.
    """

    part: str
    read: str = COUNTS
    level: float | None = None
    text: str | None = None
    dim: int | None = None

    @property
    def file(self) -> str:
        """Name of its file."""
        if self.part == DIMENSION:
            return f"d-{self.dim}"
        end = self.read if self.level is None else f"{100 * self.level:g}"
        return f"{self.text or 'plain'}-{end}"


class PaperBench:
    """The pieces of the reproduction.

    Args:
        bench: model, bundle and texts of the comparison, made with ``plan.comparison``; its first
            text is attacked. It writes into a directory of its own, where the attacked points of
            the comparison may already be.
        parts: token ids of the training part of each text on which soft prompts are trained.
    """

    def __init__(self, bench: PretrainedBench, parts: Mapping[str, torch.Tensor], plan: PaperPlan) -> None:
        self.bench, self.parts, self.plan = bench, dict(parts), plan
        self.lm = bench.lm

    @property
    def pieces(self) -> tuple[PaperPiece, ...]:
        """All pieces: cheap ones first, then those that more tables need."""
        plan = self.plan
        plain = [PaperPiece(PLAIN, level=level) for level in plan.levels]
        plain += [PaperPiece(PLAIN, read) for read in CONTROLS]
        levels = [PaperPiece(SOFT_PROMPT, level=level) for level in plan.levels]
        nothing, clear = (PaperPiece(SOFT_PROMPT, read) for read in CONTROLS)
        sweep = (PaperPiece(DIMENSION, level=_FIRST_LEVEL, dim=dim) for dim in plan.dims)
        return (
            *plain,
            *self._on_each_text(levels[0], nothing, *levels[1:2]),
            *sweep,
            *self._on_each_text(clear, *levels[2:]),
        )

    def _on_each_text(self, *pieces: PaperPiece) -> tuple[PaperPiece, ...]:
        return tuple(replace(piece, text=text) for piece in pieces for text in self.parts)

    def run(self, piece: PaperPiece) -> None:
        """Compute one piece, unless its file exists."""
        path = self.bench.out / f"{piece.file}.json"
        if path.exists():
            return
        began = time.monotonic()
        about = {"part": piece.part, "read": piece.read, "level": piece.level, "text": piece.text, "dim": piece.dim}
        found = self._dimension(piece) if piece.part == DIMENSION else self._soft_prompt(piece)
        losses = {name: [round(float(one), 4) for one in values] for name, values in found.pop("nll").items()}
        self.bench.write(path, {**about, **found, "nll": losses, "seconds": round(time.monotonic() - began)})
        shown = ", ".join(f"{name} {np.exp(np.mean(values)):.1f}" for name, values in losses.items())
        self.bench.say(f"{piece.file}: {shown}; {time.monotonic() - began:.0f} s")

    # ------------------------------------------------------------------------------ soft prompts

    def _published(self, piece: PaperPiece, level: float | None) -> Piece:
        """Return the piece of the comparison that reads as this one does, at ``level``."""
        read = piece.read if level is None else COUNTS
        return Piece(piece.file, PUBLISHED, read, level, start="soft prompt", trained=piece.part == SOFT_PROMPT)

    def _reader(self, piece: PaperPiece, level: float | None) -> tuple[Reader, dict[str, Any] | None]:
        point = None if level is None else self._point(level)
        return self.bench.reader(self._published(piece, level), point), point

    def _point(self, level: float) -> dict[str, Any]:
        """Return the noise of a level: that of its piece without soft prompt, once it is there."""
        path = self.bench.out / f"{PaperPiece(PLAIN, level=level).file}.json"
        if not path.exists():  # a later search might end at another point
            return self.bench.calibrated(COUNTS, level)
        point = dict(json.loads(path.read_text("utf-8"))["noise"])
        del point[NEAREST]
        return point

    def _soft_prompt(self, piece: PaperPiece) -> dict[str, Any]:
        reader, point = self._reader(piece, piece.level)
        rows, trained = self.lm.embeddings[:0], {"steps": 0}
        if piece.text is not None:
            bench = self._adapting[piece.text]
            start = nn.Parameter(bench.lm.frequent_rows(self.plan.rows))
            trained = bench.fit(self._published(piece, piece.level), point, reader, start, None)
            rows = start.detach()
        found = {
            "noise": point and {**point, NEAREST: self._nearest(point)},
            "training": trained,
            "nll": self._measure(piece, reader, rows),
        }
        if piece.text is not None and piece.level is not None:
            found["nll at other levels"] = {
                f"{level:g}": self._measure(piece, self._reader(piece, level)[0], rows, (piece.text,))[piece.text]
                .round(4)
                .tolist()
                for level in self.plan.levels
                if level != piece.level
            }
        return found

    @cached_property
    def _adapting(self) -> dict[str, PretrainedBench]:
        """A bench for each text, whose model has that text to train on."""
        own, found = self.bench, {}
        for name, tokens in self.parts.items():
            cut = len(tokens) - max(2 * self.plan.training.length * 8, len(tokens) // 10)
            lm = replace(own.lm, text_sha256=name, train=tokens[:cut], validation=tokens[cut:], test=tokens[cut:])
            found[name] = PretrainedBench(
                lm, own.bundle, own.texts, own.plan, out=own.out, work=own.work, machine=own.machine, say=own.say
            )
        return found

    def _measure(
        self, piece: PaperPiece, reader: Reader, rows: torch.Tensor, texts: tuple[str, ...] = ()
    ) -> dict[str, np.ndarray]:
        nothing = piece.read == "nothing"
        return {
            name: self.bench.nll(reader, self.bench.windows[name], rows, nothing=nothing)
            for name in texts or tuple(self.parts)
        }

    def _nearest(self, point: Mapping[str, Any]) -> dict[str, float | int]:
        """Return the success of the paper's attack at the noise of ``point``."""
        bench = self.bench
        name = bench.nearest(dict(point))
        tensors = bench.bundle.decoder(name)
        surface = AttackSurface(
            table=np.asarray(bench.bundle.client.table_of(name)),
            weight=tensors["weight"],
            bias=tensors["bias"],
            embeddings=self.lm.embeddings.numpy(),
            log_prior=bench.bundle.log_prior,
        )
        return self._recovered(bench.mechanism(point["strength"]), surface)

    def _recovered(self, mechanism: TokenMechanism, surface: AttackSurface) -> dict[str, float | int]:
        """Return what the paper's attack recovers of the attacked prompts."""
        return recovery(mechanism, surface, self.bench.attacked.prompts.reshape(-1))[NEAREST].to_json()

    # ------------------------------------------------------------------------------ dimensions

    def _dimension(self, piece: PaperPiece) -> dict[str, Any]:
        """Train a projection of one width without noise, and read its counts at the level."""
        assert piece.dim is not None
        assert piece.level is not None
        bench, plan, training = self.bench, self.plan, self.plan.training
        config = ProjectionConfig(
            dim=piece.dim,
            steps=plan.projection_steps,
            prompt_tokens=training.prompt_tokens,
            continuation_tokens=training.continuation_tokens,
            batch=training.batch,
            evaluation_windows=training.evaluation_windows,
        )
        output = bench.work / piece.file
        result = train_projection(self.lm, output, config, progress=False)
        projection = load_projection(output, self.lm)
        surface = attack_surface(self.lm, projection)
        points: list[dict[str, Any]] = []

        def measure(strength: float) -> dict[str, Any]:
            mechanism = self._mechanism(piece.dim, strength)
            channel = MechanismChannel(mechanism, surface.table)
            found = attack(self.lm, surface.log_prior, channel, bench.attacked, bench.plan.attack)
            bench.say(f"{piece.file}, {strength:.4g}: strongest {found.strongest[1].success:.3f}")
            return {"strength": strength, "epsilon": epsilon(mechanism, DELTA), "delta": DELTA, **found.to_json()}

        # At equal success, the strengths of widths differ about as the roots of the widths do.
        shipped = self._point(piece.level)
        first = shipped["strength"] * (bench.mechanism(shipped["strength"]).dim / piece.dim) ** 0.5
        point = search(measure, points, piece.level, bench.plan.attack, min(first, 0.9))
        mechanism = self._mechanism(piece.dim, point["strength"])
        reader = self._projected(projection, mechanism)
        return {
            "noise": {**point, NEAREST: self._recovered(mechanism, surface)},
            "points": points,
            "training": {"steps": config.steps, "learning_rate": config.learning_rate, "batch": config.batch},
            "ppl_clean": round(result.ppl_clean, 3),
            "ppl_projected": round(result.ppl_projected, 3),
            "bits": mechanism.bits * mechanism.dim,
            "nll": self._measure(piece, reader, self.lm.embeddings[:0]),
        }

    def _mechanism(self, dim: int | None, strength: float) -> Mechanism:
        assert dim is not None
        bits = self.bench.mechanism(0.5).bits
        return mechanism_at(strength, bits=bits, dim=dim, max_level=MAX_LEVEL)

    def _projected(self, projection: Projection, mechanism: Mechanism) -> DecodedReader:
        """Return counts behind the projection's own decoder, with the norm limit that fits best."""
        noisy = NoisyTable(projection.table(self.lm.embeddings, mechanism.max_level), mechanism)
        config = SoftPromptConfig(prompt_tokens=self.plan.training.prompt_tokens)
        windows = self.lm.windows(self.lm.validation, self.plan.training.length, 8)
        return DecodedReader(noisy, start_decoder(self.lm, Stage1(projection), noisy, windows, config))
