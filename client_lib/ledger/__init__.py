"""Privacy spending per subject, limited by budgets before anything is sent.

See ``docs/guides/budgets.md``.
"""

from client_lib.ledger.budget import Budget, Spending
from client_lib.ledger.ledger import Ledger, is_url, open_store
from client_lib.ledger.redis import RedisStore
from client_lib.ledger.sqlite import SQLiteStore
from client_lib.ledger.store import Account, Entry, LedgerStore, MemoryStore

__all__ = [
    "Account",
    "Budget",
    "Entry",
    "Ledger",
    "LedgerStore",
    "MemoryStore",
    "RedisStore",
    "SQLiteStore",
    "Spending",
    "is_url",
    "open_store",
]
