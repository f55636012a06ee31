"""Training on several workers, which Ray Train starts and restarts.

    result = train_on_workers(functools.partial(stage, ...), workers=4)

``stage`` takes no arguments and runs in every worker, within a process group, which shares each
batch (:mod:`del_core.training.parallel`). Its checkpoints lie in its own output directory, which
all workers must see: if a worker dies, Ray Train restarts all of them and the stage resumes from
its checkpoint.

If ``RAY_ADDRESS`` names a cluster, it is used. Otherwise a cluster starts on this machine, on
loopback with token authentication, and ends with the call.
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

from del_core.errors import DelError

Result = TypeVar("Result")

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 80 * 1024 * 1024  # the smallest that Ray allows; nothing large passes through it
_PACKAGES = str(Path(__file__).resolve().parent.parent)


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
        # The last line of the first worker's traceback names the cause; the others end because it
        # died.
        causes = getattr(error, "worker_failures", None) or {0: error}
        raise WorkersError(str(causes[min(causes)]).strip().splitlines()[-1]) from error


@contextlib.contextmanager
def _cluster(directory: Path, workers: int) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or run one on this machine within the context."""
    foreign = os.environ.get("RAY_ADDRESS")
    before = dict(os.environ)
    if not foreign:
        os.environ |= {
            # Ray's control ports listen on every interface, whatever the node's address, so they
            # require a token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # The node's address is loopback (Ray does this by itself on macOS and Windows only).
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]),
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
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(directory / "r"),
            )
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
