"""Replicas that come and go under single requests: none is lost, whichever moment it comes in.

A short check is in test_several_models.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.cold_start import run, wait_until_asleep
from client_lib import Client, public
from cluster.local import start_local
from deployments.settings import parse_settings

TOKENS = 5


@pytest.mark.slow
@pytest.mark.parametrize("proxy", ["haproxy", "serve"])
def test_requests_around_the_moment_of_going_to_sleep(proxy: Literal["haproxy", "serve"], tmp_path: Path) -> None:
    """Pauses around the downscale delay, so that some requests arrive as the replica stops."""
    settings = parse_settings(
        {
            "engine": {"kind": "mock"},
            "scaling": {"min_replicas": 0, "downscale_delay_s": 0.5, "look_back_period_s": 1, "num_cpus": 0.1},
        }
    )
    with start_local(settings, proxy=proxy) as server, Client(server.url, cache_dir=tmp_path) as client:
        wait_until_asleep(server)
        for pause in range(0, 30, 2):
            completion = client.complete([public("the sea")], variant="clear", max_tokens=TOKENS, ignore_eos=True)
            assert len(completion.token_ids) == TOKENS
            time.sleep(pause / 10)  # the subject of this test, not a wait for something
        wait_until_asleep(server)


@pytest.mark.slow
def test_a_real_engine_is_woken_by_a_client_with_default_settings() -> None:
    report = run(1)
    assert report["proxy"] == "haproxy"
    assert 1 < report["first_token_s"][0] < 300
