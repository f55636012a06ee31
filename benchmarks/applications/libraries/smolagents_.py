"""Hugging Face's smolagents, with its model for servers like OpenAI's."""

from common import KEY, MODEL, QUESTION, URL, Person, case, raises, report
from openai import NotFoundError
from smolagents import CodeAgent, OpenAIServerModel, Tool, ToolCallingAgent

options = {"api_base": URL, "api_key": KEY, "client_kwargs": {"max_retries": 0}}
model = OpenAIServerModel(model_id=MODEL, **options)
messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
called = []


class Weather(Tool):
    """A tool."""

    name = "weather"
    description = "Get the weather of a city."
    inputs = {"city": {"type": "string", "description": "the city", "enum": ["Paris", "London"]}}  # noqa: RUF012
    output_type = "string"

    def forward(self, city: str) -> str:
        """Return the weather."""
        called.append(city)
        return "21 degrees"


@case("hello")
def hello():
    return model.generate(messages).content


@case("stream")
def stream():
    return "".join(part.content or "" for part in model.generate_stream(messages))


@case("tools")
def call():
    answer = model.generate(messages, tools_to_call_from=[Weather()])
    # One step calls the tool or gives the final answer, which is a call, too.
    agent = ToolCallingAgent(tools=[Weather()], model=model, max_steps=1, verbosity_level=0)
    steps = list(agent.run(QUESTION, stream=True))
    return answer.tool_calls[0].function.name == "weather" and steps


@case("structured")
def structured():
    schema = {"name": "person", "schema": Person.model_json_schema()}
    answer = model.generate(messages, response_format={"type": "json_schema", "json_schema": schema})
    agent = CodeAgent(tools=[], model=model, max_steps=1, verbosity_level=0, use_structured_outputs_internally=True)
    return Person.model_validate_json(answer.content) and list(agent.run(QUESTION, stream=True))


@case("error")
def error():
    other = OpenAIServerModel(model_id="other", **options)
    return raises(NotFoundError, lambda: other.generate(messages))


report()
