"""Seeded mutations of frames: broken ones, and some that are merely unusual."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence

from del_core.wire import MAGIC, VERSION

__all__ = ["mutate", "mutate_bytes", "mutated"]

_PREFIX = struct.Struct("<4sBI")
_VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, "", "open", "clear", "x" * 300,
    "\x00", "\ud800", [], [1], [[]], [[[[[[[[[[]]]]]]]]]], {}, {"private": 3}, {"public": [1]}, {"a": {"b": {"c": {}}}},
    [None] * 50, ["stop"], [2**40],
)  # fmt: skip
_NAMES = (
    "fingerprint", "variant", "segments", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "resume",
    "stop_token_ids", "ignore_eos", "presence_penalty", "logprobs", "n", "echo", "best_of", "logit_bias", "extra", "",
    "top_k", "min_p", "structured_outputs",
)  # fmt: skip


def mutated(frames: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Return ``count`` mutations of these frames."""
    chooser = random.Random(seed)
    for _ in range(count):
        yield mutate(chooser.choice(frames), chooser)


def mutate(frame: bytes, chooser: random.Random) -> bytes:
    """Return this frame after one to four mutations."""
    for _ in range(chooser.choice((1, 1, 1, 2, 4))):
        frame = chooser.choice(_MUTATIONS)(frame, chooser)
    return frame


def mutate_bytes(data: bytes, chooser: random.Random) -> bytes:
    """Return any bytes after one to four mutations that know nothing of frames."""
    for _ in range(chooser.choice((1, 1, 1, 2, 4))):
        data = chooser.choice(_BYTE_MUTATIONS)(data, chooser)
    return data


def _flip_bits(frame: bytes, chooser: random.Random) -> bytes:
    data = bytearray(frame)
    for _ in range(chooser.choice((1, 1, 3, 20))):
        if data:
            data[chooser.randrange(len(data))] ^= 1 << chooser.randrange(8)
    return bytes(data)


def _flip_in_header(frame: bytes, chooser: random.Random) -> bytes:
    data = bytearray(frame)
    if len(data) > _PREFIX.size:
        end = min(len(data), _PREFIX.size + 200)
        data[chooser.randrange(_PREFIX.size, end)] = chooser.choice(b'{}[]",:0123456789-.eE\\u\x00\xff ntf')
    return bytes(data)


def _truncate(frame: bytes, chooser: random.Random) -> bytes:
    return frame[: chooser.randrange(len(frame) + 1)]


def _extend(frame: bytes, chooser: random.Random) -> bytes:
    return frame + chooser.randbytes(chooser.choice((1, 2, 16, 1000)))


def _cut_out(frame: bytes, chooser: random.Random) -> bytes:
    start = chooser.randrange(len(frame) + 1)
    return frame[:start] + frame[start + chooser.choice((1, 2, 8, 100)) :]


def _insert(frame: bytes, chooser: random.Random) -> bytes:
    start = chooser.randrange(len(frame) + 1)
    return frame[:start] + chooser.randbytes(chooser.choice((1, 4, 50))) + frame[start:]


def _double(frame: bytes, chooser: random.Random) -> bytes:
    start, size = chooser.randrange(len(frame) + 1), chooser.choice((1, 10, 200))
    return frame[: start + size] + frame[start:]


def _other_length(frame: bytes, chooser: random.Random) -> bytes:
    if len(frame) < _PREFIX.size:
        return frame
    magic, version, size = _PREFIX.unpack_from(frame)
    size = chooser.choice((0, size - 1, size + 1, size * 2, 2**31, 2**32 - 1)) & 0xFFFFFFFF
    return _PREFIX.pack(magic, version, size) + frame[_PREFIX.size :]


def _other_member(frame: bytes, chooser: random.Random) -> bytes:
    """Return a well-framed request with any value in place of any member."""
    if len(frame) < _PREFIX.size:
        return frame
    size = _PREFIX.unpack_from(frame)[2]
    try:
        header = json.loads(frame[_PREFIX.size : _PREFIX.size + size])
    except ValueError:
        return frame
    if not isinstance(header, dict):
        return frame
    name, value = chooser.choice(_NAMES), chooser.choice(_VALUES)
    segments = header.get("segments")
    if chooser.random() < 0.3 and isinstance(segments, list) and segments:
        segments[chooser.randrange(len(segments))] = chooser.choice((value, {"private": value}, {"public": value}))
    elif chooser.random() < 0.2:
        header.pop(name, None)
    else:
        header[name] = value
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return _PREFIX.pack(MAGIC, VERSION, len(text)) + text + frame[_PREFIX.size + size :]


def _noise(frame: bytes, chooser: random.Random) -> bytes:
    return chooser.randbytes(chooser.choice((0, 1, 9, 500)))


_BYTE_MUTATIONS = (_flip_bits, _truncate, _extend, _cut_out, _insert, _double, _noise)
_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bits, _flip_in_header, _truncate, _extend, _cut_out, _insert, _double, _other_length, _other_member,
    _other_member, _other_member, _noise,
)  # fmt: skip
