"""A bundle that was changed after it was written: refused, with the file's name and the reason."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from del_core.bundle import (
    BundleError,
    Manifest,
    canonical_json,
    load_bundle,
    load_client,
    write_bundle,
)
from del_core.decoders import DECODERS
from tests.support.core_bundles import (
    ALL_FILES,
    DIM,
    SERVER_FILES,
    VOCABULARY,
    content,
    refusal,
    reseal,
    unchanged,
)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    moved = next(parent for parent in path.parents if parent.name == "bundle").with_name("elsewhere")
    shutil.move(path, moved)
    path.symlink_to(moved)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ALL_FILES)
@pytest.mark.parametrize("change", [flip, flip_last, truncate, empty, append, remove, link, pipe, directory])
def test_every_change_of_every_file_is_refused_by_name(bundle: Path, name: str, change: Callable[[Path], None]) -> None:
    change(bundle / name)
    # Either manifest may be the one that a difference between the two is laid at.
    names = (name, "client/manifest.json") if name.endswith("manifest.json") else (name,)
    error = refusal(lambda: load_bundle(bundle), *names)
    assert len(error.reason) > 10
    if name.startswith("client/"):
        refusal(lambda: load_client(bundle / "client"), name.removeprefix("client/"))
    elif name != "manifest.json":
        load_client(bundle / "client")


@pytest.mark.parametrize("change", [truncate, empty, append, remove, link, pipe, directory])
@pytest.mark.parametrize("name", [name for name in ALL_FILES if name.endswith(("tensors", "tokenizer.json"))])
def test_without_digests_sizes_and_kinds_are_still_checked(
    bundle: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(bundle / name)
    refusal(lambda: load_bundle(bundle, verify=False), name)


@pytest.mark.parametrize("folder", ["", "client", "server"])
@pytest.mark.parametrize("name", ["extra.json", "évil\n", ".hidden", "manifest.json.bak"])
def test_a_file_that_does_not_belong_is_refused(bundle: Path, folder: str, name: str) -> None:
    (bundle / folder / name).write_bytes(b"{}")
    error = refusal(lambda: load_bundle(bundle), (f"{folder}/" if folder else "") + ascii(name)[1:-1])
    assert "must be absent: only" in error.reason


@pytest.mark.parametrize("folder", ["client", "server"])
def test_a_folder_is_no_link_and_no_file(bundle: Path, tmp_path: Path, folder: str) -> None:
    shutil.move(bundle / folder, tmp_path / "moved")
    refusal(lambda: load_bundle(bundle), folder)
    (bundle / folder).symlink_to(tmp_path / "moved")
    assert "no link" in refusal(lambda: load_bundle(bundle), folder).reason
    (bundle / folder).unlink()
    (bundle / folder).write_bytes(b"")
    refusal(lambda: load_bundle(bundle), folder)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    for load in (load_bundle, load_client):
        assert "No such file" in refusal(lambda load=load: load(tmp_path / "none"), str(tmp_path / "none")).reason


@pytest.mark.parametrize(
    ("old", "new", "member"),
    [
        ('"clip":1.5', '"clip":2.5', "fingerprint"),
        ('"ratio_numerator":1073741824', '"ratio_numerator":2073741824', "fingerprint"),
        ('"norm_limit":2.5', '"norm_limit":3.5', "server_digest"),
    ],
    ids=["clip", "noise", "norm limit"],
)
def test_a_value_changed_in_place_breaks_the_digest(bundle: Path, old: str, new: str, member: str) -> None:
    """The text stays canonical and every value in range, so that only the digest can tell."""
    for name, load in (("client/manifest.json", load_client), ("manifest.json", load_bundle)):
        path = bundle / name
        text = path.read_text("utf-8")
        if old in text:
            path.write_text(text.replace(old, new, 1), "utf-8")
            reason = refusal(lambda load=load, path=path: load(path.parent), "manifest.json").reason
            assert reason.startswith(f"{member} must be")
            assert reason.endswith("the manifest was altered")


def test_parts_of_two_bundles_do_not_mix(bundle: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", **content(clip=2.0))
    shutil.rmtree(bundle / "client")
    shutil.copytree(tmp_path / "other" / "client", bundle / "client")
    assert "must equal the client part" in refusal(lambda: load_bundle(bundle), "client/manifest.json").reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 2}, "format_version must be 1, got 2"),
        ({"format_version": 10**20, "whatever": []}, "format_version must be 1, got"),
        ({"format_version": 0}, "format_version must be .*, got 0"),
        ({"format_version": True}, "format_version must be .*, got true"),
        ({"format_version": "1"}, "format_version must be .*, got a string"),
        ({"dim": 0}, "dim must be an integer from 1 to 65536, got 0"),
        ({"dim": 6.0}, "dim must be .*, got 6.0"),
        ({"dim": DIM + 1}, "levels.shape must be 20x7, got 20x6"),
        ({"table_dtype": "int8"}, "max_level must be an integer from 1 to 127, got 1000"),
        ({"table_dtype": "float32"}, "table_dtype must be .*, got 'float32'"),
        ({"max_level": 0}, "max_level must be .*, got 0"),
        ({"max_level": 40000}, "max_level must be .*, got 40000"),
        ({"max_level": 900}, r"levels must be from -900 to 900, got -?\d+"),
        ({"clip": 0}, "clip must be .*, got 0"),
        ({"clip": -1.5}, "clip must be .*, got -1.5"),
        ({"bos_token_id": VOCABULARY}, "bos_token_id must be an integer from 0 to 19, got 20"),
        ({"bos_token_id": -1}, "bos_token_id must be .*, got -1"),
        ({"variants": []}, "variants must have 1 to 64 elements, got 0"),
        ({"extra": 1}, 'manifest must have no members but .*, got "extra"'),
        ({"base_model": {"name": "x"}}, "base_model.sha256 must be present"),
        ({"files": {}}, r"files.table.safetensors must be present"),
        ({"files": {"../x": 1, "table.safetensors": 1, "tokenizer.json": 1}}, "must have no members but"),
    ],
    ids=lambda value: next(iter(value.items()))[0] if isinstance(value, dict) else "",
)
def test_a_manifest_outside_the_format_is_refused(bundle: Path, change: dict[str, Any], reason: str) -> None:
    reseal(bundle, lambda value: value.update(change))
    with pytest.raises(BundleError, match=reason):
        load_bundle(bundle)
    with pytest.raises(BundleError, match=reason):
        load_client(bundle / "client")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "clear"}, "reserved"),
        ({"name": "../x"}, "name must be .*, got '../x'"),
        ({"name": "Open"}, r"\[a-z0-9-\]"),
        ({"name": "strict"}, "name must be unique"),
        ({"bits": 0}, "bits must be an integer from 1 to 8, got 0"),
        ({"bits": 9}, "bits must be .*, got 9"),
        ({"ratio_numerator": 0}, "ratio_numerator must be .*, got 0"),
        ({"ratio_numerator": 2**31}, "ratio_numerator must be .*, got 2147483648"),
        ({"soft_prompt_length": 33}, "soft_prompt_length must be a multiple of 32, got 33"),
        ({"soft_prompt_length": -32}, "soft_prompt_length must be .*, got -32"),
        ({"audit": []}, "audit must be an object, got an array"),
        ({"audit": {"a": [[[[[[[[[[[[1]]]]]]]]]]]]}}, "at most 12"),
        ({"guarantees": {}}, "guarantees.delta must be present"),
        ({"guarantees": {"delta": 0, "epsilon": 1, "epsilon_vocabulary": None, "mu": 1}}, "delta must be .*, got 0"),
        (
            {"guarantees": {"delta": 0.1, "epsilon": -1, "epsilon_vocabulary": None, "mu": 1}},
            "epsilon must be .*, got -1",
        ),
        (
            {"guarantees": {"delta": 0.1, "epsilon": 1, "epsilon_vocabulary": "x", "mu": 1}},
            "epsilon_vocabulary must be .*, got a string",
        ),
        ({"surprise": 1}, 'got "surprise"'),
    ],
    ids=lambda value: next(iter(value.items()))[0] if isinstance(value, dict) else "",
)
def test_a_variant_outside_the_format_is_refused(bundle: Path, change: dict[str, Any], reason: str) -> None:
    reseal(bundle, lambda value: value["variants"][0].update(change))
    for load, path in ((load_bundle, bundle), (load_client, bundle / "client")):
        with pytest.raises(BundleError, match=reason) as caught:
            load(path)
        assert caught.value.file.endswith("manifest.json")


def test_a_server_refuses_a_decoder_that_it_does_not_know_and_a_client_does_not_care(bundle: Path) -> None:
    reseal(bundle, lambda value: value["variants"][0].update(decoder="transformer"))
    assert (
        f"decoder of variant open must be one of {', '.join(DECODERS)}, got 'transformer'; an installed plugin can"
        in refusal(lambda: load_bundle(bundle), "manifest.json").reason
    )
    assert load_client(bundle / "client").variants["open"].decoder == "transformer"


@pytest.mark.parametrize("limit", [0, -1, "2", None])
def test_a_norm_limit_is_a_number_above_0(bundle: Path, limit: object) -> None:
    reseal(bundle, lambda value: value["server"]["variants"]["open"].update(norm_limit=limit))
    assert "norm_limit" in refusal(lambda: load_bundle(bundle), "manifest.json").reason


@pytest.mark.parametrize(
    "text",
    [
        b'{"format_version":1,"format_version":1}',
        b'{"format_version":NaN}',
        b'{"format_version":1e999}',
        b"[" * 100_000,
        b"\xff",
        b"",
        b"null",
        b'{"format_version":' + b"1" * 5000 + b"}",
    ],
    ids=["duplicate", "nan", "overflow", "nesting", "not-utf-8", "empty", "null", "digits"],
)
def test_a_manifest_that_is_not_strict_json_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "client" / "manifest.json").write_bytes(text)
    refusal(lambda: load_client(bundle / "client"), "manifest.json")
    (bundle / "manifest.json").write_bytes(text)
    refusal(lambda: load_bundle(bundle), "manifest.json")


def test_a_manifest_is_canonical(bundle: Path) -> None:
    path = bundle / "client" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))
    assert "canonical" in refusal(lambda: load_client(bundle / "client"), "manifest.json").reason


def test_a_huge_manifest_is_refused_unread(bundle: Path) -> None:
    path = bundle / "client" / "manifest.json"
    with open(path, "r+b") as file:
        file.truncate(2**40)  # a hole: nothing is on the disk, and reading it would not end
    assert (
        "at most 1048576 bytes, got 1099511627776"
        in refusal(lambda: load_client(bundle / "client"), "manifest.json").reason
    )


def raw_tensors(header: object, data: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TABLE_BYTES = VOCABULARY * DIM * 2
LEVELS = {"dtype": "I16", "shape": [VOCABULARY, DIM], "data_offsets": [0, TABLE_BYTES]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"1234567", "at least 8 bytes as a safetensors file, got 7"),
        (raw_tensors({}, b"", length=2**63), "got 9223372036854775808"),
        (raw_tensors({}, b"", length=3), "a header of at most 2 bytes, got 3"),
        (raw_tensors(b"[]" * 40_000, b""), "a header of at most 65536 bytes, got 80000"),
        (raw_tensors(b"{", b""), "must be one JSON value"),
        (raw_tensors(b'{"levels":{},"levels":{}}', b""), "must have each member once"),
        (raw_tensors(b"[" * 60_000, b""), "at most 4"),
        (raw_tensors({}, b""), "levels must be present"),
        (raw_tensors({"levels": LEVELS, "more": LEVELS}, bytes(TABLE_BYTES)), 'got "more"'),
        (
            raw_tensors({"levels": LEVELS, "__metadata__": {"a": "b"}}, bytes(TABLE_BYTES)),
            "must have no members but levels",
        ),
        (raw_tensors({"levels": {**LEVELS, "dtype": "F32"}}, bytes(TABLE_BYTES)), "dtype must be I16, got 'F32'"),
        (raw_tensors({"levels": {**LEVELS, "dtype": 3}}, bytes(TABLE_BYTES)), "dtype must be I16, got 3"),
        (raw_tensors({"levels": {**LEVELS, "shape": [DIM, VOCABULARY]}}, bytes(TABLE_BYTES)), "must be 20x6, got 6x20"),
        (raw_tensors({"levels": {**LEVELS, "shape": [2**62, 2**62]}}, bytes(TABLE_BYTES)), "must be 20x6"),
        (raw_tensors({"levels": {**LEVELS, "shape": [20.0, 6]}}, bytes(TABLE_BYTES)), "must be 20x6, got 20.0x6"),
        (raw_tensors({"levels": {**LEVELS, "shape": [1] * 9}}, bytes(TABLE_BYTES)), "elements, got 9"),
        (
            raw_tensors({"levels": {**LEVELS, "data_offsets": [0, 2]}}, bytes(TABLE_BYTES)),
            "must span the 240 bytes of its type and shape, got 2",
        ),
        (
            raw_tensors({"levels": {**LEVELS, "data_offsets": [-1, 239]}}, bytes(TABLE_BYTES)),
            "data_offsets must be an integer from 0 to 4611686018427387904, got -1",
        ),
        (
            raw_tensors({"levels": {**LEVELS, "data_offsets": [8, 248]}}, bytes(248)),
            "must begin at 0, without gap or overlap, got 8",
        ),
        (raw_tensors({"levels": LEVELS}, bytes(TABLE_BYTES - 1)), "bytes for its header and tensors, got"),
        (raw_tensors({"levels": LEVELS}, bytes(TABLE_BYTES + 1)), "bytes for its header and tensors, got"),
    ],
)
def test_a_forged_table_is_refused(bundle: Path, data: bytes, reason: str) -> None:
    (bundle / "client" / "table.safetensors").write_bytes(data)
    reseal(bundle, unchanged)
    error = refusal(lambda: load_client(bundle / "client"), "table.safetensors")
    assert reason in error.reason
    # The same is seen without reading the tensor.
    assert reason in refusal(lambda: load_client(bundle / "client", verify=False), "table.safetensors").reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SERVER_FILES)
def test_values_that_are_not_finite_are_refused(bundle: Path, name: str, value: float) -> None:
    path = bundle / "server" / name
    tensors = load_file(path)
    for key in tensors:
        altered = {other: array.copy() for other, array in tensors.items()}
        altered[key].flat[-1] = value
        path.write_bytes(save(altered))
        reseal(bundle, unchanged)
        assert f"tensor {key} must be finite" in refusal(lambda: load_bundle(bundle), f"server/{name}").reason


@pytest.mark.parametrize("name", SERVER_FILES)
@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.astype(np.float64),
        lambda array: array.astype(np.int16),
        lambda array: array[:-1],
        lambda array: array[None],
        lambda array: array.ravel()[:0],
    ],
    ids=["float64", "int16", "a row less", "an axis more", "empty"],
)
def test_tensors_of_another_type_or_shape_are_refused(bundle: Path, name: str, change: Any) -> None:
    path = bundle / "server" / name
    tensors = load_file(path)
    for key in tensors:
        path.write_bytes(save({**tensors, key: np.ascontiguousarray(change(tensors[key]))}))
        reseal(bundle, unchanged)
        reason = refusal(lambda: load_bundle(bundle), f"server/{name}").reason
        assert f"{key}.dtype" in reason or f"{key}.shape" in reason


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_manifests_raise_nothing_else(original: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    """An altered client manifest raises BundleError or is the same bundle."""
    from del_core.bundle.manifest import parse_manifest

    text = (original / "client" / "manifest.json").read_bytes()
    if data.draw(st.booleans()):
        value = json.loads(text)
        place: Any = value
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                break
            place = place[key]
        place[key] = data.draw(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
            | st.just([]) | st.just({}) | st.just(10**40)
        )  # fmt: skip
        value.pop("fingerprint", None)
        try:
            value["fingerprint"] = hashlib.sha256(canonical_json(value)).hexdigest()
            text = canonical_json(value)
        except ValueError:
            return  # no JSON text has that value
    else:
        altered = bytearray(text)
        altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
        text = bytes(altered)
    try:
        manifest = parse_manifest(text, "manifest.json", server=False)
    except BundleError:
        return
    assert isinstance(manifest, Manifest)
