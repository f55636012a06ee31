"""Training on several workers, which Ray Train starts and restarts.

    result = train_on_workers(functools.partial(stage, ...), workers=4)

``stage`` runs in every worker, within a process group that shares each batch
(:mod:`del_core.training.parallel`). All workers must see its output directory: if a worker dies,
Ray Train restarts all of them and the stage resumes from its checkpoint. The cluster is that of
``RAY_ADDRESS``, or one on loopback with token authentication that ends with the call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cluster.config.env import local_environment, python_path
from del_core.errors import DelError

Result = TypeVar("Result")

_OBJECT_STORE_BYTES = 80 * 1024 * 1024  # the smallest that Ray allows
_VARIABLES = ("RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED")


class WorkersError(DelError):
    """Training on several workers failed; the message is the worker's own."""


def train_on_workers(stage: Callable[[], Result], workers: int, *, gpu: bool = False, max_failures: int = 3) -> Result:
    """Run ``stage`` in ``workers`` processes and return the result of the first.

    Args:
        gpu: one GPU for each worker (NCCL); else CPUs (gloo).
        max_failures: deaths of workers after which training fails.

    Raises:
        WorkersError: a worker raised an error, or more workers died.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    directory = Path(tempfile.mkdtemp(prefix="del-train-"))
    try:
        with _cluster(directory, workers):
            result: Result = _run(stage, workers, gpu, max_failures, directory)
            return result
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(stage: Callable[[], Any], workers: int, gpu: bool, max_failures: int, directory: Path) -> Any:
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        stage,
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=gpu),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=train.RunConfig(
            name="del-train",
            storage_path=str(directory / "ray-train"),
            failure_config=train.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        return trainer.fit().return_value
    except train.TrainingFailedError as error:
        # The last line of the first worker's traceback names the cause; the others end with it.
        causes = getattr(error, "worker_failures", None) or {0: error}
        raise WorkersError(str(causes[min(causes)]).strip().splitlines()[-1]) from error


@contextlib.contextmanager
def _cluster(directory: Path, workers: int) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or run one on this machine within the context."""
    foreign = os.environ.get("RAY_ADDRESS")
    before = dict(os.environ)
    if not foreign:
        variables = local_environment(haproxy=False)
        os.environ |= {name: variables[name] for name in _VARIABLES}
        os.environ |= {
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PYTHONPATH": python_path(os.environ.get("PYTHONPATH")),
        }
    import ray

    try:
        if foreign:
            ray.init(address=foreign, log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=workers + 1,  # one for Ray Train's own controller
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.WARNING,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(directory / "r"),
            )
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
