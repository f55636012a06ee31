"""Several workers: the losses of one, the same files, and a run that outlives a worker."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import distributed

from benchmarks.support.packages import python_path
from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts
from del_core.training.base import BaseConfig, train_base
from del_core.training.config import EncoderConfig, ProjectionConfig, SoftPromptConfig
from del_core.training.encoder import train_encoder
from del_core.training.parallel import Shard
from del_core.training.projection import train_projection
from del_core.training.start import Stage1, load_stage1
from del_core.training.variant import Noise, VariantPlan, train_variant
from delctl.commands.train import train
from tests.support import worker_run
from tests.support.texts import ALICE
from tests.support.worker_run import stage

_SHORT = {"prompt_tokens": 24, "continuation_tokens": 8, "batch": 8, "evaluation_windows": 16}
_PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Directory of an LM that takes seconds to train."""
    out = tmp_path_factory.mktemp("model")
    sizes = BaseConfig(
        vocabulary=400, hidden=64, layers=2, heads=2, feed_forward=128, context=64, batch=8, steps=40,
        learning_rate=4e-3,
    )  # fmt: skip
    train_base(read_texts([ALICE]), out, sizes, progress=False)
    return out


def _stages(model: Path, out: Path) -> None:
    """All three stages, a few steps each."""
    torch.set_num_threads(1)
    lm = load_frozen_lm(model, read_texts([ALICE]))
    config = ProjectionConfig(dim=16, steps=6, **_SHORT)
    train_projection(lm, out / "projection", config, progress=False)
    encoder = EncoderConfig(0.3, width=16, min_prompt_tokens=8, steps=6, **_SHORT)
    train_encoder(lm, load_stage1(out / "projection", lm), out / "encoder", encoder, progress=False)
    soft_prompt = SoftPromptConfig(train_linear=True, min_prompt_tokens=8, steps=6, test_windows=16, **_SHORT)
    plan = VariantPlan("v", Noise(bits=4, map_asr=0.3), "t", soft_prompt)
    stage1 = Stage1(load_stage1(out / "encoder", lm).projection)  # without its decoder, so that one is made anew
    train_variant(lm, stage1, plan, out / "variant", progress=False)


def _worker(rank: int, store: Path, model: Path, out: Path) -> None:
    # The store is a file: no port is needed to meet.
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        _stages(model, out)
    finally:
        distributed.destroy_process_group()


def _losses(directory: Path) -> list[tuple[int, float, float]]:
    (path,) = (directory / "checkpoints").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["loss"], line["held_out_loss"]) for line in lines]


def test_two_workers_take_the_steps_of_one(model, tmp_path):
    _stages(model, tmp_path / "one")
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_worker, args=(rank, tmp_path / "store", model, tmp_path / "two")) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join(_PATIENCE_S)
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for name in ("projection", "encoder", "variant"):
        one, two = _losses(tmp_path / "one" / name), _losses(tmp_path / "two" / name)
        assert [line[0] for line in one] == [line[0] for line in two]
        for (_, *ours), (_, *theirs) in zip(one, two, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-3), name
    for file in ("projection/projection.safetensors", "encoder/projection.safetensors", "variant/decoder.safetensors"):
        ours, theirs = (load_file(tmp_path / name / file) for name in ("one", "two"))
        for name, tensor in ours.items():
            assert torch.allclose(tensor, theirs[name], atol=2e-2), (file, name)


def test_rows_are_shared_evenly_or_not_at_all():
    batch = torch.arange(12).reshape(6, 2)
    shares = [Shard(rank, 3).of(batch) for rank in range(3)]
    assert torch.equal(torch.cat(shares).sort(dim=0).values, batch)
    with pytest.raises(ValueError, match="batch must have a multiple of 4 rows, one share a worker, got 6"):
        Shard(0, 4).of(batch)


def test_workers_that_cannot_share_a_batch_are_refused(model, tmp_path):
    options = ["--model", model, "--text", ALICE, "--out", tmp_path / "p", "--batch", 8, "--workers", 3]
    result = CliRunner().invoke(train, ["projection", *map(str, options)])
    assert result.exit_code == 2
    assert "3 workers cannot share --batch 8 evenly" in result.output


@pytest.mark.timeout(600)
def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_been(model, tmp_path):
    steps = 150
    figures = stage(model, tmp_path / "one", steps)
    out = tmp_path / "two"
    command = [sys.executable, "-m", worker_run.__name__, str(model), str(out), str(steps)]
    paths = python_path([ALICE.parents[2]])
    # Ray gives workers the priority of idle work, with which they never end beside other tests.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            _kill_a_worker(process, out / "checkpoints" / "projection.checkpoint")
            output, _ = process.communicate(timeout=_PATIENCE_S)
        finally:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()
    assert process.returncode == 0
    assert ast.literal_eval(output.splitlines()[-1]) == pytest.approx(figures, rel=2e-3)
    # Held-out losses depend on the parameters alone; the running average of training losses starts
    # anew on resuming.
    ours, theirs = ({step: held for step, _, held in _losses(path)} for path in (tmp_path / "one", out))
    assert ours.keys() == theirs.keys() == {50, 100, 150}
    assert ours == pytest.approx(theirs, abs=2e-3)
    tensors = [load_file(path / "projection.safetensors") for path in (tmp_path / "one", out)]
    for name, tensor in tensors[0].items():
        assert torch.allclose(tensor, tensors[1][name], atol=2e-2), name


def _kill_a_worker(process: subprocess.Popen[str], checkpoint: Path) -> None:
    """SIGKILL to one of Ray Train's workers as soon as there is a checkpoint."""
    deadline = time.monotonic() + _PATIENCE_S
    while not checkpoint.exists():
        assert time.monotonic() < deadline, "no checkpoint was written"
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.02)  # looks again until the deadline
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline()) or "RayTrainWorker" in child.name()
    ]
    assert workers, "Ray Train's workers were not found"
    workers[0].kill()
