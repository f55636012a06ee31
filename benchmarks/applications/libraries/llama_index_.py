"""LlamaIndex, with its package for servers like OpenAI's."""

from common import KEY, MODEL, MOST, QUESTION, URL, City, Person, case, raises, report
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import NotFoundError

common = {
    "api_base": URL,
    "api_key": KEY,
    "is_chat_model": True,
    "is_function_calling_model": True,
    "should_use_structured_outputs": True,
    "max_retries": 0,
    "max_tokens": MOST,
}
model = OpenAILike(model=MODEL, **common)
question = ChatMessage(role="user", content=QUESTION)


def weather(city: City) -> str:
    """Get the weather of a city."""
    return "21 degrees"


tool = FunctionTool.from_defaults(weather)


@case("hello")
def hello():
    return model.complete(QUESTION).text and model.chat([question]).message.content


@case("stream")
def stream():
    return "".join(chunk.delta or "" for chunk in model.stream_chat([question]))


@case("tools")
def call():
    answer = model.chat_with_tools([tool], chat_history=[question], tool_required=True)
    (made,) = model.get_tool_calls_from_response(answer)
    result = ChatMessage(
        role="tool", content=str(tool(**made.tool_kwargs)), additional_kwargs={"tool_call_id": made.tool_id}
    )
    return model.chat_with_tools([tool], chat_history=[question, answer.message, result]).message


@case("structured")
def structured():
    return isinstance(model.structured_predict(Person, PromptTemplate(QUESTION)), Person)


@case("error")
def error():
    return raises(NotFoundError, lambda: OpenAILike(model="other", **common).chat([question]))


report()
