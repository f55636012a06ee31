"""Public import path of :mod:`client_lib.prompts.chat`."""

from client_lib.prompts.chat import ChatTemplate, Message

__all__ = ["ChatTemplate", "Message"]
