"""Answers of malicious servers as bytes: heads, framing, JSON bodies, events, bundle archives.

Every answer follows from a :class:`random.Random`, so a seed and a number name it.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.fuzz.archives import forged_archive, packed
from benchmarks.fuzz.mutations import mutate_bytes
from del_core.bundle import ChatFormat, ClientBundle, canonical_json, pack_client
from del_core.bundle.manifest import FileEntry, digest_of

__all__ = ["Answers", "cut", "framed"]

_VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**53, 2**64, 10**40, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "a", "stop", "length", "\r\n", "a\r\nset-cookie: x", "\x00", "\ud800", "\U0001f642", "x" * 300, "x" * 70_000,
    "\x1b[31m", [], [1], [[]], [None] * 50, [2**60], {}, {"a": 1}, {"type": "Sequence"}, [[[[[[[[[[]]]]]]]]]],
)  # fmt: skip
_STATUSES = (200,) * 24 + (
    100, 101, 103, 199, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 406, 408, 409, 411, 413, 415, 418,
    422, 429, 431, 451, 500, 500, 501, 502, 503, 503, 504, 529, 599, 600, 999,
)  # fmt: skip
_LINES = (b"HTTP/1.1 %d X",) * 100 + (
    b"HTTP/1.0 %d X", b"HTTP/1.1 %d", b"HTTP/2 %d X", b"HTTP/0.9 %d", b"ICY %d OK", b"%d", b"HTTP/1.1  %d  X",
    b"HTTP/1.1 %d \xff\x00", b"HTTP/1.1 %d " + b"y" * 9000, b"<html>%d", b"HTTP/1.1 -%d X", b"HTTP/1.1 %d\tX",
)  # fmt: skip
_HEADERS: tuple[tuple[bytes, tuple[bytes, ...]], ...] = (
    (b"content-type", (b"application/json", b"text/html", b"text/event-stream; charset=x", b"", b"\xff", b";" * 500)),
    (b"content-encoding", (b"gzip", b"deflate", b"br", b"zstd", b"identity", b"", b"gzip, gzip", b"\xe9")),
    (b"set-cookie", (b"a=b", b"a=" + b"c" * 9000, b"=;;;", b"a=b; expires=Thu, 99 Jan 99999 99:99:99 GMT", b"\xff=1")),
    (b"x-request-id", (b"req-1", b"", b"a b", b"\xff\xfe", b"x" * 5000, b"a\tb", b"../..")),
    (b"retry-after", (b"0", b"1e9", b"-1", b"9" * 400, b"Mon, 01 Jan 2024 00:00:00 +9999999999999", b"\xb2", b"",
                      b"Fri, 31 Dec 9999 23:59:59 -2359", b"Mon, 01 Jan 0001 00:00:00 +2359", b"0.001", b".")),
    (b"location", (b"http://elsewhere.invalid/", b"//", b"\xff", b"http://[", b"javascript:1")),
    (b"connection", (b"close", b"keep-alive", b"upgrade", b"x, y, z")),
    (b"upgrade", (b"websocket", b"h2c")),
    (b"transfer-encoding", (b"chunked", b"gzip, chunked", b"xchunked", b"identity", b"chunked, chunked")),
    (b"content-length", (b"0", b"1", b"-1", b"99999999999999999999", b"0x10", b"5, 5", b"+3", b"", b"\xb2")),
    (b"etag", (b'"x"', b"*", b"")),
    (b"trailer", (b"x-request-id", b"content-length")),
    (b"bad header", (b"x",)), (b"", (b"x",)), (b"x" * 3000, (b"y",)), (b"x\x00y", (b"z",)), (b"link", (b"<" * 200,)),
)  # fmt: skip
_CODES = ("bundle_outdated", "unknown_variant", "overloaded", "internal_error", "invalid_value", "not_found", "x")

_PARTS: dict[str, tuple[object, ...]] = {
    "normalizer": (
        {"type": "NFC"}, {"type": "NFKD"}, {"type": "Nmt"}, {"type": "Lowercase"}, {"type": "StripAccents"},
        {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"},
        {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
         "lowercase": True},
        {"type": "ByteLevel"},
    ),
    "pre_tokenizer": (
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        {"type": "FixedLength", "length": 0}, {"type": "FixedLength", "length": 1}, {"type": "Whitespace"},
        {"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Removed", "invert": True},
        {"type": "UnicodeScripts"}, {"type": "BertPreTokenizer"}, {"type": "CharDelimiterSplit", "delimiter": "x"},
    ),
    "decoder": (
        {"type": "ByteLevel"}, {"type": "Fuse"}, {"type": "CTC"}, {"type": "Strip", "content": " ", "start": 2**63},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
    ),
    "post_processor": (
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2, "pair": [],
         "special_tokens": {}},
        {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]},
    ),
    "model": (
        {"type": "WordLevel", "vocab": {"a": 0, "the": 1}, "unk_token": "a"},
        {"type": "WordPiece", "vocab": {"a": 0, "##a": 1}, "unk_token": "a", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 100},
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "b", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 2**60},
        {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": 0, "byte_fallback": False},
        {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 9, "byte_fallback": True},
        {"type": "Unigram", "vocab": [], "unk_id": None, "byte_fallback": False},
        {"type": "BPE", "vocab": {}, "merges": []}, {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5},
    ),
    "truncation": ({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5},),
    "padding": ({"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "a"},),
    "added_tokens": ([{"id": 2**31, "content": "the"}], [{"id": 0, "content": ""}],
                     [{"id": 5, "content": " ", "lstrip": True, "rstrip": True, "normalized": True, "special": True}]),
}  # fmt: skip

# Of bundles: honest, endless, huge, refusing, reordering, and outside of the sandbox.
_TEMPLATES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    "{% for m in messages[::-1] %}{{ m.content | trim }}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='x' * 999) %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ raise_exception(messages[0].content) }}",
    "{% if 'positive' in messages[0].content %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}",
    "{{ ''.__class__.__mro__ }}", "{{ 9 ** 9 ** 9 }}", "{% include 'x' %}", "{{ " + "(" * 5000, "\x00",
    "{{ x | tojson }}", "{{ messages | tojson(indent=99999999) }}", "{{ strftime_now('%' ~ 'Y' * 9999) }}",
    "{{ messages[0].content[::-1] }}", "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}",
    "{{ eos_token * 99999999 }}", "{% raw %}{{ x }}",
)  # fmt: skip


class Answers:
    """Makes answers for each operation of a client that sends to a server with this bundle."""

    def __init__(self, bundle: ClientBundle) -> None:
        self._bundle = bundle
        self._archive = pack_client(bundle.path)
        self._tokenizer = json.loads(bundle.tokenizer_path.read_bytes())
        self._bomb = gzip.compress(bytes(8 << 20), 9)

    def answer(self, operation: str, chooser: random.Random) -> Iterator[bytes]:
        """Return the bytes of one answer, as the pieces in which they arrive; they may be many.

        ``operation`` is complete, stream, models or bundle.
        """
        if chooser.random() < 0.003:
            return self._endless(chooser)
        first = [
            b"HTTP/1.1 %d X\r\n\r\n" % chooser.choice((100, 102, 103))
            for _ in range(chooser.choice((0,) * 30 + (1, 2, 40)))
        ]
        status, body = self.content(operation, chooser)
        kind = {"stream": b"text/event-stream", "bundle": b"application/x-tar"}.get(operation, b"application/json")
        whole = framed(status, kind, body, chooser)
        if chooser.random() < 0.06:
            whole = mutate_bytes(whole, chooser)
        return itertools.chain(first, cut(whole, chooser))

    def content(self, operation: str, chooser: random.Random) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        status = chooser.choice(_STATUSES)
        body = self._error(chooser) if status >= 400 and chooser.random() < 0.9 else self._body(operation, chooser)
        return status, self._bomb if chooser.random() < 0.01 else body

    def _body(self, operation: str, chooser: random.Random) -> bytes:
        make: Callable[[random.Random], bytes] = {
            "complete": self._completion,
            "stream": self._events,
            "models": self._models,
            "bundle": self.archive,
        }[operation]
        return make(chooser)

    # --- JSON ---------------------------------------------------------------------------

    def _completion(self, chooser: random.Random) -> bytes:
        return _encoded(
            {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": 1,
                "model": "open",
                "choices": [_choice(chooser)],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            },
            chooser,
        )

    def _models(self, chooser: random.Random) -> bytes:
        entry = {
            "id": "open",
            "guarantees": {"delta": 1e-6, "epsilon": 2.5, "epsilon_vocabulary": None},
            "audit": {"map": 0.1, "date": "2026-01-01"},
            "context_length": 512,
        }
        entries = [copy.deepcopy(entry) for _ in range(chooser.randrange(4))]
        return _encoded({"object": "list", "data": entries}, chooser)

    def _error(self, chooser: random.Random) -> bytes:
        error = {"message": "no", "type": "t", "param": "prompt", "code": chooser.choice(_CODES)}
        return _encoded({"error": error}, chooser)

    # --- events -------------------------------------------------------------------------

    def _events(self, chooser: random.Random) -> bytes:
        parts: list[bytes] = [b"\xef\xbb\xbf"] if chooser.random() < 0.05 else []
        is_changed = chooser.random() < 0.6
        for _ in range(chooser.choice((0, 1, 2, 3, 3, 8, 30))):
            event = {"choices": [_choice(chooser)]}
            kind = chooser.random()
            if kind < 0.05:
                parts.append(b"data: " + self._error(chooser))
            elif kind < 0.1:
                parts.append(b"data: [DONE]")
            elif kind < 0.15:
                parts.append(chooser.choice((b": ping", b"retry: 99999999999", b"event: x", b"id: \x00", b"data")))
            elif kind < 0.2:  # as a padded stream has them
                parts.append(b":" + b" " * chooser.choice((1000, 60_000, 1_000_000)))
            else:
                parts.append(b"data: " + (_encoded(event, chooser) if is_changed else json.dumps(event).encode()))
            parts.append(chooser.choice((b"\n\n",) * 8 + (b"\r\n\r\n", b"\r\r", b"\n", b"\r\n\n", b"")))
        if chooser.random() < 0.7:
            parts.append(b"data: [DONE]\n\n")
        return b"".join(parts)

    # --- bundles ------------------------------------------------------------------------

    def archive(self, chooser: random.Random) -> bytes:
        """Return an archive of a client part: right, altered, or forged with right digests."""
        kind = chooser.random()
        if kind < 0.1:
            return self._archive
        if kind < 0.25:
            return mutate_bytes(self._archive, chooser)
        if kind < 0.55:
            return forged_archive(self._bundle, {"tokenizer.json": self._forged_tokenizer(chooser)})
        if kind < 0.65:
            name = chooser.choice(("table.safetensors", "codes-k-8.safetensors"))
            table = mutate_bytes((self._bundle.path / name).read_bytes(), chooser)
            return forged_archive(self._bundle, {name: table})
        if kind < 0.8:
            template, tokens = chooser.choice(_TEMPLATES), {"eos_token": chooser.choice(("", ".", "x" * 256, "\n"))}
            return forged_archive(self._bundle, {}, ChatFormat(template, tokens, (chooser.choice((0, 46, 255, 256)),)))
        return self._forged_manifest(chooser)

    def _forged_tokenizer(self, chooser: random.Random) -> bytes:
        value = {**self._tokenizer, "model": dict(self._tokenizer["model"])}
        for _ in range(chooser.choice((1, 1, 2, 4))):
            name = chooser.choice(tuple(_PARTS))
            part = copy.deepcopy(chooser.choice(_PARTS[name]))
            if name in ("normalizer", "pre_tokenizer", "decoder") and chooser.random() < 0.3:
                inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[name]
                parts = [copy.deepcopy(chooser.choice(_PARTS[name])) for _ in range(chooser.choice((1, 2, 8, 30)))]
                part = {"type": "Sequence", inner: parts}
            if chooser.random() < 0.3:
                _mutate_json(part, chooser)
            value[name] = part
        if chooser.random() < 0.1:
            _mutate_json(value, chooser)
        data = json.dumps(value).encode()
        return mutate_bytes(data, chooser) if chooser.random() < 0.1 else data

    def _forged_manifest(self, chooser: random.Random) -> bytes:
        manifest = replace(self._bundle.manifest, fingerprint="")
        contents = {
            name: (self._bundle.path / name).read_bytes() for name in manifest.client_files if name != "manifest.json"
        }
        value = manifest.client_json()
        for _ in range(chooser.choice((1, 1, 2, 3))):
            _mutate_json(value, chooser)
        value.pop("fingerprint", None)
        try:
            canonical_json(value)
            value["fingerprint"] = digest_of(value)
            return packed(value, contents)
        except (ValueError, TypeError):  # a value that canonical JSON cannot hold
            value = manifest.client_json()
            name = chooser.choice(tuple(contents))
            entry = FileEntry(chooser.choice(("0" * 64, digest_of(name))), chooser.randrange(1 << 33))
            value["files"][name] = {"sha256": entry.sha256, "size": entry.size}
            value["fingerprint"] = digest_of(value)
            return packed(value, contents)

    # --- answers without end ------------------------------------------------------------------

    def _endless(self, chooser: random.Random) -> Iterator[bytes]:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        text = b'data: {"choices":[{"index":0,"text":"%s","token_ids":[],"finish_reason":null}]}\n\n' % (b"x" * 9000)
        choices: Sequence[tuple[bytes, bytes]] = (
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 100),
            (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1000),
            (head, b": waiting\n\n" * 100),
            (head, text),
            (head, b"data: " + b"x" * 5000),
            (head, b"data: x\n" * 500),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"[" * 60_000),
            (b"HTTP/1.1 200 OK\r\n\r\n", b'{"a":' * 9000),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 500),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x" * 500),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 50),
            (b"HTTP/1.1 503 X\r\n\r\n", b" " * 60_000),
        )
        begin, piece = chooser.choice(choices)
        # As good as endless: the client has to stop by itself at a limit far below.
        return itertools.chain((begin,), itertools.repeat(piece, 500))


def _choice(chooser: random.Random) -> dict[str, object]:
    ids = [chooser.randrange(300) for _ in range(chooser.choice((0, 1, 1, 2, 5)))]
    reason = chooser.choice((None, None, None, "stop", "length"))
    logprobs = None
    if chooser.random() < 0.4:  # calls that ask for none take them, too
        top = [[[chooser.randrange(300), -1.5]] * chooser.choice((0, 1, 2, 2, 3)) for _ in ids]
        logprobs = {"token_logprobs": [chooser.choice((-0.5, 0, -9999.0)) for _ in ids], "top_logprobs": top}
    return {"index": 0, "text": "ab" * len(ids), "token_ids": ids, "logprobs": logprobs, "finish_reason": reason}


def _encoded(value: dict[str, Any], chooser: random.Random) -> bytes:
    """Return a JSON text, three quarters of them with changes of the value or of the text."""
    for _ in range(chooser.choice((0, 1, 1, 2))):
        _mutate_json(value, chooser)
    text = json.dumps(value, ensure_ascii=chooser.random() < 0.7).encode("utf-8", "surrogatepass")
    if chooser.random() < 0.05:
        text = text.replace(b"1", chooser.choice((b"1e999", b"-0", b"NaN", b"1" * 5000, b"01", b"1e-999")), 1)
    return mutate_bytes(text, chooser) if chooser.random() < 0.08 else text


def _mutate_json(value: object, chooser: random.Random) -> None:
    """Change one place of a JSON value, at any depth."""
    place: Any = value
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            if isinstance(place, dict):
                place["x"] = _value(chooser)
            return
        key = chooser.choice(keys)
        if isinstance(place[key], dict | list) and chooser.random() < 0.8:
            place = place[key]
            continue
        action = chooser.random()
        if action < 0.15:
            del place[key]
        elif action < 0.25 and isinstance(place, dict):
            place[chooser.choice(("", "x", "type", "id", "\ud800", "a" * 300))] = _value(chooser)
        elif action < 0.3 and isinstance(place, list):
            place.extend(place * chooser.choice((1, 30)))
        else:
            place[key] = _value(chooser)
        return


def _value(chooser: random.Random) -> object:
    return copy.deepcopy(chooser.choice(_VALUES))  # a change of it must not reach the next answer


def framed(status: int, kind: bytes, body: bytes, chooser: random.Random) -> bytes:
    """Return head and body, most of them well framed."""
    lines = [chooser.choice(_LINES) % status]
    if chooser.random() < 0.95:
        lines.append(b"content-type: " + kind)
    for _ in range(chooser.choice((0,) * 12 + (1, 1, 2, 5, 90))):
        name, values = chooser.choice(_HEADERS)
        lines.append(name + b": " + chooser.choice(values))
    framing = chooser.random()
    if framing < 0.6:
        lines.append(b"content-length: %d" % len(body))
    elif framing < 0.64:
        lines.append(b"content-length: %d" % max(0, len(body) + chooser.choice((-3, -1, 1, 1000))))
    elif framing < 0.92:
        lines.append(b"transfer-encoding: chunked")
        body = _chunked(body, chooser)
    end = b"\r\n" if chooser.random() < 0.97 else chooser.choice((b"\n", b"\r", b"\r\n "))
    return end.join([*lines, b"", b""]) + body


def _chunked(body: bytes, chooser: random.Random) -> bytes:
    size = chooser.choice((1, 16, 200, 5000, 100_000)) if len(body) < 5000 else chooser.choice((5000, 100_000))
    parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[i : i + size] for i in range(0, len(body), size))]
    if chooser.random() < 0.08:
        odd = chooser.choice((b"zz\r\n", b"ffffffffffffffffff\r\n", b"\r\n", b"-1\r\n", b"1;" + b"x" * 9000, b"5\r\n"))
        parts.insert(chooser.randrange(len(parts) + 1), odd)
    if chooser.random() < 0.92:
        parts.append(chooser.choice((b"0\r\n\r\n",) * 9 + (b"0\r\nx-request-id: \xff\r\n\r\n",)))
    return b"".join(parts)


def cut(whole: bytes, chooser: random.Random) -> Iterator[bytes]:
    """Return the bytes in pieces that end anywhere."""
    size = chooser.choice((7, 100, 4000, 1 << 16, 1 << 20)) if len(whole) < 20_000 else 1 << 16
    return (whole[start : start + size] for start in range(0, len(whole), size))
