"""What vLLM refuses is said in one sentence that names the setting to change."""

from __future__ import annotations

import logging
import multiprocessing
import os

import pytest

from deployments.engines.vllm import startup
from deployments.engines.vllm.worker import configure_logging

TOO_LONG = (
    "To serve at least one request with the models's max seq len (8192), (0.35 GiB KV cache is needed, which is "
    "larger than the available KV cache memory (0.25 GiB)."
)


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (ValueError(TOO_LONG), "engine.kv_cache_memory_bytes"),
        (ValueError("No available memory for the cache blocks."), "engine.kv_cache_memory_bytes"),
        (ValueError("User-specified max_model_len (9000) is greater than the derived 8192"), "engine.max_model_len"),
        (RuntimeError("\n\n"), None),
        (KeyError("layer"), None),
    ],
)
def test_sentences(error: Exception, setting: str | None) -> None:
    sentence = startup.sentence_of(startup.first_line(error))
    assert "\n" not in sentence
    assert sentence.startswith(f"engine: vLLM refused to start: {type(error).__name__}")
    assert len(sentence) < 600
    assert (setting in sentence) if setting else "; " not in sentence


def fail_to_start() -> None:
    configure_logging()
    try:
        raise ValueError(f"{TOO_LONG}\nmore")
    except ValueError:
        logging.getLogger("vllm.v1.engine.core").exception("EngineCore failed to start.")


def test_the_engines_process_tells_its_parent_the_cause() -> None:
    with startup.cause_of_failure() as cause:
        assert cause() == ""
        child = multiprocessing.get_context("fork").Process(target=fail_to_start)
        child.start()
        child.join(60)
        assert cause() == f"ValueError: {TOO_LONG}"
    assert startup.CAUSE not in os.environ
    assert cause() == ""
