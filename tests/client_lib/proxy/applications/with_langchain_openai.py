"""LangChain's package for OpenAI."""

from common import URL, Person, check, report
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import NotFoundError


@tool
def weather(city: str) -> str:
    """Get the weather of a city."""
    return "21 degrees"


model = ChatOpenAI(base_url=URL, api_key="unused", model="open", max_retries=0)
check("hello", model.invoke("hello").content == "It is 21 degrees.")
check("stream", "".join(chunk.text for chunk in model.stream("hello")) == "It is 21 degrees.")
question = [("user", "how warm is it in Paris")]
answer = model.bind_tools([weather]).invoke(question)
result = weather.invoke(answer.tool_calls[0])
check("tools", model.bind_tools([weather]).invoke([*question, answer, result]).content == "It is 21 degrees.")
check("structured", isinstance(model.with_structured_output(Person).invoke("who is it"), Person))
try:
    ChatOpenAI(base_url=URL, api_key="unused", model="other", max_retries=0).invoke("hello")
except NotFoundError:
    check("error", True)
report()
