"""Instructor, in its modes of tools and of JSON schemas."""

import instructor
import openai
from common import URL, Person, check, report

messages = [{"role": "user", "content": "who is it"}]
for name, mode in (("tools", instructor.Mode.TOOLS), ("structured", instructor.Mode.JSON_SCHEMA)):
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key="unused", max_retries=0), mode=mode)
    made = client.chat.completions.create(model="open", messages=messages, response_model=Person, max_retries=0)
    check(name, isinstance(made, Person))
parts = list(client.chat.completions.create_partial(model="open", messages=messages, response_model=Person))
check("stream", parts[-1].age == made.age)
report()
