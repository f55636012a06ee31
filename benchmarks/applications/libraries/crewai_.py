"""CrewAI, with its own provider for OpenAI's API."""

import os

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false")

from common import KEY, MODEL, MOST, QUESTION, URL, WEATHER, Person, case, raises, report
from crewai import LLM, Agent

common = {"provider": "openai", "base_url": URL, "api_key": KEY, "max_retries": 0, "max_tokens": MOST}
model = LLM(model=MODEL, **common)
messages = [{"role": "user", "content": QUESTION}]


@case("hello")
def hello():
    agent = Agent(role="helper", goal="help", backstory="kind", llm=model, max_iter=1, verbose=False)
    return model.call(messages) and agent.kickoff(QUESTION).raw


@case("stream")
def stream():
    return LLM(model=MODEL, stream=True, **common).call(messages)


@case("tools")
def call():
    tools = [{"type": "function", "function": WEATHER}]
    called = []
    model.call(messages, tools=tools, available_functions={"weather": lambda city: called.append(city) or "21 degrees"})
    return called


@case("structured")
def structured():
    found = model.call(messages, response_model=Person)
    return isinstance(found, Person) or Person.model_validate_json(found)


@case("error")
def error():
    return raises(Exception, lambda: LLM(model="other", **common).call(messages))


report()
