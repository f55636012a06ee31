"""An OpenAI-compatible server on this machine that privatizes prompts; see docs/guides/proxy.md.

Applications that use OpenAI's API need no changes. Needs the extra ``proxy``.

    app = create_app(AsyncClient("https://del.example.com"), ProxySettings())
"""

from client_lib.proxy.app import create_app
from client_lib.proxy.settings import ProxySettings

__all__ = ["ProxySettings", "create_app"]
