"""Training and measurements of benchmarks.privacy_utility, kept in the work directory.

A piece whose file exists is not computed again, so an interrupted run resumes. Scores of all
passages are kept in ``scores/*.npz``; intervals are computed from them later.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.privacy_utility.baselines import (
    METRICS,
    Finish,
    GaussianNoise,
    MetricNoise,
    TokenReplacement,
    best_of,
    calibrate_view,
    finishes,
    token_distances,
)
from benchmarks.privacy_utility.local_model import LocalModel, LocalRewriter
from benchmarks.privacy_utility.plan import (
    ALONE,
    BEST,
    CLEAR,
    CONTINUATION,
    GAUSSIAN,
    METRIC,
    NOISE_SEED,
    NONE,
    PROMPT,
    PUBLISHED,
    RANDOM,
    REPLACEMENT,
    REWRITING,
    TASK_LEVEL,
    WITHOUT,
    Plan,
)
from benchmarks.privacy_utility.sweep import sweep_point
from benchmarks.privacy_utility.tasks import Task
from benchmarks.privacy_utility.understanding import train_task
from benchmarks.privacy_utility.views import DELTA, ClearPrompt, DelView, MethodView, NoPrompt
from benchmarks.privacy_utility.writing import RoundedModel, mean_coherence, sampled_texts
from del_core.accounting import epsilon
from del_core.audit.attacks.base import AttackSurface
from del_core.audit.attacks.map import MAP
from del_core.audit.attacks.nearest import NEAREST
from del_core.audit.calibration import calibrate
from del_core.audit.corpus import rouge_l
from del_core.audit.similarity import SentenceSimilarity
from del_core.evaluation.measure import Passages, decode_texts, measure, passage_nll, written_texts
from del_core.lm.model import BaseLM, FrozenLM, load_frozen_lm
from del_core.mechanism import MAX_LEVEL
from del_core.training.base import train_base
from del_core.training.config import EncoderConfig, ProjectionConfig, SoftPromptConfig
from del_core.training.encoder import train_encoder
from del_core.training.projection import attack_surface, attacked_tokens, train_projection
from del_core.training.soft_prompt import load_variant
from del_core.training.start import calibrate_norm_limit, load_stage1
from del_core.training.variant import Noise, VariantPlan, train_variant

__all__ = ["Bench", "Corpus", "save_json"]


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text: passages (count, tokens) to report on, and other tokens (count,) to calibrate on."""

    windows: torch.Tensor
    calibration: torch.Tensor


class Bench:
    """One run: work directory, language model, corpora and plan."""

    def __init__(
        self,
        lm: FrozenLM,
        corpora: Mapping[str, Corpus],
        work: Path,
        plan: Plan,
        *,
        texts: list[str],
        say: Callable[[str], None],
        tasks: Sequence[Task] = (),
    ) -> None:
        self.lm, self.work, self.plan, self.texts, self.say = lm, work, plan, texts, say
        self.tasks = tasks
        self.machine = f"{_machine(lm.embeddings.device)}, PyTorch {torch.__version__}"
        self.corpora = dict(corpora)
        self.tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
        self.log_prior = lm.unigram().log().float().cpu().numpy()
        self.calibration = {
            name: attacked_tokens(one.calibration, plan.calibration_tokens) for name, one in self.corpora.items()
        }
        self.validation = lm.windows(lm.validation, PROMPT + CONTINUATION, plan.validation_windows)
        # On a GPU, float32 is fast enough, and rounding does not hide small differences.
        self.rounded = plan.bf16 and not lm.embeddings.is_cuda
        for directory in ("scores", "texts", "coherence", "sweep", "tasks"):
            (work / directory).mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------ measuring

    def _computed(self, lm: BaseLM) -> BaseLM:
        return replace(lm, model=RoundedModel(lm.model)) if self.rounded else lm

    def _from_clear(self, windows: torch.Tensor) -> list[str]:
        lm, clear = self._computed(self.lm), ClearPrompt(self.lm.embeddings)
        return written_texts(lm, clear, self.tokenizer, windows[: self.plan.written, :PROMPT], CONTINUATION, 0)

    @cached_property
    def from_clear(self) -> dict[str, list[str]]:
        """Texts that the model writes from the clear prompts of every corpus."""
        path = self.work / "scores" / "reference.text"
        with self._claim("reference"):
            if not path.exists():
                found = {name: self._from_clear(one.windows) for name, one in self.corpora.items()}
                save_json(path, found)
        texts: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return texts

    def measure(
        self, key: str, about: dict[str, Any], build: Callable[[str], MethodView], *, write: bool = True
    ) -> None:
        """Measure a method on every corpus into ``scores/<key>.npz`` and ``.json``, and its texts.

        Args:
            build: function from a corpus' name to the method's view, with noise for that text.
            write: whether text is written, too, which takes longest.
        """
        path = self.work / "scores" / f"{key}.json"
        if path.exists():
            return
        began = time.monotonic()
        arrays: dict[str, np.ndarray] = {}
        by_corpus, texts = {}, {}
        for name, corpus in self.corpora.items():
            view = build(name)
            lm = self._computed(view.local_model or self.lm)
            passages = Passages(corpus.windows, PROMPT, self.plan.written if write else 0)
            found = measure(lm, view, self.tokenizer, passages, self.log_prior, NOISE_SEED)
            arrays[f"nll {name}"] = found.nll
            if write:
                pairs = zip(self.from_clear[name], found.written, strict=True)
                arrays[f"rouge {name}"] = np.array([rouge_l(clear, text) for clear, text in pairs])
                prompts, samples = corpus.windows[: self.plan.written, :PROMPT], self.plan.samples
                sampled = sampled_texts(lm, view, self.tokenizer, prompts, CONTINUATION, NOISE_SEED, samples)
                texts[name] = {"greedy": found.written, "sampled": sampled}
            rate = found.attack.rate
            by_corpus[name] = {
                "attack": {"hits": rate.successes, "tokens": rate.trials, "bits": found.attack.bits},
                "epsilon_vocabulary": view.epsilon(),
                **self._promises(view, name),
            }
        cost = view.client_cost(self.validation[0, :PROMPT].cpu().numpy())
        about = {
            **about,
            "bits_per_token": view.bits_per_token,
            "client_seconds": cost.seconds,
            "client_mb": cost.megabytes,
            "corpora": by_corpus,
            "machine": self.machine,
        }
        _save_arrays(path.with_suffix(".npz"), arrays)
        if write:
            save_json(self.work / "texts" / path.name, texts)
        save_json(path, about)
        self.say(f"{key}: measured in {time.monotonic() - began:.0f} s")

    def coherence(self) -> None:
        """Score new texts into ``coherence/<key>.npz``; requires only the sentence encoder."""
        similarity = SentenceSimilarity.installed()
        if similarity is None:
            self.say('coherence is not scored: the sentence encoder is not installed, pip install "del-serve[audit]"')
            return
        for source in sorted((self.work / "texts").glob("*.json")):
            path = self.work / "coherence" / f"{source.stem}.npz"
            with self._claim(f"coherence-{source.stem}", wait=False) as mine:
                if not mine or path.exists():
                    continue
                arrays: dict[str, np.ndarray] = {}
                for name, texts in json.loads(source.read_text(encoding="utf-8")).items():
                    true = decode_texts(self.tokenizer, self.corpora[name].windows[: self.plan.written, PROMPT:])
                    for kind, written in (("", texts["greedy"]), ("sampled ", texts["sampled"])):
                        one = mean_coherence(similarity, written, true)
                        arrays |= {f"coh {kind}{name}": one.coh, f"lift {kind}{name}": one.lift}
                _save_arrays(path, arrays)

    @contextmanager
    def _claim(self, what: str, *, wait: bool = True) -> Iterator[bool]:
        """Lock ``what`` against other processes; yield False if it is locked and not ``wait``."""
        path = self.work / "claims" / what
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True  # closing the file releases the lock, even if the process is killed

    def run(self, pieces: Mapping[str, Callable[[], None]]) -> None:
        """Compute every piece in order; pieces that another process computes come last."""
        left = []
        for name, piece in pieces.items():
            with self._claim(f"piece-{name}", wait=False) as mine:
                if mine:
                    piece()
                else:
                    left.append(name)
        for name in left:
            with self._claim(f"piece-{name}"):
                pieces[name]()

    # ------------------------------------------------------------------------------ training

    def _timed(self, what: str, path: Path, run: Callable[[], Any]) -> None:
        with self._claim(what):
            if not path.exists():
                began = time.monotonic()
                run()
                self.say(f"{what}: {time.monotonic() - began:.0f} s")

    def projection(self, seed: int) -> Path:
        """Train stage 1 without noise, as published."""
        out = self.work / f"projection-{seed}"
        config = ProjectionConfig(
            steps=self.plan.projection_steps,
            evaluation_windows=self.plan.validation_windows,
            bf16=self.plan.bf16,
            seed=seed,
        )
        self._timed(out.name, out / "projection.json", lambda: train_projection(self.lm, out, config, progress=False))
        return out

    def encoder(self, level: float, seed: int) -> Path:
        """Train stage 1 with noise in the loop, starting from the projection.

        Starting from the encoder of a higher level would keep that level's noise and end with fewer
        bits at the same success.
        """
        out = self.work / f"encoder-{level}-{seed}"
        config = EncoderConfig(
            map_asr=level,
            decoder="trained",
            batch=self.plan.encoder_batch,
            steps=self.plan.steps_of_encoder(level),
            evaluation_windows=self.plan.validation_windows,
            bf16=self.plan.bf16,
            seed=100 * (seed + 1),
        )
        start = load_stage1(self.projection(seed), self.lm)
        self._timed(
            out.name,
            out / "projection.json",
            lambda: train_encoder(self.lm, start, out, config, progress=False),
        )
        return out

    def variant(self, name: str, level: float, seed: int, projection: Path, config: SoftPromptConfig) -> Path:
        """Train stage 2 at the noise of the level."""
        out = self.work / f"{name}-{level}-{seed}"
        plan = VariantPlan(name, Noise(bits=4, map_asr=level), config=config)
        self._timed(
            out.name,
            out / "variant.json",
            lambda: train_variant(self.lm, load_stage1(projection, self.lm), plan, out, progress=False),
        )
        return out

    def del_views(self, projection: Path, variant: Path, level: float) -> dict[str, DelView]:
        """Return a variant's view for each corpus, with noise for a MAP success of ``level`` on it.

        Trained tensors stay as they are. The norm limit of a linear decoder, its only part that
        depends on the noise, is calibrated anew.
        """
        stage1 = load_stage1(projection, self.lm)
        surface = attack_surface(self.lm, stage1.projection)
        config = SoftPromptConfig(prompt_tokens=PROMPT)
        views = {}
        for corpus, tokens in self.calibration.items():
            found = calibrate(MAP, level, 4, surface, tokens, max_level=MAX_LEVEL, at_most=True)
            loaded = load_variant(self.lm, stage1, variant, found.mechanism)
            noisy, decoder = loaded.noisy, loaded.decoder
            if decoder.kind.refits_norm_limit:
                decoder.norm_limit = calibrate_norm_limit(self.lm, stage1, noisy, self.validation, config)
            views[corpus] = DelView(variant.name, noisy, decoder, loaded.soft_prompt)
        return views

    def trained(self, method: str, level: float, seed: int) -> tuple[Path, Path]:
        """Train DEL as published or this project; return directories of projection and variant."""
        shared = {
            "evaluation_windows": self.plan.validation_windows,
            "test_windows": 32,  # for the variant's own figures; reported figures are measured here
            "bf16": self.plan.bf16,
            "seed": seed,
        }
        if method == PUBLISHED:
            projection = self.projection(seed)
            config = SoftPromptConfig(decoder="linear", steps=self.plan.soft_prompt_steps, **shared)
            return projection, self.variant("published", level, seed, projection, config)
        projection = self.encoder(level, seed)
        config = SoftPromptConfig(
            rows=0 if method == BEST + ALONE else 32,
            decoder=self.plan.decoder,
            steps=self.plan.decoder_steps,
            learning_rate=3e-3,
            **shared,
        )
        name = "alone" if method == BEST + ALONE else "best"
        return projection, self.variant(name, level, seed, projection, config)

    # ------------------------------------------------------------------------------ pieces

    def ends(self) -> None:
        """Measure the clear prompt, no prompt, and random tokens in place of the prompt."""
        embeddings = self.lm.embeddings
        end = int(self.lm.model.config.eos_token_id)
        self.measure("clear", {"method": CLEAR, "level": None, "seed": 0}, lambda _: ClearPrompt(embeddings))
        self.measure("none", {"method": NONE, "level": None, "seed": 0}, lambda _: NoPrompt(embeddings, end))
        self.measure(
            "random",
            {"method": RANDOM, "level": None, "seed": 0},
            lambda _: TokenReplacement(embeddings, token_distances(embeddings, METRICS[0]), 0.0),
        )

    def ours(self, level: float, seed: int) -> None:
        """Measure this project with and without its soft prompt; with text for every seed."""
        self._with_and_without("best", BEST, level, seed, write=True)

    def published(self, level: float, seed: int) -> None:
        """Measure DEL as published, with and without its soft prompt; text for the first seed."""
        self._with_and_without("published", PUBLISHED, level, seed, write=seed == self.plan.seeds[0])

    def _with_and_without(self, short: str, method: str, level: float, seed: int, *, write: bool) -> None:
        key = f"{short}-{level}-{seed}"
        if (self.work / "scores" / f"{key}-without.json").exists():
            return
        projection, variant = self.trained(method, level, seed)
        about = {"level": level, "seed": seed}
        views = self.del_views(projection, variant, level)
        self.measure(key, {**about, "method": method}, views.__getitem__, write=write)
        without = {name: DelView(method, view.noisy, view.decode) for name, view in views.items()}
        self.measure(f"{key}-without", {**about, "method": method + WITHOUT}, without.__getitem__, write=False)

    def alone(self, level: float, seed: int) -> None:
        """Measure this project's decoder, trained for as many steps without a soft prompt."""
        key = f"alone-{level}-{seed}"
        if (self.work / "scores" / f"{key}.json").exists():
            return
        projection, variant = self.trained(BEST + ALONE, level, seed)
        about = {"method": BEST + ALONE, "level": level, "seed": seed}
        self.measure(key, about, self.del_views(projection, variant, level).__getitem__, write=False)

    def understanding(self, task: Task) -> None:
        """Measure task accuracy of the clear prompt and both methods, each with a soft prompt."""
        views: dict[str, Callable[[], MethodView]] = {"clear": lambda: ClearPrompt(self.lm.embeddings)}
        for short, method in (("best", BEST), ("published", PUBLISHED)):
            views[short] = lambda m=method: self._without_soft_prompt(*self.trained(m, TASK_LEVEL, 0))
        names = {"clear": CLEAR, "best": BEST, "published": PUBLISHED}
        for short, build in views.items():
            path = self.work / "tasks" / f"{task.name.replace(' ', '-')}-{short}.json"
            if path.exists():
                continue
            began = time.monotonic()
            out = path.with_suffix("")
            found = train_task(self.lm, self.tokenizer, build(), task, out, self.plan.task, progress=False)
            about = {"task": task.name, "method": names[short], "majority": task.majority}
            _save_arrays(path.with_suffix(".npz"), {"scores": found.scores, "labels": found.labels})
            save_json(path, about)
            self.say(f"{task.name}, {names[short]}: {time.monotonic() - began:.0f} s")

    def _without_soft_prompt(self, projection: Path, variant: Path) -> DelView:
        """Return the view without soft prompt, with the noise that the variant was trained with."""
        loaded = load_variant(self.lm, load_stage1(projection, self.lm), variant)
        noisy, decoder = loaded.noisy, loaded.decoder
        return DelView(variant.name, noisy, decoder)

    def _promises(self, view: MethodView, corpus: str) -> dict[str, Any]:
        """Return epsilon over all inputs and the success of the nearest-neighbor attack."""
        if not isinstance(view, DelView):
            return {}
        weight, bias = (tensor.cpu().numpy() for tensor in (view.decode.weight, view.decode.bias))
        embeddings, tokens = self.lm.embeddings.cpu().numpy(), self.calibration[corpus]
        surface = AttackSurface(view.levels, weight, bias, embeddings, self.log_prior)
        nearest = surface.hits(NEAREST, view.mechanism, tokens, NOISE_SEED)
        return {"epsilon": epsilon(view.mechanism, DELTA), "nearest_success": nearest / len(tokens)}

    def _best(self, candidates: list[Any]) -> Any:
        """Return the view of least validation perplexity."""
        return best_of(
            candidates, lambda view: float(passage_nll(self.lm, view, self.validation, PROMPT, seed=1).mean())
        )

    def _calibrated(self, family: Callable[[float], Any], level: float, corpus: str) -> Any:
        return calibrate_view(family, level, self.calibration[corpus], self.log_prior)

    def baselines(self, level: float) -> None:
        """Measure the baselines at the noise of the level, each with its best finish."""
        embeddings = self.lm.embeddings
        for short, method, kind in (("gaussian", GAUSSIAN, GaussianNoise), ("metric", METRIC, MetricNoise)):

            def build(corpus: str, kind: Any = kind) -> Any:
                strength = self._calibrated(lambda s: kind(embeddings, s, Finish()), level, corpus).strength
                return self._best([kind(embeddings, strength, finish) for finish in finishes(embeddings)])

            self.measure(f"{short}-{level}-0", {"method": method, "level": level, "seed": 0}, build)

        about = {"method": REPLACEMENT, "level": level, "seed": 0}
        self.measure(f"replacement-{level}-0", about, lambda corpus: self.replacement(level, corpus))

    def replacement(self, level: float, corpus: str) -> TokenReplacement:
        """Calibrate token replacement to a corpus with either metric; return the better one."""
        embeddings = self.lm.embeddings
        distances = [token_distances(embeddings, metric) for metric in METRICS]
        found: TokenReplacement = self._best(
            [self._calibrated(lambda s, d=d: TokenReplacement(embeddings, d, s), level, corpus) for d in distances]
        )
        return found

    def rewriting(self, level: float) -> None:
        """Measure token replacement with a model on the client that rewrites the answer."""
        end = int(self.lm.model.config.eos_token_id)
        self.measure(
            f"rewriting-{level}-0",
            {"method": REWRITING, "level": level, "seed": 0},
            lambda name: LocalRewriter(self.local_model(), self.replacement(level, name), self.lm, end),
        )

    def local_model(self) -> FrozenLM:
        """Train the client's small model on the same text, so that its tokenizer is the same."""
        out, device = self.work / "local", str(self.lm.embeddings.device)
        self._timed(
            out.name,
            out / "config.json",
            lambda: train_base(self.texts, out, self.plan.local, device=device, progress=False),
        )
        local = load_frozen_lm(out, self.texts, device)
        if local.tokenizer_json != self.lm.tokenizer_json:
            raise RuntimeError(f"{out} must have the tokenizer of the server's model, got another")
        return local

    def local_alone(self) -> None:
        """Measure the rewriter's model without a server."""
        about = {"method": LocalModel.name, "level": None, "seed": 0}
        self.measure("local", about, lambda _: LocalModel(self.local_model()))

    def sweep(self, dim: int, bits: int, level: float) -> None:
        """Measure one (d, n) at equal attack success, with an untrained decoder."""
        path = self.work / "sweep" / f"{dim}-{bits}.json"
        if path.exists():
            return
        first = next(iter(self.corpora))
        found = sweep_point(
            self.lm,
            dim,
            bits,
            level,
            windows=self.corpora[first].windows,
            validation=self.validation,
            calibration=self.calibration[first],
        )
        save_json(path, found)
        self.say(f"sweep d = {dim}, n = {bits}")


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} thread(s)"


def save_json(path: Path, value: Any) -> None:
    """Write a file as a whole: a reader sees the old one or the new one, never a part."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    partial = path.with_name(f"{path.stem}.partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)
