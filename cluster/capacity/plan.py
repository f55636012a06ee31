"""The arithmetic of a plan: replicas, memory, network and cost for a load.

An engine computes steps. A step generates one token of each sequence in the batch: it reads the
weights once, and the keys and values of every sequence. Prompts are computed in between. On top of
what the device needs comes the time of the stack (HTTP, scheduling, sampling) for a step, for a
sequence in it, and for a request (:class:`Stack`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.capacity.hardware import Accelerator
from cluster.capacity.model import ModelShape
from del_core.errors import DelError

_LARGEST_BATCH = 256
_DEVICES = (1, 2, 4, 8)
_HEADER_BYTES = 200  # of a request frame
_EVENT_BYTES_PER_TOKEN = 30  # of a streamed answer, with 16 tokens an event


class CapacityError(DelError):
    """No plan exists: the model does not fit, or one request is slower than is allowed."""


@dataclass(frozen=True)
class Stack:
    """Times and shares that do not come from a data sheet.

    The times are fitted to the runs of the serving benchmark with 1 and 64 clients
    (docs/results/performance.md). A test compares the runs with 16 clients.

    Args:
        step_s: for each step.
        sequence_s: for each sequence in each step.
        request_s: for each request.
        bandwidth_share, operations_share: of the data sheet's figures that engines reach.
        memory_share: of a device's memory that the engine may use.
        activations_gb: memory for computations and graphs, of each device.
    """

    step_s: float = 0.0031
    sequence_s: float = 0.00004
    request_s: float = 0.0019
    bandwidth_share: float = 0.7
    operations_share: float = 0.5
    memory_share: float = 0.9
    activations_gb: float = 3.0


@dataclass(frozen=True)
class Workload:
    """A load at its peak, and what callers expect.

    Args:
        users: people who use the application at the peak.
        requests_per_user: requests of each in an hour of the peak.
        prompt_tokens, output_tokens: of a request.
        inter_token_ms: longest mean time between two tokens of an answer.
        utilization: share of its capacity that a replica is loaded with at the peak.
        soft_rows: rows of soft prompt of a variant.
        variants: variants served, each with a soft prompt.
        adapter_rank: rank of a LoRA adapter for each variant; 0 for none.
        dim, bits: of the mechanism.
    """

    users: float
    requests_per_user: float
    prompt_tokens: int = 512
    output_tokens: int = 256
    inter_token_ms: float = 50.0
    utilization: float = 0.7
    soft_rows: int = 32
    variants: int = 3
    adapter_rank: int = 0
    dim: int = 128
    bits: int = 4

    @property
    def requests_per_s(self) -> float:
        """Requests a second at the peak."""
        return self.users * self.requests_per_user / 3600


@dataclass(frozen=True)
class Plan:
    """Result of :func:`plan`. Bytes are plain numbers, rates are per second.

    Args:
        needed: replicas before rounding up.
        devices: devices of each replica (``engine.tensor_parallel_size``).
        sequences: sequences in a batch (``engine.max_num_seqs``).
        limit: what keeps the batch from being larger.
        inter_token_ms: mean time between two tokens at that batch.
        capacity: requests a second of one replica.
        cost_per_million: US dollars for a million tokens of prompt and answer, at the peak.
    """

    replicas: int
    needed: float
    devices: int
    sequences: int
    limit: str
    inter_token_ms: float
    capacity: float
    requests_per_s: float
    weights: float
    kv_bytes_per_sequence: float
    kv_room: float
    extras: float
    upload_bytes: float
    download_bytes: float
    cost_per_hour: float | None
    cost_per_million: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def step_s(model: ModelShape, device: Accelerator, devices: int, load: Workload, *, batch: int, stack: Stack) -> float:
    """Return the seconds of a step with ``batch`` sequences, at half of their answers."""
    rows = load.soft_rows + load.prompt_tokens + load.output_tokens / 2
    read = model.weights + batch * rows * model.kv_bytes
    device_s = read / (devices * device.bandwidth_gb_s * 1e9 * stack.bandwidth_share)
    device_s += batch * model.operations / (devices * device.tflops * 1e12 * stack.operations_share)
    return device_s + stack.step_s + batch * stack.sequence_s


def request_s(
    model: ModelShape, device: Accelerator, devices: int, load: Workload, *, batch: int, stack: Stack
) -> float:
    """Return the seconds of an engine that one request takes, beside ``batch - 1`` others."""
    operations = load.prompt_tokens * model.operations  # the soft prompt is in the cache
    prompt_s = operations / (devices * device.tflops * 1e12 * stack.operations_share)
    step = step_s(model, device, devices, load, batch=batch, stack=stack)
    return prompt_s + stack.request_s + load.output_tokens * step / batch


def plan(model: ModelShape, device: Accelerator, load: Workload, stack: Stack | None = None) -> Plan:
    """Return the plan with the fewest devices for each replica. Raises CapacityError."""
    stack = stack or Stack()
    extras = load.variants * _extras(model, load)
    usable = device.memory_gb * 1e9 * stack.memory_share - stack.activations_gb * 1e9
    per_sequence = (load.prompt_tokens + load.output_tokens) * model.kv_bytes
    for devices in _DEVICES:
        room = devices * usable - model.weights - extras
        if room >= per_sequence:
            break
    else:
        raise CapacityError(
            f"model {model.name} must fit into {_DEVICES[-1]} devices of {device.memory_gb:g} GB, got "
            f"{(model.weights + extras) / 1e9:.0f} GB of weights"
        )
    batch, limit = _batch(model, device, devices, load, room=room, stack=stack)
    capacity = 1 / request_s(model, device, devices, load, batch=batch, stack=stack)
    needed = load.requests_per_s / (capacity * load.utilization)
    replicas = max(1, math.ceil(needed))
    cost = None if device.price_per_hour is None else replicas * devices * device.price_per_hour
    tokens_per_hour = load.requests_per_s * 3600 * (load.prompt_tokens + load.output_tokens)
    return Plan(
        replicas=replicas,
        needed=needed,
        devices=devices,
        sequences=batch,
        limit=limit,
        inter_token_ms=1000 * step_s(model, device, devices, load, batch=batch, stack=stack),
        capacity=capacity,
        requests_per_s=load.requests_per_s,
        weights=model.weights,
        kv_bytes_per_sequence=per_sequence,
        kv_room=room,
        extras=extras,
        upload_bytes=load.requests_per_s * (_HEADER_BYTES + load.prompt_tokens * math.ceil(load.dim * load.bits / 8)),
        download_bytes=load.requests_per_s * load.output_tokens * _EVENT_BYTES_PER_TOKEN,
        cost_per_hour=cost,
        cost_per_million=None if cost is None else cost / tokens_per_hour * 1e6,
    )


SENSITIVE = ("users", "prompt_tokens", "output_tokens", "inter_token_ms", "utilization")
"""Fields of a load whose change moves the plan most."""


def sensitivities(
    model: ModelShape, device: Accelerator, load: Workload, factors: Sequence[float], stack: Stack | None = None
) -> dict[str, list[float | None]]:
    """Return the devices needed, before rounding up, when one field of the load is multiplied.

    None stands for a load without a plan, and for a utilization above 1.
    """
    found: dict[str, list[float | None]] = {}
    for field in SENSITIVE:
        value = getattr(load, field)
        found[field] = []
        for factor in factors:
            changed = value * factor if isinstance(value, float) else max(1, round(value * factor))
            if field == "utilization" and changed > 1:
                found[field].append(None)
                continue
            try:
                fields: dict[str, Any] = {field: changed}
                made = plan(model, device, replace(load, **fields), stack)
            except CapacityError:
                found[field].append(None)
            else:
                found[field].append(made.needed * made.devices)
    return found


def _extras(model: ModelShape, load: Workload) -> float:
    """Return the bytes of one variant: soft prompt, its keys and values, and its adapter."""
    soft = load.soft_rows * (model.hidden_size * 4 + model.kv_bytes)
    # Two factors for each of seven matrices of a layer, of about the hidden size.
    return soft + model.layers * 7 * 2 * model.hidden_size * load.adapter_rank * model.weight_bytes


def _batch(
    model: ModelShape, device: Accelerator, devices: int, load: Workload, *, room: float, stack: Stack
) -> tuple[int, str]:
    """Return the largest batch that memory and the time between tokens allow, and which of them."""
    by_memory = int(room / ((load.prompt_tokens + load.output_tokens) * model.kv_bytes))
    most, limit = min((by_memory, "memory of the KV cache"), (_LARGEST_BATCH, "engine.max_num_seqs"))

    def too_slow(batch: int) -> bool:
        # Prompts of the other sequences are computed between two tokens.
        seconds = request_s(model, device, devices, load, batch=batch, stack=stack) * batch / load.output_tokens
        return seconds * 1000 > load.inter_token_ms

    if too_slow(1):
        least = 1000 * request_s(model, device, devices, load, batch=1, stack=stack) / load.output_tokens
        raise CapacityError(
            f"inter_token_ms must be at least {least:.1f} for {model.name} on {devices} {device.name}, got "
            f"{load.inter_token_ms:g}"
        )
    if not too_slow(most):
        return most, limit
    fast, slow = 1, most
    while slow - fast > 1:
        middle = (fast + slow) // 2
        fast, slow = (fast, middle) if too_slow(middle) else (middle, slow)
    return fast, "time between tokens"
