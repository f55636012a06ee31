"""What sizes and times of a stream tell about its topic: python -m benchmarks.topics [--json]

Somebody on the network sees when the events of an encrypted stream pass and how long they are
(Whisper Leak, arXiv 2511.03675). Here the answers are passages of five topics, the books of
examples/smollm2/held_out.txt: a server's application streams them, and a classifier learns the
topic from the observed (time, bytes) alone.

Every passage ends where a paragraph ends, so that lengths differ by topic as those of answers do.
An engine of the benchmark's own emits its tokens, one every 20 ms with noise of 10 %, on a clock
that skips what nobody waits for. The application gathers them into events as it is configured:

    default     events as they are due, of any size
    padded      ``streaming.padded`` with its defaults

The classifier is a multinomial logistic regression with a ridge penalty, on standardized features:
shares of sizes (32 bins), of gaps (12 bins) and of pairs of neighboring sizes (6 x 6), number of
events, bytes, duration, and mean and deviation of the sizes. Its accuracy is measured by ten-fold
cross-validation over passages, with Wilson's interval at 95 %. Chance is the share of the most
frequent topic. For comparison it also gets the length alone:

    tokens      the exact number of tokens of every answer
    steps       the number of rounds of a padded stream
"""

from __future__ import annotations

import asyncio
import json
import re
import selectors
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from tokenizers import Tokenizer

from client_lib import public
from client_lib.prompts.encoder import Encoder
from del_core.audit.intervals import Rate
from del_core.bundle import load_bundle
from del_core.demo import bundle_path, model_path
from del_core.wire import MEDIA_TYPE, Sampling
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.engines.base import Delta, EngineSampling, LookUp
from deployments.sections import PaddedStreaming, StreamingSettings
from deployments.service.base_model import EmbeddingTable, end_of_text_ids
from deployments.service.service import Capacity, PrivateLMService, ServedModel

__all__ = ["measure"]

TEXT = Path(__file__).parents[1] / "examples" / "smollm2" / "held_out.txt"
# How the part of each topic begins in the text, and what follows it.
TOPICS: Mapping[str, tuple[str, str]] = {
    "politics": ("To make our economy stronger", "When Two-Eyes was thus carried"),
    "fairy tale": ("When Two-Eyes was thus carried", "of her own work. At length she rallied"),
    "whaling": ("Through and through; through every plank", "End of Project Gutenberg's Moby Dick"),
    "courtship": ('"Yes, and I had heard it before.', "MY DEAR LIZZY"),
    "stage": ("Error i' the bill, sir", "\0"),
}
SHORTEST, LONGEST = 24, 400  # tokens of a passage
STEP_S, JITTER = 0.02, 0.1
FOLDS = 10
_RIDGE = (1.0, 10.0, 100.0)
_OUTER = 60  # bytes of a TLS record and of a chunk that are the same for all events

Floats = NDArray[np.float64]
Seen = list[tuple[float, int]]


class _SkippingSelector(selectors.DefaultSelector):
    """Waits for no time: what it would have waited is added to ``skipped``."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(timeout if timeout is None else 0)
        if not ready and timeout:
            self.skipped += timeout
        return ready


class _SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop on a clock of its own."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.skipped


class _Reader:
    """An engine that emits the tokens of a given text."""

    context_length = 1024

    def __init__(self, seed: int) -> None:
        self.tokens: Sequence[int] = ()
        self._noise = np.random.default_rng(seed)

    async def start(self) -> None:
        pass

    async def look_up(self, token_ids: Sequence[int]) -> LookUp | None:
        return None

    async def generate(
        self,
        request_id: str,
        embeddings: NDArray[np.float32],
        sampling: EngineSampling,
        *,
        cache_salt: str | None = None,
        shared_rows: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """Emit the tokens, one a step."""
        for index, token in enumerate(self.tokens):
            await asyncio.sleep(STEP_S * max(0.1, 1 + JITTER * self._noise.standard_normal()))
            yield Delta((int(token),), "length" if index + 1 == len(self.tokens) else None)

    async def check_health(self) -> None:
        pass

    async def shutdown(self) -> None:
        pass


def passages(tokenizer: Tokenizer, each: int) -> tuple[list[list[int]], list[int]]:
    """Return token ids and topics of at most ``each`` passages of every topic, which begin and end
    with paragraphs."""
    text = TEXT.read_text("utf-8")
    ids: list[list[int]] = []
    topics: list[int] = []
    for topic, (begin, end) in enumerate(TOPICS.values()):
        start = text.index(begin)
        stop = text.find(end, start)
        found: list[list[int]] = []
        held: list[int] = []
        for paragraph in re.split(r"\n\s*\n", text[start : len(text) if stop < 0 else stop]):
            held += tokenizer.encode(paragraph.strip() + "\n\n", add_special_tokens=False).ids
            if len(held) > LONGEST:
                held = []
            elif len(held) >= SHORTEST:
                found.append(held)
                held = []
        chosen = np.linspace(0, len(found) - 1, min(each, len(found))).astype(int)
        ids += [found[index] for index in chosen]
        topics += [topic] * len(chosen)
    return ids, topics


async def observed(answers: Sequence[Sequence[int]], streaming: StreamingSettings, seed: int) -> list[Seen]:
    """Return times (from the first event on) and sizes of the events of each answer."""
    bundle = load_bundle(bundle_path())
    engine = _Reader(seed)
    model = ServedModel(
        bundle=bundle,
        table=EmbeddingTable.open(model_path(), bundle.manifest.base_model),
        tokenizer=Tokenizer.from_file(str(bundle.client.tokenizer_path)),
        end_of_text=end_of_text_ids(model_path()),
    )
    service = PrivateLMService(model, engine, Capacity(4, 1 << 20))
    app = create_app(service, APIOptions(streaming=streaming))
    encoder = Encoder(bundle.client)
    prompt = encoder.encode([public("Tell me more.")], "clear")
    found = []
    for answer in answers:
        engine.tokens = answer
        frame = encoder.frame(prompt, Sampling(max_tokens=len(answer), stream=True, ignore_eos=True))
        found.append(await _events(app, frame))
    await service.shutdown()
    return found


async def _events(app: Any, frame: bytes) -> Seen:
    seen: Seen = []
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": frame, "more_body": False})

    async def send(message: dict[str, Any]) -> None:
        if body := message.get("body"):
            seen.append((asyncio.get_running_loop().time(), len(body) + _OUTER))
        elif message.get("status", 200) != 200:
            raise RuntimeError(f"an answer has the status {message['status']}")

    path = "/v1/private/completions"
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(frame))]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
    }
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers}
    await app(scope, messages.get, send)
    return [(when - seen[0][0], size) for when, size in seen]


def features(seen: Sequence[Seen]) -> Floats:
    """Return the features of each stream (streams, features)."""
    sizes = [np.array([size for _, size in one], float) for one in seen]
    edges = np.quantile(np.concatenate(sizes), np.linspace(0, 1, 33))
    coarse = edges[[5, 11, 16, 21, 27]]
    rows = []
    for stream, size in zip(seen, sizes, strict=True):
        gaps = np.diff([when for when, _ in stream])
        shares = np.bincount(np.searchsorted(edges[1:-1], size), minlength=32) / len(size)
        pauses = np.histogram(gaps, np.array([-1, *np.linspace(0.01, 0.11, 11), np.inf]))[0] / max(1, len(gaps))
        classes = np.searchsorted(coarse, size)
        pairs = np.bincount(classes[:-1] * 6 + classes[1:], minlength=36) / len(size)
        whole = (len(size), np.log(size.sum()), stream[-1][0], size.mean(), size.std())
        rows.append(np.concatenate([shares, pauses, pairs, whole]))
    return np.array(rows)


def accuracy(rows: Floats, topics: NDArray[np.int64], seed: int) -> Rate:
    """Return how often the topic of a stream is told from streams of other folds."""
    order = np.random.default_rng(seed).permutation(len(rows))
    hits = 0
    for fold in range(FOLDS):
        test = order[fold::FOLDS]
        train = np.setdiff1d(order, test)
        # The penalty is chosen within the training folds.
        inner = train[::2], train[1::2]
        best = max(_RIDGE, key=lambda ridge: _hits(rows, topics, *inner, ridge))
        hits += _hits(rows, topics, train, test, best)
    return Rate(hits, len(rows))


def _hits(rows: Floats, topics: NDArray[np.int64], train: Any, test: Any, ridge: float) -> int:
    mean, spread = rows[train].mean(axis=0), rows[train].std(axis=0)
    spread[spread < 1e-9] = np.inf  # a constant feature tells nothing
    known = np.column_stack([(rows[train] - mean) / spread, np.ones(len(train))])
    asked = np.column_stack([(rows[test] - mean) / spread, np.ones(len(test))])
    wanted = np.eye(len(TOPICS))[topics[train]]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(known.shape[1], len(TOPICS))
        scores = known @ weights
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        gradient = known.T @ (np.exp(logs) - wanted) + ridge * weights
        return float(-(wanted * logs).sum() + ridge / 2 * (weights**2).sum()), gradient.ravel()

    start = np.zeros(known.shape[1] * len(TOPICS))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return int(((asked @ found.reshape(-1, len(TOPICS))).argmax(axis=1) == topics[test]).sum())


def measure(each: int = 120, seed: int = 0) -> dict[str, Any]:
    """Return the accuracy with each setting, and from the length alone."""
    tokenizer = Tokenizer.from_file(str(load_bundle(bundle_path()).client.tokenizer_path))
    answers, found = passages(tokenizer, each)
    topics = np.array(found)
    padded = PaddedStreaming()
    settings = {"default": StreamingSettings(), "padded": StreamingSettings(padded=padded)}
    report: dict[str, Any] = {
        "passages": dict(zip(TOPICS, np.bincount(topics).tolist(), strict=True)),
        "chance": round(float(np.bincount(topics).max() / len(topics)), 4),
        "padded": padded.model_dump(),
        "accuracy": {},
    }
    lengths = np.array([[len(answer), np.log(len(answer)), len(answer) ** 2] for answer in answers], float)
    events: dict[str, NDArray[np.int64]] = {}
    for name, streaming in settings.items():
        with asyncio.Runner(loop_factory=_SkippingLoop) as runner:
            seen = runner.run(observed(answers, streaming, seed))
        report["accuracy"][name] = _stated(accuracy(features(seen), topics, seed))
        events[name] = np.array([len(one) for one in seen])
        report[f"events_{name}"] = {"median": float(np.median(events[name])), "kinds": len(set(events[name].tolist()))}
        report[f"kilobytes_{name}"] = round(float(np.mean([sum(size for _, size in one) for one in seen])) / 1000, 1)
    rounds = events["padded"] / padded.events
    steps = np.column_stack([rounds, rounds**2])
    report["accuracy"]["tokens alone"] = _stated(accuracy(lengths, topics, seed))
    report["accuracy"]["steps alone"] = _stated(accuracy(steps, topics, seed))
    return report


def _stated(rate: Rate) -> dict[str, float]:
    return {"accuracy": round(rate.success, 4), "low": round(rate.low, 4), "high": round(rate.high, 4)}


@click.command()
@click.option("--passages", "each", type=click.IntRange(20), default=120, show_default=True, help="Of each topic.")
@click.option("--seed", default=0, show_default=True, help="Of the engine's times and of the folds.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def main(each: int, seed: int, as_json: bool) -> None:
    """What sizes and times of a stream tell about its topic, with and without streaming.padded."""
    report = measure(each, seed)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"chance {report['chance']:.1%}")
    for name, row in report["accuracy"].items():
        click.echo(f"{name:14} {row['accuracy']:6.1%} [{row['low']:.1%}, {row['high']:.1%}]")


if __name__ == "__main__":
    main()
