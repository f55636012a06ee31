"""Language-model engines: the interface, the registry, and one module or folder for each kind."""

from deployments.engines.base import ENGINES, Delta, Engine, EngineDeadError, EngineKind, EngineSettings, parse_engine
from deployments.engines.mock import MockEngine
from deployments.engines.vllm.engine import VllmEngine

__all__ = [
    "ENGINES",
    "Delta",
    "Engine",
    "EngineDeadError",
    "EngineKind",
    "EngineSettings",
    "MockEngine",
    "VllmEngine",
    "parse_engine",
]
