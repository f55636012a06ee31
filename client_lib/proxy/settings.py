"""The settings of the proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from client_lib._validation import check_integer, check_key, invalid
from client_lib.prompts.chat import ChatTemplate
from client_lib.prompts.detectors import load_detectors
from client_lib.prompts.spans import Span

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Settings of the proxy besides its client. Raises :class:`client_lib.InvalidRequestError`.

    Args:
        variants: the variants offered as models; None offers all variants of the bundle. ``clear``,
            which sends prompts unprotected, must be named to be offered.
        aliases: further model names, with the variant of each.
        default_variant: the variant of every other model name; None refuses such names.
        strict_fields: refuse fields of a request that have no effect, instead of ignoring them.
        client_key: the API key that callers must send; None requires none.
        subject: the subject of prompts whose request names none.
        allow_origins: origins of web pages that may use the proxy, such as ``https://app.example``.
        template: a chat template; None takes the bundle's, or writes role names before the messages
            if the bundle has none.
        private: what is private of what people wrote: "all" of it; for "user", system and developer
            messages are not; for "pii", only what the detectors of :mod:`client_lib.prompts.detect`
            find, and the rest goes out in the clear.
        detectors: for "pii", detectors of :mod:`client_lib.prompts.detectors` that search, too.
        surrogates: for "pii", put a placeholder such as ``[EMAIL_1]`` before what is found, and put
            the value in its place in answers (:mod:`client_lib.prompts.surrogates`). The server
            learns the kind of each value, and where it stands again.
        public_system: send system and developer messages as public text.
        private_tools: hide the definitions of tools, too.
        tool_choice: what it means that a request leaves the choice of tools to the model
            (``tool_choice`` is ``auto`` or absent). "auto": the model chooses; "first": it must
            call a tool until one has answered the last user message.
        private_answers: hide the server's own answers from it, too. Otherwise an assistant message
            that the server wrote at this place of the chat is public.
        trim_history: leave the oldest turns out of a chat that the server's context does not hold;
            otherwise such a chat is refused.
        chat_max_tokens: the length of an answer if a chat request names none, in tokens.
        max_body_bytes: the largest request body.
        remember_bytes: memory for the counts of past prompts, for reuse.
        keep_alive_s: seconds without an event after which a comment is sent, so that no relay takes
            the connection for idle.
        show: called with the spans of every prompt before it is sent, to show them to the user.
            They are the prompt in the clear: they must not be kept.
        loopback_hosts: refuse requests whose Host header is no loopback address (DNS rebinding).
    """

    variants: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_variant: str | None = None
    strict_fields: bool = False
    client_key: str | None = field(default=None, repr=False)
    subject: str | None = field(default=None, repr=False)
    allow_origins: tuple[str, ...] = ()
    template: ChatTemplate | None = None
    private: Literal["all", "user", "pii"] = "all"
    detectors: tuple[str, ...] = ()
    surrogates: bool = False
    public_system: bool = False
    private_tools: bool = False
    tool_choice: Literal["auto", "first"] = "auto"
    private_answers: bool = False
    trim_history: bool = True
    chat_max_tokens: int = 1024
    max_body_bytes: int = 1 << 20
    remember_bytes: int = 64 << 20
    show: Callable[[Sequence[Span]], None] | None = field(default=None, repr=False)
    loopback_hosts: bool = False
    keep_alive_s: float = 3.0

    def __post_init__(self) -> None:
        check_integer("chat_max_tokens", self.chat_max_tokens, 1, 131_072)
        check_integer("max_body_bytes", self.max_body_bytes, 1, 1 << 30)
        check_integer("remember_bytes", self.remember_bytes, 0, 1 << 40)
        if not 0 < self.keep_alive_s <= 3600:
            raise invalid("keep_alive_s", "above 0 and at most 3600", str(self.keep_alive_s))
        check_key("client_key", self.client_key)
        for origin in self.allow_origins:
            if origin == "*" and self.client_key is None:
                raise invalid("allow_origins", "named origins, unless a client_key is set", "'*'")
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise invalid("allow_origins", "scheme://host[:port] without a path", repr(origin))
        if self.private not in ("all", "user", "pii"):
            raise invalid("private", "all, user or pii", repr(self.private))
        if self.tool_choice not in ("auto", "first"):
            raise invalid("tool_choice", "auto or first", repr(self.tool_choice))
        if self.detectors and self.private != "pii":
            raise invalid("detectors", "given with private='pii' only", ", ".join(self.detectors))
        if self.surrogates and self.private != "pii":
            raise invalid("surrogates", "given with private='pii' only", f"private={self.private!r}")
        load_detectors(self.detectors)  # now, so that a package that is missing is said at the start
        if self.subject == "":
            raise invalid("subject", "a non-empty string or None", "an empty string")
        if self.variants is not None and not self.variants:
            raise invalid("variants", "at least one variant, or None for all of the bundle's", "none")
