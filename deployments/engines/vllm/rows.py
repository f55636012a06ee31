"""Logits processors that know the rows of a batch for which a request asked."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

Row = TypeVar("Row")


class RowsProcessor(LogitsProcessor, Generic[Row]):
    """Base of a processor that changes single rows; ``rows`` holds them by their index."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, Row] = {}

    @staticmethod
    def row_of(parameters: SamplingParams, output: list[int]) -> Any:
        """Return the state of a new request, None if its row is left as it is.

        ``output`` are its generated tokens; vLLM appends to the list.
        """
        raise NotImplementedError

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.rows, batch_update, lambda parameters, _, output: self.row_of(parameters, output))
