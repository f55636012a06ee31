"""A completion call as the caller made it, and the request that every try of it sends."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from client_lib._validation import invalid
from client_lib.options import RequestOptions, SamplingOptions, check_names
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.span_memory import Recall
from client_lib.prompts.spans import Prompt
from client_lib.prompts.types import EncodedPrompt
from client_lib.protocol.retry import InternalErrors
from client_lib.types import Completion, Usage
from del_core.wire import Sampling

_KEY = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """The arguments of ``complete`` or ``stream``, not yet checked.

    ``fresh`` asks for new noise for a prompt that was sent before.
    """

    prompt: Prompt | EncodedPrompt = field(repr=False)
    variant: str
    options: RequestOptions = field(repr=False)
    recall: Recall | None = None
    fresh: bool = False


@dataclass(slots=True, repr=False)
class CompletionRequest:
    """A checked request. Its encoder may be replaced during the call, its counts never.

    ``public_prompt`` is kept only without private spans: it may be encoded again at no cost.
    """

    encoder: Encoder
    encoded: EncodedPrompt
    sampling: Sampling
    public_prompt: Prompt | None
    key: str
    frame: bytes = b""
    internal_errors: InternalErrors = field(default_factory=InternalErrors)

    def build(self) -> None:
        """Build the frame that every try sends. Raises as ``Encoder.frame``."""
        self.frame = self.encoder.frame(self.encoded, self.sampling)

    def completion(
        self, text: str, token_ids: tuple[int, ...], finish_reason: str, usage: Usage | None, request_id: str | None
    ) -> Completion:
        """Return the result; the client counts the tokens for a server that reports no usage."""
        prompt, generated = self.encoded.tokens, len(token_ids)
        usage = usage or Usage(prompt, generated, prompt + generated)
        return Completion(text, token_ids, finish_reason, usage, request_id, self.encoded.variant, len(self.frame))


def sampling_from(options: RequestOptions, *, stream: bool) -> Sampling:
    """Return the wire format's sampling values; building the frame checks their bounds."""
    fields = {name: value for name, value in options.items() if name != "idempotency_key"}
    check_names("sampling field", fields, SamplingOptions)
    stop = fields.get("stop")
    fields["stop"] = () if stop is None else (stop,) if isinstance(stop, str) else stop
    for name in ("stop", "stop_token_ids"):
        value = fields.get(name, ())
        if not isinstance(value, list | tuple):
            raise invalid(name, "a list", f"a {type(value).__name__}")
        fields[name] = tuple(value)
    return Sampling(**fields, stream=stream)  # type: ignore[arg-type]


def check_idempotency_key(key: str | None) -> str:
    """Return the caller's key, or a random one, which says nothing about the prompt."""
    given: object = key
    if given is None:
        return secrets.token_hex(16)
    if not (isinstance(given, str) and _KEY.fullmatch(given)):
        wanted = "1 to 200 printable ASCII characters without spaces, or None"
        raise invalid("idempotency_key", wanted, "something else")
    return given
