"""A chat in the terminal with OpenAI's package: only the base URL differs from OpenAI's API.

    delctl proxy --server http://127.0.0.1:8000    # in one terminal
    python examples/with_openai/chat.py            # in another; Ctrl-D ends it

The proxy privatizes each message before it leaves the machine, and reuses the noise of earlier
messages, so that a growing history is charged once.
"""

from __future__ import annotations

import argparse
import os
import sys

from openai import OpenAI, RateLimitError
from openai.types.chat import ChatCompletionMessageParam


def main() -> int:
    """Read messages from standard input and print the answers; 1 if the privacy budget ran out."""
    parser = argparse.ArgumentParser(description="Chat through the proxy.")
    parser.add_argument("--url", default="http://127.0.0.1:8081/v1", help="the proxy's address")
    parser.add_argument("--model", default="balanced", help="the privacy level")
    parser.add_argument("--user", default="alice", help="whose privacy budget is spent")
    options = parser.parse_args()

    messages: list[ChatCompletionMessageParam] = []
    with OpenAI(base_url=options.url, api_key=os.environ.get("DEL_PROXY_KEY", "unused")) as client:
        for line in sys.stdin:
            messages.append({"role": "user", "content": line.strip()})
            try:
                answer = ask(client, options.model, options.user, messages)
            except RateLimitError as error:
                if error.code != "budget_exceeded":
                    raise
                print(f"No more privacy budget for {options.user}.", file=sys.stderr)
                return 1
            messages.append({"role": "assistant", "content": answer})
    return 0


def ask(client: OpenAI, model: str, user: str, messages: list[ChatCompletionMessageParam]) -> str:
    """Print the answer while it is written, and return it."""
    pieces = []
    with client.chat.completions.create(
        model=model, messages=messages, user=user, max_completion_tokens=48, stream=True
    ) as stream:
        for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            print(pieces[-1], end="", flush=True)
    print()
    return "".join(pieces)


if __name__ == "__main__":
    sys.exit(main())
