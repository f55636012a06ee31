"""Instructor, in its modes of tools and of JSON schemas."""

import instructor
import openai
from common import KEY, MODEL, QUESTION, URL, Person, case, raises, report
from instructor.core import InstructorRetryException

messages = [{"role": "user", "content": QUESTION}]


def api(mode):
    return instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=mode)


def made(mode, model=MODEL):
    return api(mode).chat.completions.create(model=model, messages=messages, response_model=Person, max_retries=0)


@case("hello")
def hello():
    return api(instructor.Mode.TOOLS).chat.completions.create(model=MODEL, messages=messages, response_model=None)


@case("stream")
def stream():
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        *_, last = api(mode).chat.completions.create_partial(model=MODEL, messages=messages, response_model=Person)
        if last.age is None:
            return False
    return True


@case("tools")
def call():
    return isinstance(made(instructor.Mode.TOOLS), Person)


@case("structured")
def structured():
    return isinstance(made(instructor.Mode.JSON_SCHEMA), Person)


@case("error")
def error():
    return raises(InstructorRetryException, lambda: made(instructor.Mode.TOOLS, "other"))


report()
