"""The capacity planner against the committed runs of the serving benchmark, and its properties."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity import (
    ACCELERATORS,
    MODEL_SIZES,
    Accelerator,
    CapacityError,
    ModelShape,
    Stack,
    Workload,
    plan,
    request_s,
    sensitivities,
)
from del_core import demo
from delctl.main import run

ROOT = Path(__file__).resolve().parents[2]
RUNS = [
    one
    for one in json.loads((ROOT / "benchmarks/results/serving.json").read_text("utf-8"))
    if one["system"] == "application" and one["loop"] == "closed"
]
DEMO = ModelShape.of_config("demo", json.loads((demo.model_path() / "config.json").read_bytes()), weight_bytes=4)
# Fitted, like the defaults of Stack, to the runs with 1 and 64 clients.
CORES = Accelerator("two cores", 24, 173, 2.83, None, "fitted")


@pytest.mark.parametrize(
    "measured", RUNS, ids=lambda one: f"{one['concurrency']}-{one['prompt_tokens']}-{one['output_tokens']}"
)
def test_predictions_are_within_30_percent_of_the_measured_runs(measured: dict[str, Any]) -> None:
    load = Workload(1, 1, prompt_tokens=measured["prompt_tokens"], output_tokens=measured["output_tokens"])
    predicted = 1 / request_s(DEMO, CORES, 1, load, batch=measured["concurrency"], stack=Stack())
    assert abs(predicted / measured["rps"] - 1) < 0.3


def test_the_runs_are_there() -> None:
    assert sorted({one["concurrency"] for one in RUNS}) == [1, 16, 64]
    assert len(RUNS) == 12


def test_the_shape_of_a_model_is_that_of_its_files() -> None:
    numbers = 0
    for path in demo.model_path().glob("*.safetensors"):
        header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        numbers += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    assert DEMO.parameters == pytest.approx(numbers, rel=0.001)  # but for the norms
    assert DEMO.kv_bytes == 2 * 8 * 4 * 64 * 4


loads = st.builds(
    Workload,
    users=st.floats(1, 1e7),
    requests_per_user=st.floats(0.1, 100),
    prompt_tokens=st.integers(1, 4000),
    output_tokens=st.integers(1, 2000),
    utilization=st.floats(0.1, 1),
    inter_token_ms=st.floats(200, 10_000),
)


@given(loads, st.sampled_from(sorted(MODEL_SIZES)), st.sampled_from(sorted(ACCELERATORS)))
def test_a_plan_carries_the_load_and_fits(load: Workload, size: str, gpu: str) -> None:
    model, device = MODEL_SIZES[size], ACCELERATORS[gpu]
    try:
        found = plan(model, device, load)
    except CapacityError:
        return
    assert found.replicas * found.capacity * load.utilization >= load.requests_per_s * (1 - 1e-9)
    assert (found.replicas - 1) * found.capacity * load.utilization < load.requests_per_s or found.replicas == 1
    assert found.weights + found.extras + found.sequences * found.kv_bytes_per_sequence < (
        found.devices * device.memory_gb * 1e9
    )
    assert found.inter_token_ms <= load.inter_token_ms
    more = plan(model, device, replace(load, users=2 * load.users))
    assert more.needed == pytest.approx(2 * found.needed)


def test_what_has_no_plan_is_told() -> None:
    load = Workload(1000, 10)
    with pytest.raises(CapacityError, match=r"inter_token_ms must be at least .* for 8B on 1 l4, got 50"):
        plan(MODEL_SIZES["8B"], ACCELERATORS["l4"], load)
    huge = replace(MODEL_SIZES["70B"], name="1000B", parameters=1e12)
    with pytest.raises(CapacityError, match=r"1000B must fit into 8 devices of 80 GB, got 2000 GB"):
        plan(huge, ACCELERATORS["h100"], load)
    curves = sensitivities(MODEL_SIZES["8B"], ACCELERATORS["h100"], load, (0.01, 1.0))
    assert curves["inter_token_ms"][0] is None
    assert curves["users"][0] == pytest.approx(curves["users"][1] / 100)  # type: ignore[operator]


def test_the_upload_is_that_of_a_frame() -> None:
    load = Workload(3600, 1, prompt_tokens=9, dim=32, bits=4)
    found = plan(MODEL_SIZES["1B"], ACCELERATORS["h100"], load)
    # docs/guides/observability.md shows the log of such a request: 309 bytes.
    assert found.upload_bytes == pytest.approx(309, rel=0.2)


OPTIONS = ["--gpu", "h100", "--users", "10000", "--requests-per-user", "20"]


def test_the_command_shows_its_arithmetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.png"
    assert run(["plan", "--model-size", "8B", *OPTIONS, "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    found = plan(MODEL_SIZES["8B"], ACCELERATORS["h100"], Workload(10000, 20))
    assert said.splitlines()[0] == f"{found.replicas} replicas of 1 H100: {found.replicas} H100"
    assert "10000 users x 20 an hour / 3600 = 55.56 requests/s" in said
    assert "8.03 x 10^9 x 2 bytes = 16.1 GB" in said
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_json_and_takes_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--model", str(demo.model_path()), *OPTIONS, "--price-per-hour", "3", "--json"]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost_per_hour"] == 3 * found["replicas"] * found["devices"]
    assert set(found["sensitivities"]) == {"users", "prompt_tokens", "output_tokens", "inter_token_ms", "utilization"}


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model-size", "8B", "--inter-token-ms", "1", *OPTIONS]) == 2
    assert "inter_token_ms must be at least" in capsys.readouterr().err
    assert run(["plan", *OPTIONS]) == 2
    assert "one of --model-size and --model is needed" in capsys.readouterr().err
    assert run(["plan", "--model", str(tmp_path), *OPTIONS]) == 2
    assert "config.json must be readable" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert run(["plan", "--model", str(tmp_path), *OPTIONS]) == 2
    assert "must describe a Llama-like model, got no num_hidden_layers" in capsys.readouterr().err
