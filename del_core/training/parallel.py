"""Data parallel training: what one of several workers does of a step, and how they stay of one mind.

A stage is written for one process and a global batch. Every worker draws the batch and its noise as that one process
would, and computes its own rows of it; gradients are averaged (``torch.nn.parallel.DistributedDataParallel``). So the
losses of any number of workers are those of one, up to rounding. Who starts the workers is :mod:`cluster.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import distributed, nn

__all__ = ["Shard", "current_shard", "differentiable"]


@dataclass(frozen=True)
class Shard:
    """This worker's place among ``workers``; the default is the only one."""

    rank: int = 0
    workers: int = 1

    @property
    def first(self) -> bool:
        """Whether this worker is the one that writes files and shows progress."""
        return self.rank == 0

    def of(self, batch: torch.Tensor) -> torch.Tensor:
        """This worker's rows of a global batch (rows, ...).

        Raises:
            ValueError: if the rows cannot be shared evenly: the mean of means would not be the batch's mean.
        """
        if len(batch) % self.workers:
            raise ValueError(f"batch: {len(batch)} rows cannot be shared evenly by {self.workers} workers")
        return batch[self.rank :: self.workers]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The workers' mean of a scalar, without gradient."""
        result = value.detach().clone()
        if self.workers > 1:
            distributed.all_reduce(result)
            result /= self.workers
        return result

    def agree(self, value: float) -> float:
        """The first worker's ``value``: what all decide by has to be one number, to the last bit."""
        if self.workers == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=_device())
        distributed.broadcast(shared, src=0)
        return float(shared)

    def wait(self) -> None:
        """Until every worker is here."""
        if self.workers > 1:
            distributed.barrier()


def current_shard() -> Shard:
    """The place that the process group gives this process; the only one where there is none."""
    if distributed.is_available() and distributed.is_initialized():
        return Shard(distributed.get_rank(), distributed.get_world_size())
    return Shard()


def differentiable(
    parameters: Iterable[nn.Parameter], loss: Callable[[int], torch.Tensor]
) -> Callable[[int], torch.Tensor]:
    """``loss``, with gradients that are averaged over the workers once it is differentiated."""
    if current_shard().workers == 1:
        return loss
    return nn.parallel.DistributedDataParallel(_Loss(parameters, loss))


class _Loss(nn.Module):
    """A loss as the module that DistributedDataParallel wants, holding what it trains."""

    def __init__(self, parameters: Iterable[nn.Parameter], loss: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self.loss = loss

    def forward(self, step: int) -> torch.Tensor:
        return self.loss(step)


def _device() -> torch.device:
    backend = distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
