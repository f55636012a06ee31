"""The audit of a bundle: all attacks on all variants on one held-out text, and proven figures.

All attacks on a variant attack the same counts of the same prompts. Noise comes from a seeded
generator: an audit can be repeated, and its counts never leave the machine.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from del_core._json import write_json_atomic
from del_core.audit import records
from del_core.audit.attacks.base import ATTACKS, AttackSurface, Guesses, Ids, Target, reproducible_bytes
from del_core.audit.attacks.map import MAP, averaging_tokens
from del_core.audit.attacks.sequence import SEQUENCE
from del_core.audit.corpus import KINDS, Corpus, make_corpus, rouge_l
from del_core.audit.intervals import Rate, mean_interval
from del_core.audit.leakage import measure_leakage
from del_core.audit.proven import proven_figures
from del_core.audit.quality import TextQuality
from del_core.audit.results import (
    FORMAT_VERSION,
    AttackResult,
    AuditedBundle,
    AuditedText,
    AuditResult,
    Cost,
    Difference,
    Example,
    SimilarityModel,
    VariantAudit,
)
from del_core.audit.settings import AuditConfig, affordable_prompts, affordable_proofs
from del_core.audit.similarity import SentenceSimilarity
from del_core.bundle import Bundle
from del_core.lm.model import BaseLM
from del_core.lm.progress import Observer
from del_core.lm.text import TextError
from del_core.mechanism import BinomialMechanism

_RELEASES = (1, 4, 16)
_EXAMPLES = 3


class PartialResults:
    """Finished variants of an audit, kept in a directory beside the report's for resuming it."""

    def __init__(self, out: Path) -> None:
        self._directory = out.parent / f".{out.name}.partial"

    def load(self, name: str, key: str) -> VariantAudit | None:
        """Return a variant's result, or None; ``key`` names everything that it depends on."""
        try:
            return records.from_json(VariantAudit, json.loads(self._path(name, key).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def store(self, name: str, key: str, result: VariantAudit) -> None:
        """Keep the result of a variant, with the epsilons of every single token."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._path(name, key), records.to_json(result), indent=None)

    def load_carried(self, key: str) -> dict[str, dict[str, torch.Tensor]]:
        """Return the weights that the attacks on finished variants left, by attack; {} if none."""
        try:
            flat = load_file(self._path("carried", key).with_suffix(".safetensors"))
        except (OSError, SafetensorError):
            return {}
        found: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in flat.items():
            attack, _, weight = name.partition("/")
            found.setdefault(attack, {})[weight] = tensor
        return found

    def store_carried(self, key: str, carried: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Keep the weights that training for the next variant starts from."""
        path = self._path("carried", key).with_suffix(".safetensors")
        flat = {f"{attack}/{name}": one for attack, tensors in carried.items() for name, one in tensors.items()}
        save_file(flat, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)

    def clear(self) -> None:
        """Remove everything that was kept."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, name: str, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(f'{name}-{key}'.encode()).hexdigest()[:32]}.json"


@dataclass(frozen=True)
class AuditTexts:
    """The texts of an audit, and what is known of the variants' text quality.

    Attributes:
        held_out: text on which neither bundle nor model was trained.
        attacker: more text that the attacker has, such as the model's training text.
        quality: from an evaluation of the same bundle.
    """

    held_out: str
    attacker: Sequence[str] = ()
    quality: Mapping[str, TextQuality] = field(default_factory=dict)


def audit_bundle(
    bundle: Bundle,
    lm: BaseLM,
    texts: AuditTexts,
    config: AuditConfig,
    *,
    variants: Sequence[str] = (),
    results: PartialResults | None = None,
    observer: Observer | None = None,
) -> AuditResult:
    """Audit ``variants`` of ``bundle``, by default all; those of equal noise are attacked once.

    Raises:
        BundleError: ``lm`` is not the bundle's base model, or the bundle has no such variant.
        TextError: the text is too short, or the bundle was trained on it.
    """
    observer = observer or Observer()
    base_model = bundle.manifest.base_model
    bundle.check_model(lm.checksum)
    tokenizer = Tokenizer.from_file(str(bundle.client.path / "tokenizer.json"))
    size = base_model.vocabulary_size
    config = affordable_proofs(config, size)
    prompts = affordable_prompts(config, sum(parameter.numel() for parameter in lm.model.parameters()))
    corpus = make_corpus(
        texts.held_out,
        tokenizer,
        prompts=prompts,
        length=config.length,
        vocabulary_size=size,
        attacker_texts=texts.attacker,
    )
    if any(variant.audit.get("text_sha256") == corpus.sha256 for variant in bundle.manifest.variants):
        raise TextError("text: is the one that the bundle was trained on; text that training did not see is needed")
    started, earlier = time.perf_counter(), 0.0
    similarity = SentenceSimilarity.installed()
    encoder = None if similarity is None else SimilarityModel(similarity.name, similarity.sha256)
    what = (encoder, bundle.fingerprint, corpus.sha256, corpus.attacker, FORMAT_VERSION, config, *ATTACKS)
    key = "-".join(map(str, what))
    audits: dict[str, VariantAudit] = {}
    carried = {} if results is None else results.load_carried(key)
    released: dict[tuple[object, ...], str] = {}
    for name in variants or bundle.variants:
        variant = bundle.client.variant(name)
        # What attacks recover and what is proven follows from the noise on a table, the linear
        # decoder and delta; variants that share these differ in text quality only.
        decoder = bundle.decoder(name)
        linear = tuple(decoder[key].tobytes() if key in decoder else None for key in ("weight", "bias"))
        same = (bundle.mechanism(name), variant.table, variant.guarantees.delta, linear)
        alike = released.setdefault(same, name)
        found = replace(audits[alike], seconds=0.0) if alike in audits else None
        if found is None and results is not None:
            found = results.load(name, key)
            earlier += 0.0 if found is None else found.seconds
        if found is None:
            observer.report(f"{name}: attacking")
            found = _Audit(bundle, lm, tokenizer, corpus, config, name, similarity, observer, carried, audits).run()
            if results is not None:
                results.store(name, key, found)
                results.store_carried(key, carried)
        audits[name] = found
    return AuditResult(
        format_version=FORMAT_VERSION,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        bundle=AuditedBundle(
            fingerprint=bundle.fingerprint,
            base_model=base_model.name,
            vocabulary_size=base_model.vocabulary_size,
            dim=bundle.manifest.dim,
            base_model_sha256=base_model.sha256,
            table_sha256=bundle.manifest.files["table.safetensors"].sha256,
            tokenizer_sha256=bundle.manifest.files["tokenizer.json"].sha256,
        ),
        text=AuditedText(
            sha256=corpus.sha256,
            tokens=corpus.tokens,
            attacker_tokens=len(corpus.train),
            prompts=len(corpus.prompts),
            tokens_per_prompt=config.length,
            kinds={kind: int(np.sum(corpus.kinds == index)) for index, kind in enumerate(KINDS)},
            attacker_text=corpus.attacker,
        ),
        settings=config,
        similarity_model=encoder,
        versions={
            "del-serve": _version("del-serve"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": _version("scipy"),
            "torch": torch.__version__,
            "transformers": str(transformers.__version__),
        },
        seconds=round(earlier + time.perf_counter() - started, 1),
        variants=audits,
        quality={name: texts.quality[name] for name in audits if name in texts.quality} or None,
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


@dataclass(eq=False)
class _Audit:
    """The attacks on one variant."""

    bundle: Bundle
    lm: BaseLM
    tokenizer: Tokenizer
    corpus: Corpus
    config: AuditConfig
    name: str
    similarity: SentenceSimilarity | None
    observer: Observer
    carried: dict[str, dict[str, torch.Tensor]]
    done: Mapping[str, VariantAudit]

    def run(self) -> VariantAudit:
        """Prove, attack and measure."""
        began = time.perf_counter()
        mechanism = self.bundle.mechanism(self.name)
        decoder = self.bundle.decoder(self.name)
        surface = AttackSurface(
            table=np.asarray(self.bundle.client.table_of(self.name)),
            weight=decoder.get("weight"),
            bias=decoder.get("bias"),
            embeddings=self.lm.embeddings.detach().float().cpu().numpy(),
            log_prior=self.bundle.log_prior,
        )
        table, log_prior, progress = surface.table, surface.log_prior, self.observer.progress
        self._step("what is proven")
        delta = self.bundle.variants[self.name].guarantees.delta
        proven = proven_figures(mechanism, table, log_prior, delta, self.config.proven, self._token, progress)
        self._step("leakage")
        samples, seed = self.config.leakage_samples, self.config.seed + 7
        leakage = measure_leakage(mechanism, table, log_prior, samples=samples, seed=seed, progress=progress)
        bos_token_id = self.bundle.manifest.bos_token_id
        target = Target.of_corpus(
            self.corpus, mechanism, surface, self.lm, bos_token_id, self.config, progress, self.carried
        )
        silent = target.silent(self.corpus.prompts)
        found: dict[str, Ids] = {}
        attacks: dict[str, AttackResult] = {}
        for name, attack in ATTACKS.items():
            if not attack.applies(mechanism):
                continue
            self._step(name)
            clock = time.perf_counter()
            guesses = attack.run(target)
            seconds = time.perf_counter() - clock
            blind = self._blind(name, mechanism.kind)
            if blind is None:
                self._step(f"{name}, on a release that says nothing")
                blind = Rate.from_hits(attack.run(silent).token_ids == self.corpus.prompts)
            found[name] = guesses.token_ids
            attacks[name] = replace(self._measure(guesses, seconds), blind=blind, knowledge=attack.knowledge.name)
        self._step("resubmissions")
        ids = self.corpus.prompts.reshape(-1)
        source = reproducible_bytes(1000 * self.config.seed + 2)
        averaging = averaging_tokens(mechanism, table, log_prior, ids, _RELEASES, source)
        return VariantAudit(
            bits=mechanism.bits,
            ratio=mechanism.ratio if isinstance(mechanism, BinomialMechanism) else None,
            proven=proven,
            leakage=leakage.rounded(),
            guessing=Rate.from_hits(ids == int(np.argmax(log_prior))),
            attacks=attacks,
            context_adds=self._difference(found[SEQUENCE], found[MAP]),
            averaging={number: Rate.from_hits(guesses == ids) for number, guesses in averaging.items()},
            examples=self._examples(found),
            seconds=round(time.perf_counter() - began, 1),
            mechanism=mechanism.kind,
            prompt_length=self.config.length,
        )

    def _blind(self, attack: str, kind: str) -> Rate | None:
        """Return what an attack found behind a mechanism that says nothing, if it was run before.

        How much noise another variant of the mechanism adds makes no difference to nothing.
        """
        earlier = (
            one.attacks[attack].blind for one in self.done.values() if one.mechanism == kind and attack in one.attacks
        )
        return next((rate for rate in earlier if rate is not None), None)

    def _step(self, step: str) -> None:
        self.observer.report(f"{self.name}: {step}")

    def _measure(self, guesses: Guesses, seconds: float) -> AttackResult:
        prompts, kinds = self.corpus.prompts, self.corpus.kinds
        right = guesses.token_ids == prompts
        originals, reconstructed = ([self._text(ids) for ids in rows] for rows in (prompts, guesses.token_ids))
        overlap = [rouge_l(original, guess) for original, guess in zip(originals, reconstructed, strict=True)]
        cosine = None
        if self.similarity is not None:
            cosine = round(float(self.similarity.cosines(originals, reconstructed).mean()), 4)
        return AttackResult(
            rate=Rate.from_hits(right),
            by_kind={KINDS[index]: Rate.from_hits(right[kinds == index]) for index in np.unique(kinds)},
            rouge_l=round(float(np.mean(overlap)), 4),
            cosine=cosine,
            cost=Cost(
                round(seconds, 2),
                guesses.parameters,
                guesses.settings,
                guesses.sizes,
                guesses.steps,
                guesses.trained_tokens,
            ),
            prompts_read=int(np.sum(right.mean(axis=1) >= 0.5)),
        )

    def _difference(self, one: Ids, other: Ids) -> Difference:
        """Return the success of ``one`` minus that of ``other``, with its interval over prompts."""
        gain = np.mean((one == self.corpus.prompts).astype(np.float64) - (other == self.corpus.prompts), axis=1)
        return Difference(*records.rounded(mean_interval(gain), 5))

    def _token(self, token: int) -> str:
        return self._text(np.array([token]))

    def _text(self, ids: Ids) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    def _examples(self, found: Mapping[str, Ids]) -> tuple[Example, ...]:
        """Return the prompts that the strongest attack reconstructs best: the worst case."""
        prompts = self.corpus.prompts
        strongest = max(found, key=lambda name: float(np.mean(found[name] == prompts)))
        guesses = found[strongest]
        right = np.mean(guesses == prompts, axis=1)
        return tuple(
            Example(strongest, round(float(right[index]), 4), self._text(prompts[index]), self._text(guesses[index]))
            for index in np.argsort(-right, kind="stable")[:_EXAMPLES]
        )
