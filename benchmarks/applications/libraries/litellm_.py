"""LiteLLM's completion function."""

import json

import litellm
from common import KEY, MODEL, MOST, QUESTION, URL, WEATHER, Person, case, raises, report

common = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "max_retries": 0, "max_tokens": MOST}
messages = [{"role": "user", "content": QUESTION}]
tools = [{"type": "function", "function": WEATHER}]


@case("hello")
def hello():
    return litellm.completion(**common, messages=messages).choices[0].message.content


@case("stream")
def stream():
    chunks = litellm.completion(**common, messages=messages, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@case("tools")
def call():
    asked = litellm.completion(**common, messages=messages, tools=tools, tool_choice="required")
    message = asked.choices[0].message
    (made,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": made.id, "content": "21 degrees"}
    told = litellm.completion(**common, messages=[*messages, message, result], tools=tools)
    return json.loads(made.function.arguments)["city"] and told.choices


@case("structured")
def structured():
    answer = litellm.completion(**common, messages=messages, response_format=Person)
    return Person.model_validate_json(answer.choices[0].message.content)


@case("error")
def error():
    return raises(
        litellm.NotFoundError, lambda: litellm.completion(**{**common, "model": "openai/other"}, messages=messages)
    )


report()
