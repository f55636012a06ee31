"""curl, as the first page of OpenAI's documentation uses it."""

import json
import subprocess

from common import KEY, MODEL, QUESTION, URL, WEATHER, Person, case, report


def curl(*options, **body):
    data = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], **body})
    headers = ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {KEY}"]
    command = ["curl", "-sS", "--noproxy", "*", f"{URL}/chat/completions", *headers, *options, "-d", data]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def message(**body):
    return json.loads(curl(**body))["choices"][0]["message"]


@case("hello")
def hello():
    return message()["content"]


@case("stream")
def stream():
    lines = [line.removeprefix("data: ") for line in curl("-N", stream=True).splitlines() if line.startswith("data: ")]
    text = "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])
    return text and lines[-1] == "[DONE]"


@case("tools")
def call():
    made = message(tools=[{"type": "function", "function": WEATHER}], tool_choice="required")["tool_calls"][0]
    return json.loads(made["function"]["arguments"])["city"]


@case("structured")
def structured():
    schema = {"name": "person", "schema": Person.model_json_schema()}
    answer = message(response_format={"type": "json_schema", "json_schema": schema})
    return Person.model_validate_json(answer["content"])


@case("error")
def error():
    status, found = curl("-w", "\n%{http_code}", model="other").splitlines()[::-1]
    return status == "404" and json.loads(found)["error"]["code"] == "model_not_found"


report()
