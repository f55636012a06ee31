"""The configuration of the application: typed, validated, and refused by the name of the field where it is wrong.

The same fields come from a YAML file (:func:`load_settings`) or from Serve's ``args``. Defaults suit a laptop;
docs/reference/configuration.md lists every field with what suits a GPU cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from del_core.errors import DelError

__all__ = [
    "DEMO",
    "EngineSettings",
    "HTTPSettings",
    "KeySettings",
    "KeysSettings",
    "QuotaSettings",
    "ScalingSettings",
    "Settings",
    "SettingsError",
    "StreamingSettings",
    "TelemetrySettings",
    "load_settings",
    "parse_keys",
    "parse_settings",
    "place_settings",
    "problem_text",
    "read_yaml",
]

DEMO = "demo"
"""In place of a directory, names the model or bundle that ships with the package."""


class SettingsError(DelError):
    """A configuration is malformed; the message names every field at fault and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StandInSettings(_Section):
    """The pace of a model that is not there. The defaults are derived from data sheets, not measured
    (docs/guides/scaling.md):
    a model of 8 billion parameters in 16 bits on one H100."""

    step_ms: float = Field(default=7.0, gt=0, le=10_000)
    """A step of the engine for one request."""
    step_ms_per_request: float = Field(default=0.03, ge=0, le=1000)
    """What each running request adds to a step."""
    prompt_token_ms: float = Field(default=0.035, ge=0, le=1000)
    """What each token of a prompt that joins adds to a step."""
    quantum_ms: float = Field(default=50.0, gt=0, le=1000)
    """Steps are taken together up to this long; a stream's events wait about as long for tokens."""


class EngineSettings(_Section):
    """The language-model engine of one replica (vLLM)."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the model; "auto" is the type of its weights."""
    max_model_len: int | None = Field(default=None, ge=64)
    """Soft prompt, prompt and generated tokens of one request together; the model's own limit if null."""
    block_size: Literal[16, 32] = 32
    """Tokens in a block of the KV cache. It divides the soft prompts' lengths, so that they are computed once."""
    kv_cache_memory_bytes: int | None = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Size of the KV cache; if null, what ``gpu_memory_utilization`` leaves."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the device's memory that the engine may use when ``kv_cache_memory_bytes`` is null."""
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    """Requests that one step of the engine computes together; more wait inside the engine."""
    max_num_batched_tokens: int | None = Field(default=None, ge=64)
    """Tokens that one step computes at most; vLLM's own choice if null."""
    enforce_eager: bool = True
    """Skip compilation and graph capture: a quick start and little memory, but slower steps on a GPU."""
    prefix_caching: bool = True
    """Keep the keys and values of prompts' beginnings, above all of the soft prompts."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share one model."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of the numerical libraries in each process of a replica (OMP_NUM_THREADS)."""
    quick_start: bool = True
    """On CPUs with one thread: import vLLM once for both of a replica's processes, which halves the start."""
    stand_in: StandInSettings | None = None
    """In place of a model, a clock that hands out tokens without meaning at a model's pace: for load tests only."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """What vLLM logs. It never logs prompts; DEBUG and INFO are for finding faults at its start."""


class HTTPSettings(_Section):
    """The HTTP surface."""

    max_frame_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=1024**3)
    """Largest request body accepted."""
    body_timeout_s: float = Field(default=30, gt=0, le=3600)
    """How long a request's body may take to arrive."""
    write_timeout_s: float = Field(default=30, gt=0, le=3600)
    """How long a client may take to read one event of a stream before it is given up."""


class KeySettings(_Section):
    """What is known of one name's API keys."""

    hashes: tuple[Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")], ...] = Field(min_length=1, max_length=16)
    """SHA-256 of each key that is valid (``delctl keys new`` prints it); several while keys are exchanged."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests in a minute, all replicas together; no limit if null."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt tokens and ``max_tokens`` in a minute, all replicas together; no limit if null."""


KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class KeysSettings(_Section):
    """Who may call."""

    file: str | None = None
    """YAML file of names and their hashes and limits; looked at again every second."""
    names: dict[KeyName, KeySettings] = Field(default_factory=dict)
    """The same in place. Serve exchanges them in running replicas when nothing else has changed."""
    open: bool | None = None
    """Without keys: whether everyone who can reach the server may call. If null, only a server on loopback is open."""

    @model_validator(mode="after")
    def _one_source(self) -> KeysSettings:
        given = [self.file is not None, bool(self.names), self.open is True]
        if sum(given) > 1:
            raise ValueError("file, names and open: true exclude each other")
        return self

    @property
    def given(self) -> bool:
        """Whether a request needs a key."""
        return self.file is not None or bool(self.names)

    def check(self, *, loopback: bool) -> None:
        """Raise SettingsError if nobody has decided who may call and others than this machine could."""
        if not (self.given or self.open or (loopback and self.open is None)):
            raise SettingsError(
                "keys: no API keys are given; keys.file or keys.names, or keys.open: true to let everyone call who can "
                "reach the server, is required unless it listens on loopback only"
            )


class QuotaSettings(_Section):
    """The quotas of API keys."""

    fail_open: bool = False
    """What becomes of requests of keys with limits while the book of quotas does not answer: true lets them through,
    false answers 503."""


class StreamingSettings(_Section):
    """How tokens of a stream are gathered into server-sent events; the first ones are sent at once."""

    max_tokens: int = Field(default=16, ge=1, le=4096)
    """An event is written as soon as this many tokens wait."""
    max_delay_s: float = Field(default=0.05, ge=0, le=10)
    """An event is written once a token has waited this long."""


class TelemetrySettings(_Section):
    """What a replica tells of itself; nothing of it derives from a prompt (docs/guides/observability.md)."""

    metrics: bool = True
    """Prometheus metrics through Ray."""
    request_log: bool = False
    """A line in the replica's log for each completion: id, variant, code, sizes, times."""
    log_format: Literal["json", "text"] = "json"
    """How the replica's log is written."""
    traces: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    """URL to which OpenTelemetry traces are sent (OTLP over HTTP); none are made if null."""
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that is traced, unless the caller's own trace decides."""


class ScalingSettings(_Section):
    """Replicas, and how their number follows the load (Ray Serve's autoscaler)."""

    min_replicas: int = Field(default=1, ge=0)
    """Replicas that are kept without load."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas at most."""
    target_ongoing_requests: float = Field(default=32, gt=0)
    """Requests in flight per replica that the autoscaler aims at: about half of ``engine.max_num_seqs``."""
    target_outstanding_tokens: int | None = Field(default=4096, ge=1)
    """Tokens that a replica has promised (``max_tokens``) and not yet generated, at which the autoscaler aims too; what
    asks for more replicas decides. If null, requests alone count."""
    max_ongoing_requests: int = Field(default=96, ge=1)
    """Requests that one replica accepts at once, the engine's queue included; more are answered 503 at once."""
    upscale_delay_s: float = Field(default=2, ge=0)
    """How long there has to be too much load before replicas are added."""
    downscale_delay_s: float = Field(default=60, ge=0)
    """How long there has to be too little before some are taken away."""
    look_back_period_s: float = Field(default=2, gt=0)
    """Load is averaged over this period; longer than ``metrics_interval_s``."""
    metrics_interval_s: float = Field(default=0.5, gt=0)
    """How often load is measured."""
    health_check_period_s: float = Field(default=1, gt=0)
    """How often a replica is asked whether its engine works. After three failures it is replaced."""
    health_check_timeout_s: float = Field(default=30, gt=0)
    """How long the answer may take."""
    graceful_shutdown_timeout_s: float = Field(default=60, ge=0)
    """How long requests in flight may go on when a replica is taken away."""
    max_surge_percent: int = Field(default=20, ge=0, le=100)
    """Replicas that may run beyond their number while replicas are replaced for new settings, rounded up. With 0, old
    ones are taken away before new ones come."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs that Ray sets aside for one replica: scheduling only, nothing is pinned."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs that Ray sets aside for one replica."""

    @model_validator(mode="after")
    def _ordered(self) -> ScalingSettings:
        if self.max_replicas < max(1, self.min_replicas):
            raise ValueError(f"max_replicas is {self.max_replicas}; at least min_replicas = {self.min_replicas}")
        if self.look_back_period_s <= self.metrics_interval_s:
            raise ValueError(
                f"look_back_period_s is {self.look_back_period_s}; more than metrics_interval_s = "
                f"{self.metrics_interval_s} is allowed"
            )
        return self


class Settings(_Section):
    """The whole configuration of the application."""

    bundle: str = DEMO
    """Directory of the bundle, or "demo" for the one that ships with the package."""
    also: tuple[str, ...] = Field(default=(), max_length=8)
    """Directories of other bundles for the same base model whose frames are taken too, while bundles are exchanged."""
    base_model: str | None = None
    """Directory of the base model in Hugging Face layout, or "demo"; null means the demo model for the demo bundle."""
    engine: EngineSettings = EngineSettings()
    http: HTTPSettings = HTTPSettings()
    keys: KeysSettings = KeysSettings()
    quotas: QuotaSettings = QuotaSettings()
    streaming: StreamingSettings = StreamingSettings()
    scaling: ScalingSettings = ScalingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _complete(self) -> Settings:
        if self.base_model is None and self.bundle != DEMO:
            raise ValueError(f"base_model is null; with the bundle {self.bundle} its base model's directory is needed")
        return self

    @property
    def bundle_path(self) -> Path:
        """Directory of the bundle."""
        if self.bundle == DEMO:
            from del_core import demo

            return demo.bundle_path()
        return Path(self.bundle)

    @property
    def also_paths(self) -> tuple[Path, ...]:
        """Directories of the other bundles."""
        return tuple(Path(one) for one in self.also)

    @property
    def base_model_path(self) -> Path:
        """Directory of the base model."""
        if self.base_model is None or self.base_model == DEMO:
            from del_core import demo

            return demo.model_path()
        return Path(self.base_model)


def parse_keys(values: Mapping[str, Any]) -> dict[str, KeySettings]:
    """The keys of these names. Raises pydantic's ValidationError."""
    return _KEYS.validate_python(dict(values))


_KEYS = TypeAdapter(dict[KeyName, KeySettings])


def problem_text(problem: Mapping[str, Any], where: str, *, shown: bool) -> str:
    """One of a ValidationError's problems: the field, its value if that may be ``shown``, and what is allowed."""
    given = f"is {problem['input']!r}; " if shown else ""
    return f"{where}: {given}{problem['msg']}"


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """The settings that these values describe. Raises SettingsError."""
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"]) or "settings"
            # A key put in place of its hash is not repeated.
            shown = "hashes" not in problem["loc"] and isinstance(problem["input"], str | int | float | bool)
            problems.append(problem_text(problem, where, shown=shown))
        raise SettingsError("; ".join(problems)) from None


def load_settings(path: str | Path) -> Settings:
    """The settings in a YAML file; relative directories in it are relative to the file. Raises SettingsError."""
    path = Path(path)
    return place_settings(read_yaml(path), path.parent, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields in a YAML file. Raises SettingsError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{where}: is not YAML") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: is a {type(values).__name__}; a mapping of fields is allowed")
    return values


def place_settings(values: Mapping[str, Any], directory: Path, source: str) -> Settings:
    """The settings that these values describe, relative directories taken from ``directory``.

    Raises SettingsError, whose message begins with ``source``.
    """
    values = dict(values)
    for name in ("bundle", "base_model"):
        value = values.get(name)
        if isinstance(value, str) and value != DEMO:
            values[name] = str((directory / value).resolve())
    if isinstance(values.get("also"), list):
        values["also"] = [str((directory / one).resolve()) if isinstance(one, str) else one for one in values["also"]]
    keys = values.get("keys")
    if isinstance(keys, dict) and isinstance(keys.get("file"), str):
        values["keys"] = {**keys, "file": str((directory / keys["file"]).resolve())}
    try:
        return parse_settings(values)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from None
