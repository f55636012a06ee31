"""The error of messages that are no Oblivious HTTP."""

from del_core.errors import DelError


class ObliviousError(DelError):
    """An encapsulated message or a key configuration is malformed, or was not made for this key."""


class TruncatedError(ObliviousError):
    """A message ended before its end: the connection broke, or somebody cut it."""
