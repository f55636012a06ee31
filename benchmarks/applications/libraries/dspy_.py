"""DSPy, whose programs talk through LiteLLM."""

import asyncio

import dspy
import litellm
from common import KEY, MODEL, MOST, QUESTION, URL, City, Person, case, raises, report

# DSPy asks LiteLLM's list of models what a model can do.
able = {"litellm_provider": "openai", "supports_response_schema": True, "supports_function_calling": True}
litellm.register_model({f"openai/{MODEL}": {"mode": "chat", **able}})
common = {"api_base": URL, "api_key": KEY, "cache": False, "num_retries": 0, "engine": "litellm"}
dspy.configure(lm=dspy.LM(f"openai/{MODEL}", max_tokens=MOST, **common), adapter=dspy.JSONAdapter())


class Told(dspy.Signature):
    """Say who it is."""

    question: str = dspy.InputField()
    person: Person = dspy.OutputField()


class Asked(dspy.Signature):
    """Call a tool."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def weather(city: City) -> str:
    """Get the weather of a city."""
    return "21 degrees"


@case("hello")
def hello():
    return dspy.settings.lm(QUESTION)[0]


@case("stream")
def stream():
    program = dspy.streamify(dspy.Predict(Told))

    async def parts():
        return [part async for part in program(question=QUESTION)]

    *chunks, prediction = asyncio.run(parts())
    return len(chunks) > 1 and isinstance(prediction.person, Person)


@case("tools")
def call():
    config = {"tool_choice": "required"}
    answer = dspy.Predict(Asked)(question=QUESTION, tools=[dspy.Tool(weather)], config=config)
    return answer.calls.tool_calls[0].name == "weather"


@case("structured")
def structured():
    return isinstance(dspy.Predict(Told)(question=QUESTION).person, Person)


@case("error")
def error():
    return raises(Exception, lambda: dspy.LM("openai/other", **common)(QUESTION))


report()
