"""Data parallel training: the rows that each worker computes, and agreement between the workers.

Every worker draws the global batch and its noise as one process would and computes its own rows, so
the losses of any number of workers are those of one, up to rounding (:mod:`cluster.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Shard:
    """The place of this worker among ``workers``; by default it is the only one."""

    rank: int = 0
    workers: int = 1

    @property
    def first(self) -> bool:
        """Whether this worker writes files and shows progress."""
        return self.rank == 0

    def of(self, batch: torch.Tensor) -> torch.Tensor:
        """Return this worker's rows of a global batch (rows, ...)."""
        if len(batch) % self.workers:  # the mean of means would not be the batch's mean
            raise ValueError(f"batch must have a multiple of {self.workers} rows, one share a worker, got {len(batch)}")
        return batch[self.rank :: self.workers]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the workers' mean of a scalar, without gradient."""
        result = value.detach().clone()
        if self.workers > 1:
            distributed.all_reduce(result)
            result /= self.workers
        return result

    def agree(self, value: float) -> float:
        """Return the first worker's ``value``, so that all decide by exactly one number."""
        if self.workers == 1:
            return value
        device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def wait(self) -> None:
        """Wait until every worker is here."""
        if self.workers > 1:
            distributed.barrier()

    def once(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the first worker only, and return in all workers when it is done."""
        if self.first:
            action()
        self.wait()


def current_shard() -> Shard:
    """Return the place of this process in its process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        return Shard(distributed.get_rank(), distributed.get_world_size())
    return Shard()


def differentiable(
    parameters: Iterable[nn.Parameter], loss: Callable[[int], torch.Tensor]
) -> Callable[[int], torch.Tensor]:
    """Return ``loss`` with gradients that are averaged over the workers."""
    if current_shard().workers == 1:
        return loss
    return nn.parallel.DistributedDataParallel(_Loss(parameters, loss))


class _Loss(nn.Module):
    """A loss and its parameters as the module that DistributedDataParallel requires."""

    def __init__(self, parameters: Iterable[nn.Parameter], loss: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self.loss = loss

    def forward(self, step: int) -> torch.Tensor:
        return self.loss(step)
