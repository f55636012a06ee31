"""The client of DEL Serve: completions of prompts that leave this machine only as noisy counts.

    from client_lib import Client, private, public

    with Client("https://del.example.com") as client:
        prompt = [public("Summarize:"), private(text)]
        print(client.complete(prompt, variant="balanced", max_tokens=64).text)

:class:`Client` and :class:`AsyncClient` are the entry points; :mod:`client_lib.options` has their
options and :mod:`client_lib.errors` their errors. Requires numpy, tokenizers, safetensors and
httpx.
"""

from client_lib import errors
from client_lib.async_client import AsyncClient
from client_lib.client import Client
from client_lib.conversation import AsyncConversation, Conversation
from client_lib.errors import *  # noqa: F403 - errors.__all__ lists the error classes
from client_lib.options import (
    CallOptions,
    ClientOptions,
    ConversationOptions,
    RequestOptions,
    RetryPolicy,
    SamplingOptions,
    Timeout,
)
from client_lib.policy import PrivacyPolicy
from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.padding import Padding
from client_lib.prompts.spans import Prompt, Span, mark, private, public
from client_lib.prompts.types import Draw, EncodedPrompt
from client_lib.streams import AsyncStream, Stream
from client_lib.types import Chunk, Completion, Model, TokenLogprobs, Usage

__all__ = [
    "AsyncClient",
    "AsyncConversation",
    "AsyncStream",
    "CallOptions",
    "ChatTemplate",
    "Chunk",
    "Client",
    "ClientOptions",
    "Completion",
    "Conversation",
    "ConversationOptions",
    "Draw",
    "EncodedPrompt",
    "Encoder",
    "Message",
    "Model",
    "Padding",
    "PrivacyPolicy",
    "Prompt",
    "RequestOptions",
    "RetryPolicy",
    "SamplingOptions",
    "Span",
    "Stream",
    "Timeout",
    "TokenLogprobs",
    "Usage",
    "mark",
    "private",
    "public",
]
__all__ += errors.__all__
