"""Mistakes that a type checker must find: every marked line has to be an error."""

from __future__ import annotations

from client_lib import Client, PrivacyPolicy, Timeout, private
from client_lib.ledger import Budget, Ledger, MemoryStore


def wrong(client: Client) -> None:
    client.complete(7)  # error
    client.complete("text", max_token=3)  # error
    client.complete("text", max_tokens="3")  # error
    client.complete("text", idempotency_key=7)  # error
    client.stream([private("a"), "b"])  # error
    client.with_options(base_url="http://127.0.0.1")  # error
    print(client.complete("text").tekst)  # error
    client.complete("text").text = "b"  # error
    Client("http://127.0.0.1", max_retrys=3)  # error
    Client("http://127.0.0.1", retry=3)  # error
    client.with_options(api_key="k")  # error
    Client("http://127.0.0.1", policy=Budget(3.0))  # error
    Client("http://127.0.0.1", ledger=MemoryStore())  # error
    Timeout(first=3.0)  # error
    PrivacyPolicy(min_audit_date="2026-01-01")  # error
    Ledger(MemoryStore(), budget=3.0)  # error
