"""The bundle: what is written is loaded, and what could not be loaded is not written."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from del_core.bundle import (
    BundleError,
    ChatFormat,
    canonical_json,
    checksum_model,
    load_bundle,
    load_client,
    replace_audit,
    write_bundle,
)
from tests.support.core_bundles import (
    ALL_FILES,
    DIM,
    HIDDEN,
    MAX_LEVEL,
    VOCABULARY,
    content,
    refusal,
    variant,
)


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
    """docs/reference/bundle-format.md, "Fingerprint": remove the member and hash the rest."""
    text = (original / "client" / "manifest.json").read_text("utf-8")
    fingerprint = load_client(original / "client").fingerprint
    member = f'"fingerprint":"{fingerprint}",'
    assert text.count(member) == 1
    assert hashlib.sha256(text.replace(member, "").encode()).hexdigest() == fingerprint
    whole = json.loads((original / "manifest.json").read_bytes())
    server = whole.pop("server")
    assert hashlib.sha256(canonical_json(server)).hexdigest() == whole["server_digest"]
    assert whole == json.loads(text)


def test_unknown_variants_are_named(original: Path) -> None:
    loaded = load_bundle(original)
    for method in (loaded.decoder, loaded.soft_prompt, loaded.norm_limit, loaded.mechanism, loaded.client.mechanism):
        error = refusal(lambda method=method: method("other"), "manifest.json")
        assert "must be one of open, strict" in error.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"table": np.zeros((VOCABULARY, DIM))}, "integers"),
        ({"table": np.zeros(VOCABULARY, dtype=int)}, "integers"),
        ({"table": np.full((VOCABULARY, DIM), MAX_LEVEL + 1)}, "from -1000 to 1000"),
        ({"table": np.zeros((VOCABULARY - 1, DIM), dtype=int)}, "must be 20x6"),
        (
            {"max_level": 32768, "table": np.zeros((VOCABULARY, DIM), dtype=int)},
            "max_level must be an integer from 1 to 32767, got 32768",
        ),
        ({"clip": float("nan")}, "must hold JSON"),
        ({"clip": -1}, "at most 1e+30, got -1"),
        ({"tokenizer_json": b"not json"}, "must be a JSON object"),
        ({"tokenizer_json": b"[" * 100_000}, "must be a JSON object"),
        ({"log_prior": np.full(VOCABULARY, -np.inf)}, "must be finite"),
        ({"log_prior": np.zeros(VOCABULARY + 1)}, "must be 20"),
        ({"variants": []}, "variants must have 1 to 64 elements, got 0"),
        ({"variants": [variant("clear", 0)]}, "reserved"),
        ({"variants": [variant("a", 0), variant("a", 0)]}, "must be unique"),
        ({"variants": [variant("a/b", 0)]}, "a-z0-9-"),
        ({"variants": [variant("a", 33)]}, "multiple of 32"),
        ({"variants": [replace(variant("a", 32), soft_prompt=None)]}, "must have 32 rows"),
        ({"variants": [replace(variant("a", 32), soft_prompt=np.zeros((64, HIDDEN), np.float32))]}, "must be 32x8"),
        (
            {"variants": [replace(variant("a", 0), soft_prompt=np.zeros((32, HIDDEN), np.float32))]},
            "must have no members but",
        ),
        ({"variants": [replace(variant("a", 0), bias=np.full(HIDDEN, np.nan))]}, "NaN"),
        ({"variants": [replace(variant("a", 0), weight=np.zeros((DIM, HIDDEN)))]}, "must be 8x6"),
        ({"variants": [variant("a", 0, audit={"when": {1, 2}})]}, "must hold JSON"),
        ({"variants": [variant("a", 0, audit={"x": float("inf")})]}, "must hold JSON"),
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
        assert "must be a bundle to be replaced" in error.reason
    assert (tmp_path / "home" / "letter.txt").read_text() == (tmp_path / "file").read_text() == "dear"


def test_a_place_that_cannot_be_written_is_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refusal(lambda: write_bundle(tmp_path / "file" / "b", **content()), str(tmp_path / "file" / "b"))
    assert "must be writable" in error.reason


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
    assert "must be one of open, strict" in refusal(lambda: replace_audit(bundle, {"x": {}}), "manifest.json").reason
    with pytest.raises(BundleError, match="must hold JSON"):
        replace_audit(bundle, {"open": {"x": float("nan")}})
    assert load_bundle(bundle).fingerprint == before.fingerprint


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


CHAT = ChatFormat("{{ messages }}\n", {"eos_token": "</s>"}, (2, 1))


def test_the_chat_template_is_part_of_both_manifests_and_of_the_fingerprint(tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain", **content())
    manifest = write_bundle(tmp_path / "bundle", **content(chat=CHAT))
    assert manifest.fingerprint != plain.fingerprint
    assert load_client(tmp_path / "bundle" / "client").manifest.chat == CHAT
    replace_audit(tmp_path / "bundle", {"open": {"date": "2026-11-29"}})
    assert load_bundle(tmp_path / "bundle").manifest.chat == CHAT


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        (ChatFormat(""), "chat.template must be a string of 1 to 65536 bytes"),
        (ChatFormat("\u00e9" * 32769), "chat.template must be a string of 1 to 65536 bytes"),
        (replace(CHAT, tokens={"Eos": "x"}), "chat.tokens must be a string that matches"),
        (replace(CHAT, tokens={"eos_token": ""}), "chat.tokens.eos_token must be a string that matches"),
        (replace(CHAT, tokens={"eos_token": 5}), "chat.tokens.eos_token must be a string that matches"),
        (replace(CHAT, tokens={chr(97 + n): "x" for n in range(17)}), "chat.tokens must be an object of at most 16"),
        (replace(CHAT, end_token_ids=(VOCABULARY,)), "chat.end_token_ids must be an integer from 0 to"),
        (replace(CHAT, end_token_ids=(1,) * 17), "chat.end_token_ids must have 0 to 16 elements, got 17"),
    ],
)
def test_a_chat_template_out_of_bounds_is_refused(tmp_path: Path, chat: ChatFormat, words: str) -> None:
    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path / "bundle", **content(chat=chat))
    assert words in str(caught.value)
