"""OpenAI's own package: chats, completions and the Responses API."""

import openai
from common import KEY, MODEL, MOST, QUESTION, URL, WEATHER, Person, case, raises, report

api = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
messages = [{"role": "user", "content": QUESTION}]
tools = [{"type": "function", "function": WEATHER}]


@case("hello")
def hello():
    chat = api.chat.completions.create(model=MODEL, messages=messages)
    response = api.responses.create(model=MODEL, input=QUESTION, instructions="Be kind.")
    return chat.choices[0].message.content and response.output_text and response.usage.output_tokens


@case("stream")
def stream():
    with api.chat.completions.stream(model=MODEL, messages=messages) as events:
        text = "".join(event.delta for event in events if event.type == "content.delta")
        is_whole = events.get_final_completion().choices[0].message.content == text
    with api.responses.stream(model=MODEL, input=QUESTION) as events:
        seen = list(events)
    deltas = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    # The last event is that of a complete answer, or of one that was cut.
    return text and is_whole and deltas == seen[-1].response.output_text


@case("tools")
def call():
    asked = api.chat.completions.create(model=MODEL, messages=messages, tools=tools, tool_choice="required")
    message = asked.choices[0].message
    (made,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": made.id, "content": "21 degrees"}
    told = api.chat.completions.create(
        model=MODEL, messages=[*messages, message, result], tools=tools, max_completion_tokens=MOST
    )
    flat = [{"type": "function", **WEATHER}]
    response = api.responses.create(model=MODEL, input=QUESTION, tools=flat, tool_choice="required")
    (item,) = (one for one in response.output if one.type == "function_call")
    back = [{"type": "function_call_output", "call_id": item.call_id, "output": "21 degrees"}]
    after = api.responses.create(model=MODEL, input=back, previous_response_id=response.id)
    return made.function.name == item.name == "weather" and told.choices and after.status


@case("structured")
def structured():
    chat = api.chat.completions.parse(model=MODEL, messages=messages, response_format=Person)
    response = api.responses.parse(model=MODEL, input=QUESTION, text_format=Person)
    return isinstance(chat.choices[0].message.parsed, Person) and isinstance(response.output_parsed, Person)


@case("error")
def error():
    return raises(openai.NotFoundError, lambda: api.chat.completions.create(model="other", messages=messages))


report()
