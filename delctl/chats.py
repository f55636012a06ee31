"""What the commands that chat share: options, messages, and spans as a person reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.options import DELTA, grouped
from delctl.terminal import console, printable

if TYPE_CHECKING:
    from client_lib import ChatTemplate, Client, Draw, Message, Span
    from del_core.bundle import Variant
    from del_core.mechanism import TokenMechanism
    from del_core.mechanism.base import Level


@dataclass(frozen=True)
class ChatOptions:
    """How a chat begins and is written."""

    system: str | None
    public_system: bool
    chat_template: Path | None

    def opening(self) -> list[Message]:
        """Return the system message, if there is one."""
        from client_lib import Message, private, public

        if self.public_system and self.system is None:
            raise click.UsageError("--public-system needs --system")
        if not self.system:
            return []
        return [Message("system", (public if self.public_system else private)(self.system))]

    def template(self) -> ChatTemplate | None:
        """Return the template of the option, checked; None for the bundle's."""
        from client_lib import ChatTemplate

        if self.chat_template is None:
            return None
        made = ChatTemplate.from_tokenizer_config(self.chat_template)
        made.check()
        return made


chat_options = grouped(
    "chat",
    ChatOptions,
    click.option("--system", metavar="TEXT", help="System message of a chat; private unless --public-system."),
    click.option("--public-system", is_flag=True, help="Send the system message in the clear."),
    click.option(
        "--chat-template",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="A model's tokenizer_config.json, for its chat template.  [default: the bundle's]",
    ),
)


def show_spans(spans: Sequence[Span], *, stderr: bool = False) -> None:
    """Show what of a prompt is sent in the clear and what as counts, a span a line."""
    out = console(stderr=stderr)
    for span in spans:
        word = "private" if span.is_private else "public"
        text = printable(json.dumps(span.text, ensure_ascii=False))
        out.print(f"{word:8}{text}", style="bold" if span.is_private else "dim", soft_wrap=True)


def least_epsilon(client: Client, variants: Sequence[Variant]) -> str:
    """Return the name of the variant with the least epsilon a token."""
    return min((one.name for one in variants), key=lambda name: client.epsilon(name, delta=DELTA))


@dataclass
class Spent:
    """A ledger of one process without a limit: what the prompts of a chat have cost together."""

    _charged: set[bytes] = field(default_factory=set)
    _amounts: dict[Level, int] = field(default_factory=dict)
    tokens: int = 0

    def spend(self, subject: str, mechanism: TokenMechanism, draws: Sequence[Draw]) -> None:
        """Charge each draw once, whoever the subject is."""
        new = {draw.id: draw.tokens for draw in draws if draw.id not in self._charged}
        self._charged |= new.keys()
        if new:
            level, amount = mechanism.charge(sum(new.values()))
            self._amounts[level] = self._amounts.get(level, 0) + amount
            self.tokens += sum(new.values())

    def epsilon(self) -> float:
        """Return the epsilon of everything together at the default delta."""
        from del_core.accounting.composition import Composition

        if not self._amounts:
            return 0.0
        return Composition.from_amounts(self._amounts.items()).epsilon(DELTA)
