"""The models that benchmarks of a server serve: their settings, and the levels that are asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.settings import Settings, parse_settings

__all__ = ["LEVELS", "MODELS", "ROOM", "served", "smollm2"]

LEVELS = {"tiny": ("open",), "demo": ("balanced",), "smollm2": ("open", "published-open")}
"""The levels at which a model is asked, the first if there is only one.

*tiny* has random weights and shows the software alone. *smollm2* is SmolLM2-135M-Instruct, where
*open* is one code a token with an adapter, and *published-open* counts without one.
"""
MODELS = tuple(LEVELS)
ROOM = {"max_ongoing_requests": 128}
"""Slots for a client that begins its next request before the last one's slot is free again."""


def served(model: str, directory: Path, *, scaling: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of one of :data:`MODELS`. What is made for it lies in ``directory``.

    Raises BadParameter if SmolLM2 is not on the machine.
    """
    found: dict[str, Any] = {"scaling": dict(scaling or {})}
    if model == "smollm2":
        found |= {**smollm2(), "engine": {"dtype": "bfloat16", "max_model_len": 1024}}
    elif model == "tiny":
        from tests.support.tiny import make_tiny

        tiny = make_tiny(directory / "tiny")
        found |= {"bundle": str(tiny.bundle), "base_model": str(tiny.model)}
    return parse_settings(found)


def smollm2() -> dict[str, str]:
    """Return SmolLM2's bundle and base model. Raises BadParameter if it is not on the machine."""
    from del_core.demo import smollm2_bundle_path
    from delctl.places import model_place

    return {"bundle": str(smollm2_bundle_path()), "base_model": str(model_place("smollm2"))}
