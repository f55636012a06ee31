"""Trust on first use: what a client accepted from each server, and when it refuses another offer.

The first bundle of a server is accepted if the policy and the trusted keys allow it, and remembered
in a :class:`TrustStore`. Later offers pass if they are equal or stronger. A different or weaker one
raises :class:`client_lib.errors.BundleRejectedError` until somebody accepts it on purpose.
docs/privacy/trust.md has the rules.
"""

from client_lib.trust.record import Change, TrustRecord, VariantRecord, server_name
from client_lib.trust.store import FileTrustStore, MemoryTrustStore, TrustStore, default_trust_file
from client_lib.trust.trust import Trust

__all__ = [
    "Change",
    "FileTrustStore",
    "MemoryTrustStore",
    "Trust",
    "TrustRecord",
    "TrustStore",
    "VariantRecord",
    "default_trust_file",
    "server_name",
]
