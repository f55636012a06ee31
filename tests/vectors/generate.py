"""Write the test vectors of docs/reference/{wire,bundle}-format.md into this directory.

    python tests/vectors/generate.py            (from the repository's root)

Deterministic: the same program gives the same bytes, and tests/del_core/wire/test_wire_vectors.py
fails where the files differ. What a frame means is stated here independently of the decoder, and
packed payloads come from the bit-by-bit definition in :func:`pack_by_definition`, not from the
product's vectorised code.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from del_core import accounting  # noqa: E402
from del_core.bundle import (  # noqa: E402
    BaseModel,
    Guarantees,
    Variant,
    VariantContent,
    canonical_json,
    pack_client,
    write_bundle,
)
from del_core.mechanism import CategoricalMechanism, Mechanism, MechanismSpec, TokenMechanism  # noqa: E402
from tests.vectors.generate_text import streams, tokenizer  # noqa: E402

FINGERPRINT = "0123456789abcdef" * 4
SHAPES: dict[str, dict[str, int] | None] = {
    "open": {"bits": 4, "dim": 3},
    "balanced": {"bits": 3, "dim": 5},
    "strict": {"bits": 1, "dim": 16},
    "fine": {"bits": 8, "dim": 2},
    "clear": None,
}
LIMITS = {
    "max_frame_bytes": 4096,
    "max_header_bytes": 2048,
    "max_segments": 8,
    "max_prompt_tokens": 64,
    "max_output_tokens": 128,
    "vocabulary_size": 1000,
}
DEFAULTS: dict[str, Any] = {
    "max_tokens": 16,
    "temperature": 1.0,
    "top_p": 1.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "stream": False,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": [],
    "logprobs": None,
    "structured_outputs": None,
}


def pack_by_definition(codes: list[list[int]], bits: int) -> bytes:
    """A row, read as a little-endian integer, is the sum of K_j 2^(j bits)."""
    rows = []
    for row in codes:
        value = sum(code << (place * bits) for place, code in enumerate(row))
        rows.append(value.to_bytes((len(row) * bits + 7) // 8, "little"))
    return b"".join(rows)


def some_codes(tokens: int, dim: int, bits: int, salt: str) -> list[list[int]]:
    """Counts that look random and are the same everywhere."""
    stream = hashlib.shake_256(f"{salt}/{tokens}/{dim}/{bits}".encode()).digest(tokens * dim)
    return [[byte & ((1 << bits) - 1) for byte in stream[row * dim : (row + 1) * dim]] for row in range(tokens)]


def packing() -> list[dict[str, Any]]:
    """Counts and their payload."""
    cases = [{"bits": 3, "dim": 5, "codes": [[5, 0, 7, 1, 6]]}]
    for bits in range(1, 9):
        for tokens, dim in ((1, 1), (1, 8), (3, 13), (2, 32)):
            cases.append({"bits": bits, "dim": dim, "codes": some_codes(tokens, dim, bits, "packing")})
        cases.append({"bits": bits, "dim": 9, "codes": [[(1 << bits) - 1] * 9, [0] * 9]})
    return [{**case, "payload": pack_by_definition(case["codes"], case["bits"]).hex()} for case in cases]


def compact(value: object) -> bytes:
    """JSON as our encoder writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def frame(header: bytes, payload: bytes = b"", *, magic: bytes = b"DELF", version: int = 1, length: int = -1) -> bytes:
    """A frame from its parts, well formed or not."""
    return magic + struct.pack("<BI", version, len(header) if length < 0 else length) + header + payload


def start(variant: str, segments: list[dict[str, Any]], **more: object) -> dict[str, Any]:
    """A header with the members that are required, and more."""
    return {"fingerprint": FINGERPRINT, "variant": variant, "segments": segments, **more}


def frames() -> list[dict[str, Any]]:
    """Frames that are valid, with what they mean."""
    cases: list[dict[str, Any]] = []

    def add(name: str, header: bytes, parts: list[dict[str, Any]], *, ours: bool = False, **meaning: Any) -> None:
        value = json.loads(header)
        variant = value["variant"]
        shape = SHAPES[variant]
        payload = b"".join(
            pack_by_definition(part["private"], shape["bits"]) for part in parts if "private" in part and shape
        )
        resume = meaning.pop("resume", [])
        if "logit_bias" in meaning:  # pairs, in the order of the members
            meaning["logit_bias"] = [[int(name), bias] for name, bias in meaning["logit_bias"].items()]
        decoded = {
            "fingerprint": FINGERPRINT,
            "variant": variant,
            "segments": parts,
            "sampling": {**DEFAULTS, **meaning},
            "resume": resume,
        }
        cases.append({"name": name, "encoded_by_us": ours, "frame": frame(header, payload).hex(), "decoded": decoded})

    counts = [[1, 2, 3], [15, 0, 8]]
    mixed: list[dict[str, Any]] = [{"public": [1]}, {"private": counts}]
    short: list[dict[str, Any]] = [{"public": [1]}, {"private": 2}]
    add(
        "worked-example",
        compact(start("open", short, max_tokens=8, temperature=0.0)),
        mixed,
        ours=True,
        max_tokens=8,
        temperature=0.0,
    )
    for variant, tokens in (("balanced", 3), ("strict", 2), ("fine", 4)):
        shape = SHAPES[variant]
        assert shape is not None
        codes = some_codes(tokens, shape["dim"], shape["bits"], variant)
        header = compact(start(variant, [{"private": tokens}], max_tokens=16))
        add(f"private-{variant}", header, [{"private": codes}], ours=True)
    add(
        "public-only",
        compact(start("clear", [{"public": [0, 999]}], max_tokens=16)),
        [{"public": [0, 999]}],
        ours=True,
    )
    add(
        "public-only-under-private-variant",
        compact(start("open", [{"public": [5]}], max_tokens=16)),
        [{"public": [5]}],
        ours=True,
    )
    add(
        "several-segments",
        compact(start("open", [{"private": 1}, {"private": 1}, {"public": [7, 8]}, {"private": 1}], max_tokens=16)),
        [{"private": [[0, 1, 2]]}, {"private": [[3, 4, 5]]}, {"public": [7, 8]}, {"private": [[13, 14, 15]]}],
        ours=True,
    )
    every = {
        "max_tokens": 128,
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": -(2**63),
        "stop": ["\n\n", "Ende \u00e9\u4e16\U0001f600"],
        "stream": True,
        "stop_token_ids": [2, 999],
        "ignore_eos": True,
        "resume": [11, 12, 13],
    }
    add("every-member", compact(start("open", short, **every)), mixed, ours=True, **every)
    output = {
        "max_tokens": 16,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": -2.0,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.25,
        "logit_bias": {"999": -100.0, "0": 1.5},
        "logprobs": 20,
        "structured_outputs": {"json": '{"type":"object"}'},
    }
    add("output-members", compact(start("open", short, **output)), mixed, ours=True, **output)
    for name, value in (("json_object", True), ("regex", "[0-9]+"), ("choice", ["yes", "n\u00f8"])):
        structure = {"structured_outputs": {name: value}}
        header = compact(start("open", short, max_tokens=16, **structure))
        add(f"structure-{name}", header, mixed, ours=True, **structure)
    no_logarithms = {"logprobs": 0, "logit_bias": {}, "top_k": 0}
    add("logprobs-of-no-alternatives", compact(start("open", short, **no_logarithms)), mixed, logprobs=0)
    add(
        "largest-seed",
        compact(start("open", short, max_tokens=16, seed=2**63 - 1)),
        mixed,
        ours=True,
        seed=2**63 - 1,
    )
    add("defaults-left-out", compact(start("open", short)), mixed)
    nulls = dict.fromkeys([*DEFAULTS, "resume", "logprobs", "presence_penalty"])
    add("nulls-are-defaults", compact(start("open", short, **nulls)), mixed)
    neutral = {
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1,
        "logit_bias": {},
        "echo": False,
        "n": 1,
        "best_of": 1,
        "suffix": "",
    }
    add("neutral-parameters", compact(start("open", short, **neutral)), mixed)
    spaced = json.dumps(dict(reversed(start("open", short, temperature=0).items())), indent=2).encode() + b"\r\n\t "
    add("other-order-and-spaces", spaced, mixed, temperature=0.0)
    add("one-stop-string", compact(start("open", short, stop="END")), mixed, stop=["END"])
    escaped = b'{"fingerprint":"%s","v\\u0061riant":"open","segments":[{"public":[1]},{"private":2}],' % (
        FINGERPRINT.encode()
    )
    add(
        "escapes",
        escaped + b'"stop":["\\ud83d\\ude00\\u0000\\/ ]}\\" [{"]}',
        mixed,
        stop=['\U0001f600\x00/ ]}" [{'],
    )
    add(
        "number-spellings",
        compact(start("open", short))[:-1] + b',"temperature":1e-1,"top_p":1E+0,"seed":0}',
        mixed,
        temperature=0.1,
        top_p=1.0,
        seed=0,
    )
    return cases


def malformed() -> list[dict[str, Any]]:
    """Frames that are refused, with the error."""
    cases: list[dict[str, Any]] = []
    good = start("open", [{"private": 2}])
    rows = bytes(4)

    def add(name: str, code: str, status: int, field: str, data: bytes) -> None:
        cases.append({"name": name, "frame": data.hex(), "code": code, "status": status, "field": field})

    def header(name: str, code: str, field: str, text: bytes, *, status: int = 400, payload: bytes = rows) -> None:
        add(name, code, status, field, frame(text, payload))

    def member(name: str, key: str, value: object, *, code: str = "invalid_value", at: str = "") -> None:
        header(name, code, f"header.{at or key}", compact({**good, key: value}))

    whole = frame(compact(good), rows)
    add("empty", "truncated_frame", 400, "frame", b"")
    add("eight-bytes", "truncated_frame", 400, "frame", whole[:8])
    add("magic-of-another-format", "invalid_magic", 400, "magic", b"PK\x03\x04" + whole[4:])
    add("magic-in-lower-case", "invalid_magic", 400, "magic", b"delf" + whole[4:])
    add("version-0", "unsupported_version", 400, "version", frame(compact(good), rows, version=0))
    add("version-2", "unsupported_version", 400, "version", frame(compact(good), rows, version=2))
    add("header-beyond-the-frame", "truncated_frame", 400, "header", frame(compact(good), length=1000))
    add("header-cut", "truncated_frame", 400, "header", whole[:40])
    add("header-length-4-gib", "header_too_large", 413, "header", frame(b"{}", length=2**32 - 1))
    add("header-one-byte-too-long", "header_too_large", 413, "header", frame(b" " * 2049))
    add("frame-one-byte-too-long", "frame_too_large", 413, "frame", frame(b"{}", bytes(4096 - 10)))
    add("header-empty", "invalid_header", 400, "header", frame(b"", rows))
    add("header-length-big-endian", "header_too_large", 413, "header", b"DELF\x01" + struct.pack(">I", 2) + b"{}")

    header("not-json", "invalid_header", "header", b"{'fingerprint'}")
    header("json-cut", "invalid_header", "header", compact(good)[:-1])
    header("two-values", "invalid_header", "header", compact(good) + b"{}")
    header("byte-order-mark", "invalid_header", "header", b"\xef\xbb\xbf" + compact(good))
    header("utf-16", "invalid_header", "header", compact(good).decode().encode("utf-16-le"))
    header("not-utf-8", "invalid_header", "header", compact(good)[:-1] + b',"stop":"\xff"}')
    header("overlong-utf-8", "invalid_header", "header", compact(good)[:-1] + b',"stop":"\xc0\x80"}')
    header("utf-8-surrogate", "invalid_header", "header", compact(good)[:-1] + b',"stop":"\xed\xa0\x80"}')
    header("escaped-surrogate", "invalid_header", "header", compact(good)[:-1] + b',"stop":"\\ud800"}')
    header("control-character", "invalid_header", "header", compact(good)[:-1] + b',"stop":"\n"}')
    header("duplicate-member", "invalid_header", "header", compact(good)[:-1] + b',"variant":"strict"}')
    header("duplicate-member-escaped", "invalid_header", "header", compact(good)[:-1] + b',"v\\u0061riant":"strict"}')
    header("nan", "invalid_header", "header", compact(good)[:-1] + b',"temperature":NaN}')
    header("infinity", "invalid_header", "header", compact(good)[:-1] + b',"temperature":-Infinity}')
    header("overflow", "invalid_header", "header", compact(good)[:-1] + b',"temperature":1e999}')
    header("minus-zero", "invalid_header", "header", compact(good)[:-1] + b',"seed":-0}')
    header("leading-zero", "invalid_header", "header", compact(good)[:-1] + b',"seed":01}')
    header("33-digits", "invalid_header", "header", compact(good)[:-1] + b',"seed":' + b"1" * 33 + b"}")
    header("1500-digits", "invalid_header", "header", compact(good)[:-1] + b',"seed":' + b"1" * 1500 + b"}")
    header("nesting-9", "invalid_header", "header", b"[" * 9 + b"]" * 9)
    header("nesting-2000", "invalid_header", "header", b"[" * 2000)
    header("array", "invalid_value", "header", b"[]")
    header("null", "invalid_value", "header", b"null")
    header("string", "invalid_value", "header", b'"DELF"')

    for key in ("fingerprint", "variant", "segments"):
        less = {name: value for name, value in good.items() if name != key}
        header(f"without-{key}", "missing_field", f"header.{key}", compact(less))
    for key in ("prompt", "user", "model", "response_format", "Variant", ""):
        header(f"unknown-{key or 'empty'}", "unknown_field", "header", compact({**good, key: None}))

    member("fingerprint-short", "fingerprint", FINGERPRINT[1:])
    member("fingerprint-upper-case", "fingerprint", FINGERPRINT.upper())
    member("fingerprint-line-end", "fingerprint", FINGERPRINT + "\n")
    member("fingerprint-number", "fingerprint", 1)
    other = compact({**good, "fingerprint": "f" * 64})
    header("fingerprint-of-another-bundle", "bundle_outdated", "header.fingerprint", other, status=409)
    member("variant-empty", "variant", "")
    member("variant-upper-case", "variant", "Open")
    member("variant-path", "variant", "../open")
    member("variant-long", "variant", "a" * 65)
    header("variant-unknown", "unknown_variant", "header.variant", compact({**good, "variant": "other"}), status=404)
    header("private-under-clear", "private_not_accepted", "header.segments", compact({**good, "variant": "clear"}))

    member("segments-object", "segments", {})
    member("segments-empty", "segments", [])
    member("segments-too-many", "segments", [{"private": 1}] * 9)
    member("segment-number", "segments", [2], at="segments[0]")
    member("segment-empty", "segments", [{"private": 2}, {}], at="segments[1]")
    member("segment-of-both-kinds", "segments", [{"private": 2, "public": [1]}], at="segments[0]")
    member("segment-unknown-kind", "segments", [{"secret": 2}], code="unknown_field", at="segments[0]")
    for name, value in (("0", 0), ("negative", -1), ("float", 2.0), ("true", True), ("string", "2"), ("null", None)):
        member(f"private-{name}", "segments", [{"private": value}], at="segments[0].private")
    member("private-2-to-31", "segments", [{"private": 2**31}], at="segments[0].private")
    for name, value in (("empty", []), ("number", 1), ("string", "1"), ("null", None)):
        member(f"public-{name}", "segments", [{"public": value}], at="segments[0].public")
    for name, value in (("negative", -1), ("beyond", 1000), ("float", 1.0), ("true", True), ("null", None)):
        member(f"public-id-{name}", "segments", [{"public": [1, value]}], at="segments[0].public[1]")
    code = "context_length_exceeded"
    member("prompt-too-long-private", "segments", [{"private": 65}], code=code, at="segments[0]")
    member("prompt-too-long-public", "segments", [{"private": 1}, {"public": [1] * 64}], code=code, at="segments[1]")

    for key, values in {
        "max_tokens": {"0": 0, "negative": -1, "float": 16.0, "true": True, "string": "16", "beyond": 129},
        "temperature": {"negative": -0.1, "beyond": 2.01, "true": True, "string": "1", "array": [1]},
        "top_p": {"0": 0, "negative": -1, "beyond": 1.01, "false": False},
        "seed": {"float": 1.5, "beyond": 2**63, "below": -(2**63) - 1, "true": True, "string": "1"},
        "stop": {"number": 1, "five": ["a"] * 5, "object": {}},
        "stream": {"number": 1, "string": "true"},
        "ignore_eos": {"number": 0},
        "stop_token_ids": {"number": 1, "65": [1] * 65},
        "resume": {"number": 1, "as-long-as-max-tokens": [1] * 16},
        "top_k": {"negative": -1, "float": 1.0},
        "min_p": {"beyond": 1.01, "string": "0"},
        "presence_penalty": {"beyond": 2.01, "true": True},
        "frequency_penalty": {"below": -2.01, "false": False},
        "repetition_penalty": {"0": 0, "beyond": 2.01},
        "logit_bias": {
            "array": [],
            "name": {"x": 1},
            "zero-in-front": {"05": 1},
            "id-beyond": {"1000": 1},
            "value-beyond": {"5": 100.5},
            "value-true": {"5": True},
        },
        "logprobs": {"negative": -1, "21": 21, "true": True},
        "structured_outputs": {"string": "json", "empty": {}, "two": {"regex": "a", "json_object": True}},
    }.items():
        for name, value in values.items():
            member(f"{key}-{name}", key, value)
    for name, value in (("empty", ""), ("257-bytes", "x" * 257), ("129-of-2-bytes", "\u00e9" * 129), ("number", 1)):
        member(f"stop-string-{name}", "stop", ["ok", value], at="stop[1]")
    member("stop-token-id-beyond", "stop_token_ids", [1000], at="stop_token_ids[0]")
    member("resume-id-beyond", "resume", [1, 1000], at="resume[1]")
    for name, key, value in (
        ("json-object", "json", {}),
        ("json-empty", "json", ""),
        ("json-object-false", "json_object", False),
        ("regex-number", "regex", 1),
        ("choice-empty", "choice", []),
    ):
        member(f"structure-{name}", "structured_outputs", {key: value}, at=f"structured_outputs.{key}")
    at = "structured_outputs.choice[1]"
    member("structure-choice-number", "structured_outputs", {"choice": ["a", 1]}, at=at)
    member("structure-unknown", "structured_outputs", {"grammar": "x"}, code="unknown_field")
    endless = {"ignore_eos": True, "structured_outputs": {"json_object": True}}
    header("structure-without-end", "invalid_value", "header.ignore_eos", compact({**good, **endless}))
    for key, value in {
        "prompt_logprobs": 1,
        "echo": True,
        "n": 2,
        "best_of": True,
        "suffix": "x",
    }.items():
        member(f"unsupported-{key}", key, value, code="unsupported_parameter")

    text = compact(good)
    for name, payload in (("empty", b""), ("short", bytes(3)), ("long", bytes(5)), ("of-3-tokens", bytes(6))):
        header(f"payload-{name}", "payload_length_mismatch", "payload", text, payload=payload)
    public = compact(start("open", [{"public": [1]}]))
    header("payload-without-private", "payload_length_mismatch", "payload", public, payload=b"\0")
    header("padding-first-row", "invalid_padding", "payload row 0", text, payload=bytes([0, 0x10, 0, 0]))
    header("padding-last-row", "invalid_padding", "payload row 1", text, payload=bytes([0xFF, 0x0F, 0xFF, 0x8F]))
    odd = compact(start("balanced", [{"private": 1}]))
    header("padding-one-bit", "invalid_padding", "payload row 0", odd, payload=bytes([0, 0x80]))
    return cases


def levels() -> list[dict[str, Any]]:
    """Return q 2^32 = 2^31 + round(level ratio_numerator / max_level), halves away from zero."""
    cases = []
    for ratio_numerator, max_level in ((1, 1), (2**30, 127), (214748365, 127), (214748365, 32767), (2**31 - 1, 32767)):
        mechanism = Mechanism(4, 1, ratio_numerator / 2**31, max_level=max_level)
        chosen = sorted(
            {sign * value for sign in (-1, 1) for value in (0, 1, max_level // 3, max_level // 2, max_level)}
        )
        numerators = mechanism.numerators(np.array(chosen, dtype=np.int16).reshape(-1, 1)).ravel()
        cases.append(
            {
                "ratio_numerator": ratio_numerator,
                "max_level": max_level,
                "levels": chosen,
                "numerators": [int(numerator) for numerator in numerators],
            }
        )
    return cases


def codes() -> list[dict[str, Any]]:
    """Return released codes of one token by the definition, code by code."""
    cases = []
    for bits, noise in ((1, [2**31]), (6, [1]), (6, [2**32]), (8, [2**32 - 1, 2**30, 12345]), (4, [2**28] * 5)):
        name = f"codes {bits} {noise}"
        row = [code % 2**bits for code in some_codes(1, len(noise), 8, name)[0]]
        size = 5 * len(noise)
        # Each second code is compared with a number that is just below or at its threshold.
        compared = [value - 1 if j % 2 == 0 else value % 2**32 for j, value in enumerate(noise)]
        uniform = hashlib.shake_256(name.encode()).digest(len(noise))
        random = b"".join(struct.pack("<I", value) for value in compared) + uniform
        assert len(random) == size
        released = [uniform[j] % 2**bits if compared[j] < noise[j] else row[j] for j in range(len(noise))]
        cases.append(
            {"bits": bits, "noise_numerators": noise, "codes": row, "random": random.hex(), "released": released}
        )
    return cases


def epsilons() -> list[dict[str, Any]]:
    """Return exact epsilons to 12 digits, as logarithms need not be the same everywhere."""
    cases: list[dict[str, Any]] = []

    def case(mechanism: TokenMechanism, delta: float, tokens: int) -> None:
        given = {**mechanism.parameters(), **({"dim": mechanism.dim} if mechanism.can_dequantize else {})}
        value = float(f"{accounting.epsilon(mechanism, delta, tokens):.12g}")
        cases.append({"mechanism": given, "delta": delta, "tokens": tokens, "epsilon": value})

    for bits, dim, ratio in ((1, 128, 2**28), (4, 64, 93507313), (4, 32, 897855274), (8, 256, 2**31 - 1), (2, 3, 1)):
        mechanism = Mechanism(bits, dim, ratio / 2**31)
        for delta, tokens in ((1e-6, 1), (1e-3, 1), (0.1, 1), (1e-6, 7), (1e-12, 500), (0.0, 2)):
            case(mechanism, delta, tokens)
    for bits, noise in ((8, [339779328]), (4, [2**28] * 5), (6, [2**30, 2**31]), (1, [2**32]), (2, [1])):
        other = CategoricalMechanism(bits, len(noise), max_level=2**bits - 1, noise_numerators=tuple(noise))
        for delta, tokens in ((1e-6, 1), (0.1, 1), (1e-6, 7), (0.0, 2), (1e-3, 5000)):
            case(other, delta, tokens)
    return cases


def bundle(code_table: bool = False) -> dict[str, Any]:
    """A client part of a bundle and canonical JSON."""
    vocabulary, dim, hidden = 6, 4, 8
    table = np.array(some_codes(vocabulary, dim, 8, "table"), dtype=np.int16) * 257 - 32767
    contents = [
        VariantContent(
            Variant(
                name=name,
                task="general",
                bits=bits,
                ratio_numerator=numerator,
                soft_prompt_length=rows,
                guarantees=Guarantees(delta=1e-06, epsilon=epsilon, epsilon_vocabulary=vocabulary_epsilon, mu=mu),
                audit=audit,
            ),
            weight=np.zeros((hidden, dim), dtype=np.float32),
            bias=np.zeros(hidden, dtype=np.float32),
            norm_limit=2.0,
            soft_prompt=np.zeros((rows, hidden), dtype=np.float16),
        )
        for name, bits, numerator, rows, epsilon, vocabulary_epsilon, mu, audit in (
            ("strict", 4, 214748365, 32, 17.25, None, 3.0, {}),
            ("open", 2, 2**30, 0, 1e22, 12.5, 1e-07, {"nearest": {"success": 0.3, "data": "\u00c9t\u00e9"}}),
        )
    ]
    tables: dict[str, Any] = {}
    if code_table:
        tables["k-8"] = np.array(some_codes(vocabulary, 2, 3, "code table"), dtype=np.uint8)
        other = MechanismSpec("categorical", {"bits": 3, "noise_numerators": (2**30, 2**28)})
        contents.append(
            VariantContent(
                Variant(
                    name="codes",
                    task="general",
                    bits=3,
                    ratio_numerator=None,
                    soft_prompt_length=0,
                    guarantees=Guarantees(delta=0.0, epsilon=8.1, epsilon_vocabulary=None, mu=None),
                    decoder="lookup",
                    other=other,
                    table="k-8",
                ),
                weight=None,
                bias=None,
                norm_limit=1.0,
                tensors={"codes": np.zeros((2, 8, hidden), dtype=np.float32)},
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        manifest = write_bundle(
            path,
            base_model=BaseModel("vectors/tiny", hashlib.sha256(b"tiny").hexdigest(), hidden, vocabulary),
            table=table,
            max_level=32767,
            clip=1.5,
            tokenizer_json=b'{"version":"1.0"}',
            variants=contents,
            log_prior=np.full(vocabulary, -1.791759469228055, dtype=np.float32),
            bos_token_id=0,
            code_tables=tables,
        )
        archive = pack_client(path)
        text = (path / "client" / "manifest.json").read_text("utf-8")
    bare = json.loads(text)
    del bare["fingerprint"]
    values: list[object] = [
        {"b": 1, "a": [True, False, None], "\u00e9": '\u00e9\u2028"\\\n\u0001/', "": {}},
        [0, -1, 2**53, 0.1, 1.0, -0.5, 1e-06, 1e-05, 0.0001, 1e15, 1e16, 1e22, 5e-324],
    ]
    return {
        "manifest": text,
        "manifest_without_fingerprint": canonical_json(bare).decode(),
        "fingerprint": manifest.fingerprint,
        "table": table.tolist(),
        "tables": {"codes": tables["k-8"].tolist()} if code_table else {"strict": table.tolist()},
        "archive": archive.hex(),
        "canonical": [{"value": value, "text": canonical_json(value).decode()} for value in values],
    }


def lines(value: dict[str, Any]) -> str:
    """JSON with one line a member, and one line a case: readable, and small in a diff."""
    parts = []
    for key, item in value.items():
        if isinstance(item, list):
            cases = ",\n".join("  " + json.dumps(case) for case in item)
            parts.append(f" {json.dumps(key)}: [\n{cases}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(item)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def build() -> dict[str, str]:
    """The files' texts by name."""
    about = {"shapes": SHAPES, "limits": LIMITS, "fingerprint": FINGERPRINT}
    return {
        "packing.json": lines({"cases": packing()}),
        "frames.json": lines({**about, "cases": frames()}),
        "malformed.json": lines({**about, "cases": malformed()}),
        "levels.json": lines({"cases": levels()}),
        "codes.json": lines({"cases": codes()}),
        "epsilon.json": lines({"cases": epsilons()}),
        "bundle.json": lines(bundle()),
        "bundle_codes.json": lines(bundle(code_table=True)),
        "tokenizer.json": lines({"cases": tokenizer()}),
        "streams.json": lines({"max_tokens": 8, "cases": streams()}),
    }


def main() -> None:
    """Write the files."""
    for name, text in build().items():
        (HERE / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
