"""Anthropic's own package."""

import anthropic
from common import KEY, MODEL, MOST, PROXY, QUESTION, WEATHER, Person, case, raises, report

api = anthropic.Anthropic(base_url=PROXY, api_key=KEY, max_retries=0)
messages = [{"role": "user", "content": QUESTION}]
tools = [{"name": "weather", "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}]
common = {"model": MODEL, "max_tokens": MOST}


@case("hello")
def hello():
    answer = api.messages.create(**common, system="Be kind.", messages=messages)
    return answer.content[0].text and answer.usage.output_tokens


@case("stream")
def stream():
    with api.messages.stream(**common, messages=messages) as events:
        text = "".join(events.text_stream)
        return text and events.get_final_message().content[0].text == text


@case("tools")
def call():
    asked = api.messages.create(**common, messages=messages, tools=tools, tool_choice={"type": "any"})
    (made,) = (block for block in asked.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": made.id, "content": "21 degrees"}
    turns = [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
    told = api.messages.create(**common, messages=[*messages, *turns], tools=tools)
    return made.name == "weather" and made.input["city"] and told.stop_reason


@case("structured")
def structured():
    answer = api.messages.parse(**common, messages=messages, output_format=Person)
    return isinstance(answer.parsed_output, Person)


@case("error")
def error():
    return raises(anthropic.NotFoundError, lambda: api.messages.create(model="other", max_tokens=8, messages=messages))


report()
