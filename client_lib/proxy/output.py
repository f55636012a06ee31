"""The fields of a request that concern its answer only. They go to the server in the clear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client_lib._validation import json_kind, shown
from client_lib.options import SamplingOptions
from client_lib.proxy import fields
from client_lib.proxy.errors import invalid, unsupported
from del_core.wire import Limits

_LIMITS = Limits()
MAX_TOKENS = 2**31 - 1  # more than a server has room for is cut

STRUCTURES = ("response_format", "guided_json", "guided_regex", "guided_choice", "structured_outputs")
"""The fields that say what an answer must be: OpenAI's, then vLLM's older and newer ones."""

NAMES = frozenset(
    {
        "max_tokens", "temperature", "top_p", "seed", "stop",
        # of vLLM's API
        "stop_token_ids", "ignore_eos", "top_k", "min_p", "repetition_penalty",
        "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", *STRUCTURES,
    }
)  # fmt: skip
"""The fields that :func:`sampling` and the logprobs of both routes read."""


def sampling(body: Mapping[str, Any], limit: str) -> SamplingOptions:
    """Return the sampling of a request; its field ``limit`` bounds the length."""
    top_k = fields.integer(body, "top_k", -1, 2**31 - 1)
    options: dict[str, Any] = {
        "max_tokens": fields.integer(body, limit, 1, MAX_TOKENS),
        "temperature": fields.number(body, "temperature", 0, 2),
        "top_p": fields.number(body, "top_p", 0, 1, above=True),
        "seed": fields.integer(body, "seed", -(2**63), 2**63 - 1),
        "stop": _stop(body.get("stop")) or None,
        "stop_token_ids": _stop_token_ids(body.get("stop_token_ids")) or None,
        "ignore_eos": fields.boolean(body, "ignore_eos") or None,
        "top_k": None if top_k == -1 else top_k,
        "min_p": fields.number(body, "min_p", 0, 1),
        "presence_penalty": fields.number(body, "presence_penalty", -2, 2),
        "frequency_penalty": fields.number(body, "frequency_penalty", -2, 2),
        "repetition_penalty": fields.number(body, "repetition_penalty", 0, 2, above=True),
        "logit_bias": _logit_bias(body.get("logit_bias")) or None,
        "structured_outputs": structure(body),
    }
    if options["ignore_eos"] and options["structured_outputs"]:
        raise invalid("ignore_eos", "false with a structured answer", "true")
    found: SamplingOptions = {}
    found.update({name: value for name, value in options.items() if value is not None})  # type: ignore[typeddict-item]
    return found


def chat_logprobs(body: Mapping[str, Any]) -> int | None:
    """Return the number of alternatives that a chat asks for."""
    wanted, top = fields.boolean(body, "logprobs"), fields.integer(body, "top_logprobs", 0, _LIMITS.max_logprobs)
    if top and not wanted:
        raise invalid("top_logprobs", "absent unless logprobs is true", shown(top))
    return (top or 0) if wanted else None


def completion_logprobs(body: Mapping[str, Any]) -> int | None:
    """Return the number of alternatives that a completion asks for."""
    return fields.integer(body, "logprobs", 0, _LIMITS.max_logprobs)


def structure(body: Mapping[str, Any]) -> dict[str, object] | None:
    """Return what the answer must be, as the client's option, or None."""
    asked = [name for name in STRUCTURES if body.get(name) not in (None, {"type": "text"})]
    if not asked:
        return None
    if len(asked) > 1:
        raise invalid(asked[1], f"absent beside {asked[0]}", "a value")
    (name,) = asked
    value = body[name]
    if name == "response_format":
        return _response_format(value)
    if name == "guided_json":
        return {"json": _schema(value, name)}
    if name == "guided_regex":
        return {"regex": _text(value, name)}
    if name == "guided_choice":
        return {"choice": _choice(value, name)}
    return _structured_outputs(value)


def _response_format(value: object) -> dict[str, object]:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise invalid("response_format", "an object with a type", json_kind(value))
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema":
        raise unsupported("response_format.type", "text, json_object or json_schema", fields.name_of(kind))
    return json_schema(value.get("json_schema"), "response_format.json_schema")


def json_schema(value: object, where: str) -> dict[str, object]:
    """Return the structure of OpenAI's object with a ``schema``, which may be absent."""
    if not isinstance(value, dict):
        raise invalid(where, "an object with a schema", json_kind(value))
    schema = value.get("schema")
    return {"json_object": True} if schema is None else {"json": _schema(schema, f"{where}.schema")}


def _structured_outputs(value: object) -> dict[str, object]:
    where = "structured_outputs"
    given = {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else {}
    if len(given) != 1:
        raise invalid(where, "an object with one member", json_kind(value))
    ((name, one),) = given.items()
    if name == "json":
        return {"json": _schema(one, f"{where}.json")}
    if name == "json_object" and one is True:
        return {"json_object": True}
    if name == "regex":
        return {"regex": _text(one, f"{where}.regex")}
    if name == "choice":
        return {"choice": _choice(one, f"{where}.choice")}
    raise unsupported(where, "one of json, json_object (true), regex, choice", "another member")


def _schema(value: object, where: str) -> object:
    if not isinstance(value, dict | str) or not value:
        raise invalid(where, "a JSON schema", json_kind(value))
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise invalid(where, "a non-empty string", json_kind(value))
    return value


def _choice(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise invalid(where, "an array of non-empty strings", json_kind(value))
    return value


def _stop(value: object) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid("stop", "a non-empty string or up to 4 of them", json_kind(value))
    return stops


def _stop_token_ids(value: object) -> list[int]:
    ids, most = [] if value is None else value, _LIMITS.max_stop_token_ids
    if not isinstance(ids, list) or len(ids) > most or not all(_is_id(one) for one in ids):
        raise invalid("stop_token_ids", f"up to {most} token ids", json_kind(value))
    return ids


def _logit_bias(value: object) -> dict[str, float]:
    biases, most = {} if value is None else value, _LIMITS.max_logit_biases
    if not isinstance(biases, dict) or len(biases) > most:
        raise invalid("logit_bias", f"an object of up to {most} token ids of the model", json_kind(value))
    for name, bias in biases.items():
        is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not (name.isascii() and name.isdigit()) or not is_number or not -100 <= bias <= 100:
            raise invalid("logit_bias", "token ids of the model with numbers from -100 to 100", "another member")
    return biases


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
