"""The checks of ``delctl doctor``, each a function of a :class:`Subject` that is listed here."""

from collections.abc import Mapping
from types import MappingProxyType

from delctl.doctor import artifacts, installation, machine, server
from delctl.doctor.base import Check, Finding, Subject, run_checks

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "python": installation.check_python,
        "packages": installation.check_packages,
        "serving": installation.check_serving,
        "training": installation.check_training,
        "environment": installation.check_environment,
        "processor": machine.check_processor,
        "gpu": machine.check_gpu,
        "threads": machine.check_threads,
        "memory": machine.check_memory,
        "cache": machine.check_cache,
        "temporary": machine.check_temporary,
        "ports": machine.check_ports,
        "open files": machine.check_open_files,
        "haproxy": machine.check_haproxy,
        "model": artifacts.check_models,
        "bundle": artifacts.check_bundles,
        "server": server.check_server,
        "clock": server.check_clock,
    }
)

__all__ = ["CHECKS", "Check", "Finding", "Subject", "run_checks"]
