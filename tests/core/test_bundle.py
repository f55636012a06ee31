"""The bundle: what is written is loaded, and whatever happens to a file in between is refused by name and reason."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from del_core import _strict_json, _tar
from del_core.bundle import (
    CLIENT_FILES,
    MAX_ARCHIVE_BYTES,
    BaseModel,
    BundleError,
    Guarantees,
    Manifest,
    Variant,
    VariantContent,
    checksum_model,
    load_bundle,
    load_client,
    pack_client,
    replace_audit,
    unpack_client,
    write_bundle,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "bundle.json").read_text("utf-8"))
VOCABULARY, DIM, HIDDEN = 20, 6, 8
MAX_LEVEL = 1000
SERVER_FILES = (
    "decoder-open.safetensors",
    "decoder-strict.safetensors",
    "prior.safetensors",
    "soft-prompt-open.safetensors",
)
ALL_FILES = (
    "manifest.json",
    *(f"client/{name}" for name in CLIENT_FILES),
    *(f"server/{name}" for name in SERVER_FILES),
)


def variant(name: str, rows: int, **more: Any) -> VariantContent:
    rng = np.random.default_rng(len(name))
    return VariantContent(
        Variant(
            name=name,
            task="general",
            bits=4,
            ratio_numerator=2**30,
            soft_prompt_length=rows,
            guarantees=Guarantees(delta=1e-6, epsilon=12.5, epsilon_vocabulary=None, mu=3.0),
            **more,
        ),
        weight=rng.normal(size=(HIDDEN, DIM)).astype(np.float16),
        bias=rng.normal(size=HIDDEN),
        norm_limit=2.5,
        soft_prompt=rng.normal(size=(rows, HIDDEN)).astype(np.float32) if rows else None,
    )


def content(**more: Any) -> dict[str, Any]:
    table = np.random.default_rng(0).integers(-MAX_LEVEL, MAX_LEVEL, size=(VOCABULARY, DIM), endpoint=True)
    return {
        "base_model": BaseModel("tests/tiny", "ab" * 32, HIDDEN, VOCABULARY),
        "table": table,
        "max_level": MAX_LEVEL,
        "clip": 1.5,
        "tokenizer_json": b'{"version": "1.0"}',
        "variants": [variant("open", 32), variant("strict", 0)],
        "log_prior": np.full(VOCABULARY, -np.log(VOCABULARY)),
        "bos_token_id": 1,
        **more,
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "original"
    write_bundle(path, **content())
    return path


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A bundle that the test may destroy."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def refusal(call: Callable[[], object], *names: str) -> BundleError:
    """The BundleError of a call, which has to name one of these files."""
    with pytest.raises(BundleError) as caught:
        call()
    error = caught.value
    assert error.file in names
    assert str(error) == f"{error.file}: {error.reason}"
    assert str(error).isprintable()
    return error


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alters a bundle's manifest, then makes digests, sizes and fingerprint fit again: what a forger would do."""
    value = json.loads((path / "manifest.json").read_bytes())
    for folder, entries in (("client", value["files"]), ("server", value["server"]["files"])):
        for name in entries:
            if (path / folder / name).is_file():
                data = (path / folder / name).read_bytes()
                entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    change(value)
    value["server_digest"] = hashlib.sha256(_strict_json.canonical(value["server"])).hexdigest()
    value.pop("fingerprint")
    client = {key: item for key, item in value.items() if key != "server"}
    client["fingerprint"] = hashlib.sha256(_strict_json.canonical(client)).hexdigest()
    (path / "manifest.json").write_bytes(_strict_json.canonical({**value, **client}))
    (path / "client" / "manifest.json").write_bytes(_strict_json.canonical(client))


def unchanged(_: dict[str, Any]) -> None:
    """No change, for :func:`reseal`."""


# -------------------------------------------------------------------------------------------- what is written is loaded


def test_a_bundle_holds_what_was_written(original: Path) -> None:
    given_ = content()
    loaded = load_bundle(original)
    assert loaded.fingerprint == loaded.client.fingerprint == loaded.manifest.fingerprint
    assert sorted(path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()) == sorted(
        ALL_FILES
    )
    np.testing.assert_array_equal(loaded.client.table, given_["table"])
    assert list(loaded.variants) == ["open", "strict"]
    for item in given_["variants"]:
        name = item.variant.name
        assert loaded.variants[name] == loaded.client.variant(name) == item.variant
        decoder = loaded.decoder(name)
        np.testing.assert_array_equal(decoder["weight"], item.weight.astype(np.float32))
        np.testing.assert_array_equal(decoder["bias"], item.bias.astype(np.float32))
        assert loaded.norm_limit(name) == item.norm_limit
        soft_prompt = loaded.soft_prompt(name)
        assert soft_prompt.shape == (item.variant.soft_prompt_length, HIDDEN)
        if item.soft_prompt is not None:
            np.testing.assert_array_equal(soft_prompt, item.soft_prompt)
        assert {array.dtype for array in (*decoder.values(), soft_prompt)} == {np.dtype(np.float32)}
        mechanism = loaded.mechanism(name)
        assert (mechanism.bits, mechanism.dim, mechanism.ratio, mechanism.max_level) == (4, DIM, 0.5, MAX_LEVEL)
    np.testing.assert_allclose(loaded.log_prior, given_["log_prior"], rtol=1e-6)
    manifest = loaded.manifest
    assert manifest.base_model == given_["base_model"]
    assert (manifest.dim, manifest.clip, manifest.bos_token_id) == (DIM, 1.5, 1)
    assert loaded.client.tokenizer_path.read_bytes() == given_["tokenizer_json"]


def test_the_table_is_mapped_read_only(original: Path) -> None:
    for verify in (True, False):
        table = load_client(original / "client", verify=verify).table
        assert isinstance(table, np.memmap)
        assert not table.flags.writeable
        assert table.dtype == np.int16


def test_a_small_table_takes_a_byte_a_level(tmp_path: Path) -> None:
    table = np.random.default_rng(1).integers(-127, 127, size=(VOCABULARY, DIM), endpoint=True)
    manifest = write_bundle(tmp_path / "b", **content(table=table, max_level=127))
    assert manifest.table_dtype == "int8"
    loaded = load_client(tmp_path / "b" / "client").table
    assert loaded.dtype == np.int8
    np.testing.assert_array_equal(loaded, table)


def test_the_same_content_has_the_same_fingerprint(tmp_path: Path, original: Path) -> None:
    assert write_bundle(tmp_path / "b", **content()).fingerprint == load_bundle(original).fingerprint
    for name in ALL_FILES:
        assert (tmp_path / "b" / name).read_bytes() == (original / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 1.25},
        {"bos_token_id": None},
        {"tokenizer_json": b"{}"},
        {"table": np.zeros((VOCABULARY, DIM), dtype=np.int64)},
        {"log_prior": np.zeros(VOCABULARY)},
        {"variants": [variant("open", 32)]},
        {"variants": [replace(variant("open", 32), norm_limit=2.25), variant("strict", 0)]},
        {"variants": [variant("open", 32, audit={"nearest": 0.3}), variant("strict", 0)]},
    ],
    ids=["clip", "bos", "tokenizer", "table", "prior", "variants", "norm limit", "audit"],
)
def test_other_content_has_another_fingerprint(tmp_path: Path, original: Path, change: dict[str, Any]) -> None:
    assert write_bundle(tmp_path / "b", **content(**change)).fingerprint != load_bundle(original).fingerprint


def test_client_and_server_compute_the_same_fingerprint_from_what_they_hold(original: Path) -> None:
    """docs/bundle-format.md, section "Fingerprint": cut the member out of the text, and hash the rest."""
    text = (original / "client" / "manifest.json").read_text("utf-8")
    fingerprint = load_client(original / "client").fingerprint
    member = f'"fingerprint":"{fingerprint}",'
    assert text.count(member) == 1
    assert hashlib.sha256(text.replace(member, "").encode()).hexdigest() == fingerprint
    whole = json.loads((original / "manifest.json").read_bytes())
    server = whole.pop("server")
    assert hashlib.sha256(_strict_json.canonical(server)).hexdigest() == whole["server_digest"]
    assert whole == json.loads(text)


def test_unknown_variants_are_named(original: Path) -> None:
    loaded = load_bundle(original)
    for method in (loaded.decoder, loaded.soft_prompt, loaded.norm_limit, loaded.mechanism, loaded.client.mechanism):
        error = refusal(lambda method=method: method("other"), "manifest.json")
        assert "open, strict are in it" in error.reason


# ------------------------------------------------------------------------------------------------------------ tampering


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
    assert "only" in error.reason


@pytest.mark.parametrize("folder", ["client", "server"])
def test_a_folder_is_no_link_and_no_file(bundle: Path, tmp_path: Path, folder: str) -> None:
    shutil.move(bundle / folder, tmp_path / "moved")
    refusal(lambda: load_bundle(bundle), folder)
    (bundle / folder).symlink_to(tmp_path / "moved")
    assert "not a link" in refusal(lambda: load_bundle(bundle), folder).reason
    (bundle / folder).unlink()
    (bundle / folder).write_bytes(b"")
    refusal(lambda: load_bundle(bundle), folder)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    for load in (load_bundle, load_client):
        assert "No such file" in refusal(lambda load=load: load(tmp_path / "none"), str(tmp_path / "none")).reason


def test_parts_of_two_bundles_do_not_mix(bundle: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", **content(clip=2.0))
    shutil.rmtree(bundle / "client")
    shutil.copytree(tmp_path / "other" / "client", bundle / "client")
    assert "differs" in refusal(lambda: load_bundle(bundle), "client/manifest.json").reason


# ---------------------------------------------------------- forged: digests fit, so that what is inside must be checked


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 2}, "format_version is 2; this program reads 1"),
        ({"format_version": 10**20, "whatever": []}, "this program reads 1"),
        ({"format_version": 0}, "format_version is 0"),
        ({"format_version": True}, "format_version is true"),
        ({"format_version": "1"}, "format_version is a string"),
        ({"dim": 0}, "dim is 0; an integer in 1..65536"),
        ({"dim": 6.0}, "dim is 6.0"),
        ({"dim": DIM + 1}, "levels.shape is 20x6; 20x7 is allowed"),
        ({"table_dtype": "int8"}, "max_level is 1000; an integer in 1..127"),
        ({"table_dtype": "float32"}, "table_dtype is 'float32'"),
        ({"max_level": 0}, "max_level is 0"),
        ({"max_level": 40000}, "max_level is 40000"),
        ({"max_level": 900}, r"has the level -?\d+; -900..900 are allowed"),
        ({"clip": 0}, "clip is 0"),
        ({"clip": -1.5}, "clip is -1.5"),
        ({"bos_token_id": VOCABULARY}, "bos_token_id is 20; an integer in 0..19"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
        ({"variants": []}, "variants has 0 elements"),
        ({"extra": 1}, 'unknown member "extra"'),
        ({"base_model": {"name": "x"}}, "base_model.sha256 is missing"),
        ({"files": {}}, r"files.table.safetensors is missing"),
        ({"files": {"../x": 1, "table.safetensors": 1, "tokenizer.json": 1}}, "unknown member"),
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
        ({"name": "../x"}, "name is '../x'"),
        ({"name": "Open"}, r"\[a-z0-9-\]"),
        ({"name": "strict"}, "each name is allowed once"),
        ({"bits": 0}, "bits is 0; an integer in 1..8"),
        ({"bits": 9}, "bits is 9"),
        ({"ratio_numerator": 0}, "ratio_numerator is 0"),
        ({"ratio_numerator": 2**31}, "ratio_numerator is 2147483648"),
        ({"soft_prompt_length": 33}, "soft_prompt_length is 33; a multiple of 32"),
        ({"soft_prompt_length": -32}, "soft_prompt_length is -32"),
        ({"audit": []}, "audit is an array"),
        ({"audit": {"a": [[[[[[[[[[[[1]]]]]]]]]]]]}}, "at most 12"),
        ({"guarantees": {}}, "guarantees.delta is missing"),
        ({"guarantees": {"delta": 0, "epsilon": 1, "epsilon_vocabulary": None, "mu": 1}}, "delta is 0"),
        ({"guarantees": {"delta": 0.1, "epsilon": -1, "epsilon_vocabulary": None, "mu": 1}}, "epsilon is -1"),
        ({"guarantees": {"delta": 0.1, "epsilon": 1, "epsilon_vocabulary": "x", "mu": 1}}, "epsilon_vocabulary is a"),
        ({"surprise": 1}, "unknown member"),
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
    assert "transformer; linear is allowed" in refusal(lambda: load_bundle(bundle), "manifest.json").reason
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
        "1099511627776 bytes; at most 1048576"
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
        (b"1234567", "has 7 bytes; a safetensors file has at least 8"),
        (raw_tensors({}, b"", length=2**63), "declares a header of 9223372036854775808 bytes"),
        (raw_tensors({}, b"", length=3), "declares a header of 3 bytes; at most 2"),
        (raw_tensors(b"[]" * 40_000, b""), "declares a header of 80000 bytes; at most 65536"),
        (raw_tensors(b"{", b""), "not JSON"),
        (raw_tensors(b'{"levels":{},"levels":{}}', b""), "appears twice"),
        (raw_tensors(b"[" * 60_000, b""), "at most 4"),
        (raw_tensors({}, b""), "levels is missing"),
        (raw_tensors({"levels": LEVELS, "more": LEVELS}, bytes(TABLE_BYTES)), 'unknown member "more"'),
        (raw_tensors({"levels": LEVELS, "__metadata__": {"a": "b"}}, bytes(TABLE_BYTES)), "unknown member"),
        (raw_tensors({"levels": {**LEVELS, "dtype": "F32"}}, bytes(TABLE_BYTES)), "dtype is 'F32'; I16 is allowed"),
        (raw_tensors({"levels": {**LEVELS, "dtype": 3}}, bytes(TABLE_BYTES)), "dtype is 3"),
        (raw_tensors({"levels": {**LEVELS, "shape": [DIM, VOCABULARY]}}, bytes(TABLE_BYTES)), "6x20; 20x6 is allowed"),
        (raw_tensors({"levels": {**LEVELS, "shape": [2**62, 2**62]}}, bytes(TABLE_BYTES)), "20x6 is allowed"),
        (raw_tensors({"levels": {**LEVELS, "shape": [20.0, 6]}}, bytes(TABLE_BYTES)), "20.0x6; 20x6 is allowed"),
        (raw_tensors({"levels": {**LEVELS, "shape": [1] * 9}}, bytes(TABLE_BYTES)), "has 9 elements"),
        (raw_tensors({"levels": {**LEVELS, "data_offsets": [0, 2]}}, bytes(TABLE_BYTES)), "span 2 bytes"),
        (raw_tensors({"levels": {**LEVELS, "data_offsets": [-1, 239]}}, bytes(TABLE_BYTES)), "data_offsets is -1"),
        (raw_tensors({"levels": {**LEVELS, "data_offsets": [8, 248]}}, bytes(248)), "begins at 8; 0 is allowed"),
        (raw_tensors({"levels": LEVELS}, bytes(TABLE_BYTES - 1)), "its header and tensors take"),
        (raw_tensors({"levels": LEVELS}, bytes(TABLE_BYTES + 1)), "its header and tensors take"),
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
        assert f"tensor {key} has NaN or infinite" in refusal(lambda: load_bundle(bundle), f"server/{name}").reason


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
    """The client's manifest, its values exchanged or its bytes altered: BundleError or the same bundle."""
    from del_core._manifest import parse_manifest

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
            value["fingerprint"] = hashlib.sha256(_strict_json.canonical(value)).hexdigest()
            text = _strict_json.canonical(value)
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


# -------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"table": np.zeros((VOCABULARY, DIM))}, "integers"),
        ({"table": np.zeros(VOCABULARY, dtype=int)}, "integers"),
        ({"table": np.full((VOCABULARY, DIM), MAX_LEVEL + 1)}, "-1000..1000"),
        ({"table": np.zeros((VOCABULARY - 1, DIM), dtype=int)}, "20x6 is allowed"),
        ({"max_level": 32768, "table": np.zeros((VOCABULARY, DIM), dtype=int)}, "max_level is 32768"),
        ({"clip": float("nan")}, "not JSON"),
        ({"clip": -1}, "clip is -1"),
        ({"tokenizer_json": b"not json"}, "not a JSON object"),
        ({"tokenizer_json": b"[" * 100_000}, "not a JSON object"),
        ({"log_prior": np.full(VOCABULARY, -np.inf)}, "NaN or infinite"),
        ({"log_prior": np.zeros(VOCABULARY + 1)}, "20 is allowed"),
        ({"variants": []}, "variants has 0 elements"),
        ({"variants": [variant("clear", 0)]}, "reserved"),
        ({"variants": [variant("a", 0), variant("a", 0)]}, "once"),
        ({"variants": [variant("a/b", 0)]}, "a-z0-9-"),
        ({"variants": [variant("a", 33)]}, "multiple of 32"),
        ({"variants": [replace(variant("a", 32), soft_prompt=None)]}, "32 rows are required"),
        ({"variants": [replace(variant("a", 32), soft_prompt=np.zeros((64, HIDDEN), np.float32))]}, "32x8 is allowed"),
        ({"variants": [replace(variant("a", 0), soft_prompt=np.zeros((32, HIDDEN), np.float32))]}, "unknown member"),
        ({"variants": [replace(variant("a", 0), bias=np.full(HIDDEN, np.nan))]}, "NaN"),
        ({"variants": [replace(variant("a", 0), weight=np.zeros((DIM, HIDDEN)))]}, "8x6 is allowed"),
        ({"variants": [variant("a", 0, audit={"when": {1, 2}})]}, "not JSON"),
        ({"variants": [variant("a", 0, audit={"x": float("inf")})]}, "not JSON"),
    ],
)
def test_what_could_not_be_loaded_is_not_written(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path / "b", **content(**change))
    assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_on_demand(bundle: Path) -> None:
    before = load_bundle(bundle).fingerprint
    error = refusal(lambda: write_bundle(bundle, **content(clip=2.0)), str(bundle))
    assert "overwrite=True" in error.reason
    assert load_bundle(bundle).fingerprint == before
    after = write_bundle(bundle, **content(clip=2.0), overwrite=True)
    assert load_bundle(bundle).fingerprint == after.fingerprint != before
    with pytest.raises(BundleError):
        write_bundle(bundle, **content(clip=-1.0), overwrite=True)
    assert load_bundle(bundle).fingerprint == after.fingerprint
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("home", "file"):
        error = refusal(
            lambda name=name: write_bundle(tmp_path / name, **content(), overwrite=True), str(tmp_path / name)
        )
        assert "only a bundle is replaced" in error.reason
    assert (tmp_path / "home" / "letter.txt").read_text() == (tmp_path / "file").read_text() == "dear"


def test_a_place_that_cannot_be_written_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refusal(lambda: write_bundle(tmp_path / "file" / "b", **content()), str(tmp_path / "file" / "b"))
    assert "cannot be written" in error.reason


def test_audits_are_replaced_with_the_fingerprint(bundle: Path) -> None:
    before = load_bundle(bundle)
    audit = {
        "nearest": {"success": 0.3, "low": 0.28, "high": 0.32, "tokens": 10_000, "data": "Тест", "date": "2026-01-01"}
    }
    manifest = replace_audit(bundle, {"open": audit})
    after = load_bundle(bundle)
    assert after.fingerprint == manifest.fingerprint != before.fingerprint
    assert after.variants["open"].audit == audit
    assert after.variants["strict"] == before.variants["strict"]
    assert after.manifest.files == before.manifest.files
    assert after.manifest.server == before.manifest.server
    np.testing.assert_array_equal(before.client.table, after.client.table)  # the old mapping stays valid
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert replace_audit(bundle, {"open": {}}).fingerprint == before.fingerprint
    assert "open, strict are in it" in refusal(lambda: replace_audit(bundle, {"x": {}}), "manifest.json").reason
    with pytest.raises(BundleError, match="not JSON"):
        replace_audit(bundle, {"open": {"x": float("nan")}})
    assert load_bundle(bundle).fingerprint == before.fingerprint


# -------------------------------------------------------------------------------------------------------------- archive


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive_of(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def client_members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(name, (path / "client" / name).read_bytes()) for name in CLIENT_FILES]


def test_archives_round_trip(original: Path, tmp_path: Path) -> None:
    data = pack_client(original)
    assert data == pack_client(original / "client")
    assert len(data) <= MAX_ARCHIVE_BYTES
    fingerprint = load_bundle(original).fingerprint
    for form in (data, bytearray(data), memoryview(data)):
        target = tmp_path / "cache" / type(form).__name__
        client = unpack_client(form, target, fingerprint=fingerprint)
        assert client.fingerprint == fingerprint == load_client(target).fingerprint
        np.testing.assert_array_equal(client.table, load_bundle(original).client.table)
        for name in CLIENT_FILES:
            assert (target / name).read_bytes() == (original / "client" / name).read_bytes()


def test_archives_are_tar_files(original: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack_client(original)), mode="r:") as archive:
        infos = archive.getmembers()
        assert [info.name for info in infos] == list(CLIENT_FILES)
        for info in infos:
            assert info.isreg()
            assert (info.mode, info.uid, info.gid, info.mtime, info.uname) == (0o644, 0, 0, 0, "")
            file = archive.extractfile(info)
            assert file is not None
            assert file.read() == (original / "client" / info.name).read_bytes()


def test_archive_vector(tmp_path: Path) -> None:
    client = unpack_client(bytes.fromhex(VECTORS["archive"]), tmp_path / "c", fingerprint=VECTORS["fingerprint"])
    assert client.table.tolist() == VECTORS["table"]
    assert (tmp_path / "c" / "manifest.json").read_text("utf-8") == VECTORS["manifest"]
    bare = VECTORS["manifest_without_fingerprint"]
    assert hashlib.sha256(bare.encode()).hexdigest() == VECTORS["fingerprint"]
    assert VECTORS["manifest"].replace(f'"fingerprint":"{VECTORS["fingerprint"]}",', "") == bare
    assert pack_client(tmp_path / "c").hex() == VECTORS["archive"]


@pytest.mark.parametrize("case", VECTORS["canonical"], ids=["strings", "numbers"])
def test_canonical_json_vectors(case: dict[str, Any]) -> None:
    assert _strict_json.canonical(case["value"]).decode() == case["text"]


def hostile(original: Path) -> dict[str, bytes]:
    """Archives that must leave nothing behind."""
    manifest, table, tokenizer = client_members(original)
    link_type, hard, device, pipe_, folder, sparse = b"2", b"1", b"3", b"6", b"5", b"S"
    good = pack_client(original)
    huge = bytearray(good)
    huge[124:136] = b"77777777777\0"
    base256 = bytearray(good)
    base256[124:136] = b"\x80" + (2**62).to_bytes(11, "big")
    negative = bytearray(good)
    negative[124:136] = b"-0000000001\0"
    past_end = bytearray(good)
    past_end[124:136] = b"00000777777\0"
    checksum = bytearray(good)
    checksum[148] ^= 1
    padding = bytearray(good)
    padding[512 + manifest[0].size] = 1
    return {
        "empty": b"",
        "noise": bytes(range(256)) * 20,
        "zeros": bytes(10240),
        "gzip": b"\x1f\x8b" + bytes(1000),
        "cut-in-header": good[:300],
        "cut-in-data": good[: 512 + 10],
        "cut-before-end": good[:-1024],
        "one-zero-block": good[:-512],
        "trailing-byte": good + b"\0",
        "trailing-member": good[:-1024] + good,
        "path-traversal": archive_of(member("../manifest.json", manifest[1]), table, tokenizer),
        "absolute-path": archive_of(member("/manifest.json", manifest[1]), table, tokenizer),
        "dot-path": archive_of(member("./manifest.json", manifest[1]), table, tokenizer),
        "folder-path": archive_of(member("client/manifest.json", manifest[1]), table, tokenizer),
        "prefix-path": archive_of(member("a" * 90 + "/" + "b" * 60, manifest[1]), table, tokenizer),
        "nul-in-name": bytes(good[:13]) + b"\0x" + bytes(good[15:]),
        "symlink": archive_of(member("manifest.json", type=link_type, linkname="/etc/passwd"), table, tokenizer),
        "hard-link": archive_of(manifest, table, member("tokenizer.json", type=hard, linkname="manifest.json")),
        "device": archive_of(manifest, table, member("tokenizer.json", type=device)),
        "pipe": archive_of(manifest, table, member("tokenizer.json", type=pipe_)),
        "directory": archive_of(manifest, table, member("tokenizer.json", type=folder)),
        "sparse": archive_of(manifest, table, member("tokenizer.json", tokenizer[1], type=sparse)),
        "duplicate-name": archive_of(manifest, manifest, table, tokenizer),
        "other-order": archive_of(table, manifest, tokenizer),
        "missing-member": archive_of(manifest, table),
        "extra-member": archive_of(manifest, table, tokenizer, member("evil.py", b"import os")),
        "executable": archive_of(member("manifest.json", manifest[1], mode=0o755), table, tokenizer),
        "setuid": archive_of(member("manifest.json", manifest[1], mode=0o4644), table, tokenizer),
        "owner": archive_of(member("manifest.json", manifest[1], uid=1000, uname="root"), table, tokenizer),
        "pax-header": archive_of(
            member("manifest.json", manifest[1], pax_headers={"path": "../x"}),
            table,
            tokenizer,
            format=tarfile.PAX_FORMAT,
        ),
        "gnu-long-name": archive_of(member("m" * 200, manifest[1]), table, tokenizer, format=tarfile.GNU_FORMAT),
        "many-long-names": archive_of(*[member("m" * 200)] * 3000, format=tarfile.GNU_FORMAT),
        "huge-size": bytes(huge),
        "base-256-size": bytes(base256),
        "negative-size": bytes(negative),
        "size-past-the-end": bytes(past_end),
        "wrong-checksum": bytes(checksum),
        "padding-not-zero": bytes(padding),
        "altered-table": good.replace(table[1], table[1][:-1] + bytes([table[1][-1] ^ 1])),
    }


def test_hostile_archives_leave_nothing_behind(original: Path, tmp_path: Path) -> None:
    for name, data in hostile(original).items():
        with pytest.raises(BundleError) as caught:
            unpack_client(data, tmp_path / "cache" / "c")
        assert str(caught.value).isprintable(), name
        assert list(tmp_path.rglob("*")) in ([], [tmp_path / "cache"]), name


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_archives_raise_nothing_else(original: Path, data: st.DataObject) -> None:
    archive = bytearray(pack_client(original))
    at = data.draw(st.integers(0, len(archive) - 1))
    if data.draw(st.booleans()):
        archive[at : at + data.draw(st.integers(0, 600))] = data.draw(st.binary(max_size=20))
    else:
        archive[at] ^= data.draw(st.integers(1, 255))
    limits = dict.fromkeys(CLIENT_FILES, 10_000)
    try:
        found = _tar.unpack(bytes(archive), limits)
    except BundleError:
        return
    # Data may have changed, which the digests find, and nothing else.
    assert list(found) == list(CLIENT_FILES)
    assert _tar.pack([(name, bytes(view)) for name, view in found.items()]) == bytes(archive)


def test_an_archive_of_another_bundle_is_refused(original: Path, tmp_path: Path) -> None:
    error = refusal(lambda: unpack_client(pack_client(original), tmp_path / "c", fingerprint="0" * 64), "manifest.json")
    assert f"{'0' * 64} is required" in error.reason
    assert list(tmp_path.iterdir()) == []


def test_unpacking_twice_keeps_the_first(original: Path, tmp_path: Path) -> None:
    data = pack_client(original)
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda _: unpack_client(data, tmp_path / "c"), range(24)))
    assert {client.fingerprint for client in clients} == {load_bundle(original).fingerprint}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_unpacking_never_replaces_another_bundle(original: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", **content(clip=2.0))
    target = tmp_path / "other" / "client"
    before = load_client(target).fingerprint
    refusal(lambda: unpack_client(pack_client(original), target), str(target))
    assert load_client(target).fingerprint == before


def test_packing_verifies_first(bundle: Path) -> None:
    flip_last(bundle / "client" / "table.safetensors")
    refusal(lambda: pack_client(bundle), "table.safetensors")


# ------------------------------------------------------------------------------------------------ base model's checksum


def test_checksum_of_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    refusal(lambda: checksum_model(model), str(model))
    (model / "b.safetensors").write_bytes(b"b")
    refusal(lambda: checksum_model(model), str(model / "config.json"))
    (model / "config.json").write_bytes(b"{}")
    (model / "a.safetensors").write_bytes(b"a")
    names = {"config.json": b"{}", "a.safetensors": b"a", "b.safetensors": b"b"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in names.items()}
    expected = hashlib.sha256(json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert checksum_model(model) == expected
    # Files that do not decide what the model computes do not count; links, as in a hub's cache, do.
    (model / "README.md").write_text("hello")
    shutil.move(model / "a.safetensors", tmp_path / "blob")
    (model / "a.safetensors").symlink_to(tmp_path / "blob")
    assert checksum_model(model) == expected
    (tmp_path / "blob").write_bytes(b"A")
    assert checksum_model(model) != expected
