"""``delctl ask``: a private completion from a running server."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from delctl.chats import ChatOptions, chat_options, show_spans
from delctl.options import (
    DELTA,
    TOP_P,
    TrustOptions,
    api_key_option,
    bundle_option,
    json_option,
    max_epsilon_option,
    sampling_options,
    trust_options,
    upstream_option,
    url_option,
)
from delctl.reaching import SayRetries, hint_at_start
from delctl.terminal import console, print_json, printable

if TYPE_CHECKING:
    from client_lib import Completion
    from client_lib.prompts.chat import PromptOrChat


@click.command()
@click.argument("prompt")
@click.option("--variant", required=True, help="Privacy level: one of the server's variants, or clear.")
@url_option
@api_key_option
@bundle_option
@upstream_option
@trust_options
@max_epsilon_option
@click.option("--chat", "is_chat", is_flag=True, help="PROMPT is a message of a chat, which the model answers.")
@chat_options
@click.option(
    "--show-spans",
    "show_spans_too",
    is_flag=True,
    help="Show on stderr what is sent in the clear, and what as noisy counts.",
)
@sampling_options(max_tokens=64, temperature=1.0)
@click.option("--top-p", type=TOP_P, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Makes the generation (never the noise) repeatable.")
@click.option("--stop", multiple=True, help="End before this text; may be given several times.")
@click.option(
    "--stop-token-id",
    "stop_token_ids",
    type=click.IntRange(0),
    multiple=True,
    help="End at this token of the model; may be given several times.",
)
@click.option("--stream/--no-stream", default=True, help="Print the text as it is generated.  [default: stream]")
@json_option
@click.option("--quiet", is_flag=True, help="No summary on stderr.")
def ask(
    prompt: str,
    variant: str,
    url: str,
    api_key: str | None,
    bundle: Path | None,
    upstream: str,
    trust: TrustOptions,
    max_epsilon_per_token: float,
    is_chat: bool,
    chat: ChatOptions,
    show_spans_too: bool,
    stream: bool,
    as_json: bool,
    quiet: bool,
    stop: tuple[str, ...],
    **sampling: Any,
) -> None:
    """Send PROMPT, all of it private, and print what the model writes.

    With - the prompt is read from standard input, which keeps it out of the shell's history. Under
    the variant clear the prompt is sent as it is. With --chat the model answers PROMPT instead of
    going on with it: the chat template of the bundle, which is public, stands around it.
    """
    from client_lib import Client, Message, PrivacyPolicy

    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if not text:
        raise click.BadParameter("must be at least one character, got an empty prompt", param_hint="PROMPT")
    if not is_chat and (chat.system or chat.chat_template):
        raise click.UsageError("--system and --chat-template need --chat")
    opening, template = chat.opening(), chat.template()
    options = {**sampling, "stop": list(stop) or None}
    # A person waits at the terminal and may have mistyped the URL: retry for seconds only.
    policy = PrivacyPolicy(max_epsilon_per_token=max_epsilon_per_token)
    checked = trust.client_options(
        api_key=api_key, bundle=bundle, upstream=upstream, max_retries=4, policy=policy, telemetry=SayRetries(url)
    )
    with hint_at_start(url), Client(url, **checked) as client:
        given: PromptOrChat = text
        if is_chat:
            messages = [*opening, Message("user", text.strip())]
            given = messages if template is None else template.render(messages, variant)
        if show_spans_too:
            show_spans(client.spans(given, variant=variant), stderr=True)
        encoded = client.encode(given, variant=variant)
        completion: Completion | None
        if stream and not as_json:
            with client.stream(encoded, variant=variant, **options) as chunks:
                for chunk in chunks:
                    _write(chunk.text)
                completion = chunks.completion
            assert completion is not None  # the stream ended without an error
            click.echo()
        else:
            completion = client.complete(encoded, variant=variant, **options)
            if not as_json:
                _write(completion.text)
                click.echo()
        tokens = encoded.private_tokens
        epsilon, whole = (client.epsilon(variant, delta=DELTA, tokens=count) for count in (1, max(1, tokens)))
    if as_json:
        report = {
            "variant": completion.variant,
            "text": completion.text,
            "token_ids": list(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "usage": asdict(completion.usage),
            "request_id": completion.request_id,
            "bytes_sent": completion.bytes_sent,
            "fingerprint": encoded.fingerprint,
            "private_tokens": tokens,
            # JSON has no infinity; null means no guarantee.
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "epsilon_prompt": whole if math.isfinite(epsilon) else None,
            "delta": DELTA,
        }
        print_json(report)
    elif not quiet:
        sent = "the prompt was sent in the clear"
        if math.isfinite(epsilon):
            cost = f"epsilon at delta {DELTA:g}: {epsilon:.2f} a token, {whole:.2f} the prompt"
            sent = f"{tokens} private tokens, {cost}"
        console(stderr=True).print(
            f"[{completion.variant}: {sent}; {completion.bytes_sent} bytes sent; "
            f"{len(completion.token_ids)} tokens generated, finish reason {completion.finish_reason}]",
            style="dim",
            soft_wrap=True,
        )


def _write(text: str) -> None:
    """Print generated text at once, without characters that a terminal would act on."""
    # click.echo would drop escape sequences outside a terminal, too.
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
