"""Pydantic AI, with chats of OpenAI's API."""

from common import KEY, MODEL, QUESTION, URL, City, Person, case, report
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=URL, api_key=KEY)
model = OpenAIChatModel(MODEL, provider=provider)


@case("hello")
async def hello():
    return (await Agent(model, instructions="Be kind.").run(QUESTION)).output


@case("stream")
async def stream():
    async with Agent(model, instructions="Be kind.").run_stream(QUESTION) as result:
        return "".join([part async for part in result.stream_text(delta=True)])


@case("tools")
async def call():
    """Make the model call the tool: the output is a call, too, so that the model must call."""
    called = []

    def weather(city: City) -> Person:
        """Get the weather of a city."""
        called.append(city)
        return Person(name=city, age=21)

    answer = await Agent(model, output_type=weather).run(QUESTION)
    return called and isinstance(answer.output, Person)


@case("structured")
async def structured():
    as_call = (await Agent(model, output_type=Person).run(QUESTION)).output
    as_schema = (await Agent(model, output_type=NativeOutput(Person)).run(QUESTION)).output
    return isinstance(as_call, Person) and isinstance(as_schema, Person)


@case("error")
async def error():
    try:
        await Agent(OpenAIChatModel("other", provider=provider)).run(QUESTION)
    except ModelHTTPError as refused:
        return refused.status_code == 404
    return False


report()
