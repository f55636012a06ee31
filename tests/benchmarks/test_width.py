"""Wide models have the shapes that they claim; rows of the width benchmark are whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from benchmarks.posterior_decoders import COMPARED
from benchmarks.serving.wide import DECODER_KINDS, DIM, SHIPPED, SOFT_ROWS, Width, make_wide
from benchmarks.serving.width import WidthCell, WidthPlan, parse_cells, plan_of, width_keys, width_rows
from benchmarks.support.load import Prompts, Round
from del_core.bundle import load_bundle
from del_core.lm.model import load_base_lm

_NARROW = Width("nothing", 64, 600, 96, 4, 2)
_COLUMNS = {"system", "hidden_size", "vocabulary", "prompt_tokens", "decoder", "concurrency", "ttft_p50_ms"}
_COLUMNS |= {"ttft_ratio_to_vllm_serve", "cpu_s_per_request", "rps", "memory_mb"}


def test_a_model_and_a_variant_of_every_decoder_kind(tmp_path: Path) -> None:
    model, path = make_wide(tmp_path, _NARROW, layers=2, positions=128)
    lm = load_base_lm(model)
    assert (lm.model.config.num_hidden_layers, tuple(lm.embeddings.shape)) == (2, (600, 64))
    assert 0.01 < float(lm.embeddings.std()) < 0.03
    bundle = load_bundle(path)
    assert tuple(bundle.variants) == DECODER_KINDS == (*SHIPPED, *COMPARED)
    plan = plan_of(quick=True, cells=None, systems=["application"], rounds=None)
    assert plan.kinds == ("linear", "lookup", "posterior", "trained", "contextual")
    spread = np.asarray(bundle.client.table, np.float64).std() / 127
    assert 0.25 < spread < 0.45, "the levels use their range, and few are clipped"
    prompts = Prompts(bundle, "linear")
    for name, variant in bundle.variants.items():
        assert (variant.decoder, variant.soft_prompt_length) == (name, SOFT_ROWS)
        counts = np.zeros((3, bundle.mechanism(name).dim), np.uint8)
        rows = bundle.build_decoder(name).decode(counts)
        assert rows.shape == (3, 64)
        assert np.isfinite(rows).all()
        plan = Round("application", "127.0.0.1", 1, 1, 40, 2, 0, 1.0, 2, variant=name)
        one, two = prompts.make(plan)
        assert one != two
        bits = variant.bits * bundle.mechanism(name).dim
        assert 40 * bits // 8 < len(one) < 40 * bits // 8 + 1000
    assert bundle.mechanism("linear").dim == DIM


@pytest.mark.parametrize("text", ["4096:1:512", "4096:1:512:x", "4000:1:512:1", "4096:0:512:1", ""])
def test_other_loads_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="hidden:layers:prompt:concurrency is allowed"):
        parse_cells(text)


def test_other_systems_are_refused() -> None:
    with pytest.raises(click.BadParameter, match="application, ray_llm are allowed"):
        plan_of(quick=True, cells=None, systems=["engine"], rounds=None)


def _figures(first_ms: float, cpu: float) -> dict[str, Any]:
    return {
        "ttft": {"p50_ms": first_ms},
        "cpu_s": {"engine": cpu, "replica": 1.0, "generator": 9.0},
        "requests": 2,
        "failed": 0,
        "rps": 1.5,
        "memory_mb": {"engine": int(first_ms)},
        "load_average": 1.0,
    }


def test_rows_compare_rounds_that_are_neighbors() -> None:
    cell = WidthCell(4096, 1, 512, 2)
    plan = WidthPlan((cell, replace(cell, prompt_tokens=32)), ("application",), ("linear", "posterior"), 3)
    reference, linear, posterior = ([100.0, 200.0, 50.0], [110.0, 210.0, 70.0], [300.0, 300.0, 300.0])
    results = {
        key: _figures({"vllm_serve": reference, "linear": linear, "posterior": posterior}[series][number], 2.0)
        for system, series in (("vllm_serve", "vllm_serve"), ("application", "linear"), ("application", "posterior"))
        for key in width_keys(plan, cell, "application")
        for number in [key[2]]
        if key[1].startswith(f"{system}/{'ids' if system == 'vllm_serve' else series}/")
    }
    rows = width_rows(plan, results)
    assert [(row["system"], row["decoder"]) for row in rows] == [
        ("vllm_serve", "ids"),
        ("application", "linear"),
        ("application", "posterior"),
    ], "the other load has not been measured"
    assert all(row.keys() >= _COLUMNS for row in rows)
    assert [row["ttft_ratio_to_vllm_serve"] for row in rows] == [1.0, 1.1, 3.0]
    assert [row["ttft_p50_ms"] for row in rows] == [100.0, 110.0, 300.0]
    assert rows[1]["cpu_s_per_request"] == 1.5  # without the generator
    assert rows[2]["memory_mb"] == {"engine": 300}
    assert (rows[0]["hidden_size"], rows[0]["vocabulary"]) == (4096, 128_256)
