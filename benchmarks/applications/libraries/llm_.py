"""Simon Willison's ``llm``, by its command and its library."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MODEL, QUESTION, URL, Person, case, report

home = Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(home)
(home / "extra-openai-models.yaml").write_text(
    "".join(
        f"- {{model_id: {name}, model_name: {name}, api_base: '{URL}', supports_tools: true, supports_schema: true}}\n"
        for name in (MODEL, "other")
    )
)
TOOL = 'def weather(city: str) -> str:\n    "Get the weather of a city."\n    return "21 degrees"\n'


def run(*options, model=MODEL):
    command = [Path(sys.executable).with_name("llm"), "-m", model, *options, QUESTION]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@case("hello")
def hello():
    return run("--no-stream").stdout.strip()


@case("stream")
def stream():
    return run().stdout.strip()


@case("tools")
def call():
    done = run("--functions", TOOL, "--td")
    return done.returncode == 0 and "Tool call: weather" in done.stderr


@case("structured")
def structured():
    done = run("--schema", json.dumps(Person.model_json_schema()))
    return Person.model_validate_json(done.stdout)


@case("error")
def error():
    done = run(model="other")
    return done.returncode != 0 and "model" in done.stderr


report()
