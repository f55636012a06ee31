"""The error of messages that are no passes."""

from del_core.errors import DelError


class PassError(DelError):
    """A pass, a request for one, or an issuer's key is malformed, or was not made for this key."""
