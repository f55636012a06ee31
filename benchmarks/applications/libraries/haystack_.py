"""Haystack's generator for chats."""

from common import KEY, MODEL, MOST, QUESTION, URL, WEATHER, Person, case, raises, report
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret
from openai import NotFoundError


def generator(model=MODEL, **options):
    return OpenAIChatGenerator(
        model=model, api_base_url=URL, api_key=Secret.from_token(KEY), max_retries=0, timeout=600, **options
    )


question = ChatMessage.from_user(QUESTION)
weather = Tool(**WEATHER, function=lambda city: "21 degrees")


@case("hello")
def hello():
    return generator().run([question])["replies"][0].text


@case("stream")
def stream():
    parts = []
    generator(streaming_callback=lambda chunk: parts.append(chunk.content)).run([question])
    return "".join(parts)


@case("tools")
def call():
    must = {"tool_choice": "required"}
    most = {"max_completion_tokens": MOST}
    (answer,) = generator(tools=[weather], generation_kwargs=must).run([question])["replies"]
    (made,) = answer.tool_calls
    result = ChatMessage.from_tool(weather.invoke(**made.arguments), origin=made)
    return generator(tools=[weather], generation_kwargs=most).run([question, answer, result])["replies"]


@case("structured")
def structured():
    (answer,) = generator(generation_kwargs={"response_format": Person}).run([question])["replies"]
    return Person.model_validate_json(answer.text)


@case("error")
def error():
    return raises(NotFoundError, lambda: generator("other").run([question]))


report()
