"""Code tables: variants that read rows of codes in place of the bundle's table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_lib.prompts.encoder import Encoder
from del_core.bundle import (
    BundleError,
    CodeTable,
    Guarantees,
    VariantContent,
    load_bundle,
    load_client,
    pack_client,
    replace_audit,
    unpack_client,
    write_bundle,
)
from del_core.mechanism import CategoricalMechanism
from del_core.mechanism.base import MechanismSpec
from del_core.wire import Limits, Sampling, Shape, decode_frame
from tests.support.bundle import bundle_content, make_tokenizer, make_variant
from tests.support.core_bundles import HIDDEN, VOCABULARY, content, refusal, reseal, variant

BITS, COLUMNS = 3, 2
MECHANISM = CategoricalMechanism.from_epsilon(6.0, bits=BITS, dim=COLUMNS)
CODES = np.random.default_rng(4).integers(0, 1 << BITS, (VOCABULARY, COLUMNS))
VECTOR = Path(__file__).parents[2] / "vectors" / "bundle_codes.json"


def coded(name: str, mechanism: CategoricalMechanism = MECHANISM, table: str | None = "k-8") -> VariantContent:
    """Make a variant that releases codes and decodes them by a table."""
    plain = make_variant(
        name,
        weight=np.zeros((HIDDEN, 1), np.float32),
        bits=mechanism.bits,
        ratio_numerator=None,
        guarantees=Guarantees(0.0, mechanism.epsilon, None, None),
        decoder="lookup",
        other=MechanismSpec(mechanism.kind, mechanism.parameters()),
        table=table,
    )
    rows = np.random.default_rng(5).normal(size=(mechanism.dim, 1 << mechanism.bits, HIDDEN))
    return replace(plain, weight=None, bias=None, tensors={"codes": rows.astype(np.float32)})


def mixed(**changes: Any) -> dict[str, Any]:
    """Return the arguments of ``write_bundle`` for a binomial and two categorical variants."""
    variants = [variant("open", 32), coded("coded"), coded("other")]
    return content(**{"variants": variants, "code_tables": {"k-8": CODES}, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", **mixed())
    return tmp_path / "bundle"


def test_a_bundle_holds_both_kinds_of_table(path: Path) -> None:
    bundle = load_bundle(path)
    assert bundle.manifest.code_tables == {"k-8": CodeTable(BITS, COLUMNS)}
    assert bundle.mechanism("coded") == MECHANISM
    assert bundle.client.table_of("coded").dtype == np.uint8
    assert np.array_equal(bundle.client.table_of("coded"), CODES)
    assert bundle.client.table_of("open") is bundle.client.table
    counts = np.array([[1, 7], [0, 3]], np.uint8)
    rows = bundle.decoder("coded")["codes"]
    expected = rows[0, [1, 0]] + rows[1, [7, 3]]
    assert np.array_equal(bundle.build_decoder("coded").decode(counts), expected)


def test_the_archive_holds_the_code_tables_last(path: Path, tmp_path: Path) -> None:
    client = unpack_client(pack_client(path), tmp_path / "client")
    assert client.manifest.client_files[-1] == "codes-k-8.safetensors"
    assert np.array_equal(client.code_tables["k-8"], CODES)
    assert client.fingerprint == load_bundle(path).fingerprint
    assert replace_audit(path, {"coded": {"date": "2026-01-01"}}).code_tables == client.manifest.code_tables


def test_the_vector_of_a_bundle_with_codes(tmp_path: Path) -> None:
    vector = json.loads(VECTOR.read_text("utf-8"))
    client = unpack_client(bytes.fromhex(vector["archive"]), tmp_path / "client")
    assert client.fingerprint == vector["fingerprint"]
    assert client.table_of("codes").tolist() == vector["tables"]["codes"]
    shutil.rmtree(tmp_path / "client")
    altered = bytes.fromhex(vector["archive"])[:-1024] + bytes(512) + bytes(1024)
    refusal(lambda: unpack_client(altered, tmp_path / "client"), "archive")


def test_a_client_sends_noisy_codes_of_its_own_table(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    table = np.zeros((300, 4), np.int16)
    codes = np.arange(300)[:, None] % 8
    mechanism = CategoricalMechanism(3, 1, max_level=7, noise_numerators=(1,))  # codes change once in 2^32
    values = {"tokenizer_json": tokenizer, "code_tables": {"k-8": codes}}
    plain = make_variant("plain", weight=np.zeros((HIDDEN, 4), np.float32))
    arguments = bundle_content(table, [plain, coded("coded", mechanism)], **values)
    write_bundle(tmp_path / "bundle", **arguments)
    bundle = load_client(tmp_path / "bundle" / "client")
    encoder = Encoder(bundle)
    encoded = encoder.encode("the quick brown fox", "coded")
    frame = encoder.frame(encoded, Sampling())
    shape = Shape(bundle.mechanism("coded").bits, bundle.mechanism("coded").dim)
    request = decode_frame(frame, {"coded": shape}, Limits(vocabulary_size=300))
    (part,) = encoder.tokenize("the quick brown fox", "coded")
    assert request.segments[0].codes.tolist() == codes[list(part.ids)].tolist()  # type: ignore[union-attr]


def _wide(value: dict[str, Any]) -> None:
    value["code_tables"]["k-8"]["columns"] = 3


def _more_bits(value: dict[str, Any]) -> None:
    value["code_tables"]["k-8"]["bits"] = 4


def _unknown(value: dict[str, Any]) -> None:
    value["variants"][1]["table"] = "k-9"


def _of_binomial(value: dict[str, Any]) -> None:
    value["variants"][0]["table"] = "k-8"


def _none(value: dict[str, Any]) -> None:
    value["code_tables"] = {}


def _missing(value: dict[str, Any]) -> None:
    del value["code_tables"]
    del value["files"]["codes-k-8.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_wide, "noise_numerators must be 3 integers, got 2"),
        (_more_bits, "variants[1].bits must be the 4 of its table, got 3"),
        (_unknown, "variants[1].table must be k-8, got 'k-9'"),
        (_of_binomial, "must have no members but"),
        (_none, "code_tables must have 1 to 16 members, got 0"),
        (_missing, "variants[1].table must be absent, as there are no code tables"),
    ],
)
def test_a_manifest_that_disagrees_with_its_code_tables(
    path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    reseal(path, change)
    assert said in refusal(lambda: load_bundle(path), "manifest.json").reason


def test_codes_beyond_the_bits_are_refused(path: Path, tmp_path: Path) -> None:
    wrong = CODES.copy()
    wrong[3, 1] = 8
    error = refusal(lambda: write_bundle(tmp_path / "b", **mixed(code_tables={"k-8": wrong})), "codes-k-8.safetensors")
    assert error.reason == "levels must be from 0 to 7, got 8"
    file = path / "client" / "codes-k-8.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] = 200
    file.write_bytes(data)
    refusal(lambda: load_bundle(path), "client/codes-k-8.safetensors")
    reseal(path, lambda _: None)
    assert (
        "levels must be from 0 to 7, got 200"
        in refusal(lambda: load_bundle(path), "client/codes-k-8.safetensors").reason
    )


def test_a_code_table_that_no_variant_reads_is_refused(tmp_path: Path) -> None:
    tables = {"k-8": CODES, "spare": CODES}
    refusal(lambda: write_bundle(tmp_path / "b", **mixed(code_tables=tables)), "codes-spare.safetensors")


def test_a_decoder_for_another_number_of_codes_is_refused(tmp_path: Path) -> None:
    content = coded("coded")
    wrong = replace(content, tensors={"codes": np.zeros((COLUMNS, 4, HIDDEN), np.float32)})
    write_bundle(tmp_path / "bundle", **mixed(variants=[wrong]))
    bundle = load_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="a row for each of the 8 codes, got 4"):
        bundle.build_decoder("coded")
