"""Microsoft's AutoGen: its client for OpenAI's API and an agent."""

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import AssistantMessage, FunctionExecutionResult, FunctionExecutionResultMessage, UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from common import KEY, MODEL, MOST, QUESTION, URL, City, Person, case, report
from openai import NotFoundError

ABLE = {"vision": False, "function_calling": True, "json_output": True, "structured_output": True, "family": "unknown"}
question = UserMessage(content=QUESTION, source="user")


async def _weather(city: City) -> str:
    return "21 degrees"


most = {"max_tokens": MOST}
weather = FunctionTool(_weather, name="weather", description="Get the weather of a city.")


def client(model=MODEL):
    return OpenAIChatCompletionClient(model=model, base_url=URL, api_key=KEY, model_info=ABLE, max_retries=0)


@case("hello")
async def hello():
    answer = await AssistantAgent("helper", client()).run(task=QUESTION)
    return answer.messages[-1].content


@case("stream")
async def stream():
    *parts, _whole = [part async for part in client().create_stream([question])]
    return "".join(parts)


@case("tools")
async def call():
    asked = await client().create([question], tools=[weather], tool_choice="required")
    (made,) = asked.content
    result = FunctionExecutionResult(content="21 degrees", call_id=made.id, name=made.name, is_error=False)
    turns = [AssistantMessage(content=asked.content, source="helper"), FunctionExecutionResultMessage(content=[result])]
    return made.name == "weather" and await client().create([question, *turns], tools=[weather], extra_create_args=most)


@case("structured")
async def structured():
    return Person.model_validate_json(
        (await client().create([question], json_output=Person, extra_create_args=most)).content
    )


@case("error")
async def error():
    try:
        await client("other").create([question])
    except NotFoundError:
        return True
    return False


report()
