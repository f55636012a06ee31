"""Prompts of vLLM's engine: counts go in, and the engine's process makes embeddings of them.

vLLM takes a prompt as a tensor with a row for each position. Here a row is what the position's
embedding is made from, a few bytes in place of a vector of the hidden size:

    bytes 0 to 3    source, a little-endian integer: 0 a token of the vocabulary; k the soft prompt
                    of variant k; -k the counts of a private token under variant k
    bytes 4 to 7    number: token id; row of the soft prompt; position in its private segment
    other bytes     counts, one a byte; as many as the largest variant needs

vLLM's prefix cache hashes these rows, so that it is keyed by counts. Before every step,
:class:`Prompts` decodes those rows of all prompts that the step computes, in one batch for each
variant, on the model's device: a long prompt holds no step for longer than its share of it, and
what the cache holds is not decoded.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from del_core.bundle import Bundle
from deployments.engines.base import EncodedPrompt, variant_name

if TYPE_CHECKING:
    import torch

    from del_core.lm.decoding import BatchDecoder

_HEADER = 8


@dataclass(frozen=True)
class _Numbered:
    """A variant and its number."""

    number: int
    bundle: Bundle
    name: str

    @property
    def dim(self) -> int:
        return self.bundle.mechanism(self.name).dim


class RowFormat:
    """The rows of prompts under the variants of these bundles; their order numbers the variants."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        pairs = [(bundle, name) for bundle in bundles for name in bundle.variants]
        self.variants = [_Numbered(number, *pair) for number, pair in enumerate(pairs, start=1)]
        self.columns = _HEADER + max((variant.dim for variant in self.variants), default=0)
        self._soft_rows = {
            variant_name(one.bundle, one.name): (one.number, one.bundle.variants[one.name].soft_prompt_length)
            for one in self.variants
        }

    def encode(self, prompt: EncodedPrompt) -> NDArray[np.uint8]:
        """Return the rows (tokens, columns) of a prompt."""
        number, soft = (0, 0) if prompt.variant is None else self._soft_rows[prompt.variant]
        rows = np.zeros((soft + sum(map(len, prompt.segments)), self.columns), dtype=np.uint8)
        header = rows[:, :_HEADER].view("<i4")
        header[:soft, 0], header[:soft, 1] = number, np.arange(soft)
        start = soft
        for segment in prompt.segments:
            stop = start + len(segment)
            if isinstance(segment, tuple):
                header[start:stop, 1] = segment
            else:
                header[start:stop, 0], header[start:stop, 1] = -number, np.arange(len(segment))
                rows[start:stop, _HEADER : _HEADER + segment.shape[1]] = segment
            start = stop
        return rows


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt's rows, (tokens, columns), and its embeddings, (tokens, hidden size), once made."""

    rows: torch.Tensor
    embeddings: torch.Tensor

    @property
    def header(self) -> NDArray[np.int32]:
        """Source and number of every row, (tokens, 2)."""
        header: NDArray[np.int32] = self.rows.numpy()[:, :_HEADER].view("<i4")
        return header


@dataclass(frozen=True, eq=False)
class _Run:
    """Rows of one source, and of one segment if they are private."""

    prompt: _Prompt
    start: int
    stop: int
    source: int
    first: int  # number of the first row


@dataclass(frozen=True, eq=False)
class _Loaded:
    dim: int
    decoder: BatchDecoder
    soft_prompt: torch.Tensor


class Prompts:
    """Makes the embeddings of a worker's prompts; lives in the engine's process."""

    def __init__(self, worker: Any, bundles: Sequence[Bundle]) -> None:
        import torch

        from del_core.lm.decoding import batch_decoder

        runner = worker.model_runner
        self._model, self._device = runner.get_model(), runner.device
        self._dtype = worker.model_config.dtype
        self._hidden = worker.model_config.get_inputs_embeds_size()
        # vLLM's second runner copies a prompt to the device as soon as it arrives.
        self._at_once = bool(getattr(worker, "use_v2_model_runner", False))
        self._prompts: dict[str, _Prompt] = {}
        self._loaded = {
            one.number: _Loaded(
                one.dim,
                batch_decoder(one.bundle.decoder_kind(one.name), one.bundle.decoder_inputs(one.name), self._device),
                torch.from_numpy(one.bundle.soft_prompt(one.name)),
            )
            for one in RowFormat(bundles).variants
        }

    def prepare(self, step: Any) -> None:
        """Put the embeddings that a step reads into the prompts; ``step`` is a SchedulerOutput."""
        import torch

        for request_id in step.finished_req_ids:
            self._prompts.pop(request_id, None)
        cached = step.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        parts = []
        for request in step.scheduled_new_reqs:
            rows = request.prompt_embeds
            if rows is None or rows.dtype != torch.uint8:
                continue
            prompt = _Prompt(rows, torch.empty(len(rows), self._hidden, dtype=self._dtype))
            request.prompt_embeds = prompt.embeddings
            if self._at_once:
                parts.append((prompt, 0, len(rows)))
            else:
                self._prompts[request.req_id] = prompt
                computed[request.req_id] = request.num_computed_tokens
        for request_id, start in computed.items():
            if request_id in self._prompts:
                prompt = self._prompts[request_id]
                stop = min(start + step.num_scheduled_tokens.get(request_id, 0), len(prompt.rows))
                parts.append((prompt, start, stop))
        self._fill(parts)

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings (tokens, hidden size) of rows, as a step would read them."""
        import torch

        prompt = _Prompt(torch.from_numpy(rows), torch.empty(len(rows), self._hidden, dtype=self._dtype))
        self._fill([(prompt, 0, len(rows))])
        embeddings: NDArray[np.float32] = prompt.embeddings.float().numpy()
        return embeddings

    def _fill(self, parts: Sequence[tuple[_Prompt, int, int]]) -> None:
        import torch

        by_source: dict[int, list[_Run]] = defaultdict(list)
        for part in parts:
            for run in _runs(*part):
                by_source[run.source].append(run)
        with torch.inference_mode():
            for source, runs in by_source.items():
                self._fill_source(source, runs)

    def _fill_source(self, source: int, runs: Sequence[_Run]) -> None:
        import torch

        if source > 0:
            soft_prompt = self._loaded[source].soft_prompt
            for run in runs:
                rows = soft_prompt[run.first : run.first + run.stop - run.start]
                run.prompt.embeddings[run.start : run.stop].copy_(rows)
            return
        if source == 0:
            ids = np.concatenate([run.prompt.header[run.start : run.stop, 1] for run in runs])
            rows = self._model.embed_input_ids(torch.from_numpy(ids.astype(np.int64)).to(self._device))
            before = [0] * len(runs)
        else:
            loaded = self._loaded[-source]
            # Rows that were decoded in an earlier step, on which these depend.
            before = [min(run.first, loaded.decoder.context) for run in runs]
            counts = [
                run.prompt.rows[run.start - more : run.stop, _HEADER : _HEADER + loaded.dim]
                for run, more in zip(runs, before, strict=True)
            ]
            rows = loaded.decoder.decode(torch.cat(counts).to(self._device), [len(one) for one in counts])
        lengths = [more + run.stop - run.start for run, more in zip(runs, before, strict=True)]
        for run, more, found in zip(runs, before, rows.split(lengths), strict=True):
            run.prompt.embeddings[run.start : run.stop].copy_(found[more:])


def _runs(prompt: _Prompt, start: int, stop: int) -> Iterator[_Run]:
    """Split the rows ``start`` to ``stop`` of a prompt."""
    if start >= stop:
        return
    sources, numbers = prompt.header[start:stop].T
    breaks = (sources[1:] != sources[:-1]) | ((sources[1:] < 0) & (numbers[1:] == 0))
    edges = [0, *(np.flatnonzero(breaks) + 1), stop - start]
    for first, last in itertools.pairwise(edges):
        yield _Run(prompt, start + int(first), start + int(last), int(sources[first]), int(numbers[first]))
