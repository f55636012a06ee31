"""An OpenAI-compatible server on this machine that privatises prompts before they leave it; docs/guides/proxy.md.

An application that speaks OpenAI's API is pointed at it and stays as it is. Needs the extra ``proxy``.

    app = create_app(AsyncClient("https://del.example.com"), ProxySettings())
"""

from client_lib.proxy.app import create_app
from client_lib.proxy.settings import ProxySettings

__all__ = ["ProxySettings", "create_app"]
