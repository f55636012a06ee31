"""``delctl demo``: one private prompt under every variant, on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from delctl.guess import Guess, guess_tokens
from delctl.local import PROXY_WORDS, running_server
from delctl.options import DELTA, json_option, sampling_options
from delctl.places import PLACE, bundle_place, model_place
from delctl.terminal import console, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from client_lib import Client
    from del_core.bundle import Bundle


@click.command()
@click.option("--prompt", help="The private prompt.  [default: one that suits the demo model]")
@sampling_options(max_tokens=48, temperature=0.7)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the generation (never of the noise).")
@click.option("--bundle", type=bundle_place, metavar=PLACE, help="Another bundle than the demo's, with --model.")
@click.option("--model", type=model_place, metavar=PLACE, help="The base model of --bundle.")
@json_option
def demo(prompt: str | None, bundle: Path | None, model: Path | None, as_json: bool, **sampling: Any) -> None:
    """Follow a private prompt through every variant.

    Starts a server on loopback, sends the prompt under each variant, shows the server's view and
    the completion beside that of the clear prompt, and stops everything.
    """
    from client_lib import Client
    from del_core import demo as shipped
    from del_core.bundle import load_bundle
    from deployments.settings import Settings

    if (bundle is None) != (model is None):
        raise click.UsageError("--bundle and --model belong together: a bundle is made for one model")
    text = shipped.PROMPT if prompt is None else prompt
    if not text:
        raise click.BadParameter("must be at least one character, got an empty prompt", param_hint="--prompt")
    bundle, model = bundle or bundle_place("demo"), model or model_place("demo")
    whole = load_bundle(bundle)
    settings = Settings(bundle=str(bundle.resolve()), base_model=str(model.resolve()))
    out = console(quiet=as_json)
    with (
        running_server(settings) as server,
        tempfile.TemporaryDirectory(prefix="del-demo-") as cache,
        Client(server.url, cache_dir=cache) as client,
    ):
        run = _Run(client, whole, text, sampling, out)
        out.print(
            f"A server with {len(whole.variants)} variants runs at {server.url} behind {PROXY_WORDS[server.proxy]}."
        )
        clear = run.clear()
        results = [run.variant(name, clear) for name in whole.variants]
    if as_json:
        variants = [result.to_json() for result in results]
        report = {"prompt": text, "variants": variants, "clear_completion": clear}
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        out.print("\nThe server, and everything it had started, is stopped.")


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

    def __init__(self, client: Client, bundle: Bundle, prompt: str, sampling: dict[str, Any], out: Console) -> None:
        from tokenizers import Tokenizer

        self._client = client
        self._bundle = bundle
        self._prompt = prompt
        self._sampling = sampling
        self._out = out
        self._tokenizer = Tokenizer.from_file(str(bundle.client.tokenizer_path))
        # As the client tokenizes: one span, without special tokens.
        self._token_ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids

    def clear(self) -> str:
        """Show the prompt, and generate from it as public text, under the variant ``clear``."""
        from rich.text import Text

        from client_lib.prompts.spans import CLEAR

        self._out.print(f"\nThe prompt, {len(self._token_ids)} tokens:")
        self._out.print(Text(printable(self._prompt), style="bold"))
        self._out.print()
        with self._client.stream(self._prompt, variant=CLEAR, **self._sampling) as chunks:
            return self._show_writing((chunk.text for chunk in chunks), {})

    def variant(self, name: str, clear: str) -> _Result:
        """Send the prompt as noisy counts; show the server's view and the completion."""
        encoded = self._client.encode(self._prompt, variant=name)
        # From the counts that the next request carries.
        guess = guess_tokens(self._bundle, name, encoded, self._tokenizer, self._token_ids)
        epsilon = self._client.epsilon(name, delta=DELTA)
        self._show_seen(name, guess, epsilon)
        with self._client.stream(encoded, variant=name, **self._sampling) as chunks:
            completion = self._show_writing((chunk.text for chunk in chunks), {"From the clear prompt": clear})
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
        self._out.print(f"epsilon {epsilon:.2f} a token at delta {DELTA:g}, exact")
        self._out.print(f"The server's best simple guess, {guess.right} of {guess.tokens} tokens right, in [brackets]:")
        self._out.print(guess.styled())
        self._out.print()

    def _show_writing(self, pieces: Iterable[str], beside: dict[str, str]) -> str:
        """Show text as it arrives, beside finished texts; return the whole text."""
        from rich.live import Live

        heading = "What it writes from that" if beside else "What the server writes from the prompt in the clear"
        text = ""
        # Transient, and printed at the end: without a terminal only the end is written.
        with Live(console=self._out, transient=True) as live:
            for piece in pieces:
                text += piece
                live.update(_columns({heading: text, **beside}))
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
