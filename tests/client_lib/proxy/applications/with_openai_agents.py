"""OpenAI's Agents SDK, which uses the Responses API."""

import asyncio

from agents import Agent, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from common import URL, Person, check, report
from openai import AsyncOpenAI

set_default_openai_client(AsyncOpenAI(base_url=URL, api_key="unused", max_retries=0), use_for_tracing=False)
set_tracing_disabled(True)
called = []


@function_tool
def weather(city: str) -> str:
    """Get the weather of a city."""
    called.append(city)
    return "21 degrees"


async def main() -> None:
    hello = Agent(name="a", instructions="Be kind.", model="open")
    check("hello", (await Runner.run(hello, "hello")).final_output == "It is 21 degrees.")
    text = ""
    async for event in Runner.run_streamed(hello, "hello").stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    check("stream", text == "It is 21 degrees.")
    answer = await Runner.run(Agent(name="a", model="open", tools=[weather]), "how warm is it in Paris")
    check("tools", (called, answer.final_output) == (["Paris"], "It is 21 degrees."))
    person = await Runner.run(Agent(name="a", model="open", output_type=Person), "who is it")
    check("structured", isinstance(person.final_output, Person))


asyncio.run(main())
report()
