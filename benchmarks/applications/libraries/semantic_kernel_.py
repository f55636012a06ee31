"""Microsoft's Semantic Kernel, with its connector for OpenAI's API."""

from common import KEY, MODEL, MOST, QUESTION, URL, City, Person, case, report
from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory
from semantic_kernel.exceptions import ServiceResponseException
from semantic_kernel.functions import kernel_function

called = []


class Weather:
    """A plugin."""

    @kernel_function(description="Get the weather of a city.")
    def weather(self, city: City) -> str:
        """Get the weather of a city."""
        called.append(city)
        return "21 degrees"


def service(model=MODEL):
    return OpenAIChatCompletion(ai_model_id=model, async_client=AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0))


def history():
    return ChatHistory(messages=[{"role": "user", "content": QUESTION}])


@case("hello")
async def hello():
    return str(await service().get_chat_message_content(history(), OpenAIChatPromptExecutionSettings()))


@case("stream")
async def stream():
    parts = service().get_streaming_chat_message_content(history(), OpenAIChatPromptExecutionSettings())
    return "".join([str(part) async for part in parts])


@case("tools")
async def call():
    kernel = Kernel()
    kernel.add_plugin(Weather(), "weather")
    must = OpenAIChatPromptExecutionSettings(
        max_completion_tokens=MOST, function_choice_behavior=FunctionChoiceBehavior.Required()
    )
    answer = await service().get_chat_message_content(history(), must, kernel=kernel)
    return called and answer is not None


@case("structured")
async def structured():
    answer = await service().get_chat_message_content(
        history(), OpenAIChatPromptExecutionSettings(response_format=Person)
    )
    return Person.model_validate_json(str(answer))


@case("error")
async def error():
    try:
        await service("other").get_chat_message_content(history(), OpenAIChatPromptExecutionSettings())
    except ServiceResponseException:
        return True
    return False


report()
