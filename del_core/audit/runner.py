"""The audit of a bundle: every attack on every variant, on one held-out text, beside what is proven.

:func:`audit_bundle` returns JSON values; ``del_core.audit.report.write`` turns them into a page. All attacks on a
variant see
the same counts of the same prompts. Nothing here draws from the system's random source: an audit is repeatable by its
seed, and its counts never leave the machine.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from tokenizers import Tokenizer

from del_core.audit.attacks.averaging import averaging_tokens
from del_core.audit.attacks.inverter import InverterConfig, TrainedInverter, train_inverter
from del_core.audit.attacks.map import map_tokens
from del_core.audit.attacks.nearest import nearest_tokens, reproducible_bytes
from del_core.audit.attacks.sequence import SequenceConfig, fit_sequence, sequence_tokens
from del_core.audit.corpus import KINDS, Corpus, make_corpus, rouge_l
from del_core.audit.intervals import wilson
from del_core.audit.proven import ProvenConfig, measured_leakage, proven_figures
from del_core.audit.similarity import SentenceSimilarity
from del_core.bundle import Bundle, BundleError
from del_core.lm.model import BaseLM
from del_core.lm.text import TextError
from del_core.mechanism import Mechanism
from del_core.mechanism.likelihood import TokenLikelihood

__all__ = ["FULL", "QUICK", "AuditConfig", "audit_bundle", "manifest_audit"]

FORMAT_VERSION = 2
ATTACKS = ("nearest", "map", "sequence", "inverter")
RELEASES = (1, 4, 16)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AuditConfig:
    """How much is measured. ``prompts`` of ``length`` tokens each; ``tuning`` prompts tune the sequence attack."""

    prompts: int
    length: int
    tuning: int
    beams: int
    inverters: tuple[InverterConfig, ...]
    leakage_samples: int
    proven: ProvenConfig = field(default_factory=ProvenConfig)
    seed: int = 0


QUICK = AuditConfig(
    prompts=40,
    length=32,
    tuning=12,
    beams=4,
    inverters=(InverterConfig(width=96, layers=1, steps=45, evaluate_every=15, batch=12),),
    leakage_samples=1000,
    proven=ProvenConfig(compose_vocabulary=False, tokens=256),
)
FULL = AuditConfig(
    prompts=192,
    length=32,
    tuning=48,
    beams=8,
    inverters=(InverterConfig(width=64, layers=1, steps=300), InverterConfig(width=160, layers=2, steps=300)),
    leakage_samples=4000,
)


def audit_bundle(
    bundle: Bundle,
    lm: BaseLM,
    text: str,
    config: AuditConfig,
    *,
    load: Callable[[str, str], dict[str, Any] | None] = lambda name, key: None,
    store: Callable[[str, str, dict[str, Any]], None] = lambda name, key, result: None,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Audits every variant of ``bundle`` on ``text``, which neither the bundle nor the model was trained on.

    Args:
        lm: the bundle's base model.
        load, store: a place for results of variants that are done, so that an interrupted audit is resumed; called with
            the variant's name and a key of everything that the result depends on.
        report: told in a line what is being done.
        progress: told the share of that which is done, where it takes long.

    Raises:
        BundleError: if ``lm`` is not the bundle's base model.
        TextError: if the text is too short, or the one that the bundle was trained on.
    """
    if lm.checksum != bundle.manifest.base_model.sha256:
        raise BundleError(
            "model", f"has the checksum {lm.checksum[:16]}...; {bundle.manifest.base_model.sha256[:16]}... is required"
        )
    tokenizer = Tokenizer.from_file(str(bundle.client.path / "tokenizer.json"))
    corpus = make_corpus(
        text,
        tokenizer,
        prompts=config.prompts,
        length=config.length,
        vocabulary_size=bundle.manifest.base_model.vocabulary_size,
    )
    if any(variant.audit.get("text_sha256") == corpus.sha256 for variant in bundle.manifest.variants):
        raise TextError("text: is the one that the bundle was trained on; text that training did not see is needed")
    started = time.perf_counter()
    similarity = SentenceSimilarity.installed()
    embedder = None if similarity is None else {"name": similarity.name, "sha256": similarity.sha256}
    key = f"{embedder}-{bundle.fingerprint}-{corpus.sha256}-{FORMAT_VERSION}-{config}"
    variants: dict[str, Any] = {}
    for name in bundle.variants:
        found = load(name, key)
        if found is None:
            report(f"{name}: attacking")
            began = time.perf_counter()
            found = _Audit(bundle, lm, tokenizer, corpus, config, name, similarity, report, progress).run()
            found["seconds"] = round(time.perf_counter() - began, 1)
            store(name, key, found)
        variants[name] = found
    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "bundle": {
            "fingerprint": bundle.fingerprint,
            "base_model": bundle.manifest.base_model.name,
            "vocabulary_size": bundle.manifest.base_model.vocabulary_size,
            "dim": bundle.manifest.dim,
            "base_model_sha256": bundle.manifest.base_model.sha256,
            "table_sha256": bundle.manifest.files["table.safetensors"].sha256,
            "tokenizer_sha256": bundle.manifest.files["tokenizer.json"].sha256,
        },
        "text": {
            "sha256": corpus.sha256,
            "tokens": corpus.tokens,
            "attacker_tokens": len(corpus.train),
            "prompts": len(corpus.prompts),
            "tokens_per_prompt": config.length,
            "kinds": {kind: int(np.sum(corpus.kinds == index)) for index, kind in enumerate(KINDS)},
        },
        "settings": asdict(config),
        "similarity_model": embedder,
        "versions": {
            "del-serve": _version("del-serve"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": _version("scipy"),
            "torch": torch.__version__,
            "transformers": str(transformers.__version__),
        },
        "seconds": round(time.perf_counter() - started, 1),
        "variants": variants,
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


def manifest_audit(audit: dict[str, Any], name: str, earlier: dict[str, Any]) -> dict[str, Any]:
    """What of a variant's audit goes into the bundle's manifest; what training wrote into ``earlier`` stays."""
    variant = audit["variants"][name]
    kept: dict[str, Any] = {key: earlier[key] for key in ("text_sha256", "perplexity") if key in earlier}
    rates = {attack: {key: variant["attacks"][attack][key] for key in _RATE_KEYS} for attack in ATTACKS}
    figures = {key: variant[key] for key in ("leakage_bits", "entropy_bits", "epsilon_vocabulary", "ceiling")}
    return {**kept, **rates, **figures, "data": f"held-out text {audit['text']['sha256'][:12]}", "date": audit["date"]}


_RATE_KEYS = ("success", "low", "high", "tokens")


def _rate(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    hits, tokens = int(right.sum()), right.size
    low, high = wilson(hits, tokens)
    return {"success": round(hits / tokens, 5), "low": round(low, 5), "high": round(high, 5), "tokens": tokens}


@dataclass(eq=False)
class _Audit:
    """One variant under attack."""

    bundle: Bundle
    lm: BaseLM
    tokenizer: Tokenizer
    corpus: Corpus
    config: AuditConfig
    name: str
    similarity: SentenceSimilarity | None
    report: Callable[[str], None]
    progress: Callable[[float], None]

    def __post_init__(self) -> None:
        self.mechanism: Mechanism = self.bundle.mechanism(self.name)
        self.table: npt.NDArray[np.integer[Any]] = np.asarray(self.bundle.client.table)
        self.log_prior = self.bundle.log_prior
        self.embeddings = self.lm.embeddings.detach().float().cpu().numpy()
        self.likelihood = TokenLikelihood.of(self.mechanism, self.table)
        self.bos = self.bundle.manifest.bos_token_id

    def run(self) -> dict[str, Any]:
        """All figures of the variant."""
        delta = self.bundle.variants[self.name].guarantees.delta
        self._step("what is proven")
        proven = proven_figures(
            self.mechanism, self.table, self.log_prior, delta, self.config.proven, self._token, self.progress
        )
        self._step("leakage")
        leakage = measured_leakage(
            self.mechanism,
            self.table,
            self.log_prior,
            self.config.leakage_samples,
            self.config.seed + 7,
            self.progress,
        )
        self._step("nearest and map")
        codes = self._release(self.corpus.prompts, 0)
        guesses, attacks = self._attack(codes)
        self._step("resubmissions")
        return {
            "bits": self.mechanism.bits,
            "ratio": self.mechanism.ratio,
            **proven,
            **leakage,
            "guessing": _rate(self.corpus.prompts == int(np.argmax(self.log_prior))),
            "attacks": attacks,
            "context_adds": self._difference(guesses["sequence"], guesses["map"]),
            "averaging": self._averaging(),
            "examples": self._examples(guesses),
        }

    def _step(self, what: str) -> None:
        self.report(f"{self.name}: {what}")

    def _release(self, ids: Ids, stream: int) -> npt.NDArray[np.uint8]:
        """Counts (..., dim) of token ids (...); ``stream`` names independent noise of one seed."""
        source = reproducible_bytes(1000 * self.config.seed + stream)
        return self.mechanism.sample(self.table[ids.reshape(-1)], source).reshape(*ids.shape, self.mechanism.dim)

    def _attack(self, codes: npt.NDArray[np.uint8]) -> tuple[dict[str, Ids], dict[str, dict[str, Any]]]:
        flat, shape = codes.reshape(-1, codes.shape[-1]), codes.shape[:2]
        decoder = self.bundle.decoder(self.name)
        guesses: dict[str, Ids] = {}
        costs: dict[str, dict[str, Any]] = {}
        clock = time.perf_counter()

        def done(attack: str, found: Ids, **cost: Any) -> None:
            nonlocal clock
            now = time.perf_counter()
            guesses[attack] = found.reshape(shape)
            costs[attack] = {"seconds": round(now - clock, 2), **cost}
            clock = now

        decoded = self.mechanism.dequantize(flat) @ decoder["weight"].T + decoder["bias"]
        done("nearest", nearest_tokens(decoded, self.embeddings), parameters=0)
        done("map", map_tokens(self.mechanism, self.table, self.log_prior, flat), parameters=0)
        self._step("sequence")
        settings = self._fit_sequence()
        found = sequence_tokens(self.lm.model, self.likelihood, self.log_prior, codes, settings, bos_token_id=self.bos)
        done(
            "sequence",
            found,
            parameters=sum(parameter.numel() for parameter in self.lm.model.parameters()),
            beams=settings.beams,
            candidates=settings.candidates,
            context_weight=settings.context_weight,
            reading="voted" if settings.voted else "filtered",
        )
        self._step("inverter")
        trained = self._train_inverters()
        best = min(trained, key=lambda inverter: inverter.loss)
        done("inverter", best.tokens(codes), parameters=best.parameters, sizes=[_inverter_cost(one) for one in trained])
        return guesses, {attack: self._measure(guesses[attack], costs[attack]) for attack in ATTACKS}

    def _fit_sequence(self) -> SequenceConfig:
        windows = self.corpus.validation
        picks = np.linspace(0, len(windows) - 1, min(self.config.tuning, len(windows))).astype(np.int64)
        return fit_sequence(
            self.lm.model,
            self.likelihood,
            self.log_prior,
            self._release(windows[picks], 1),
            windows[picks],
            SequenceConfig(beams=self.config.beams),
            bos_token_id=self.bos,
            progress=self.progress,
        )

    def _train_inverters(self) -> list[TrainedInverter]:
        validation = self.corpus.validation
        validation = validation[:: max(1, len(validation) // 32)]
        return [
            train_inverter(
                self.mechanism,
                self.table,
                self.log_prior,
                self.embeddings,
                self.corpus.train,
                validation,
                size,
                progress=self.progress,
            )
            for size in self.config.inverters
        ]

    def _measure(self, guesses: Ids, cost: dict[str, Any]) -> dict[str, Any]:
        right = guesses == self.corpus.prompts
        by_kind = {
            kind: _rate(right[self.corpus.kinds == index])
            for index, kind in enumerate(KINDS)
            if np.any(self.corpus.kinds == index)
        }
        originals, found = ([self._text(ids) for ids in prompts] for prompts in (self.corpus.prompts, guesses))
        overlap = [rouge_l(truth, guess) for truth, guess in zip(originals, found, strict=True)]
        cosine = None if self.similarity is None else round(float(self.similarity.cosines(originals, found).mean()), 4)
        return {
            **_rate(right),
            "by_kind": by_kind,
            "rouge_l": round(float(np.mean(overlap)), 4),
            "cosine": cosine,
            "cost": cost,
        }

    def _difference(self, one: Ids, other: Ids) -> dict[str, float]:
        """Success of ``one`` less that of ``other``, with a 95 % interval over prompts, which are independent."""
        gain = np.mean((one == self.corpus.prompts).astype(np.float64) - (other == self.corpus.prompts), axis=1)
        margin = 1.96 * float(gain.std(ddof=1)) / len(gain) ** 0.5
        mean = float(gain.mean())
        return {"gain": round(mean, 5), "low": round(mean - margin, 5), "high": round(mean + margin, 5)}

    def _averaging(self) -> dict[str, dict[str, Any]]:
        ids = self.corpus.prompts.reshape(-1)
        source = reproducible_bytes(1000 * self.config.seed + 2)
        found = averaging_tokens(self.mechanism, self.table, self.log_prior, ids, RELEASES, source)
        return {str(number): _rate(guesses == ids) for number, guesses in found.items()}

    def _token(self, token: int) -> str:
        return self._text(np.array([token]))

    def _text(self, ids: Ids) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    def _examples(self, guesses: dict[str, Ids], count: int = 3) -> list[dict[str, Any]]:
        """The prompts that the strongest attack reconstructs best: the worst case, not the average."""
        success = {attack: float(np.mean(found == self.corpus.prompts)) for attack, found in guesses.items()}
        strongest = max(success, key=lambda attack: success[attack])
        right = np.mean(guesses[strongest] == self.corpus.prompts, axis=1)
        return [
            {
                "attack": strongest,
                "recovered": round(float(right[index]), 4),
                "original": self._text(self.corpus.prompts[index]),
                "reconstruction": self._text(guesses[strongest][index]),
            }
            for index in np.argsort(-right, kind="stable")[:count]
        ]


def _inverter_cost(trained: TrainedInverter) -> dict[str, Any]:
    return {
        "width": trained.config.width,
        "layers": trained.config.layers,
        "parameters": trained.parameters,
        "seconds": round(trained.seconds, 1),
        "validation_loss": round(trained.loss, 4),
        "untrained_loss": round(trained.untrained_loss, 4),
    }
