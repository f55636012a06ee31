"""A short stage 1 on two workers of Ray Train; a test kills one: worker_run.py MODEL OUT STEPS."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from cluster.training import train_on_workers
from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts
from del_core.training.config import ProjectionConfig
from del_core.training.projection import train_projection
from del_core.training.results import perplexities
from tests.support.texts import ALICE


def stage(model: Path, out: Path, steps: int) -> dict[str, float]:
    """Run a small stage 1."""
    config = ProjectionConfig(
        dim=16, steps=steps, prompt_tokens=24, continuation_tokens=8, batch=8, evaluation_windows=16
    )
    lm = load_frozen_lm(model, read_texts([ALICE]))
    return perplexities(train_projection(lm, out, config, progress=False))


if __name__ == "__main__":
    model, out, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    print(train_on_workers(functools.partial(stage, model, out, steps), 2))
