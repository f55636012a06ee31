"""Encoders that are trained against one attacker or the other, at equal strongest attack.

    python -m benchmarks.encoder_constraint --data TEXT_DIRECTORY --work DIR --out FILE

`delctl train encoder` holds the success of an attacker who guesses each token alone (`--map-asr`),
or that of an attacker who has the language model and knows all tokens before (`--attack-success`).
Encoders of both kinds start from the same projection of the demo model and train for as many steps.
Then each is served with the noise at which the strongest attack recovers a given share, and reads
the held-out text of the demo with its decoder and soft prompt. TEXT_DIRECTORY holds the books that
``examples/demo_model/prepare_text.py`` names.
"""

from __future__ import annotations

import datetime
import json
import platform
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.privacy_utility.pretrained.attack import attack, search
from benchmarks.privacy_utility.pretrained.channels import MechanismChannel
from benchmarks.privacy_utility.pretrained.plan import AttackBudget
from benchmarks.support.progress import timed_lines
from del_core.accounting import epsilon as exact_epsilon
from del_core.audit.calibration import mechanism_at
from del_core.audit.corpus import Corpus, make_corpus
from del_core.demo import model_path
from del_core.evaluation.bootstrap import paired_interval, perplexity_interval, ppl_ratio
from del_core.lm.model import FrozenLM, load_frozen_lm
from del_core.lm.noise import step_generator
from del_core.lm.perplexity import continuation_nll
from del_core.lm.text import TokenWindows, tokenize
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.config import EncoderConfig, ProjectionConfig
from del_core.training.decoders import new_decoder
from del_core.training.encoder import train_encoder
from del_core.training.projection import train_projection
from del_core.training.start import Stage1, load_stage1

__all__ = ["Plan", "compare"]

_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "demo_model"
_DELTA = 1e-6
_BATCH = 16
_FIRST_RATIO = 0.15


@dataclass(frozen=True)
class Plan:
    """Extent of a run.

    Attributes:
        constraints: attacker and success of every encoder.
        levels: successes of the strongest attack at which encoders are served.
        encoder: settings of all encoders but the constraint.
    """

    constraints: tuple[tuple[str, float], ...] = (
        ("map_asr", 0.06),
        ("map_asr", 0.12),
        ("attack_success", 0.36),  # he guesses 30 % without any counts
        ("attack_success", 0.44),
    )
    levels: tuple[float, ...] = (0.1, 0.2, 0.4)
    passages: int = 96
    attack: AttackBudget = field(default_factory=AttackBudget)
    projection: ProjectionConfig = field(default_factory=lambda: ProjectionConfig(steps=200))
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(0.1, steps=150))


def _name(constraint: tuple[str, float]) -> str:
    attacker, success = constraint
    return f"{'MAP' if attacker == 'map_asr' else 'language model'} at {100 * success:g} %"


@dataclass(frozen=True, eq=False)
class _Served:
    """One encoder behind the model, with the text on which it is attacked and read."""

    lm: FrozenLM
    stage1: Stage1
    log_prior: np.ndarray
    attacked: Corpus
    passages: torch.Tensor
    plan: Plan

    def mechanism(self, ratio: float) -> Mechanism:
        """Return the noise of a ratio."""
        dim = self.stage1.projection.encoder.out_features
        return mechanism_at(ratio, bits=self.plan.encoder.bits, dim=dim, max_level=MAX_LEVEL)

    def attack(self, ratio: float) -> dict[str, Any]:
        """Attack one noise with both attacks."""
        mechanism = self.mechanism(ratio)
        table = self.stage1.projection.table(self.lm.embeddings, MAX_LEVEL).cpu().numpy()
        found = attack(self.lm, self.log_prior, MechanismChannel(mechanism, table), self.attacked, self.plan.attack)
        return {"strength": ratio, "epsilon": exact_epsilon(mechanism, _DELTA), **found.to_json()}

    @torch.no_grad()
    def losses(self, ratio: float) -> np.ndarray:
        """Return the loss of every passage's continuation, nats per token."""
        start, split = self.stage1.start, self.plan.encoder.prompt_tokens
        assert start is not None
        noisy = self.stage1.noisy(self.lm, self.mechanism(ratio))
        decoder = new_decoder(start.kind, self.stage1.inputs(self.lm, noisy, start.norm_limit))
        decoder.start_from(start.tensors)
        losses = []
        for index, part in enumerate(self.passages.split(_BATCH)):
            prompt = self.lm.begin(decoder(noisy.sample(part[:, :split], step_generator(77, index))))
            losses.append(continuation_nll(self.lm.model, prompt, part[:, split:], start.soft_prompt))
        found: np.ndarray = torch.cat(losses).double().numpy()
        return found


def _rows(served: _Served, name: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    known: list[dict[str, Any]] = []
    rows = []
    for level in served.plan.levels:
        point = search(served.attack, known, level, served.plan.attack, _FIRST_RATIO)
        losses = served.losses(point["strength"])
        say(f"{name}, {level:.0%}: strongest {point['strongest']['success']:.3f}, {np.exp(losses.mean()):.1f}")
        rows.append({"encoder": name, "level": level, **point, "nll": losses})
    return rows


def compare(
    texts: Mapping[str, str], held_out: str, plan: Plan, work: Path, say: Callable[[str], None], model: Path
) -> dict[str, Any]:
    """Train, attack and read with all encoders, and return the results.

    Trainings resume in ``work``.
    """
    lm = load_frozen_lm(model, list(texts.values()))
    if not (work / "projection" / "projection.json").exists():
        train_projection(lm, work / "projection", plan.projection, progress=False)
    tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
    budget = plan.attack
    attacked = make_corpus(
        held_out, tokenizer, prompts=budget.prompts, length=budget.tokens, vocabulary_size=len(lm.embeddings)
    )
    passages = TokenWindows(tokenize(tokenizer, [held_out]), plan.encoder.length, seed=0).first(plan.passages)
    log_prior = lm.unigram().log().float().cpu().numpy()
    rows = []
    for constraint in plan.constraints:
        name = _name(constraint)
        out = work / f"{constraint[0]}-{constraint[1]:g}"
        if not (out / "projection.json").exists():
            none: dict[str, Any] = {"map_asr": None, "attack_success": None}
            config = replace(plan.encoder, **{**none, constraint[0]: constraint[1]})
            result = train_encoder(lm, load_stage1(work / "projection", lm), out, config, progress=False)
            say(f"{name}: map {result.map_asr:.3f}, perplexity {result.ppl_start:.1f} to {result.ppl_trained:.1f}")
        rows += _rows(_Served(lm, load_stage1(out, lm), log_prior, attacked, passages, plan), name, say)
    return {"rows": [_finished(row, rows) for row in rows]}


def _finished(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Replace the losses of a row by its perplexity, and compare with the best encoder for MAP."""
    others = [one for one in rows if one["level"] == row["level"] and one["encoder"].startswith("MAP")]
    best = min(others, key=lambda one: float(one["nll"].mean()))
    return {
        **{key: value for key, value in row.items() if key not in ("nll", "seconds")},
        "ppl": perplexity_interval(row["nll"]).to_json(),
        "ppl ratio to the best for MAP": paired_interval(ppl_ratio, row["nll"], best["nll"]).to_json(),
    }


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="Trainings; resumable.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File of the results.")
def main(data: Path, work: Path, out: Path) -> None:
    """Compare encoders that were trained against two attackers, on the demo model."""
    prepared = runpy.run_path(str(_EXAMPLE / "prepare_text.py"))
    texts = {name: prepared["unwrap"]((data / f"{name}.txt").read_text("utf-8")) for name in prepared["NAMES"]}
    held_out = (_EXAMPLE / "held_out.txt").read_text("utf-8")

    found = compare(texts, held_out, Plan(), work, timed_lines(), model_path())
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": "python -m benchmarks.encoder_constraint --data TEXT_DIRECTORY --work DIR --out FILE",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), PyTorch {torch.__version__}",
        "model": "del-demo-llama",
        "steps": Plan().encoder.steps,
        "seeds": 1,
    }
    out.write_text(json.dumps({"about": about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
