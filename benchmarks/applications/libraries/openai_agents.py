"""OpenAI's Agents SDK, which uses the Responses API."""

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from common import KEY, MODEL, QUESTION, URL, City, Person, case, report
from openai import AsyncOpenAI, NotFoundError

set_tracing_disabled(True)


def connect():
    """Take a client of its own for each event loop."""
    set_default_openai_client(AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0), use_for_tracing=False)


@case("hello")
async def hello():
    connect()
    return (await Runner.run(Agent(name="a", instructions="Be kind.", model=MODEL), QUESTION)).final_output


@case("stream")
async def stream():
    connect()
    text = ""
    async for event in Runner.run_streamed(Agent(name="a", model=MODEL), QUESTION).stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    return text


@case("tools")
async def call():
    connect()
    called = []

    @function_tool
    def weather(city: City) -> str:
        """Get the weather of a city."""
        called.append(city)
        return "21 degrees"

    must = ModelSettings(tool_choice="required")  # of the first turn only
    answer = await Runner.run(Agent(name="a", model=MODEL, tools=[weather], model_settings=must), QUESTION)
    return called and answer.final_output is not None


@case("structured")
async def structured():
    connect()
    answer = await Runner.run(Agent(name="a", model=MODEL, output_type=Person), QUESTION)
    return isinstance(answer.final_output, Person)


@case("error")
async def error():
    connect()
    try:
        await Runner.run(Agent(name="a", model="other"), QUESTION)
    except NotFoundError:
        return True
    return False


report()
