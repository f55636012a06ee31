"""Capacity planning: how many replicas a load needs, and what limits each of them."""

from cluster.capacity.hardware import ACCELERATORS, Accelerator
from cluster.capacity.model import MODEL_SIZES, ModelShape
from cluster.capacity.plan import CapacityError, Plan, Stack, Workload, plan, request_s, sensitivities

__all__ = [
    "ACCELERATORS",
    "MODEL_SIZES",
    "Accelerator",
    "CapacityError",
    "ModelShape",
    "Plan",
    "Stack",
    "Workload",
    "plan",
    "request_s",
    "sensitivities",
]
