"""One request for a completion on its way: its values, checked, and the frame that every try of it sends."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TypedDict

from client_lib._core.retry import InternalErrors
from client_lib._validation import invalid
from client_lib.errors import InvalidRequest
from client_lib.prompts.encoder import EncodedPrompt, Encoder
from client_lib.prompts.spans import Prompt
from client_lib.types import Usage
from del_core.wire import Sampling

__all__ = ["Order", "SamplingOptions", "checked_key", "sampling_from"]

_KEY = re.compile(r"[!-~]{1,200}")


class SamplingOptions(TypedDict, total=False):
    """The sampling fields of a request, with the meaning and bounds that OpenAI completions give them."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: str | list[str] | tuple[str, ...] | None
    stop_token_ids: list[int] | tuple[int, ...]
    ignore_eos: bool


@dataclass(slots=True, repr=False)
class Order:
    """A prompt on its way: the encoder that made it can be exchanged, its counts cannot.

    ``public_prompt`` is kept only if nothing in it is private, so that it can be encoded again at no cost.
    ``key`` names the order: it is the same for all tries of the same bytes.
    """

    encoder: Encoder
    encoded: EncodedPrompt
    sampling: Sampling
    public_prompt: Prompt | None
    key: str
    frame: bytes = b""
    internal_errors: InternalErrors = field(default_factory=InternalErrors)

    def build(self) -> None:
        """Build the frame that every try sends; refuses what the wire format does not allow."""
        self.frame = self.encoder.frame(self.encoded, self.sampling)

    def count(self, token_ids: tuple[int, ...]) -> Usage:
        """The usage as the client knows it, for a server that does not say or that saw only a part."""
        return Usage(self.encoded.tokens, len(token_ids), self.encoded.tokens + len(token_ids))


def sampling_from(options: SamplingOptions, *, stream: bool) -> Sampling:
    """The sampling values of the wire format; their bounds are checked when the frame is built."""
    fields = dict(options)
    unknown = sorted(set(fields) - set(SamplingOptions.__annotations__))
    if unknown:
        raise InvalidRequest(
            f"{unknown[0]}: not a field of a request; allowed: {', '.join(SamplingOptions.__annotations__)}",
            field=unknown[0],
        )
    stop = fields.get("stop")
    fields["stop"] = () if stop is None else (stop,) if isinstance(stop, str) else stop
    for name in ("stop", "stop_token_ids"):
        value = fields.get(name, ())
        if not isinstance(value, list | tuple):
            raise InvalidRequest(f"{name}: a {type(value).__name__}; allowed: a list", field=name)
        fields[name] = tuple(value)
    return Sampling(**fields, stream=stream)  # type: ignore[arg-type]


def checked_key(key: str | None) -> str:
    """A caller's idempotency key, or a random one. It says nothing about the prompt."""
    given: object = key
    if given is None:
        return secrets.token_hex(16)
    if not (isinstance(given, str) and _KEY.fullmatch(given)):
        raise invalid("idempotency_key", "no such key", "1 to 200 printable ASCII characters without spaces, or None")
    return given
