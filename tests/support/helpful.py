"""A scripted server that answers as a good model would: with calls, structures and texts."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

from tokenizers import Tokenizer

from del_core.wire import PublicSegment, Request
from tests.support.scripted_server import Behaviour, Received, ScriptedServer, says

TEXT = "It is 21 degrees."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class _Always(deque[Behaviour]):
    """A script that never ends."""

    def popleft(self) -> Behaviour:
        return self[0]


def helpful(server: ScriptedServer) -> deque[Behaviour]:
    """Return a script: an instance of the schema, a call of the tool ``weather``, or a text."""
    tokenizer = Tokenizer.from_file(str(server.bundle.tokenizer_path))

    def text_for(request: Request) -> str:
        structure = request.sampling.structured_outputs
        if structure is not None:
            schema = json.loads(structure.json or "{}")
            return json.dumps(instance(schema, schema))
        ids = [one for part in request.segments if isinstance(part, PublicSegment) for one in part.token_ids]
        public = tokenizer.decode(ids)
        return CALL if '"name": "weather"' in public and "<tool_response>" not in public else TEXT

    async def behave(own: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        await says(text_for(own.decode(received.body)))(own, received, writer)

    return _Always([behave])


def instance(schema: Any, root: Any) -> Any:
    """Return a value that a schema of the usual members accepts."""
    if schema is True or not schema:
        return {}
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return instance(target, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return instance(schema[key][0], root)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: instance(one, root) for name, one in schema.get("properties", {}).items()}
    return {"string": "a", "integer": 4, "number": 4.5, "boolean": True, "array": [], "null": None}[kind]
