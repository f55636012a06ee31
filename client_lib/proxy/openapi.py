"""The description of the proxy's routes in OpenAPI 3.1, for tools that read one."""

from __future__ import annotations

from typing import Any

_POSTS = {
    "/v1/chat/completions": ("The next message of a chat", ["model", "messages"]),
    "/v1/completions": ("The continuation of strings", ["model", "prompt"]),
    "/v1/responses": ("The next message of a chat, in OpenAI's Responses API", ["model", "input"]),
    "/v1/messages": ("The next message of a chat, in Anthropic's API", ["model", "max_tokens", "messages"]),
}
_GETS = {
    "/v1/models": ("The privacy levels that are offered", "application/json"),
    "/health": ("The proxy runs", "application/json"),
    "/healthz": ("The proxy runs", "application/json"),
    "/readyz": ("The server answers the proxy, too", "application/json"),
    "/metrics": ("Counters in Prometheus' text format", "text/plain"),
    "/openapi.json": ("This description", "application/json"),
    "/": ("A page that says what this is", "text/html"),
}


def description(version: str) -> dict[str, Any]:
    """Return the document for a version of the proxy."""
    error_content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {
        code: {"description": words, "content": error_content}
        for code, words in (("4XX", "The request is refused"), ("5XX", "The server or the proxy failed"))
    }
    paths: dict[str, Any] = {}
    for path, (summary, required) in _POSTS.items():
        properties: dict[str, Any] = {"model": {"type": "string"}, "stream": {"type": "boolean"}}
        schema = {"type": "object", "required": required, "properties": properties}
        whole, stream = {"schema": {"type": "object"}}, {"schema": {"type": "string"}}
        answer = {"application/json": whole, "text/event-stream": stream}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                "responses": {"200": {"description": "The answer", "content": answer}, **errors},
            }
        }
    for path, (summary, media) in _GETS.items():
        success = {"description": summary, "content": {media: {}}}
        paths[path] = {"get": {"summary": summary, "responses": {"200": success, **errors}}}
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    model = {"200": {"description": "The level", "content": {"application/json": {}}}, **errors}
    paths["/v1/models/{id}"] = {"get": {"summary": "One privacy level", "parameters": [parameter], "responses": model}}
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "DEL Serve proxy", "version": version},
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }
