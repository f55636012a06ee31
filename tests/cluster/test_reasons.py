"""What people see of a failure inside Ray."""

from __future__ import annotations

from cluster.local.supervisor import reason_of
from cluster.reasons import reason_in

SENTENCE = "engine.max_model_len must fit into the KV cache, got 1000000"
OF_RAY = (
    "The deployment failed to start 1 times in a row. Error:\n"
    "\x1b[36mray::ServeReplica:del-serve:PrivateLM.initialize_and_get_metadata()\x1b[39m (pid=1)\n"
    '  File "/a/replica.py", line 1, in start\n'
    "RuntimeError: Engine core initialization failed. See root cause above.\n\n"
    "The above exception was the direct cause of the following exception:\n\n"
    "ray::ServeReplica:del-serve:PrivateLM.initialize_and_get_metadata() (pid=1)\n"
    '  File "/a/engine.py", line 2, in _load\n'
    f"deployments.engines.base.EngineStartError: {SENTENCE}\n"
)


def test_of_a_traceback_the_error_that_ended_it_is_left() -> None:
    assert reason_in(OF_RAY) == SENTENCE
    assert reason_in("Traceback (most recent call last):\n  no error is named") == (
        "Traceback (most recent call last):\n  no error is named"
    )


def test_the_reason_of_haproxy_is_in_its_alerts() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/a/haproxy.py", line 1211, in _wait\n'
        "RuntimeError: HAProxy crashed during startup: [NOTICE]   (532) : haproxy version is 2.8.25-5cf5d0683\n"
        "[NOTICE]   (532) : path to executable is /a/bin/haproxy\n"
        "[ALERT]    (532) : [/a/bin/haproxy.main()] Cannot raise FD limit to 100017, limit is 20000.\n"
    )
    assert reason_in(text) == "HAProxy did not start: Cannot raise FD limit to 100017, limit is 20000."


def test_other_texts_stay_and_are_bounded() -> None:
    assert reason_in("one line: \x1b[31mValueError\x1b[39m") == "one line: ValueError"
    assert reason_in("a" * 1999 + "bcd") == "..." + "a" * 1997 + "bcd"


def test_an_error_without_a_message_is_named() -> None:
    assert reason_of(RuntimeError(OF_RAY)) == SENTENCE
    assert reason_of(TimeoutError()) == "TimeoutError"
