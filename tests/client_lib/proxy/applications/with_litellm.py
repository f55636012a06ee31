"""LiteLLM as a library."""

import litellm
from common import URL, Person, check, report

litellm.telemetry = False
base = {"model": "openai/open", "api_base": URL, "api_key": "unused", "num_retries": 0}
hello = [{"role": "user", "content": "hello"}]
check("hello", litellm.completion(messages=hello, **base).choices[0].message.content == "It is 21 degrees.")
chunks = litellm.completion(messages=hello, stream=True, **base)
check("stream", "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "It is 21 degrees.")
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": parameters}}]
question = [{"role": "user", "content": "how warm is it in Paris"}]
answer = litellm.completion(messages=question, tools=tools, **base).choices[0].message
result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "21 degrees"}
following = litellm.completion(messages=[*question, answer.model_dump(), result], tools=tools, **base)
check("tools", following.choices[0].message.content == "It is 21 degrees.")
made = litellm.completion(messages=hello, response_format=Person, **base).choices[0].message.content
check("structured", Person.model_validate_json(made) is not None)
try:
    litellm.completion(messages=hello, **{**base, "model": "openai/other"})
except litellm.NotFoundError:
    check("error", True)
report()
