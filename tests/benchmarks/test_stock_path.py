"""The comparison of exported models with vLLM's server on the base model: its prompts and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stock_path import WAYS, Load, case_of, measure, rows_of
from benchmarks.support.load import Prompts, Round
from del_core.bundle import load_bundle

_COLUMNS = {"model", "way", "reference", "concurrency", "prompt_ids", "output_tokens", "rps", "rps_ratio"}
_COLUMNS |= {"ttft_p50_ms", "ttft_ratio", "cpu_ratio", "cpu_ms_per_request", "requests", "failed", "rounds"}


def _figures(rps: float, first_ms: float) -> dict[str, Any]:
    figures = {"rps": rps, "ttft": {"p50_ms": first_ms}, "cpu_s": {"engine": 2.0}, "requests": 4, "failed": 0}
    return {**figures, "load_average": 1.0}


def test_all_ways_send_as_many_ids_and_ask_for_the_same(tmp_path: Path) -> None:
    case = case_of("tiny", tmp_path)
    assert [way.name for way in case.ways] == ["base", "ids", "requests", "openai", "client"]
    assert case.exported.arguments[1:] == ["--served-model-name", "clear", "codes", "plain"], "no adapter is served"
    prompts = Prompts(load_bundle(case.settings.bundle_path), case.variant)
    bodies, sizes = {}, {}
    for way in case.ways:
        plan = Round(way.kind, "127.0.0.1", 1, 1, 20, 4, 0, 1.0, 1, variant=case.served(way))  # type: ignore[arg-type]
        (prompt,) = prompts.make(plan)
        if way.name == "client":
            sizes[way.name] = prompt.private_tokens + prompts.soft_rows
        elif way.name == "openai":
            sizes[way.name] = len(prompt)
        else:
            bodies[way.name] = json.loads(prompt.partition(b"\r\n\r\n")[2])
            sizes[way.name] = len(bodies[way.name]["prompt"])
    assert set(sizes.values()) == {20 + prompts.soft_rows}
    ids = case.exported.variants["plain"]
    assert bodies["requests"]["prompt"][: prompts.soft_rows] == [*ids.soft_prompt]
    assert set(bodies["requests"]["prompt"][prompts.soft_rows :]) <= set(ids.codes)
    assert len(bodies["requests"]["logit_bias"]) == sum(
        len(one.codes) + len(one.soft_prompt) for one in case.exported.variants.values()
    )
    asked = ("max_tokens", "temperature", "ignore_eos", "stream", "stream_options")
    assert len({str([body[name] for name in asked]) for body in bodies.values()}) == 1
    assert [body["model"] for body in bodies.values()] == ["base", "plain", "plain"]


def test_a_way_is_compared_with_its_reference_in_the_same_round(tmp_path: Path) -> None:
    case, load = case_of("tiny", tmp_path), Load(4, 20, 4)
    rates = {"base": (10.0, 20.0, 40.0), "requests": (9.0, 20.0, 44.0), "openai": (5.0,) * 3, "client": (4.0,) * 3}
    results = {
        (load, way.name, number): _figures(rates.get(way.name, (1.0,) * 3)[number], 10.0 if way.name == "base" else 11)
        for way in case.ways
        for number in range(3)
    }
    rows = {row["way"]: row for row in rows_of(case, [load], 3, results)}
    assert all(row.keys() >= _COLUMNS for row in rows.values())
    assert rows["requests"]["rps_ratio"] == [1.0, 0.95, 1.05]
    assert rows["requests"]["ttft_ratio"] == [1.1, 1.1, 1.1]
    assert rows["client"]["rps_ratio"] == [0.8, 0.8, 0.8], "compared with another library, not with bare connections"
    assert rows["base"]["rps_ratio"] == [1.0, 1.0, 1.0]
    assert (rows["ids"]["prompt_ids"], rows["ids"]["requests"], rows["ids"]["cpu_ms_per_request"]) == (
        20 + len(case.exported.variants["plain"].soft_prompt),
        12,
        {"engine": 500.0},
    )


@pytest.mark.cluster
@pytest.mark.timeout(900)  # two engines start at once, beside other tests
def test_every_way_answers_every_request(tmp_path: Path) -> None:
    case, loads = case_of("tiny", tmp_path), [Load(2, 8, 4)]
    rows = rows_of(case, loads, 1, measure(case, loads, 1, 0.2))
    assert [row["way"] for row in rows] == [way.name for way in WAYS if way.name != "clear"]
    for row in rows:
        assert (row["failed"], row["requests"] > 0, row["rps"] > 0, row["ttft_p50_ms"] > 0) == (0, True, True, True)
        assert row["cpu_ms_per_request"].keys() >= {"engine", "server", "generator"}
