"""A completion call as the caller made it, and the request that every try of it sends."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from client_lib._core.effects import Flow
from client_lib._validation import invalid
from client_lib.errors import DELClientError, LedgerUnavailableError
from client_lib.options import LedgerHook, RequestOptions, SamplingOptions, check_names
from client_lib.prompts.chat import PromptOrChat
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.span_memory import Recall
from client_lib.prompts.types import EncodedPrompt
from client_lib.protocol.retry import InternalErrors
from client_lib.protocol.upstream import Upstream
from client_lib.types import Chunk, Completion, Usage
from del_core.wire import Sampling, StructuredOutputs

_KEY = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """The arguments of ``complete`` or ``stream``, not yet checked.

    ``fresh`` asks for new noise for a prompt that was sent before. ``end_token_ids`` end the answer
    beside those of the prompt and of the model.
    """

    prompt: PromptOrChat | EncodedPrompt = field(repr=False)
    variant: str
    options: RequestOptions = field(repr=False)
    recall: Recall | None = None
    fresh: bool = False
    end_token_ids: tuple[int, ...] = ()
    ended: Callable[[str], None] | None = None
    """Called with the text of the whole answer."""


@dataclass(slots=True, repr=False)
class CompletionRequest:
    """A checked request. Its encoder may be replaced during the call, its counts never.

    ``public_prompt`` is kept only without private spans: it may be encoded again at no cost.
    """

    encoder: Encoder
    encoded: EncodedPrompt
    sampling: Sampling
    public_prompt: PromptOrChat | None
    key: str
    upstream: Upstream
    frame: bytes = b""
    internal_errors: InternalErrors = field(default_factory=InternalErrors)

    def build(self) -> None:
        """Build the body that every try sends. Raises as ``Upstream.content``."""
        self.frame = self.upstream.content(self.encoder, self.encoded, self.sampling)

    def spend(self, ledger: LedgerHook | None, subject: str | None) -> None:
        """Record the spending, before anything is sent."""
        draws = self.encoded.draws
        if ledger is None or subject is None or not draws:
            return
        mechanism = self.encoder.bundle.mechanism(self.encoded.variant)
        try:
            ledger.spend(subject, mechanism, draws)
        except DELClientError:
            raise
        except Exception as error:  # a caller's own ledger may raise anything
            raise LedgerUnavailableError(
                f"ledger: {type(error).__name__} while spending; nothing has been sent"
            ) from error

    def completion(self, chunk: Chunk, usage: Usage | None, request_id: str | None) -> Completion:
        """Return the result; the client counts the tokens for a server that reports no usage."""
        prompt, generated = self.encoded.tokens, len(chunk.token_ids)
        assert chunk.finish_reason is not None
        return Completion(
            chunk.text,
            chunk.token_ids,
            chunk.finish_reason,
            usage or Usage(prompt, generated, prompt + generated),
            request_id,
            self.encoded.variant,
            len(self.frame),
            chunk.logprobs,
        )


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
    fields["logit_bias"] = _logit_bias(fields.get("logit_bias"))
    fields["structured_outputs"] = _structure(fields.get("structured_outputs"))
    return Sampling(**fields, stream=stream)  # type: ignore[arg-type]


def _logit_bias(value: object) -> tuple[tuple[int, object], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise invalid("logit_bias", "an object of token ids and numbers", f"a {type(value).__name__}")
    try:
        return tuple((int(token_id), bias) for token_id, bias in value.items())
    except (TypeError, ValueError):
        pass
    raise invalid("logit_bias", "an object of token ids and numbers", "another name")


def _structure(value: object) -> StructuredOutputs | None:
    if value is None:
        return None
    names = tuple(StructuredOutputs.__dataclass_fields__)
    wanted = f"an object with one of {', '.join(names)}"
    if not isinstance(value, Mapping):
        raise invalid("structured_outputs", wanted, f"a {type(value).__name__}")
    given = {name: one for name, one in value.items() if one is not None}
    if len(given) != 1 or not given.keys() <= set(names):
        raise invalid("structured_outputs", wanted, "other members")
    schema, choice = given.get("json"), given.get("choice")
    if schema is not None and not isinstance(schema, str):
        try:
            given["json"] = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            schema = None
        if schema is None:
            raise invalid("structured_outputs.json", "a JSON schema", "something that is no JSON")
    if isinstance(choice, list | tuple):
        given["choice"] = tuple(choice)
    return StructuredOutputs(**given)


def ended_at(sampling: Sampling, token_ids: Sequence[int]) -> Sampling:
    """Return the sampling of an answer that ends at these tokens, too, unless it ignores ends."""
    given = sampling.stop_token_ids
    new = () if sampling.ignore_eos else tuple(one for one in token_ids if one not in given)
    return replace(sampling, stop_token_ids=(*given, *new)) if new else sampling


def noted(made: CompletionCall, flow: Flow[Completion]) -> Flow[Completion]:
    """Tell the caller of a call about its answer."""
    completion = yield from flow
    if made.ended is not None:
        made.ended(completion.text)
    return completion


def check_idempotency_key(key: str | None) -> str:
    """Return the caller's key, or a random one, which says nothing about the prompt."""
    given: object = key
    if given is None:
        return secrets.token_hex(16)
    if not (isinstance(given, str) and _KEY.fullmatch(given)):
        wanted = "1 to 200 printable ASCII characters without spaces, or None"
        raise invalid("idempotency_key", wanted, "something else")
    return given
