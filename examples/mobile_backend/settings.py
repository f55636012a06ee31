"""Settings: secrets and addresses from the environment, plans from a TOML file.

DEL_URL       the DEL server
DEL_API_KEY   the backend's key there (optional)
REDIS_URL     Redis 7 or newer, with `appendonly yes` and `appendfsync always`
BACKEND_KEY   64 hexadecimal digits. Chats are encrypted and users are named in Redis and in
              logs with keys derived from it: with another one, chats and budgets begin anew
PLANS         the file of plans; plans.toml beside this module unless set
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client_lib import Timeout

_TIMEOUT = Timeout(connect=5.0, read=30.0, total=120.0)
_PLANS = Path(__file__).with_name("plans.toml")


class SettingsError(ValueError):
    """A setting is missing or wrong; the message names it, what was found and what is allowed."""


class Plan(BaseModel):
    """What the users of a plan get; see plans.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str = Field(min_length=1)
    max_epsilon_per_token: float = Field(gt=0, allow_inf_nan=False)
    tokens: int = Field(ge=1, le=1_000_000)
    window_hours: float = Field(default=24, ge=1, le=24 * 366)
    answer_tokens: int = Field(default=64, ge=1, le=4096)
    messages_per_minute: float = Field(default=10, gt=0, le=6000)
    burst: int = Field(default=5, ge=1, le=1000)
    instructions: str = ""

    @property
    def window(self) -> timedelta:
        """How long a private token counts."""
        return timedelta(hours=self.window_hours)


@dataclass(frozen=True)
class Settings:
    """All settings. Times are in seconds."""

    server: str
    redis: str
    key: bytes = field(repr=False)
    plans: Mapping[str, Plan]
    api_key: str | None = field(default=None, repr=False)
    timeout: Timeout = _TIMEOUT
    """Limits for the DEL server; ``connect`` also for Redis, and for the check of the server."""
    silence: float = 15.0
    """A message whose process says nothing for so long has lost its turn."""
    most_answers: int = 200
    """Messages that one process works on; more are refused with 503."""
    most_waiting: int = 5
    """Messages of one chat that wait or are answered; more are refused with 429."""
    drain: float = 20.0
    """After SIGTERM, answers have this long to end by themselves."""

    def derived(self, purpose: str, *names: str) -> bytes:
        """Return 32 bytes for a purpose and names, of which nobody can compute the names."""
        parts = [purpose.encode(), *(name.encode() for name in names)]
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.new(self.key, text, hashlib.sha256).digest()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the variables above. Raises ``SettingsError``."""
        for name in ("DEL_URL", "REDIS_URL", "BACKEND_KEY"):
            if not environment.get(name):
                raise SettingsError(f"{name}: must be set, see {Path(__file__).name}")
        key = environment["BACKEND_KEY"].strip()
        if not re.fullmatch("[0-9a-fA-F]{64}", key):
            raise SettingsError(f"BACKEND_KEY: must be 64 hexadecimal digits, got {len(key)} characters")
        return cls(
            server=environment["DEL_URL"],
            redis=environment["REDIS_URL"],
            key=bytes.fromhex(key),
            plans=read_plans(Path(environment.get("PLANS") or _PLANS)),
            api_key=environment.get("DEL_API_KEY") or None,
        )


def read_plans(path: Path) -> dict[str, Plan]:
    """Read the file of plans. Raises ``SettingsError``."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: must be a readable TOML file: {error}") from None
    if not found:
        raise SettingsError(f"{path}: must have at least one plan, such as [free]")
    plans = {}
    for name, fields in found.items():
        if not re.fullmatch("[a-z0-9_-]{1,40}", name):
            raise SettingsError(f"{path}: a plan's name must be 1 to 40 of a-z 0-9 _ -, got {name!r}")
        try:
            plans[name] = Plan.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (name, *first["loc"])))
            raise SettingsError(f"{path}: {place}: {first['msg']}, got {first['input']!r}") from None
    return plans
