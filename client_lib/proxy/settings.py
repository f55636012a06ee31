"""What a proxy may be told besides the client that it sends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from client_lib._validation import check_integer, invalid
from client_lib.prompts.chat import ChatTemplate

__all__ = ["ProxySettings"]


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Settings of the proxy; raises :class:`client_lib.InvalidRequest` that names the setting.

    ``variants``: the variants offered as models; None offers every variant of the bundle, and never ``clear``, which
    sends prompts unprotected and has to be named to be offered. ``aliases``: further names of models, such as one that
    an application has built in, and the variant each of them stands for. ``client_key``: what callers must send as
    their API key; None asks for none. ``subject``: who a prompt is about where the request does not say.
    ``template``: the model's chat template; None writes the names of the roles before the messages.
    ``public_system``: send system and developer messages as public text. ``chat_max_tokens``: the length of an answer
    where a chat request names none, in tokens. ``max_body_bytes``: the largest body of a request. ``remember_bytes``:
    how much memory the counts of past prompts may take, for reuse. ``loopback_hosts``: accept only requests whose Host
    header names this machine, so that no web page can reach the proxy through a name of its own.
    """

    variants: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    client_key: str | None = field(default=None, repr=False)
    subject: str | None = field(default=None, repr=False)
    template: ChatTemplate | None = None
    public_system: bool = False
    chat_max_tokens: int = 128
    max_body_bytes: int = 1 << 20
    remember_bytes: int = 64 << 20
    loopback_hosts: bool = False

    def __post_init__(self) -> None:
        check_integer("chat_max_tokens", self.chat_max_tokens, 1, 131_072)
        check_integer("max_body_bytes", self.max_body_bytes, 1, 1 << 30)
        check_integer("remember_bytes", self.remember_bytes, 0, 1 << 40)
        if self.client_key is not None and not (
            self.client_key and self.client_key.isascii() and self.client_key.isprintable()
        ):
            raise invalid("client_key", "not printable ASCII", "a non-empty ASCII string, or None")
        if self.subject == "":
            raise invalid("subject", "empty", "a non-empty string, or None")
        if self.variants is not None and not self.variants:
            raise invalid("variants", "empty", "at least one variant, or None for all of the bundle's")
