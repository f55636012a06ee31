"""The spellings of the proxy's paths, and the page that says what is running."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/models",
    "/health",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
)
"""The routes as the page and the refusal of an unknown path list them."""

_SHORT = ("/chat/completions", "/completions", "/responses", "/messages", "/models")
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DEL Serve proxy</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem;
color-scheme: light dark; }}</style>
<h1>DEL Serve proxy</h1>
<p>This is an OpenAI-compatible API on your machine. It turns prompts into noisy counts before they
leave the machine. Use it as the base URL of an application, with <code>/v1</code> behind it.
Anthropic's client takes it without <code>/v1</code>.</p>
<ul>{routes}</ul>
</html>
"""


class NormalPaths:
    """ASGI middleware: paths may end in a slash, and OpenAI's may lack ``/v1``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on under the path of its route."""
        if scope["type"] == "http":
            path = scope["path"]
            found = normal(path)
            if found != path:
                scope = {**scope, "path": found, "raw_path": found.encode()}
        await self._app(scope, receive, send)


def normal(path: str) -> str:
    """Return the path of the route that a spelling means."""
    path = path.rstrip("/") or "/"
    is_short = any(path == name or (name == "/models" and path.startswith("/models/")) for name in _SHORT)
    return f"/v1{path}" if is_short else path


def page() -> str:
    """Return the page at ``/``."""
    return _PAGE.format(routes="".join(f"<li><code>{route}</code></li>" for route in ROUTES))
