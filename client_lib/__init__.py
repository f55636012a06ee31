"""The client of DEL Serve: completions for prompts that never leave this machine in the clear.

    from client_lib import Client, private, public

    with Client("https://del.example.com") as client:
        answer = client.complete([public("Summarise:"), private(text)], variant="balanced", max_tokens=64)
        print(answer.text)

:class:`Client` and :class:`AsyncClient` are the entry points, :mod:`client_lib.errors` lists what can go wrong.
Needs numpy, tokenizers, safetensors and httpx; no model, no GPU.
"""

from client_lib.async_client import AsyncClient, AsyncStream
from client_lib.client import Client, Stream
from client_lib.conversation import AsyncConversation, Conversation
from client_lib.errors import (
    BudgetExceeded,
    BundleInvalid,
    BundleOutdated,
    CacheUnavailable,
    ClientClosed,
    ConnectionFailed,
    DELClientError,
    InvalidRequest,
    LedgerUnavailable,
    MemoryInvalid,
    Overloaded,
    PermissionDenied,
    PolicyViolation,
    ProtocolError,
    RedirectRefused,
    ServerError,
    StreamBroken,
    TimeoutExceeded,
)
from client_lib.policy import PrivacyPolicy
from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.prompts.encoder import Draw, EncodedPrompt, Encoder
from client_lib.prompts.padding import Padding
from client_lib.prompts.spans import Prompt, Span, mark, private, public
from client_lib.types import Chunk, Completion, Model, Timeout, Usage

__all__ = [
    "AsyncClient",
    "AsyncConversation",
    "AsyncStream",
    "BudgetExceeded",
    "BundleInvalid",
    "BundleOutdated",
    "CacheUnavailable",
    "ChatTemplate",
    "Chunk",
    "Client",
    "ClientClosed",
    "Completion",
    "ConnectionFailed",
    "Conversation",
    "DELClientError",
    "Draw",
    "EncodedPrompt",
    "Encoder",
    "InvalidRequest",
    "LedgerUnavailable",
    "MemoryInvalid",
    "Message",
    "Model",
    "Overloaded",
    "Padding",
    "PermissionDenied",
    "PolicyViolation",
    "PrivacyPolicy",
    "Prompt",
    "ProtocolError",
    "RedirectRefused",
    "ServerError",
    "Span",
    "Stream",
    "StreamBroken",
    "Timeout",
    "TimeoutExceeded",
    "Usage",
    "mark",
    "private",
    "public",
]
