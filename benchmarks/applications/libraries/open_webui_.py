"""Open WebUI, over the HTTP API that its own page uses."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from common import KEY, MODEL, QUESTION, URL, WEATHER, Person, case, report

MOST_S = 900  # a start takes a minute of a free processor: two hundred migrations of its database
messages = [{"role": "user", "content": QUESTION}]


@contextlib.contextmanager
def running():
    """Start the server with its settings for small machines; yield a client that is signed up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        settings = {
            "OPENAI_API_BASE_URL": URL,
            "OPENAI_API_KEY": KEY,
            "DATA_DIR": place,
            "WEBUI_SECRET_KEY": secrets.token_hex(16),
            "USE_SLIM_DOCKER": "true",  # no models of its own
            "ENABLE_OLLAMA_API": "false",
            "OFFLINE_MODE": "true",
        }
        command = [Path(sys.executable).with_name("open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
        with open(Path(place) / "log", "w") as log:
            process = subprocess.Popen(command, env={**os.environ, **settings}, cwd=place, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=600) as client:
                wait(client, process, Path(place) / "log")
                person = {"name": "Ann", "email": "ann@example.org", "password": secrets.token_urlsafe(16)}
                made = client.post("/api/v1/auths/signup", json=person).raise_for_status().json()
                client.headers["authorization"] = f"Bearer {made['token']}"
                yield client
        finally:
            process.terminate()
            process.wait(60)


def wait(client, process, log):
    """Wait until the server answers. Raises RuntimeError if it ends before."""
    end = time.monotonic() + MOST_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/health").is_success:
                return
        time.sleep(0.5)
    raise RuntimeError(f"no start: {log.read_text()[-2000:]}")


def chat(**fields):
    """Return the answer of a chat."""
    return api.post("/api/chat/completions", json={"model": MODEL, "messages": messages, "stream": False, **fields})


with running() as api:

    @case("hello")
    def hello():
        models = api.get("/api/models").raise_for_status().json()["data"]
        return MODEL in [one["id"] for one in models] and chat().json()["choices"][0]["message"]["content"]

    @case("stream")
    def stream():
        events = [line for line in chat(stream=True).text.splitlines() if line.startswith("data: ")]  # and comments
        lines = [line.removeprefix("data: ") for line in events]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
        return lines[-1] == "[DONE]" and "".join(one.get("content") or "" for one in deltas)

    @case("tools")
    def call():
        tools = [{"type": "function", "function": WEATHER}]
        message = chat(tools=tools, tool_choice="required").json()["choices"][0]["message"]
        (made,) = message["tool_calls"]
        result = {"role": "tool", "tool_call_id": made["id"], "content": "21 degrees"}
        told = chat(messages=[*messages, message, result], tools=tools)
        return json.loads(made["function"]["arguments"])["city"] and told.json()["choices"]

    @case("structured")
    def structured():
        schema = {"name": "person", "schema": Person.model_json_schema()}
        answer = chat(response_format={"type": "json_schema", "json_schema": schema})
        return Person.model_validate_json(answer.json()["choices"][0]["message"]["content"])

    @case("error")
    def error():
        refused = chat(model="other")
        return refused.status_code == 400 and refused.json()["detail"] == "Model not found"


report()
