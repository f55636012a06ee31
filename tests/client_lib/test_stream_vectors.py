"""The vectors of event streams, read by the client as pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client_lib.errors import DELClientError
from client_lib.protocol.responses import StreamReader
from client_lib.protocol.sse import EventParser

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "streams.json").read_text("utf-8"))


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_stream_vectors(case: dict[str, Any], size: int) -> None:
    body, parser, reader = bytes.fromhex(case["body"]), EventParser(), StreamReader(VECTORS["max_tokens"])
    code = None
    try:
        for start in range(0, len(body), size):
            for data in parser.feed(body[start : start + size]):
                reader.take(data)
    except DELClientError as error:
        code = error.code
    found = {"text": reader.text, "token_ids": list(reader.token_ids), "finish_reason": reader.finish_reason}
    assert found | {"error": code} == {key: case[key] for key in ("text", "token_ids", "finish_reason", "error")}
