"""Chat templates: fixed parts public, contents private, together exactly the rendering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_lib import ChatTemplate, InvalidRequestError, Message, private, public

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate: ' + message['content']) }}{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
SECRET = "Zebra7931 was positive"
# Jinja and the placeholders see every character, apart from lone surrogates, which no prompt may
# hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1, max_size=5))
def test_spans_are_the_rendering(messages: list[tuple[str, str]]) -> None:
    expected = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages) + "<|im_start|>assistant\n"
    spans = ChatTemplate.jinja(CHATML).render([Message(role, text) for role, text in messages])
    assert "".join(span.text for span in spans) == expected
    assert [span.text for span in spans if span.is_private] == [text for _, text in messages if text]


def test_contents_may_have_public_parts() -> None:
    content = [public("My number is "), private("5512"), public(".")]
    spans = ChatTemplate.jinja(ALTERNATING, eos_token="</s>").render(
        [Message("user", content), Message("assistant", public("Thanks.")), Message("user", private("bye"))]
    )
    assert "".join(s.text for s in spans) == "[INST] My number is 5512. [/INST]Thanks.</s>[INST] bye [/INST]"
    assert [s.text for s in spans if s.is_private] == ["5512", "bye"]


def test_under_clear_strings_are_public() -> None:
    spans = ChatTemplate.jinja(CHATML).render([Message("user", "hello")], "clear")
    assert not any(span.is_private for span in spans)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0]['content'] | upper }}",
        "{{ messages[0]['content'] | trim }}",
        "{{ messages[0]['content'][:5] }}",
        "{{ messages[0]['content'] | replace('a', 'b') }}",
        "{{ messages[0]['content'] | tojson }}",
        "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] | length }}",
        "nothing",
        "{% if 'positive' in messages[0]['content'] %}!{% endif %}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] }}{{ messages[0]['content'] | length }}",
    ],
)
def test_templates_that_change_or_look_at_contents_are_refused(source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate.jinja(source).render([Message("user", f" {SECRET}\n'a'")])
    assert caught.value.field == "template"
    assert "Zebra" not in repr((str(caught.value), caught.value.args, caught.value.__cause__))


def test_what_a_template_refuses_names_no_content() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate.jinja(ALTERNATING).render([Message("assistant", SECRET)])
    link: BaseException | None = caught.value
    while link is not None:
        assert "Zebra" not in repr((link, vars(link)))
        link = link.__cause__ or link.__context__


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{% for i in range(10000000) %}x{% endfor %}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequestError):
        ChatTemplate.jinja(source + "{{ messages[0]['content'] }}").render([Message("user", "hello")])


@pytest.mark.parametrize("source", ["{% for %}", "{{", 5])
def test_malformed_templates_are_refused(source: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate.jinja(source)
    assert caught.value.field == "template"


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        ({"chat_template": CHATML, "eos_token": "</s>"}, None),
        ({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]}, None),
        ({"eos_token": {"content": "</s>"}}, CHATML),
    ],
)
def test_the_template_of_a_model(tmp_path: Path, config: dict[str, Any], beside: str | None) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(config), "utf-8")
    if beside is not None:
        (tmp_path / "chat_template.jinja").write_text(beside, "utf-8")
    spans = ChatTemplate.from_tokenizer_config(path).render([Message("user", "hello")])
    assert "".join(s.text for s in spans) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("content", [None, "{}", "[]", "{", '{"chat_template": 5}'])
def test_configurations_without_a_template_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer_config.json"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate.from_tokenizer_config(path)
    assert caught.value.field == "path"


@pytest.mark.parametrize(
    "messages", [[], ["hello"], [Message("user", 5)], [Message(5, "hello")], [Message("user", [5])]]
)  # type: ignore[arg-type, list-item]
def test_what_is_no_message_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequestError):
        ChatTemplate.simple({"user": ""}, answer="A").render(messages)


def test_unknown_roles_are_named() -> None:
    with pytest.raises(InvalidRequestError, match="user, got 'tool'"):
        ChatTemplate.simple({"user": "U"}, answer="A").render([Message("tool", "x")])
