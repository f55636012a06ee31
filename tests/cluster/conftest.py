"""Fixtures of the serving side: the tiny model and bundle, a service over a scripted engine, one running server."""

from tests.support.serving_fixtures import bundle, make_service, server, settings, table, tiny, tokenizer

__all__ = ["bundle", "make_service", "server", "settings", "table", "tiny", "tokenizer"]
