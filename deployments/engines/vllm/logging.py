"""Logging of vLLM, in the replica's process and in the engine's, without disturbing anybody else's.

Left to itself, vLLM calls ``logging.config.dictConfig``, which closes every handler that others have made in the
process. Serve's replica has no log file any more then, and is lost when a restarted controller asks for its name: the
death of a controller would cost all replicas. So vLLM is told to leave logging alone, and its logger is set up here.
"""

from __future__ import annotations

import logging
import os

__all__ = ["ENVIRONMENT", "configure"]

_LEVEL = "VLLM_LOGGING_LEVEL"

ENVIRONMENT = {"VLLM_CONFIGURE_LOGGING": "0"}
"""What vLLM has to see before it is imported."""


def configure() -> None:
    """Send what vLLM logs, from the level in the environment on, to standard error. May be called more than once."""
    logger = logging.getLogger("vllm")
    logger.setLevel(os.environ.get(_LEVEL, "WARNING"))
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
