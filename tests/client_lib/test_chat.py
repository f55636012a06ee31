"""Chat templates: fixed parts public, contents private, together exactly the rendering."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from client_lib import ChatTemplate, Client, Encoder, InvalidRequestError, Message, private, public
from del_core.bundle import ChatFormat
from del_core.bundle.chat import read_chat
from del_core.wire import PrivateSegment, PublicSegment
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer
from tests.support.scripted_server import error as scripted_error

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


# Small templates with what those of the families do: what they trim, where they write the
# begin-of-text token, and where they put the system message.
FAMILIES = {
    "SmolLM3": (
        "{%- set today = strftime_now('%d %B %Y') -%}<|im_start|>system\n## Metadata\nToday Date: {{ today }}\n\n"
        "{%- for message in messages -%}{%- set content = message.content if message.content is string else '' -%}"
        "{%- if message.role == 'user' %}{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}"
        "{%- elif message.role == 'assistant' -%}{% generation %}"
        "{{ '<|im_start|>assistant\n' + content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}{%- endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
    ),
    "gpt-oss": (
        "{%- macro head() -%}{{ 'Knowledge cutoff: 2024-06\n' }}{{ 'Current date: ' + strftime_now('%Y-%m-%d') }}"
        "{%- endmacro -%}{{ '<|start|>system<|message|>' + head() + '<|end|>' }}"
        "{%- if tools %}{{ tools | tojson }}{% endif -%}"
        "{%- for message in messages -%}{%- if message.role == 'assistant' -%}{%- if loop.last -%}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}{%- else -%}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{%- endif -%}"
        "{%- elif message.role == 'user' %}{{ '<|start|>user<|message|>' + message['content'] + '<|end|>' }}"
        "{%- else %}{{ raise_exception('Unknown role: ' + message.role) }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"
    ),
    "Llama 3": (
        "{{- bos_token }}{%- if not date_string is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '<|eot_id|>' }}"
        "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    "Qwen": (
        "{%- set ns = namespace(last=messages|length - 1, seeking=true) %}{%- for message in messages[::-1] %}"
        "{%- set index = (messages|length - 1) - loop.index0 %}{%- if ns.seeking and message.role == 'user' and not("
        "message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}"
        "{%- set ns.seeking = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content %}{%- if '</think>' in content %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
        "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "Gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "Mistral": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
        "{%- set rest = messages[1:] %}"
        "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for message in rest %}"
        "{%- if message['role'] == 'user' %}{%- if loop.last and system is defined %}"
        "{{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
        "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
        "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
    ),
}


@pytest.mark.parametrize("source", FAMILIES.values(), ids=FAMILIES)
def test_templates_of_the_families(source: str) -> None:
    template = ChatTemplate.jinja(source, bos_token="<s>", eos_token="</s>")
    template.check()
    spans = template.render([Message("user", SECRET), Message("assistant", public("Oh.")), Message("user", "and now?")])
    assert [span.text for span in spans if span.is_private] == [SECRET, "and now?"]
    assert not any(SECRET in span.text for span in spans if not span.is_private)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(FAMILIES)), st.lists(TEXT.map(str.strip).filter(bool), min_size=1, max_size=3))
def test_no_template_moves_private_text_into_a_public_span(name: str, texts: list[str]) -> None:
    """Public spans are those of the same chat with other contents of any kind."""
    template = ChatTemplate.jinja(FAMILIES[name], bos_token="<s>", eos_token="</s>")

    def public_texts(contents: list[str]) -> list[str]:
        messages = [Message(("user", "assistant")[index % 2], text) for index, text in enumerate(contents)]
        return [span.text for span in template.render(messages) if not span.is_private]

    with contextlib.suppress(InvalidRequestError):  # of a text that the template changes
        assert public_texts(texts) == public_texts(["one", "two", "three"][: len(texts)])


@pytest.mark.parametrize(
    ("source", "field", "reason"),
    [
        ("{{ messages[0].content }}{{ nothing.more }}", "messages", "UndefinedError ('nothing' is undefined)"),
        ("{{ raise_exception('not today') }}", "messages", "RefusedError (not today)"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "template", "exceeds them"),
        ("{{ messages[0].content }}", "template", "a dropped or repeated content"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "template", "contains every content once"),
    ],
)
def test_a_test_chat_says_why_a_template_cannot_be_used(source: str, field: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate.jinja(source).check()
    assert caught.value.field == field
    assert reason in str(caught.value)


CHAT = ChatFormat(CHATML, {"eos_token": "<|im_end|>"}, (7, 9))
TURNS = [Message("system", public("be brief")), Message("user", "my test was positive")]


def test_a_chat_under_the_template_of_the_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", chat=CHAT)
    with ScriptedServer(bundle).running() as server, Client(server.url, cache_dir=tmp_path / "cache") as client:
        spans = client.spans(TURNS, variant="open")
        assert [span.text for span in spans if span.is_private] == ["my test was positive"]
        assert "".join(span.text for span in spans).endswith("<|im_start|>assistant\n")
        client.complete(TURNS, variant="open", stop_token_ids=[9, 11])
        with client.stream(TURNS, variant="open", ignore_eos=True) as stream:
            list(stream)
        client.complete(client.encode(TURNS, variant="strict"), variant="strict")
        client.conversation(variant="open").complete(TURNS)
        client.conversation(variant="open", template=ChatTemplate.simple({"user": "U"}, answer="A")).complete(TURNS[1:])
        client.complete("no chat", variant="open")
        requests = [server.decode(frame) for frame in server.frames]
    ends = [request.sampling.stop_token_ids for request in requests]
    assert ends == [(9, 11, 7), (), (7, 9), (7, 9), (), ()]
    kinds = [type(segment) for segment in requests[0].segments]
    assert kinds == [PublicSegment, PublicSegment, PublicSegment, PublicSegment, PrivateSegment, PublicSegment]
    assert requests[0].segments[4].codes.tobytes() == requests[1].segments[4].codes.tobytes()  # type: ignore[union-attr]


SELECTIVE = {
    "refuses": "{% if 'positive' in messages[-1].content %}{{ raise_exception('') }}{% endif %}",
    "fails": "{% if messages[-1].content.count('t') > 2 %}{{ 1 / 0 }}{% endif %}",
    "is slow": "{% if 'test' in messages[-1].content %}{% for i in range(1999999) %}{% endfor %}{% endif %}",
    "writes": "{% if messages[-1].content is string and ' was ' in messages[-1].content %}!{% endif %}",
    "drops": "{% if messages[-1].content.startswith('my') %}{% set messages = [] %}{% endif %}",
}


@pytest.mark.parametrize("name", SELECTIVE)
def test_no_request_of_a_server_depends_on_what_its_template_makes_of_a_content(tmp_path: Path, name: str) -> None:
    """Whether a request comes is one bit to the server, of each chat and of any predicate."""
    bundle = make_bundle(tmp_path / "bundle", chat=ChatFormat(SELECTIVE[name] + CHATML))
    with ScriptedServer(bundle).running() as server, Client(server.url, cache_dir=tmp_path / "cache") as client:
        for content in ("my test was positive", "hello"):
            client.complete([Message("user", content)], variant="open")
        hidden = [
            [part.token_ids for part in server.decode(frame).segments if isinstance(part, PublicSegment)]
            for frame in server.frames
        ]
    assert len(hidden) == 2
    assert hidden[0] == hidden[1]


def test_a_server_that_changes_the_template_gets_no_second_copy(tmp_path: Path) -> None:
    first, second = (
        make_bundle(tmp_path / f"bundle{number}", chat=ChatFormat(f"{number}: {CHATML}")) for number in (1, 2)
    )
    server = ScriptedServer(first)
    with server.running(), Client(server.url, cache_dir=tmp_path / "cache") as client:
        client.complete(TURNS, variant="open")
        server.bundle = second
        server.script.append(scripted_error(409, "bundle_outdated"))
        client.complete("something else", variant="open")
        assert client.bundle().fingerprint == second.fingerprint
        client.complete(TURNS, variant="open")
        one, other = (server.decode(server.frames[index]) for index in (0, -1))
    codes = [
        [part.codes.tobytes() for part in request.segments if isinstance(part, PrivateSegment)]
        for request in (one, other)
    ]
    assert codes[0] == codes[1]


def test_a_bundle_without_a_template_says_so(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with ScriptedServer(bundle).running() as server, Client(server.url, cache_dir=tmp_path / "cache") as client:
        with pytest.raises(InvalidRequestError) as caught:
            client.complete(TURNS, variant="open")
        assert caught.value.field == "template"
        assert not server.frames


def test_the_template_of_a_model_directory(tmp_path: Path) -> None:
    assert read_chat(tmp_path) is None
    tokenizer = Tokenizer.from_file(str(make_bundle(tmp_path / "bundle").tokenizer_path))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<end>", "bos_token": None, "unk_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert read_chat(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text(CHATML, "utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [3, 4]}), "utf-8")
    end = tokenizer.token_to_id("<end>")
    assert read_chat(tmp_path) == ChatFormat(CHATML, {"eos_token": "<end>", "unk_token": "<s>"}, (3, 4, end))
