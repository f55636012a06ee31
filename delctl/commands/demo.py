"""``delctl demo``: one private prompt under every variant, on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from delctl.guess import Guess, guess_tokens
from delctl.known_models import fetch_model
from delctl.local import PROXY_WORDS, running_server
from delctl.options import DELTA, json_option, sampling_options
from delctl.places import bundle_place, model_place
from delctl.terminal import console, print_json, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from client_lib import ChatTemplate, Chunk, Client, Span
    from del_core.bundle import Bundle
    from deployments.settings import Settings


TINY, SMOLLM2 = "tiny", "smollm2"
# Room for a question and its answer; the KV cache of the defaults holds many of these.
_CONTEXT = 1024


@click.command()
@click.option("--prompt", help="The private prompt.  [default: one that suits the model]")
@sampling_options(max_tokens=64, temperature=0.0)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the generation (never of the noise).")
@click.option(
    "--model",
    metavar=f"{SMOLLM2}|{TINY}|DIRECTORY",
    help=f"{SMOLLM2} is downloaded once (93 MB); {TINY} ships with its bundle; a directory goes with --bundle.  "
    f"[default: {SMOLLM2}]",
)
@click.option("--bundle", type=bundle_place, metavar="DIRECTORY", help="The bundle of the model in a directory.")
@json_option
def demo(prompt: str | None, model: str | None, bundle: Path | None, as_json: bool, **sampling: Any) -> None:
    """Follow a private prompt through every variant.

    Starts a server on loopback, sends the prompt under each variant, shows the server's view and
    the completion beside that of the clear prompt, and stops everything. A model with variants for
    chat answers a question; any other one continues a text.
    """
    from client_lib import Client

    out = console(quiet=as_json)
    subject = _subject(model, bundle, console(stderr=True))
    text = subject.prompt if prompt is None else prompt
    if not text:
        raise click.BadParameter("must be at least one character, got an empty prompt", param_hint="--prompt")
    with (
        running_server(subject.settings) as server,
        tempfile.TemporaryDirectory(prefix="del-demo-") as cache,
        Client(server.url, cache_dir=cache) as client,
    ):
        run = _Run(client, subject, text, sampling, out)
        out.print(
            f"{subject.name} with {len(subject.bundle.variants)} variants is served at {server.url} "
            f"behind {PROXY_WORDS[server.proxy]}."
        )
        clear = run.clear()
        results = [run.variant(name, clear) for name in subject.variants]
    speed = run.tokens_per_second
    if as_json:
        variants = [result.to_json() for result in results]
        report = {
            "prompt": text,
            "model": subject.name,
            "tokens_per_second": round(speed, 1),
            "variants": variants,
            "clear_completion": clear,
        }
        print_json(report)
    else:
        out.print(f"\n{speed:.1f} tokens/s. The server, and everything it had started, is stopped.")


@dataclass(frozen=True)
class Subject:
    """What the demo shows: a bundle on its model, and a prompt for it."""

    bundle: Bundle
    settings: Settings
    prompt: str
    template: ChatTemplate | None  # of a model that answers questions

    @property
    def name(self) -> str:
        """The model's name in the bundle."""
        return self.bundle.manifest.base_model.name

    @property
    def variants(self) -> list[str]:
        """The variants that are shown: those to chat with, if the prompt is a question."""
        from del_core.bundle import for_chat

        found = list(self.bundle.variants.values())
        return [variant.name for variant in (found if self.template is None else for_chat(found))]

    def spans(self, prompt: str, variant: str) -> tuple[Span, ...]:
        """Return the prompt as spans: of a chat, only the template is public."""
        from client_lib.prompts.chat import Message
        from client_lib.prompts.spans import spans_of

        if self.template is None:
            return spans_of(prompt, variant)
        return self.template.render([Message("user", prompt)], variant)


def _subject(model: str | None, bundle: Path | None, notes: Console) -> Subject:
    """Return what the options name. The model smollm2 is downloaded if it is missing."""
    from client_lib.prompts.chat import ChatTemplate
    from del_core import demo as shipped
    from del_core.bundle import CHAT_TASK, load_bundle
    from del_core.lm.known import DownloadError
    from deployments.settings import Settings

    if (bundle is None) != (model in (None, SMOLLM2, TINY)):
        raise click.UsageError("--bundle and --model belong together: a bundle is made for one model")
    if bundle is not None:
        directory = model_place(str(model))
    elif model == TINY:
        bundle, directory = bundle_place(TINY), model_place(TINY)
    else:
        bundle = bundle_place(SMOLLM2)
        try:
            directory = fetch_model(SMOLLM2, notes)
        except DownloadError as error:
            raise click.ClickException(f"{error}. Without a download: delctl demo --model {TINY}") from None
    loaded = load_bundle(bundle)
    template = None if loaded.manifest.chat is None else ChatTemplate.of(loaded.manifest.chat)
    if template is None and any(variant.task == CHAT_TASK for variant in loaded.variants.values()):
        template = ChatTemplate.from_tokenizer_config(directory / "tokenizer_config.json")  # an earlier version's
    engine = {"max_model_len": _CONTEXT} if model in (None, SMOLLM2) else {}
    settings = Settings.model_validate(
        {"bundle": str(bundle.resolve()), "base_model": str(directory.resolve()), "engine": engine}
    )
    return Subject(loaded, settings, shipped.PROMPT if template is None else shipped.QUESTION, template)


@dataclass(frozen=True)
class _Result:
    """The outcome of one variant."""

    name: str
    guess: Guess
    bytes_sent: int
    bytes_fp16_embeddings: int
    epsilon: float
    completion: str

    def to_json(self) -> dict[str, Any]:
        """Return the variant's object for --json."""
        return {
            "name": self.name,
            "server_view": self.guess.marked(),
            "recovered_fraction": self.guess.recovered_fraction,
            "bytes_sent": self.bytes_sent,
            "bytes_fp16_embeddings": self.bytes_fp16_embeddings,
            "epsilon": self.epsilon,
            "delta": DELTA,
            "completion": self.completion,
        }


class _Run:
    """Sends one prompt under each variant, and shows the progress."""

    def __init__(self, client: Client, subject: Subject, prompt: str, sampling: dict[str, Any], out: Console) -> None:
        from tokenizers import Tokenizer

        self._client = client
        self._subject = subject
        self._bundle = subject.bundle
        self._prompt = prompt
        self._sampling = sampling
        self._out = out
        self._tokenizer = Tokenizer.from_file(str(subject.bundle.client.tokenizer_path))
        # As the client tokenizes: one span, without special tokens.
        self._token_ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        self._tokens, self._seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second after the first ones of each answer."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def clear(self) -> str:
        """Show the prompt, and generate from it as public text, under the variant ``clear``."""
        from rich.text import Text

        from client_lib.prompts.spans import CLEAR

        self._out.print(f"\nThe prompt, {len(self._token_ids)} tokens:")
        self._out.print(Text(printable(self._prompt), style="bold"))
        self._out.print()
        spans = self._subject.spans(self._prompt, CLEAR)
        with self._client.stream(spans, variant=CLEAR, **self._sampling) as chunks:
            return self._show_writing(chunks, {})

    def variant(self, name: str, clear: str) -> _Result:
        """Send the prompt as noisy counts; show the server's view and the completion."""
        encoded = self._client.encode(self._subject.spans(self._prompt, name), variant=name)
        # From the counts that the next request carries.
        guess = guess_tokens(self._bundle, name, encoded, self._tokenizer, self._token_ids)
        epsilon = self._client.epsilon(name, delta=DELTA)
        self._show_seen(name, guess, epsilon)
        with self._client.stream(encoded, variant=name, **self._sampling) as chunks:
            completion = self._show_writing(chunks, {"From the clear prompt": clear})
            assert chunks.completion is not None  # the stream has ended without an error
            bytes_sent = chunks.completion.bytes_sent
        embeddings = 2 * len(self._token_ids) * self._bundle.manifest.base_model.hidden_size
        payload = len(self._token_ids) * self._bundle.mechanism(name).row_bytes
        self._out.print(
            f"\nBytes sent: {bytes_sent:,} ({payload:,} of counts); as plain text {len(self._prompt.encode()):,}; "
            f"as fp16 embeddings {embeddings:,}"
        )
        return _Result(name, guess, bytes_sent, embeddings, epsilon, completion)

    def _show_seen(self, name: str, guess: Guess, epsilon: float) -> None:
        self._out.print()
        self._out.rule(f" {name} ", align="left", style="dim")
        strongest = self._bundle.variants[name].strongest_attack
        recovers = ""
        if strongest:
            recovers = (
                f"; the strongest attack that was measured, {strongest['attack']}, "
                f"recovers {strongest['success']:.1%} of the tokens"
            )
        pure = not self._bundle.variants[name].guarantees.delta
        bound = "a token, pure (delta is 0)" if pure else f"a token at delta {DELTA:g}, exact"
        self._out.print(f"epsilon {epsilon:.2f} {bound}{recovers}")
        self._out.print(f"The server's best simple guess, {guess.right} of {guess.tokens} tokens right, in [brackets]:")
        self._out.print(guess.styled())
        self._out.print()

    def _show_writing(self, chunks: Iterable[Chunk], beside: dict[str, str]) -> str:
        """Show text as it arrives, beside finished texts; return the whole text."""
        from rich.live import Live

        heading = "What it writes from that" if beside else "What the server writes from the prompt in the clear"
        text, first = "", 0.0
        # Transient, and printed at the end: without a terminal only the end is written.
        with Live(console=self._out, transient=True) as live:
            for chunk in chunks:
                text += chunk.text
                if first:
                    self._tokens += len(chunk.token_ids)
                first = first or time.perf_counter()
                live.update(_columns({heading: text, **beside}))
        self._seconds += time.perf_counter() - first if first else 0.0
        self._out.print(_columns({heading: text, **beside}))
        return text


def _columns(texts: dict[str, str]) -> Table:
    """Return texts side by side under their headings."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 3, 0, 0), expand=True)
    for _ in texts:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(Text(heading, style="dim") for heading in texts))
    # Without the blank lines that models often generate.
    table.add_row(
        *(Text("\n".join(filter(str.strip, printable(text).strip().splitlines()))) for text in texts.values())
    )
    return table
