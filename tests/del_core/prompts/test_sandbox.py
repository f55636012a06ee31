"""Chat templates run within bounds, with what transformers documents for them."""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from typing import Any

import pytest
from jinja2.exceptions import SecurityError, UndefinedError
from transformers.utils.chat_template_utils import render_jinja_template

from del_core.prompts.sandbox import MAX_TEMPLATE_BYTES, BoundedTemplate, BoundsError, RefusedError

DAY = datetime.date(2026, 11, 29)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "héllo <b> & 'all'"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "why?"},
]


def render(source: str, messages: list[dict[str, str]] | None = None, **variables: str) -> str:
    return BoundedTemplate(source).render(messages or MESSAGES, variables, day=DAY)


# Small templates with the constructions that published ones use.
PUBLISHED = {
    "macro, namespace, slices": (
        "{%- macro say(role, content, bare=false) -%}{% if not bare %}<|{{ role }}|>{% endif %}{{ content }}"
        "{%- endmacro -%}{%- set ns = namespace(last=-1) -%}{%- for m in messages[::-1] -%}"
        "{%- if m.role == 'user' and ns.last < 0 %}{% set ns.last = messages|length - 1 - loop.index0 %}{% endif -%}"
        "{%- endfor -%}{%- for m in messages -%}{{ say(m['role'], m.content) }}{{ '[LAST]' if loop.index0 == ns.last }}"
        "{%- endfor -%}"
    ),
    "generation, break, continue": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "  {% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% else %}"
        "U: {{ m.content }}{% endif %}\n{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}"
    ),
    "tojson": "{{ messages | tojson }}{{ {'b': 1, 'a': [messages[1].content]} | tojson(indent=2) }}",
    "filters and tests": (
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}"
        "{% set first = messages | first %}{{ first.content | trim | upper | replace('BE', 'be') | indent(2) }}"
        "{{ tools is none }}{{ documents is defined }}{{ (messages | last)['content'].split('?')[0].rstrip('y') }}"
        "{{ custom | default('none') }}{% for key, value in first | dictsort %}{{ key ~ '=' ~ value }};{% endfor %}"
        "{% set block %}x{{ 1 + 2 * 3 % 4 }}{% endset %}{{ block is string }}{{ block }}{{ 2 ** 3 }}"
        "{{ (messages[1].content | safe) ~ (messages[1].content | e) }}"
    ),
}


@pytest.mark.parametrize("source", PUBLISHED.values(), ids=PUBLISHED)
def test_templates_render_as_transformers_renders_them(source: str) -> None:
    wanted, _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True, eos_token="</s>")
    assert render(source, eos_token="</s>") == wanted[0]


def test_the_clock_has_the_day_only() -> None:
    assert render("{{ strftime_now('%d %B %Y %H:%M:%S.%f') }}") == "29 November 2026 00:00:00.000000"


def test_a_template_may_refuse_its_messages() -> None:
    with pytest.raises(RefusedError, match="no system"):
        render("{{ raise_exception('no system') }}")


DOUBLE = (
    "{{% set ns = namespace(x='x' * 999) %}}{{% for i in range(99) %}}{{% set ns.x = {} %}}{{% endfor %}}{{{{ ns.x }}}}"
)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        DOUBLE.format("ns.x ~ ns.x"),
        DOUBLE.format("ns.x + ns.x"),
        DOUBLE.format("[ns.x, ns.x]"),
        DOUBLE.format("{'a': ns.x, 'b': ns.x}"),
        DOUBLE.format("ns.x.replace('x', ns.x)"),
        DOUBLE.format("ns.x | replace('x', ns.x)"),
        DOUBLE.format("ns.x.join([ns.x] * 99)"),
        DOUBLE.format("([ns.x] * 99) | join(ns.x)"),
        "{% set ns = namespace(x=namespace()) %}{% set ns.x = ns %}{{ ns | upper }}",
        "{{ [namespace(a=1)] }}",
        "{% set ns = namespace(x=3) %}{% for i in range(999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 9 ** 999999999 }}",
        "{{ [0] * 999999999 }}",
        "{{ range(999999999) | list }}",
        "{{ '%999999999d' % 1 }}",
        "{{ [1] | tojson(indent=999999999) }}",
        "{{ 'a\nb' | indent(999999999) }}",
        "{% for i in range(9999) %}" + "x" * 60_000 + "{% endfor %}",
        "{% set b %}{% for i in range(9999) %}" + "x" * 60_000 + "{% endfor %}{% endset %}{{ b | length }}",
    ],
)
def test_work_is_bounded(source: str) -> None:
    with pytest.raises((BoundsError, RecursionError)):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{}'.format_map({}) }}",
        "{{ 'a'.center(999999999) }}",
        "{{ 'a'.expandtabs(999999999) }}",
        "{{ 'a'.encode() }}",
        "{{ dict.fromkeys('ab') }}",
        "{{ cycler('a').next() }}",
        "{{ lipsum() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__ }}",
        "{% for m in messages %}{{ loop._iterable }}{% endfor %}",
        "{{ namespace.mro() }}",
        "{{ messages[0].content.zfill(999999999) }}",
        "{{ self.environment.filters }}",
        "{{ 5() }}",
    ],
)
def test_nothing_else_can_be_reached(source: str) -> None:
    """What is not there renders as nothing, and fails as soon as it is used."""
    found = ""
    with contextlib.suppress(SecurityError, UndefinedError, TypeError):
        found = render(source)
    assert found == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% foo %}", "line 1: Encountered unknown tag 'foo'"),
        ("\n{{ x | random }}", "line 2: No filter named 'random'"),
        ("{% include 'x' %}", "line 1: it must not load other templates"),
        ("{% import 'x' as y %}", "it must not load other templates"),
        ("{% extends 'x' %}", "it must not load other templates"),
        ("{{ " + "(" * 5_000, "RecursionError"),
        ("{% for i in x %}" * 30 + "{% endfor %}" * 30, "SyntaxError"),
        ("{{1}}" * 10_001, "at most 10000 parts"),
        ("x" * (MAX_TEMPLATE_BYTES + 1), "at most 65536 bytes"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        BoundedTemplate(source)


def test_threads_count_for_themselves() -> None:
    template = BoundedTemplate("{% for i in range(2000) %}{{ messages[0].content }}{% endfor %}")
    found: list[Any] = []

    def work(text: str) -> None:
        found.append(template.render([{"role": "user", "content": text}], {}, day=DAY) == text * 2000)

    threads = [threading.Thread(target=work, args=(json.dumps(number),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6
