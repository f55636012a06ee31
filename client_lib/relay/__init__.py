"""A relay of Oblivious HTTP, which separates who calls from what is asked."""

from client_lib.relay.app import Relay, RelaySettings, gateway_url

__all__ = ["Relay", "RelaySettings", "gateway_url"]
