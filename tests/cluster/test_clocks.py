"""How many replicas Serve wants if the clocks of machines differ.

Serve's controller reads the times at which replicas on other machines have counted their load. The
reports of the replicas are made here, with right and wrong clocks; the rest is real.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pytest
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentID,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from deployments.telemetry.scaling import OUTSTANDING_TOKENS, RUNNING_REQUESTS

HOUR_S = 3600.0
REQUESTS, TOKENS = 6, 1000
TARGET_REQUESTS, TARGET_TOKENS = 4, 500.0
DEPLOYMENT = DeploymentID("PrivateLM", "del-serve")


def controller(replicas: int) -> DeploymentAutoscalingState:
    """The controller's part for a deployment of some replicas, with this project's policy."""
    policy = AutoscalingPolicy(
        policy_function="deployments.telemetry.scaling:ByWork",
        policy_kwargs={"target_outstanding_tokens": TARGET_TOKENS},
    )
    config = AutoscalingConfig(
        min_replicas=1,
        max_replicas=100,
        target_ongoing_requests=TARGET_REQUESTS,
        upscale_delay_s=0,
        downscale_delay_s=0,
        look_back_period_s=2,
        policy=policy,
    )
    info = DeploymentInfo(
        deployment_config=DeploymentConfig(autoscaling_config=config),
        replica_config=ReplicaConfig.create(object),
        start_time_ms=0,
        deployer_job_id="job",
    )
    state = DeploymentAutoscalingState(DEPLOYMENT)
    state.register(info, replicas)
    state.update_running_replica_ids([ReplicaID(str(index), DEPLOYMENT) for index in range(replicas)])
    return state


def report(state: DeploymentAutoscalingState, clocks: Sequence[float], *, requests: int, tokens: int) -> None:
    """Let each replica report a steady load of the last two seconds, by its own clock.

    Serve rounds times to 10 ms, and whether it counts the time before all replicas have reported
    depends on the direction. All times here are rounded down.
    """
    last = math.floor(time.time() * 100) / 100 + 0.003
    for index, ahead_s in enumerate(clocks):
        now = time.time() + ahead_s
        times = [last + ahead_s - 2 + 0.5 * step for step in range(5)]
        series = {RUNNING_REQUESTS_KEY: requests, OUTSTANDING_TOKENS: tokens}
        metrics = {name: [TimeStampedValue(at, float(value)) for at in times] for name, value in series.items()}
        state.record_request_metrics_for_replica(ReplicaMetricReport(ReplicaID(str(index), DEPLOYMENT), metrics, now))


@pytest.mark.parametrize(
    "clocks",
    [
        (0.0, 0.0, 0.0, 0.0),
        (HOUR_S, 0.0, 0.0, 0.0),
        (-HOUR_S, 0.0, 0.0, 0.0),
        (HOUR_S, -HOUR_S, 0.0, 0.0),
        (HOUR_S, HOUR_S, HOUR_S, HOUR_S),
        (-HOUR_S, -HOUR_S, -HOUR_S, -HOUR_S),
        (0.3, -0.3, 1.5, -1.5),
    ],
)
def test_the_number_of_replicas_does_not_depend_on_clocks(clocks: tuple[float, ...]) -> None:
    state = controller(len(clocks))
    report(state, clocks, requests=REQUESTS, tokens=0)
    assert state.get_decision_num_replicas(len(clocks)) == len(clocks) * REQUESTS / TARGET_REQUESTS
    time.sleep(0.001)
    report(state, clocks, requests=1, tokens=TOKENS)
    assert state.get_decision_num_replicas(len(clocks)) == len(clocks) * TOKENS / TARGET_TOKENS
    time.sleep(0.001)
    report(state, clocks, requests=0, tokens=0)
    assert state.get_decision_num_replicas(len(clocks)) == 1


def test_serve_calls_the_statistic_by_this_name() -> None:
    assert RUNNING_REQUESTS == RUNNING_REQUESTS_KEY


def test_serve_itself_misses_load_if_a_clock_is_wrong() -> None:
    """The reason of the policy's own sum; if this fails, Serve has been mended."""
    state = controller(4)
    report(state, (-HOUR_S, 0.0, 0.0, 0.0), requests=REQUESTS, tokens=0)
    assert state.get_total_num_requests() < 0.5 * 4 * REQUESTS


def test_a_clock_that_is_set_back_hides_the_load_of_its_replicas_until_it_has_caught_up() -> None:
    """The reason why docs/guides/operations.md asks for clocks that are never set back."""
    state = controller(1)
    report(state, (0.0,), requests=REQUESTS, tokens=0)
    report(state, (-HOUR_S,), requests=100 * REQUESTS, tokens=0)
    assert state.get_decision_num_replicas(1) == 2  # as before
