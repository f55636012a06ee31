"""Examples of stage 2: prompts of private and public tokens, and the tokens that follow them.

They come from windows of a text, where the whole prompt is private and the text itself goes on, or
from conversations, where the template is public and the answer is one that the model has written.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from del_core.lm.perplexity import IGNORED, judged_logits, targets_nll
from del_core.lm.text import HELD_OUT, TextError
from del_core.prompts import SpanTokenizer, begin_of_text_id
from del_core.training.parallel import Shard

Pick: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Takes the tokens of one private span out of a tensor (batch, tokens, ...)."""
Read: TypeAlias = Callable[[Pick], torch.Tensor]
"""Returns what the LM reads in place of a span (rows, span, hidden size)."""


@dataclass(frozen=True, eq=False)
class Examples:
    """A batch of examples.

    Attributes:
        tokens: token ids (batch, tokens), padded on the right.
        private: which of them are private (batch, tokens).
        targets: the token that follows each, or IGNORED where it is not judged.
        head: public token ids that stand in front of every row.
        wanted: log-probabilities (judged tokens, V), of :meth:`expected`, that are learned in place
            of the targets; None to learn the targets.
        weights: how much each target counts in what is learned from ``wanted`` (batch, tokens);
            None if all count alike.
    """

    tokens: torch.Tensor
    private: torch.Tensor
    targets: torch.Tensor
    head: torch.Tensor
    wanted: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @classmethod
    def from_windows(cls, prompt: torch.Tensor, continuation: torch.Tensor, *, begin: int | None = None) -> Examples:
        """Return examples of private prompts (batch, prompt tokens).

        ``begin`` is the begin-of-text token, if the LM has one.
        """
        tokens = torch.cat([prompt, continuation[:, :-1]], dim=1)
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        targets = torch.nn.functional.pad(continuation, (prompt.shape[1] - 1, 0), value=IGNORED)
        head = tokens.new_tensor([] if begin is None else [begin])
        return cls(tokens, places < prompt.shape[1], targets, head)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def prompts(self) -> torch.Tensor:
        """The token ids up to the last private one of any row, for which noise is drawn."""
        places = self.private.any(dim=0).nonzero()
        return self.tokens[:, : int(places[-1]) + 1 if len(places) else 0]

    def judging_prompts(self, weight: float) -> Examples:
        """Return the examples with the successor of every private token as a target, too.

        Each counts with ``weight``, and what was a target before with 1.
        """
        following = torch.nn.functional.pad(self.tokens[:, 1:], (0, 1), value=IGNORED)
        added = self.private & (self.targets == IGNORED)
        weights = torch.where(added, weight, 1.0)
        return replace(self, targets=torch.where(added, following, self.targets), weights=weights)

    def of(self, shard: Shard) -> Examples:
        """Return the rows of one worker."""
        return self._only(shard.of(torch.arange(len(self), device=self.tokens.device)))

    def split(self, rows: int) -> Iterator[Examples]:
        """Return batches of at most ``rows`` rows."""
        for part in torch.arange(len(self), device=self.tokens.device).split(rows):
            yield self._only(part)

    def _only(self, rows: torch.Tensor) -> Examples:
        """Return some rows, whose numbers ascend."""
        judged_in = (self.targets != IGNORED).nonzero()[:, 0]
        wanted = None if self.wanted is None else self.wanted[torch.isin(judged_in, rows)]
        weights = None if self.weights is None else self.weights[rows]
        return Examples(self.tokens[rows], self.private[rows], self.targets[rows], self.head, wanted, weights)

    def nll(self, model: PreTrainedModel, read: Read, soft_prompt: torch.Tensor) -> torch.Tensor:
        """Return the mean negative log-likelihood of every row's judged tokens, (batch,)."""
        return targets_nll(model, *self._inputs(model, read, soft_prompt))

    def loss(self, model: PreTrainedModel, read: Read, soft_prompt: torch.Tensor) -> torch.Tensor:
        """Return what training minimizes, (batch,), in nats a judged token.

        It is :meth:`nll`, or the Kullback-Leibler divergence from ``wanted`` where there is one,
        which is a mean over the judged tokens by their weights.
        """
        if self.wanted is None:
            return self.nll(model, read, soft_prompt)
        found = self._judged(judged_logits(model, *self._inputs(model, read, soft_prompt)))
        losses = (self.wanted.exp() * (self.wanted - found)).sum(dim=-1)
        judged = self.targets != IGNORED
        weights = judged.to(losses.dtype) if self.weights is None else judged * self.weights
        sums = losses.new_zeros(len(self)).index_add(0, judged.nonzero()[:, 0], weights[judged] * losses)
        return sums / weights.sum(dim=1)

    @torch.no_grad()
    def expected(self, model: PreTrainedModel) -> torch.Tensor:
        """Return what the model expects if it reads the prompts in the clear, without soft prompt.

        Log-probabilities (judged tokens, V), row by row.
        """
        layer = model.get_input_embeddings()
        return self._judged(judged_logits(model, layer(self.tokens), self.targets, layer(self.head)))

    def _judged(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (judged tokens, V) of logits (batch, last columns, V)."""
        return logits[self.targets[:, -logits.shape[1] :] != IGNORED].log_softmax(dim=-1)

    def _inputs(
        self, model: PreTrainedModel, read: Read, soft_prompt: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return embeddings of the tokens, the targets, and the embeddings in front."""
        layer = model.get_input_embeddings()
        inputs = layer(self.tokens)
        for rows, start, end in self._spans():
            at = (rows, slice(start, end))
            inputs[at] = read(functools.partial(_take, at)).to(inputs.dtype)
        return inputs, self.targets, torch.cat([soft_prompt.to(inputs.dtype), layer(self.head)])

    def _spans(self) -> Iterator[tuple[torch.Tensor, int, int]]:
        """Return the private spans: the rows that have one, its start and its end."""
        found: dict[tuple[int, int], list[int]] = {}
        edges = torch.nn.functional.pad(self.private.int(), (1, 1)).diff(dim=1).cpu()
        for row, edge in enumerate(edges):
            ends = (edge == -1).nonzero()[:, 0].tolist()
            for span in zip((edge == 1).nonzero()[:, 0].tolist(), ends, strict=True):
                found.setdefault(span, []).append(row)
        for (start, end), rows in found.items():
            yield torch.tensor(rows, device=self.tokens.device), start, end


def _take(at: tuple[torch.Tensor, slice], given: torch.Tensor) -> torch.Tensor:
    return given[at]


@dataclass(frozen=True)
class Conversation:
    """The token ids of a prompt, which of them are private, and those of its answer."""

    prompt: tuple[int, ...]
    private: tuple[bool, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def silent(self, token: int) -> Conversation:
        """Return the conversation with a public ``token`` in place of every private span."""
        spans = itertools.groupby(zip(self.prompt, self.private, strict=True), key=lambda one: one[1])
        parts = ((token,) if hidden else tuple(own for own, _ in part) for hidden, part in spans)
        prompt = tuple(itertools.chain.from_iterable(parts))
        return Conversation(prompt, (False,) * len(prompt), self.answer)


@dataclass(frozen=True)
class Conversations:
    """The three disjoint parts of a file of conversations."""

    sha256: str
    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    test: tuple[Conversation, ...]

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer, held_out: float = 2 * HELD_OUT) -> Conversations:
        """Read a JSON object a line: ``prompt``, a list of ``text`` and ``private``; ``answer``.

        The last ``held_out`` share of the lines is halved into validation and test. TextError names
        a file that is missing or too short, or a line that is not of this form.
        """
        try:
            data = path.read_bytes()
            # str.splitlines also cuts at separators that a string of JSON may hold as they are.
            lines = [(n, line) for n, line in enumerate(data.decode().split("\n"), start=1) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"chat must be a readable UTF-8 file, got {path} ({type(error).__name__})") from None
        spans, begin = SpanTokenizer(tokenizer.to_str().encode()), begin_of_text_id(tokenizer)
        found = tuple(_conversation(path, number, line, spans, begin) for number, line in lines)
        size = int(len(found) * held_out / 2)
        if size < 1:
            raise TextError(
                f"chat must hold at least {int(2 / held_out) + 1} conversations, got {len(found)} in {path}"
            )
        train, validation, test = found[: -2 * size], found[-2 * size : -size], found[-size:]
        return cls(hashlib.sha256(data).hexdigest(), train, validation, test)

    @functools.cached_property
    def head(self) -> tuple[int, ...]:
        """The public token ids with which every prompt begins, short of a whole prompt."""
        every = (*self.train, *self.validation, *self.test)
        first, length = every[0], min(len(one.prompt) for one in every) - 1
        for place in range(length):
            if any(one.private[place] or one.prompt[place] != first.prompt[place] for one in every):
                return first.prompt[:place]
        return first.prompt[:length]

    def silent(self, token: int) -> Conversations:
        """Return the conversations with a public ``token`` in place of every private span."""
        parts = (tuple(one.silent(token) for one in part) for part in (self.train, self.validation, self.test))
        return Conversations(self.sha256, *parts)

    def examples(self, chosen: Sequence[Conversation], device: torch.device) -> Examples:
        """Return ``chosen`` as a batch."""
        head = self.head
        length = max(map(len, chosen)) - len(head) - 1
        tokens = torch.zeros(len(chosen), length, dtype=torch.int64)
        private, targets = torch.zeros_like(tokens, dtype=torch.bool), torch.full_like(tokens, IGNORED)
        for row, one in enumerate(chosen):
            ids = torch.tensor((*one.prompt, *one.answer))[len(head) :]
            begin = len(one.prompt) - len(head)
            tokens[row, : len(ids) - 1] = ids[:-1]
            private[row, :begin] = torch.tensor(one.private[len(head) :])
            targets[row, begin - 1 : len(ids) - 1] = ids[begin:]
        parts = (part.to(device) for part in (tokens, private, targets, torch.tensor(head, dtype=torch.int64)))
        return Examples(*parts)

    def batch(self, step: int, size: int, seed: int) -> tuple[Conversation, ...]:
        """Return the conversations of batch number ``step``, of similar length.

        An epoch reads every conversation once, except the rest that fills no batch.
        """
        batches = max(1, len(self.train) // size)
        epoch, place = divmod(step, batches)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        drawn = torch.randperm(len(self.train), generator=generator)[: batches * size].tolist()
        drawn.sort(key=lambda index: len(self.train[index]))
        start = int(torch.randperm(batches, generator=generator)[place]) * size
        return tuple(self.train[index] for index in drawn[start : start + size])


def _conversation(path: Path, number: int, line: str, tokenizer: SpanTokenizer, begin: int | None) -> Conversation:
    def wrong(wanted: str) -> TextError:
        return TextError(f"chat: line {number} of {path} must {wanted}")

    try:
        value: Any = json.loads(line)
        spans = [(span["text"], span["private"]) for span in value["prompt"]]
        answer = value["answer"]
    except (ValueError, TypeError, KeyError):
        raise wrong('be an object {"prompt": [{"text": ..., "private": ...}, ...], "answer": ...}') from None
    if not isinstance(answer, str) or not all(isinstance(t, str) and isinstance(p, bool) for t, p in spans):
        raise wrong("have strings as texts and answer, and true or false as private")
    ids = list(zip(tokenizer.encode_spans(spans, begin), (private for _, private in spans), strict=True))
    prompt = tuple(token for part, _ in ids for token in part)
    private = tuple(flag for part, flag in ids for _ in part)
    answered = tokenizer.encode(answer, begins=False)
    if not prompt or not answered:
        raise wrong("have a prompt and an answer of at least one token")
    if begin is not None:  # as the client sends it
        prompt, private = (begin, *prompt), (False, *private)
    return Conversation(prompt, private, answered)
