"""Passes in place of an API key: so the server cannot tell the requests of one caller apart.

A server gives passes to an API key, so many a day, and signs them blindly: when one is spent,
nobody can tell which key it was given to. Get them with one client, well before they are needed,
and spend them with another one, best through a relay::

    store = PassFile("passes.db")
    with Client(url, api_key=key) as buyer:
        store.add(buyer.request_passes(100, issuer=ISSUER))
    with Client(url, passes=store, relay=relay, gateway_key=gateway_key) as client:
        client.complete(...)

``ISSUER`` is the issuer's configuration. It comes from a source that shows everybody the same: an
issuer with a key for each client would know whose passes are spent.
"""

from client_lib.passes.issuer import MAX_REQUEST, issuer_from, requests_for
from client_lib.passes.store import PassFile, PassStore

__all__ = ["MAX_REQUEST", "PassFile", "PassStore", "issuer_from", "requests_for"]
