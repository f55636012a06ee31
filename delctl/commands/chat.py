"""``delctl chat``: a private conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from delctl.chats import ChatOptions, Spent, chat_options, least_epsilon, show_spans
from delctl.options import (
    DELTA,
    TOP_P,
    TrustOptions,
    api_key_option,
    bundle_option,
    max_epsilon_option,
    sampling_options,
    trust_options,
    upstream_option,
    url_option,
)
from delctl.reaching import SayRetries, hint_at_start
from delctl.terminal import console, printable

if TYPE_CHECKING:
    from client_lib import ChatTemplate, Client, Message, Span

_YOU = "you> "
_SUBJECT = "chat"  # of the ledger of this process


@click.command()
@click.option(
    "--variant", help="Privacy level: one of the server's variants, or clear.  [default: the most private for chat]"
)
@url_option
@api_key_option
@bundle_option
@upstream_option
@trust_options
@max_epsilon_option
@chat_options
@sampling_options(max_tokens=256, temperature=0.7)
@click.option("--top-p", type=TOP_P, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Makes the generation (never the noise) repeatable.")
@click.option("--quiet", is_flag=True, help="Nothing but the answers.")
def chat(
    variant: str | None,
    url: str,
    api_key: str | None,
    bundle: Path | None,
    upstream: str,
    trust: TrustOptions,
    max_epsilon_per_token: float,
    chat: ChatOptions,
    quiet: bool,
    **sampling: Any,
) -> None:
    """Chat with the model; what you write is private.

    Earlier messages are sent with the same noise in every turn, so they cost privacy once. Nothing
    is kept after the end, and nothing is written to a file unless /save asks for it. Ctrl-C stops
    an answer, or ends the chat. Without a terminal every line of standard input is a message.
    """
    from client_lib import Client, PrivacyPolicy

    opening, template, spent = chat.opening(), chat.template(), Spent()
    options = trust.client_options(
        api_key=api_key,
        bundle=bundle,
        upstream=upstream,
        max_retries=4,
        policy=PrivacyPolicy(max_epsilon_per_token=max_epsilon_per_token),
        telemetry=SayRetries(url),
        ledger=spent,
        subject=_SUBJECT,
    )
    with hint_at_start(url), Client(url, **options) as client:
        _Chat(client, opening, template, spent, sampling, quiet=quiet).run(variant)


class _Chat:
    """A chat at the terminal. The history is in memory only."""

    def __init__(
        self,
        client: Client,
        opening: list[Message],
        template: ChatTemplate | None,
        spent: Spent,
        sampling: dict[str, Any],
        *,
        quiet: bool,
    ) -> None:
        self._client = client
        self._opening = opening
        self._template = template
        self._spent = spent
        self._sampling = sampling
        self._out = console(quiet=quiet)
        self._ended = False
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/help": ("show these commands", self._help),
            "/variant": (
                "NAME: go on under another privacy level, in a new chat; without NAME: show them",
                self._switch,
            ),
            "/spans": ("show what of the chat is sent in the clear and what as noisy counts", self._spans),
            "/new": ("forget the chat and begin a new one", lambda _: self._begin(self._variant)),
            "/save": ("FILE: write the chat as JSON, readable by you only", self._save),
            "/quit": ("end; so does Ctrl-D", self._quit),
        }

    def run(self, variant: str | None) -> None:
        """Chat until the end of the input. Raises what would fail for every message."""
        from client_lib.prompts.spans import CLEAR
        from del_core.bundle import for_chat

        known = self._client.variants()
        if variant is None:
            variant = least_epsilon(self._client, for_chat(known.values()))
        self._begin(variant)
        # A bundle without a template, or another reason, is found before anybody has written.
        from client_lib import Message

        self._spans_of([*self._opening, Message("user", "a")])
        hidden = "" if variant == CLEAR else "Your messages are private. "
        self._say(f"{hidden}The template, the roles and the model's answers are public.")
        self._out.print("/help shows the commands.\n", style="dim")
        while not self._ended:
            line = self._read()
            if line is None:
                break
            name, _, rest = line.partition(" ")
            if not line:
                continue
            if name.startswith("/"):
                if name in self._commands:
                    self._commands[name][1](rest.strip())
                else:
                    self._say(f"{name} is no command; /help shows them, and a space in front makes it a message")
            else:
                self._answer(line)

    def _read(self) -> str | None:
        """Return the next line without white space at its end, or None at the end."""
        if not sys.stdin.isatty():
            line = sys.stdin.readline()
            return line.rstrip() if line else None
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  editing; the history stays in memory
        try:
            return input(_YOU).rstrip()
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()
            raise

    def _begin(self, variant: str) -> None:
        self._conversation = self._client.conversation(variant=variant, template=self._template)
        self._variant = variant
        self._messages = list(self._opening)
        self._say(f"{variant}: {self._cost(variant)}")

    def _cost(self, variant: str) -> str:
        from client_lib.prompts.spans import CLEAR

        if variant == CLEAR:
            return "no protection, messages are sent in the clear"
        return f"epsilon {self._client.epsilon(variant, delta=DELTA):.2f} a private token at delta {DELTA:g}"

    def _say(self, words: str) -> None:
        self._out.print(words, style="dim", soft_wrap=True)

    # --- a turn -----------------------------------------------------------------------------------

    def _answer(self, text: str) -> None:
        from client_lib import DELClientError, Message, public
        from client_lib.errors import ContextFullError
        from client_lib.prompts.spans import CLEAR

        turn, before, dropped = Message("user", text.strip()), self._spent.tokens, 0
        found: tuple[str, str] | None = None
        try:
            while found is None:
                try:
                    found = self._stream([*self._messages, turn])
                except ContextFullError:
                    if not self._drop_oldest():
                        raise
                    dropped += 1
        except DELClientError as error:
            self._out.print(f"delctl: {error}", style="bold red", soft_wrap=True)
            return
        written, reason = found
        # The server wrote it, so it need not be hidden from the server.
        self._messages += [turn, Message("assistant", public(written.strip()))]
        notes = ["sent in the clear"]
        if self._variant != CLEAR:
            notes = [f"{self._spent.tokens - before} private tokens; epsilon {self._spent.epsilon():.2f} so far"]
        notes += [f"the {dropped} oldest turns are left out, as the context is full"] if dropped else []
        notes += {"length": ["cut at --max-tokens"], "stopped": ["stopped"]}.get(reason, [])
        self._say(f"[{'; '.join(notes)}]\n")

    def _stream(self, messages: list[Message]) -> tuple[str, str]:
        """Print the answer as it arrives; return it, and why it ended."""
        written, reason = "", "stopped"
        is_watched = sys.stdout.isatty()
        try:
            with self._conversation.stream(messages, **self._sampling) as chunks:
                for chunk in chunks:
                    piece = chunk.text if written else chunk.text.lstrip()
                    written += piece
                    sys.stdout.write(printable(piece) if is_watched else piece)
                    sys.stdout.flush()
                    reason = chunk.finish_reason or reason
        except KeyboardInterrupt:
            if not written:
                raise
        click.echo()
        return written, reason

    def _drop_oldest(self) -> bool:
        """Leave out the oldest question and its answer; return whether there was one."""
        start = len(self._opening)
        if len(self._messages) <= start:
            return False
        del self._messages[start : start + 2]
        return True

    # --- commands ---------------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        for name, (words, _action) in self._commands.items():
            click.echo(f"{name:9} {words}")

    def _switch(self, name: str) -> None:
        from client_lib.prompts.spans import CLEAR

        known = {**{one.name: one.task for one in self._client.variants().values()}, CLEAR: ""}
        if not name:
            for one, task in known.items():
                mark = "*" if one == self._variant else " "
                click.echo(f"{mark} {printable(one):16} {task:8} {self._cost(one)}")
        elif name in known:
            self._begin(name)
        else:
            self._say(f"variant must be one of {', '.join(known)}, got {name}")

    def _spans(self, _: str) -> None:
        if self._messages:
            show_spans(self._spans_of(self._messages))
        else:
            self._say("nothing has been said yet")

    def _spans_of(self, messages: list[Message]) -> tuple[Span, ...]:
        given = messages if self._template is None else self._template.render(messages, self._variant)
        return self._client.spans(given, variant=self._variant)

    def _save(self, name: str) -> None:
        if not name:
            self._say("/save needs the name of a new file")
            return
        chat = [{"role": one.role, "content": "".join(s.text for s in one.spans(""))} for one in self._messages]
        try:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(chat, file, ensure_ascii=False, indent=2)
        except OSError as error:
            self._say(f"{name}: {error.strerror}")
            return
        self._say(f"{len(chat)} messages are in {name}")

    def _quit(self, _: str) -> None:
        self._ended = True
