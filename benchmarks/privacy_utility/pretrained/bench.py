"""Trains and measures the pieces of the comparison on a pretrained model.

Every finished piece is one JSON file, written at once; what exists is not computed again, and an
interrupted training resumes from its checkpoint. Losses of all passages are kept, so that
intervals can be computed later.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from benchmarks.privacy_utility.baselines import Finish, GaussianNoise, MetricNoise, finishes
from benchmarks.privacy_utility.pieces import save_json
from benchmarks.privacy_utility.plan import NOISE_SEED, PUBLISHED
from benchmarks.privacy_utility.pretrained.attack import attack, search
from benchmarks.privacy_utility.pretrained.channels import (
    Channel,
    EmbeddingChannel,
    MechanismChannel,
    SilentChannel,
)
from benchmarks.privacy_utility.pretrained.plan import CODES, COUNTS, CodeTable, Piece, Plan
from benchmarks.privacy_utility.pretrained.readers import ClearReader, CodesReader, CountsReader, NoisyReader, Reader
from benchmarks.privacy_utility.views import DELTA
from del_core.accounting import epsilon as exact_epsilon
from del_core.audit.calibration import mechanism_at
from del_core.audit.corpus import Corpus, make_corpus
from del_core.bundle import CHAT_TASK, Bundle
from del_core.lm.adapter import AttachedAdapter, attached, load_tensors
from del_core.lm.device import products
from del_core.lm.model import FrozenLM
from del_core.lm.noise import step_generator
from del_core.lm.text import TokenWindows, tokenize
from del_core.mechanism import BinomialMechanism, CategoricalMechanism, Mechanism
from del_core.training.codes import form_codes
from del_core.training.config import CodesConfig
from del_core.training.examples import Examples, Pick
from del_core.training.soft_prompt import RowsRun, Trained, train_rows
from del_core.training.sources import end_token, source_of

__all__ = ["PretrainedBench"]

_Point = Mapping[str, Any] | None
_Trained = tuple[dict[str, Any], dict[str, np.ndarray]]
_BATCH = 16
_FIRST = {COUNTS: 0.163, "gaussian": 0.8, "metric": 20.0}  # strengths that a search begins with


class PretrainedBench:
    """One run: the model with its bundle, the texts, the plan and the directories.

    Args:
        texts: text of each corpus by name; the first is the one on which attacks are measured.
        out: directory of the pieces. work: directory of checkpoints.
    """

    def __init__(
        self,
        lm: FrozenLM,
        bundle: Bundle,
        texts: Mapping[str, str],
        plan: Plan,
        *,
        out: Path,
        work: Path,
        machine: str,
        say: Callable[[str], None],
    ) -> None:
        self.lm, self.bundle, self.plan, self.out, self.work = lm, bundle, plan, out, work
        self.machine, self.say = machine, say
        bundle.check_model(lm.checksum)
        text = [name for name, variant in bundle.variants.items() if variant.task != CHAT_TASK]
        self._ratios = {
            name: mechanism.ratio for name in text if isinstance(mechanism := bundle.mechanism(name), BinomialMechanism)
        }
        coded = [name for name in text if name not in self._ratios and bundle.adapter(name) is not None]
        self.coded_name = max(coded, key=lambda name: bundle.variants[name].audit["map"]["success"])  # that says most
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
        self.texts = dict(texts)
        length = plan.training.length
        self.windows = {
            name: TokenWindows(tokenize(self.tokenizer, [texts[name]]), length, seed=0).first(count)
            for name, count in plan.passages
        }

    # ------------------------------------------------------------------------------ noise

    @cached_property
    def attacked(self) -> Corpus:
        """The prompts that are attacked, and those on which the attack is tuned."""
        return self.corpus()

    def corpus(self, attacker_texts: Sequence[str] = ()) -> Corpus:
        """Return the prompts that are attacked, with text that the attacker has besides."""
        first, budget = self.plan.passages[0][0], self.plan.attack
        return make_corpus(
            self.texts[first],
            self.tokenizer,
            prompts=budget.prompts,
            length=budget.tokens,
            vocabulary_size=len(self.lm.embeddings),
            attacker_texts=attacker_texts,
        )

    def formed(self, table: CodeTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes (V, 1) and centers (1, K, b); formed once, and kept beside checkpoints."""
        path = self.work / "codes" / f"{table.name}.safetensors"
        if not path.exists():
            config = CodesConfig(**asdict(table), rows=0)
            found = form_codes(self.lm, config, self.coded_mechanism(table), self.say)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"codes": found.codes.contiguous(), "centers": found.centers.contiguous()}, path)
        arrays = load_file(path)
        return arrays["codes"], arrays["centers"]

    @staticmethod
    def coded_mechanism(table: CodeTable) -> CategoricalMechanism:
        """Return the mechanism of codes."""
        return CategoricalMechanism.from_epsilon(table.epsilon, bits=table.bits)

    def mechanism(self, strength: float) -> Mechanism:
        """Return the counts' mechanism of a strength, the ratio r."""
        shipped = self.bundle.mechanism(next(iter(self._ratios)))
        return mechanism_at(strength, bits=shipped.bits, dim=shipped.dim, max_level=shipped.max_level)

    @property
    def counted_table(self) -> np.ndarray:
        """The table (V, d) whose rows counts release."""
        return np.asarray(self.bundle.client.table_of(next(iter(self._ratios))))

    def noise(self, family: str, strength: float, finish: Finish | None = None) -> GaussianNoise | MetricNoise:
        """Return the noise on embeddings of a strength."""
        kind = GaussianNoise if family == "gaussian" else MetricNoise
        return kind(self.lm.embeddings, strength, finish or Finish())

    def channel(self, family: str, strength: float) -> Channel:
        """Return what the attacks see of counts, or of a baseline's noise."""
        if family == COUNTS:
            return MechanismChannel(self.mechanism(strength), self.counted_table)
        return EmbeddingChannel(self.noise(family, strength))

    def promise(self, family: str, strength: float) -> dict[str, float | None]:
        """Return epsilon and delta of one token, over all points that a table could hold."""
        if family == COUNTS:
            return {"epsilon": exact_epsilon(self.mechanism(strength), DELTA), "delta": DELTA}
        return {"epsilon": self.noise(family, strength).epsilon(), "delta": DELTA if family == "gaussian" else 0.0}

    def _attack(self, name: str, channel: Channel) -> dict[str, Any]:
        found = attack(self.lm, self.bundle.log_prior, channel, self.attacked, self.plan.attack)
        rates = f"map {found.map.success:.3f}, sequence {found.sequence.success:.3f}"
        self.say(f"{name}: {rates}, {found.seconds:.0f} s")
        return found.to_json()

    def blind(self) -> dict[str, Any]:
        """Attack a release that says nothing, once."""
        path = self.out / "attack-blind.json"
        if not path.exists():
            silent = SilentChannel(len(self.lm.embeddings))
            found = attack(self.lm, self.bundle.log_prior, silent, self.attacked, self.plan.attack)
            self.say(f"blind guessing: map {found.map.success:.3f}, sequence {found.sequence.success:.3f}")
            self.write(path, {"budget": asdict(self.plan.attack), **found.to_json()})
        return _read(path)

    def coded(self, table: CodeTable) -> dict[str, Any]:
        """Return the attacked point of codes."""
        path, mechanism = self.out / f"attack-{CODES}.json", self.coded_mechanism(table)
        about = {"strength": table.epsilon, "codes": table.name}
        known = [one for one in _points(path) if about.items() <= one.items()]
        if not known:
            channel = MechanismChannel(mechanism, self.formed(table)[0].numpy().astype(np.uint8))
            promised = {"epsilon": exact_epsilon(mechanism, 0.0), "delta": 0.0}
            known = [{**about, **promised, **self._attack(f"{table.name}, epsilon {table.epsilon:g}", channel)}]
            self._add(path, CODES, known[0])
        return known[0]

    def calibrated(self, family: str, level: float) -> dict[str, Any]:
        """Return the attacked point of a level of counts, or of a baseline's noise."""
        path = self.out / f"attack-{family}.json"

        def measure(strength: float) -> dict[str, Any]:
            attacked = self._attack(f"{family} {strength:.4g}", self.channel(family, strength))
            point = {"strength": strength, **self.promise(family, strength), **attacked}
            self._add(path, family, point)
            return point

        return search(measure, _points(path), level, self.plan.attack, _FIRST[family])

    def _add(self, path: Path, family: str, point: dict[str, Any]) -> None:
        points = [*_points(path), point]  # another process may have added some
        self.write(path, {"family": family, "budget": asdict(self.plan.attack), "points": points})

    # ------------------------------------------------------------------------------ pieces

    def run(self, piece: Piece) -> None:
        """Compute one piece, unless its file exists."""
        path = self.out / f"{piece.file}.json"
        if path.exists():
            return
        began = time.monotonic()
        point = self.noise_of(piece)
        reader = self.reader(piece, point)
        if piece.start is None:
            measured = self._measure(piece, reader, self.lm.embeddings[:0])
            trained: dict[str, Any] = {"steps": 0}
        elif piece.start == "adapter":
            shipped = self.bundle.adapter(self.coded_name)
            assert shipped is not None
            torch.manual_seed(piece.seed)
            with attached(self.lm.model, shipped.shape) as layers:
                load_tensors(layers, shipped.tensors)
                trained, measured = self._train(piece, point, reader, self.coded_name, layers)
        else:
            trained, measured = self._train(piece, point, reader, self.nearest(point), None)
        self.write(
            path,
            {
                "piece": piece.name,
                "seed": piece.seed,
                "method": piece.method,
                "family": piece.family,
                "level": piece.level,
                "start": piece.start,
                "noise": point,
                "training": trained,
                "nll": {name: [round(float(one), 4) for one in losses] for name, losses in measured.items()},
                "seconds": round(time.monotonic() - began),
            },
        )
        shown = ", ".join(f"{name} {np.exp(losses.mean()):.1f}" for name, losses in measured.items())
        self.say(f"{piece.file}: {shown}; {time.monotonic() - began:.0f} s")

    def noise_of(self, piece: Piece) -> dict[str, Any] | None:
        """Return the attacked point of a piece's noise, None for the clear prompt or none."""
        if piece.table is not None:
            return self.coded(piece.table)
        return None if piece.level is None else self.calibrated(piece.family, piece.level)

    def nearest(self, point: dict[str, Any] | None) -> str:
        """Return the bundle's variant of counts whose noise is nearest to that of a point."""
        assert point is not None
        wanted = np.log(point["strength"])
        return min(self._ratios, key=lambda name: abs(np.log(self._ratios[name]) - wanted))

    def reader(self, piece: Piece, point: dict[str, Any] | None) -> Reader:
        """Return what the model reads behind the noise of ``point``, before training."""
        if point is None:
            return ClearReader(self.lm)
        if piece.table is not None:
            prior = torch.from_numpy(self.bundle.log_prior).exp()
            return CodesReader(*self.formed(piece.table), prior, self.coded_mechanism(piece.table))
        if piece.family == COUNTS:
            mechanism, published = self.mechanism(point["strength"]), piece.method == PUBLISHED
            return CountsReader(self.lm, self.bundle, mechanism, self.nearest(point), published=published)
        validation = self.lm.windows(self.lm.validation, self.plan.training.length, _BATCH)
        found = [NoisyReader(self.noise(piece.family, point["strength"], one)) for one in finishes(self.lm.embeddings)]
        none = self.lm.embeddings[:0]
        return min(found, key=lambda one: self.nll(one, validation, none, nothing=False).mean())

    def _train(
        self, piece: Piece, point: _Point, reader: Reader, start: str, adapter: AttachedAdapter | None
    ) -> _Trained:
        """Train from the soft prompt of ``start``, if the piece is to be trained, and measure."""
        rows = torch.nn.Parameter(torch.from_numpy(self.bundle.soft_prompt(start)))
        about: dict[str, Any] = {"start": start, "steps": 0}
        if piece.trained:
            about |= self.fit(piece, point, reader, rows, adapter)
        return about, self._measure(piece, reader, rows.detach())

    def fit(
        self,
        piece: Piece,
        point: _Point,
        reader: Reader,
        rows: torch.nn.Parameter,
        adapter: AttachedAdapter | None,
    ) -> dict[str, Any]:
        """Train rows, reader and adapter on the model's text; return the settings and the loss.

        A checkpoint of the piece with other noise than that of ``point`` is refused.
        """
        config = replace(self.plan.training, seed=piece.seed)
        if adapter is not None:
            learned = {"distillation": True, **self.plan.distillation}
            config = replace(config, adapter_rank=adapter.shape.rank, **learned)
        source = source_of(self.lm, config, None, silent=piece.family == "nothing")

        def loss(examples: Examples, generator: torch.Generator) -> torch.Tensor:
            released = reader.release(examples.prompts, generator)
            with products(rows.device, config.bf16 and torch.is_grad_enabled()):
                return examples.loss(self.lm.model, lambda pick: reader.read(pick(released)), rows)

        @torch.no_grad()
        def held_out(parts: Iterable[Examples]) -> float:
            losses = [loss(part, step_generator(config.seed + 1, index)) for index, part in enumerate(parts)]
            return float(torch.cat(losses).mean())

        identity = {"piece": piece.file, **{key: point[key] for key in ("strength", "codes") if point and key in point}}
        run = RowsRun(piece.file, self.work / piece.file, config, identity, progress=True)
        best = train_rows(self.lm, source, run, Trained(rows, reader.parameters(), adapter), loss, held_out)
        rates = ("learning_rate", "adapter_learning_rate", "decoder_learning_rate")
        names = ("steps", "batch", "adapter_rank", *rates, "bf16", "distillation", "text_share", "prompt_weight")
        return {**{name: getattr(config, name) for name in (*names, "seed")}, "held_out": round(best, 4)}

    def _measure(self, piece: Piece, reader: Reader, rows: torch.Tensor) -> dict[str, np.ndarray]:
        nothing, seed = piece.family == "nothing", NOISE_SEED + piece.seed
        return {
            name: self.nll(reader, windows, rows, nothing=nothing, seed=seed) for name, windows in self.windows.items()
        }

    @torch.no_grad()
    def nll(
        self, reader: Reader, windows: torch.Tensor, rows: torch.Tensor, *, nothing: bool, seed: int = NOISE_SEED
    ) -> np.ndarray:
        """Return the loss of every passage's continuation, nats per token."""
        split, losses = self.plan.training.prompt_tokens, []
        for index, part in enumerate(windows.split(_BATCH)):
            prompt = part.new_full((len(part), 1), end_token(self.lm)) if nothing else part[:, :split]
            examples = Examples.from_windows(prompt, part[:, split:], begin=self.lm.bos_token_id)
            released = reader.release(examples.prompts, step_generator(seed, index))

            def read(pick: Pick, sent: torch.Tensor = released) -> torch.Tensor:
                return reader.read(pick(sent))

            losses.append(examples.nll(self.lm.model, read, rows))
        found: np.ndarray = torch.cat(losses).double().numpy()
        return found

    def write(self, path: Path, found: Mapping[str, Any]) -> None:
        """Write figures with date and machine."""
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        save_json(path, {**found, "date": date, "machine": self.machine})


def _points(path: Path) -> list[dict[str, Any]]:
    """Return the attacked points of a file, none if it is not there."""
    return list(_read(path)["points"]) if path.exists() else []


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
