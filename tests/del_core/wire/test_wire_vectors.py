"""Frames against the vectors, their generator, and the documentation page."""

from __future__ import annotations

import json
import re
import runpy
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from del_core import wire
from del_core.errors import ERROR_STATUS
from tests.support.wire_frames import frame_of, header_of

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "vectors"
FINGERPRINT = "0123456789abcdef" * 4


def load(name: str) -> dict[str, Any]:
    return json.loads((VECTORS / name).read_text("utf-8"))


def shapes_of(vectors: dict[str, Any]) -> dict[str, wire.Shape | None]:
    return {name: wire.Shape(**shape) if shape else None for name, shape in vectors["shapes"].items()}


def tuples(value: Any) -> Any:
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def request_of(decoded: dict[str, Any]) -> wire.Request:
    segments = tuple(
        wire.PrivateSegment(np.array(part["private"], dtype=np.uint8))
        if "private" in part
        else wire.PublicSegment(tuple(part["public"]))
        for part in decoded["segments"]
    )
    sampling = {key: tuples(value) for key, value in decoded["sampling"].items()}
    if sampling["structured_outputs"] is not None:
        structure = {key: tuples(value) for key, value in sampling["structured_outputs"].items()}
        sampling["structured_outputs"] = wire.StructuredOutputs(**structure)
    return wire.Request(
        decoded["fingerprint"], decoded["variant"], segments, wire.Sampling(**sampling), tuple(decoded["resume"])
    )


@pytest.mark.parametrize("case", load("packing.json")["cases"], ids=lambda case: f"{case['bits']}x{case['dim']}")
def test_packing_vectors_both_ways(case: dict[str, Any]) -> None:
    codes = np.array(case["codes"], dtype=np.uint8)
    payload = bytes.fromhex(case["payload"])
    assert wire.pack_codes(codes, case["bits"]) == payload
    assert len(payload) == len(codes) * wire.row_bytes(case["dim"], case["bits"])
    np.testing.assert_array_equal(wire.unpack_codes(payload, len(codes), case["dim"], case["bits"]), codes)


@pytest.mark.parametrize("case", load("frames.json")["cases"], ids=lambda case: case["name"])
def test_frame_vectors_both_ways(case: dict[str, Any]) -> None:
    vectors = load("frames.json")
    shapes, limits = shapes_of(vectors), wire.Limits(**vectors["limits"])
    data = bytes.fromhex(case["frame"])
    meaning = request_of(case["decoded"])
    assert wire.decode_frame(data, shapes, limits, fingerprint=vectors["fingerprint"]) == meaning
    shape = shapes[meaning.variant]
    encoded = wire.encode_frame(meaning, bits=shape.bits if shape else 1, limits=limits)
    assert (encoded == data) is case["encoded_by_us"]
    assert wire.decode_frame(encoded, shapes, limits) == meaning


@pytest.mark.parametrize("case", load("malformed.json")["cases"], ids=lambda case: case["name"])
def test_malformed_vectors(case: dict[str, Any]) -> None:
    vectors = load("malformed.json")
    with pytest.raises(wire.FrameError) as caught:
        wire.decode_frame(
            bytes.fromhex(case["frame"]),
            shapes_of(vectors),
            wire.Limits(**vectors["limits"]),
            fingerprint=vectors["fingerprint"],
        )
    error = caught.value
    assert (error.code, error.status, error.field) == (case["code"], case["status"], case["field"])
    assert str(error) == f"{error.field} {error.message}"
    assert str(error).isprintable()
    assert str(error).isascii()


def test_malformed_vectors_reach_every_code_of_a_frame() -> None:
    http_only = {
        "unsupported_media_type", "not_found", "method_not_allowed", "overloaded", "engine_unavailable",
        "internal_error", "invalid_api_key", "rate_limit_exceeded", "deadline_exceeded",
        "invalid_pass", "pass_spent",
    }  # fmt: skip
    assert {case["code"] for case in load("malformed.json")["cases"]} == set(ERROR_STATUS) - http_only


def test_vectors_are_what_the_generator_writes() -> None:
    built = runpy.run_path(str(VECTORS / "generate.py"))["build"]()
    assert {path.name for path in VECTORS.glob("*.json")} == set(built)
    for name, text in built.items():
        assert (VECTORS / name).read_text("utf-8") == text, f"{name}: run python tests/vectors/generate.py"


def test_level_vectors_follow_the_definition() -> None:
    """q 2^32 = 2^31 + round(level ratio_numerator / max_level), halves away from zero."""
    for case in load("levels.json")["cases"]:
        for level, numerator in zip(case["levels"], case["numerators"], strict=True):
            doubled = 2 * abs(level) * case["ratio_numerator"] + case["max_level"]
            size = doubled // (2 * case["max_level"])
            assert numerator == 2**31 + (size if level >= 0 else -size)


def test_documented_codes_are_the_codes() -> None:
    page = (ROOT / "docs/reference/wire-format.md").read_text("utf-8")
    table = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", page, re.MULTILINE))
    assert {code: int(status) for code, status in table.items()} == dict(ERROR_STATUS)


def test_documented_members_are_the_members() -> None:
    page = (ROOT / "docs/reference/wire-format.md").read_text("utf-8")
    section = page[page.index("### Header") : page.index("### Payload")]
    table = set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))
    with pytest.raises(wire.FrameError, match="must have no members but") as caught:
        wire.decode_frame(frame_of(json.dumps(header_of(surprise=1)).encode()), {})
    accepted = set(caught.value.message.partition("but ")[2].partition(", got")[0].split(", "))
    neutral = accepted - table
    assert table <= accepted
    assert neutral == set(re.findall(r"`([a-z_]+)`\s(?:0|1|`|null|false)", section[section.index("Parameters that") :]))


def test_documented_example_is_the_vector() -> None:
    page = (ROOT / "docs/reference/wire-format.md").read_text("utf-8")
    (case,) = (case for case in load("frames.json")["cases"] if case["name"] == "worked-example")
    data = bytes.fromhex(case["frame"])
    (size,) = struct.unpack_from("<I", data, 5)
    header = data[9 : 9 + size].decode()
    assert header.replace(FINGERPRINT, "0123...cdef") in page
    assert f"{data[5:9].hex(' ')}                     header length {size}" in page
    payload = data[9 + size :]
    assert f"    {payload[:2].hex(' ')} " in page
    assert f"    {payload[2:].hex(' ')} " in page


def test_media_type() -> None:
    assert wire.MEDIA_TYPE == "application/vnd.del.frame"
