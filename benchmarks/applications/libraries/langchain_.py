"""LangChain, with its package for OpenAI."""

from common import KEY, MODEL, MOST, QUESTION, URL, City, Person, case, raises, report
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import NotFoundError


@tool
def weather(city: City) -> str:
    """Get the weather of a city."""
    return "21 degrees"


model = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, max_completion_tokens=MOST, max_retries=0)
question = [("user", QUESTION)]


@case("hello")
def hello():
    return model.invoke(QUESTION).text


@case("stream")
def stream():
    return "".join(chunk.text for chunk in model.stream(QUESTION))


@case("tools")
def call():
    answer = model.bind_tools([weather], tool_choice="required").invoke(question)
    result = weather.invoke(answer.tool_calls[0])
    return model.bind_tools([weather]).invoke([*question, answer, result]).text


@case("structured")
def structured():
    found = [
        model.with_structured_output(Person, method=method).invoke(QUESTION)
        for method in ("json_schema", "function_calling")
    ]
    return all(isinstance(one, Person) for one in found)


@case("error")
def error():
    other = ChatOpenAI(base_url=URL, api_key=KEY, model="other", max_retries=0)
    return raises(NotFoundError, lambda: other.invoke(QUESTION))


report()
