"""Sections of the configuration (docs/reference/configuration.md).

The settings of an engine are defined beside the engine (:mod:`deployments.engines.base`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from del_core.errors import DelError
from del_core.ohttp import GatewayKey, ObliviousError
from del_core.passes import IssuerKey, PassError


class SettingsError(DelError):
    """Malformed configuration; the message names every invalid field and the values it allows."""


class Section(BaseModel):
    """Base class of every section: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class HTTPSettings(Section):
    """Limits of the HTTP API."""

    max_frame_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=1024**3)
    """Largest accepted request body."""
    body_timeout_s: float = Field(default=30, gt=0, le=3600)
    """Time within which a request body must arrive."""
    body_memory_bytes: int = Field(default=128 * 1024 * 1024, ge=1024, le=1024**4)
    """Memory of a replica for bodies that arrive or are parsed, without the first 64 KiB of each.
    It is at least ``max_frame_bytes``; a body that does not fit gets a 503."""
    write_timeout_s: float = Field(default=30, gt=0, le=3600)
    """Time within which a client must read one event of a stream; after it the stream is closed."""


class APIKey(Section):
    """API keys and limits of one name."""

    hashes: tuple[Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")], ...] = Field(min_length=1, max_length=16)
    """SHA-256 of each valid key (printed by ``delctl keys new``); several during a key rotation."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests per minute over all replicas; null means no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt tokens plus ``max_tokens`` per minute over all replicas; null means no limit."""
    passes_per_day: int | None = Field(default=None, ge=1)
    """Passes that the name gets each day (UTC), if the server gives out passes; null means none."""


KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_KEYS = TypeAdapter(dict[KeyName, APIKey])


def parse_keys(values: Mapping[str, Any]) -> dict[str, APIKey]:
    """Validate API keys by name. Raises pydantic's ValidationError."""
    return _KEYS.validate_python(dict(values))


class AuthSettings(Section):
    """Authentication of callers."""

    file: str | None = None
    """YAML file of names with their hashes and limits; checked for changes every second."""
    names: dict[KeyName, APIKey] = Field(default_factory=dict)
    """The same, inline. If nothing else changes, running replicas are updated."""
    open: bool | None = None
    """Without keys: whether any client may call. If null, only a server on loopback is open."""

    @model_validator(mode="after")
    def _one_source(self) -> AuthSettings:
        if sum([self.file is not None, bool(self.names), self.open is True]) > 1:
            raise ValueError("file, names and open: true must not be given together")
        return self

    @property
    def given(self) -> bool:
        """Whether requests need a key."""
        return self.file is not None or bool(self.names)

    def check(self, *, loopback: bool) -> None:
        """Raise SettingsError if authentication is not configured and the server not local."""
        if not (self.given or self.open or (loopback and self.open is None)):
            raise SettingsError(
                "keys.file or keys.names must be given unless the server listens on loopback only; "
                "keys.open: true admits every client that can reach the server"
            )


class QuotaSettings(Section):
    """Quotas of API keys."""

    fail_open: bool = False
    """Whether keys with limits are admitted while the quota actor does not answer; else 503."""


class PaddedStreaming(Section):
    """Answers whose sizes and times tell an observer of the network less; they arrive later."""

    event_bytes: int = Field(default=1024, ge=1024, le=65536)
    """Every event has this size, and an answer that is not streamed a multiple of it. Text that
    does not fit waits for the next event; one piece of text that is larger takes a multiple."""
    interval_s: float = Field(default=0.25, gt=0, le=1)
    """Time from each event to the next, whether or not there is text."""
    events: int = Field(default=16, ge=1, le=1024)
    """The number of events is a multiple of this: the stream ends only then."""


class StreamingSettings(Section):
    """Batching of streamed tokens into server-sent events; the first tokens are sent at once."""

    max_tokens: int = Field(default=16, ge=1, le=4096)
    """An event is sent as soon as this many tokens are pending."""
    max_delay_s: float = Field(default=0.05, ge=0, le=10)
    """An event is sent once a token has been pending for this long."""
    keep_alive_s: float = Field(default=3, gt=0, le=3600)
    """A comment is sent after this time without an event, so that no relay takes the connection for
    idle."""
    padded: PaddedStreaming | None = None
    """Events of one size at a fixed pace, in place of the settings above; null for none."""


class TelemetrySettings(Section):
    """Metrics, logs and traces of a replica; nothing in them derives from a prompt."""

    metrics: bool = True
    """Prometheus metrics through Ray."""
    request_log: bool = False
    """One line in the replica's log for each completion: id, variant, code, sizes, times."""
    log_format: Literal["json", "text"] = "json"
    """Format of the replica's log."""
    traces: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    """URL of the collector of OpenTelemetry traces (OTLP over HTTP); null means no traces."""
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that is traced, unless the caller's own trace decides."""


class GatewaySettings(Section):
    """A gateway of Oblivious HTTP at ``/.well-known/ohttp-gateway``."""

    key_file: str | None = None
    """File of the gateway's private key, as ``delctl keys gateway`` writes it; null serves none."""

    def load(self) -> GatewayKey | None:
        """Return the key, or None. Raises SettingsError."""
        try:
            return None if self.key_file is None else GatewayKey.load(Path(self.key_file))
        except ObliviousError as error:
            raise SettingsError(f"gateway.key_file: {error}") from None


class PassSettings(Section):
    """Passes: blind-signed tokens that pay for a completion without saying whose it is."""

    key_file: str | None = None
    """File of the issuer's private key, as ``delctl keys passes`` writes it, with the record of
    spent passes beside it; null gives out and takes no passes. Needs ``keys``: keys buy passes."""
    former_key_file: str | None = None
    """File of the key before that, whose passes are still taken."""
    tokens: int = Field(default=4096, ge=1)
    """The most tokens, prompt and ``max_tokens`` together, that a pass pays for."""
    required: bool = False
    """Whether API keys buy passes only, so that every completion needs a pass."""

    @model_validator(mode="after")
    def _of_a_key(self) -> PassSettings:
        if self.key_file is None and (self.former_key_file is not None or self.required):
            raise ValueError("key_file must be given with former_key_file or required, got null")
        return self

    def load(self) -> tuple[tuple[IssuerKey, Path], ...]:
        """Return the keys in force and their files, the one that signs first.

        Raises SettingsError.
        """
        paths = [Path(file) for file in (self.key_file, self.former_key_file) if file is not None]
        try:
            return tuple((IssuerKey.load(path), path) for path in paths)
        except PassError as error:
            raise SettingsError(f"passes: {error}") from None


class ScalingSettings(Section):
    """Replicas and autoscaling (Ray Serve)."""

    min_replicas: int = Field(default=1, ge=0)
    """Replicas without load."""
    max_replicas: int = Field(default=1, ge=1)
    """Largest number of replicas."""
    target_ongoing_requests: float = Field(default=32, gt=0)
    """Autoscaling target of requests per replica: about half of ``engine.max_num_seqs``."""
    target_outstanding_tokens: int | None = Field(default=4096, ge=1)
    """Target of the autoscaler for tokens per replica that are promised (``max_tokens``) and not
    yet generated. The larger of both demands decides; null means that only requests count."""
    max_ongoing_requests: int = Field(default=96, ge=1)
    """Requests that one replica accepts at once, queued ones included; others get a 503."""
    upscale_delay_s: float = Field(default=2, ge=0)
    """Time of overload before replicas are added."""
    downscale_delay_s: float = Field(default=60, ge=0)
    """Time of low load before replicas are removed."""
    look_back_period_s: float = Field(default=2, gt=0)
    """Period over which load is averaged; longer than ``metrics_interval_s``."""
    metrics_interval_s: float = Field(default=0.5, gt=0)
    """Interval between two measurements of the load."""
    health_check_period_s: float = Field(default=1, gt=0)
    """Interval between two health checks; a replica is replaced after three failures."""
    health_check_timeout_s: float = Field(default=30, gt=0)
    """Timeout of a health check."""
    graceful_shutdown_timeout_s: float = Field(default=60, ge=0)
    """Time that requests in flight may take when a replica is stopped."""
    max_surge_percent: int = Field(default=20, ge=0, le=100)
    """Additional replicas while replicas are replaced for new settings, rounded up. With 0, an old
    replica stops before its successor starts."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs that Ray reserves for one replica, for scheduling only."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for one replica."""

    @model_validator(mode="after")
    def _ordered(self) -> ScalingSettings:
        if self.max_replicas < max(1, self.min_replicas):
            raise ValueError(
                f"max_replicas must be at least min_replicas = {self.min_replicas}, got {self.max_replicas}"
            )
        if self.look_back_period_s <= self.metrics_interval_s:
            raise ValueError(
                f"look_back_period_s must be greater than metrics_interval_s = {self.metrics_interval_s}, "
                f"got {self.look_back_period_s}"
            )
        return self


def format_validation_error(error: ValidationError, shown: Callable[[Mapping[str, Any]], bool]) -> str:
    """Describe every problem as "field must be ..., got ...", with a value if it is ``shown``."""
    return "; ".join(_format_problem(problem, shown(problem)) for problem in error.errors())


def _format_problem(problem: Mapping[str, Any], shown: bool) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error":  # of our own validators, which name the field
        return ".".join(filter(None, [where, problem["msg"].removeprefix("Value error, ")]))
    if problem["type"] == "extra_forbidden":
        rule = "must be left out: no such field exists"
    elif problem["type"] == "missing":
        rule = "must be given"
    else:
        rule = re.sub(r"^\w+ should ", "must ", problem["msg"])
    got = f", got {problem['input']!r}" if shown else ""
    return f"{where or 'settings'} {rule}{got}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises SettingsError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} must be readable: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path} must be YAML{where}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must be a mapping of fields, got a {type(values).__name__}")
    return values
