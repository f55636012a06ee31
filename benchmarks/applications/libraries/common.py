"""What every application uses: address, question, tool, structure and report."""

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PROXY, MODEL = sys.argv[1:3]
URL = f"{PROXY}/v1"
KEY = "unused"
MOST = 64
"""Tokens of an answer, where a library takes a bound."""
QUESTION = "How warm is it in Paris today?"
_results: dict[str, str] = {}


class Person(BaseModel):
    """A structure with bounds, so that a small model ends it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


City = Literal["Paris", "London"]
WEATHER = {
    "name": "weather",
    "description": "Get the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "London"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def case(name: str) -> Callable[[Callable[[], Any]], None]:
    """Run a function, which may be a coroutine's, and note whether it returns something true."""

    def run(function: Callable[[], Any]) -> None:
        try:
            result = function()
            if inspect.isawaitable(result):
                result = asyncio.run(_awaited(result))
            _results[name] = "yes" if result else "the result is another one"
        except Exception as error:  # whatever a library raises is the finding
            traceback.print_exc()
            _results[name] = f"{type(error).__name__}: {error}"[:300]

    return run


async def _awaited(result: Any) -> Any:
    return await result


def raises(kind: type[Exception], function: Callable[[], Any]) -> bool:
    """Return whether a call raises an error of this kind."""
    try:
        function()
    except kind:
        return True
    return False


def report() -> None:
    """Print all results as the last line of the output."""
    print("\n" + json.dumps(_results))
