"""Chat templates: fixed parts public, contents private, together exactly the rendering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from client_lib import ChatTemplate, Encoder, InvalidRequestError, Message, private, public
from del_core.wire import PublicSegment
from tests.support.bundle import make_bundle

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


EVERY_TURN = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("bos_token_id", [0, None])
def test_begin_of_text_stands_once_in_front_and_in_later_turns(tmp_path: Path, bos_token_id: int | None) -> None:
    """The bundle sends its own; a template's leading one would be a second."""
    config = {"chat_template": EVERY_TURN, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    template = ChatTemplate.from_tokenizer_config(tmp_path / "tokenizer_config.json")
    messages = [Message("user", "hello"), Message("assistant", "well"), Message("user", "bye")]
    encoder = Encoder(make_bundle(tmp_path / "bundle", bos_token_id=bos_token_id))
    tokenizer = Tokenizer.from_file(str(encoder.bundle.tokenizer_path))
    text = "<s>[INST] hello [/INST] well </s><s>[INST] bye [/INST]"
    encoded = encoder.encode(template.render(messages, "clear"), "clear")
    ids = [token_id for segment in encoded.segments for token_id in segment.token_ids]  # type: ignore[union-attr]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert ids.count(0) == 2
    private_turns = encoder.encode(template.render(messages), "open")
    public_ids = [one.token_ids for one in private_turns.segments if isinstance(one, PublicSegment)]
    assert [token_id for ids in public_ids for token_id in ids].count(0) == 2


def test_begin_of_text_in_a_private_span_is_not_looked_at(tmp_path: Path) -> None:
    encoder = Encoder(make_bundle(tmp_path / "bundle"))
    lengths = [encoder.encode([private(f"{front}hello")], "open").private_tokens for front in ("", "<s>")]
    assert lengths[1] == lengths[0] + 1
