"""Pydantic AI, with chats of OpenAI's API."""

import asyncio

from common import URL, Person, check, report
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel("open", provider=OpenAIProvider(base_url=URL, api_key="unused"))
agent = Agent(model, instructions="Be kind.")
called = []


@agent.tool_plain
def weather(city: str) -> str:
    """Get the weather of a city."""
    called.append(city)
    return "21 degrees"


async def main() -> None:
    plain = Agent(model, instructions="Be kind.")
    check("hello", (await plain.run("hello")).output == "It is 21 degrees.")
    async with plain.run_stream("hello") as result:
        check("stream", await result.get_output() == "It is 21 degrees.")
    check("structured", isinstance((await Agent(model, output_type=Person).run("who is it")).output, Person))
    answer = (await agent.run("how warm is it in Paris")).output
    check("tools", (called, answer) == (["Paris"], "It is 21 degrees."))


asyncio.run(main())
report()
