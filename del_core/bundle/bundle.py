"""The bundle, which clients download and servers load (docs/reference/bundle-format.md).

Loading executes nothing and refuses a bundle that is truncated, altered, incomplete or too new.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from del_core import _json as strict
from del_core.bundle import archive as _tar
from del_core.bundle import files
from del_core.bundle.chat import ChatFormat
from del_core.bundle.manifest import (
    CLIENT_LIMITS,
    MANIFEST,
    MAX_CODE_TABLES,
    MAX_CODES_BYTES,
    MAX_MANIFEST_BYTES,
    PRIOR,
    TABLE,
    TOKENIZER,
    AdapterShape,
    BaseModel,
    CodeTable,
    FileEntry,
    Manifest,
    ServerSection,
    Variant,
    adapter_file,
    client_limits,
    codes_file,
    parse_manifest,
    server_file_names,
)
from del_core.bundle.signature import SIGNATURE, Signature, read_signature
from del_core.bundle.tensors import (
    MAX_ADAPTER_HEADER_BYTES,
    MAX_HEADER_BYTES,
    Specs,
    SpecsOf,
    TensorSpec,
    dump,
    map_tensors,
)
from del_core.bundle.tokenizer import check_tokenizer
from del_core.decoders import DECODERS, Decoder, DecoderInputs, DecoderKind, ModelSizes
from del_core.errors import BundleError
from del_core.mechanism import TokenMechanism

FloatArray = NDArray[np.floating[Any]]

CLIENT_FILES: Final = (MANIFEST, TABLE, TOKENIZER)
"""The files that every client part has; code tables follow them."""
_MANIFEST_LIMIT: Final = {MANIFEST: MAX_MANIFEST_BYTES}
MAX_ARCHIVE_BYTES: Final = (
    MAX_MANIFEST_BYTES + sum(CLIENT_LIMITS.values()) + MAX_CODE_TABLES * MAX_CODES_BYTES + 32 * 1024
)
"""Upper bound of the size of a client part's archive."""

_FLOATS: Final = ("F32", "F16")
_BLOCK_ROWS: Final = 4096
_MAX_LAYER_WIDTH: Final = 2**20


@dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank adapter of the LM.

    ``tensors`` have the names of a file of ``peft``: A (rank, inputs) and B (outputs, rank) of each
    adapted layer.
    """

    shape: AdapterShape
    tensors: Mapping[str, FloatArray] = field(repr=False)


@dataclass(frozen=True, eq=False)
class VariantContent:
    """A variant with its server side.

    ``weight`` (b, dim) and ``bias`` (b,) are the linear decoder, None for a kind without them;
    ``tensors`` are the others of the kind. ``norm_limit`` is R, the largest norm of a dequantized
    row; ``soft_prompt`` is (m, b).
    """

    variant: Variant
    weight: FloatArray | None = field(repr=False)
    bias: FloatArray | None = field(repr=False)
    norm_limit: float
    soft_prompt: FloatArray | None = field(default=None, repr=False)
    tensors: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)
    adapter: Adapter | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class ClientBundle:
    """The client part of a bundle, verified.

    ``table``: levels (V, dim) in -max_level..max_level, mapped read-only from the file.
    ``code_tables``: codes (V, columns) of each code table, likewise.
    """

    path: Path
    manifest: Manifest
    table: NDArray[np.int16] | NDArray[np.int8] = field(repr=False)
    code_tables: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits on which client and server must agree."""
        return self.manifest.fingerprint

    @property
    def tokenizer_path(self) -> Path:
        """File of the ``tokenizers`` library."""
        return self.path / TOKENIZER

    @property
    def variants(self) -> dict[str, Variant]:
        """The variants by name, in the manifest's order."""
        return {variant.name: variant for variant in self.manifest.variants}

    def variant(self, name: str) -> Variant:
        """Return the variant of this name, or raise BundleError."""
        try:
            return self.variants[name]
        except KeyError:
            known = ", ".join(self.variants)
            raise BundleError(MANIFEST, f"variant must be one of {known}, got {strict.shown(name)}") from None

    @property
    def signature(self) -> Signature | None:
        """The signature beside the files, not verified; None without one."""
        return read_signature(self.path)

    def mechanism(self, name: str) -> TokenMechanism:
        """Return the mechanism of a variant on its table."""
        return self.manifest.mechanism(self.variant(name))

    def table_of(self, name: str) -> NDArray[np.integer[Any]]:
        """Return the table (V, columns) whose rows the mechanism of a variant reads."""
        table = self.variant(name).table
        return self.table if table is None else self.code_tables[table]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A whole bundle, verified. Its methods return copies of the arrays."""

    path: Path
    client: ClientBundle = field(repr=False)
    manifest: Manifest
    _tensors: Mapping[str, Mapping[str, NDArray[Any]]] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits on which client and server must agree."""
        return self.manifest.fingerprint

    @property
    def variants(self) -> dict[str, Variant]:
        """The variants by name, in the manifest's order."""
        return self.client.variants

    def mechanism(self, name: str) -> TokenMechanism:
        """Return the mechanism of a variant."""
        return self.client.mechanism(name)

    def decoder(self, name: str) -> dict[str, NDArray[np.float32]]:
        """Return a variant's decoder tensors, float32, by the names of its kind."""
        tensors = self._tensors[f"decoder-{self.client.variant(name).name}.safetensors"]
        return {key: np.array(value, dtype=np.float32) for key, value in tensors.items()}

    def check_model(self, checksum: str) -> None:
        """Raise BundleError unless the bundle was made for the model with this checksum."""
        expected = self.manifest.base_model.sha256
        if checksum != expected:
            raise BundleError(MANIFEST, f"was made for a model with checksum {expected}, not {checksum}")

    def decoder_kind(self, name: str) -> DecoderKind:
        """Return the kind of a variant's decoder."""
        return DECODERS[self.client.variant(name).decoder]

    def build_decoder(self, name: str) -> Decoder:
        """Build a variant's decoder."""
        kind, mechanism = self.decoder_kind(name), self.mechanism(name)
        if kind.dequantizes and not mechanism.can_dequantize:
            raise BundleError(
                MANIFEST,
                f"decoder of variant {name} must be of a kind that works without coordinates, "
                f"as the mechanism {mechanism.kind} has none, got {kind.name}",
            )
        try:
            return kind.build(self.decoder_inputs(name))
        except ValueError as error:
            raise BundleError(f"server/decoder-{name}.safetensors", str(error)) from None

    def decoder_inputs(self, name: str) -> DecoderInputs:
        """Return the parts from which a variant's decoder is built."""
        table = np.asarray(self.client.table_of(name))
        return DecoderInputs(self.mechanism(name), table, self.log_prior, self.norm_limit(name), self.decoder(name))

    def decoder_multiplications(self, name: str) -> int:
        """Return the number of multiplications that decode one private token of a variant."""
        shapes = {key: array.shape for key, array in self.decoder(name).items()}
        return self.decoder_kind(name).multiplications(shapes, _model_sizes(self.manifest, self.client.variant(name)))

    def norm_limit(self, name: str) -> float:
        """Return R of a variant, the largest norm of a dequantized row."""
        assert self.manifest.server is not None
        return self.manifest.server.norm_limits[self.client.variant(name).name]

    def soft_prompt(self, name: str) -> NDArray[np.float32]:
        """Return the soft prompt (m, b) of a variant, float32; m is 0 if it has none."""
        variant = self.client.variant(name)
        if not variant.soft_prompt_length:
            return np.zeros((0, self.manifest.base_model.hidden_size), dtype=np.float32)
        return np.array(self._tensors[f"soft-prompt-{name}.safetensors"]["soft_prompt"], dtype=np.float32)

    def adapter(self, name: str) -> Adapter | None:
        """Return a variant's adapter, float32; None if it has none."""
        shape = self.client.variant(name).adapter
        if shape is None:
            return None
        tensors = self._tensors[adapter_file(name)]
        return Adapter(shape, {key: np.array(value, dtype=np.float32) for key, value in tensors.items()})

    @property
    def log_prior(self) -> NDArray[np.float32]:
        """Natural logarithms (V,) of token frequencies in the training text, float32."""
        return np.array(self._tensors[PRIOR]["log_prior"], dtype=np.float32)


def load_client(path: str | os.PathLike[str], *, verify: bool = True, prefix: str = "") -> ClientBundle:
    """Load the client part in a directory; ``prefix`` is put before file names in errors.

    Without ``verify``, for a copy that this program verified when it stored it, sizes, types and
    shapes are compared but contents are not read. BundleError is raised for any other directory.
    """
    directory = Path(path)
    if not os.path.lexists(directory / MANIFEST):
        files.check_listing(directory, prefix.rstrip("/"), CLIENT_FILES, optional=(SIGNATURE,))
    data = files.read_small(directory / MANIFEST, prefix + MANIFEST, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(data, prefix + MANIFEST, server=False)
    files.check_listing(directory, prefix.rstrip("/"), manifest.client_files, optional=(SIGNATURE,))
    with files.opened(directory / TOKENIZER, prefix + TOKENIZER) as file:
        files.check_entry(file, prefix + TOKENIZER, manifest.files[TOKENIZER], digest=verify)
        if verify:
            file.seek(0)
            check_tokenizer(file.read(CLIENT_LIMITS[TOKENIZER]), prefix + TOKENIZER)

    def load(file_name: str, dtype: str, columns: int, low: int, high: int) -> NDArray[Any]:
        spec = TensorSpec((dtype,), (manifest.base_model.vocabulary_size, columns))
        name = prefix + file_name
        with files.opened(directory / file_name, name) as file:
            files.check_entry(file, name, manifest.files[file_name], digest=verify)
            table = map_tensors(file, name, {"levels": spec})["levels"]
        if verify:
            _check_levels(table, low, high, name)
        return table

    dtype = "I8" if manifest.table_dtype == "int8" else "I16"
    table = load(TABLE, dtype, manifest.dim, -manifest.max_level, manifest.max_level)
    code_tables = {
        key: load(codes_file(key), "U8", shape.columns, 0, (1 << shape.bits) - 1)
        for key, shape in manifest.code_tables.items()
    }
    return ClientBundle(directory, manifest, table, code_tables)


def load_bundle(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Load the bundle in a directory; arguments and errors are those of :func:`load_client`."""
    directory = Path(path)
    files.check_listing(directory, "", (MANIFEST, "client", "server"))
    data = files.read_small(directory / MANIFEST, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(data, MANIFEST, server=True)
    assert manifest.server is not None
    for name in ("client", "server"):
        if (directory / name).is_symlink() or not (directory / name).is_dir():
            raise BundleError(name, "must be a directory and no link, got something else")
    client = load_client(directory / "client", verify=verify, prefix="client/")
    if client.manifest != replace(manifest, server=None):
        raise BundleError("client/manifest.json", "must equal the client part of manifest.json, got another manifest")
    files.check_listing(directory / "server", "server", manifest.server.files)
    for variant in manifest.variants:
        try:
            DECODERS.find(variant.decoder, f" of variant {variant.name}")
        except ValueError as error:
            raise BundleError(MANIFEST, str(error)) from None
    tensors: dict[str, dict[str, NDArray[Any]]] = {}
    for short, specs, most in _server_specs(manifest):
        name = f"server/{short}"
        with files.opened(directory / name, name) as file:
            files.check_entry(file, name, manifest.server.files[short], digest=verify)
            tensors[short] = map_tensors(file, name, specs, most=most)
        if verify:
            for key, array in tensors[short].items():
                _check_finite(array, f"tensor {key}", name)
    return Bundle(directory, client, manifest, tensors)


def _server_specs(manifest: Manifest) -> Iterator[tuple[str, Specs | SpecsOf, int]]:
    """Yield every file of server/ with its tensors and the most bytes of its header."""
    hidden = manifest.base_model.hidden_size
    for variant in manifest.variants:
        yield f"decoder-{variant.name}.safetensors", partial(_decoder_specs, manifest, variant), MAX_HEADER_BYTES
        if variant.soft_prompt_length:
            rows = TensorSpec(_FLOATS, (variant.soft_prompt_length, hidden))
            yield f"soft-prompt-{variant.name}.safetensors", {"soft_prompt": rows}, MAX_HEADER_BYTES
        if variant.adapter is not None:
            yield adapter_file(variant.name), partial(_adapter_specs, variant.adapter), MAX_ADAPTER_HEADER_BYTES
    prior = TensorSpec(("F32",), (manifest.base_model.vocabulary_size,))
    yield PRIOR, {"log_prior": prior}, MAX_HEADER_BYTES


def _model_sizes(manifest: Manifest, variant: Variant) -> ModelSizes:
    dim = manifest.mechanism(variant).dim
    return ModelSizes(manifest.base_model.hidden_size, dim, manifest.base_model.vocabulary_size)


def _decoder_specs(manifest: Manifest, variant: Variant, claimed: Mapping[str, tuple[int, ...]]) -> Specs:
    shapes = DECODERS[variant.decoder].shapes(claimed, _model_sizes(manifest, variant))
    return {key: TensorSpec(_FLOATS, shape) for key, shape in shapes.items()}


def _adapter_specs(adapter: AdapterShape, claimed: Mapping[str, tuple[int, ...]]) -> Specs:
    """Return the tensors of an adapter: A and B of every layer, of its rank and its modules."""
    modules = "|".join(adapter.modules)
    form = re.compile(rf"(base_model\.model\.[A-Za-z0-9_.]{{1,200}}\.(?:{modules})\.lora_)([AB])\.weight")
    specs: dict[str, TensorSpec] = {}
    for key, shape in claimed.items():
        match = form.fullmatch(key)
        if match is None:
            raise ValueError(f"tensors must be lora_A and lora_B of layers named {modules}, got {strict.shown(key)}")
        other = f"{match[1]}{'B' if match[2] == 'A' else 'A'}.weight"
        if other not in claimed:
            raise ValueError(f"tensor {key} must have {other} beside it, got none")
        outer = shape[1 if match[2] == "A" else 0] if len(shape) == 2 else 0
        if not 1 <= outer <= _MAX_LAYER_WIDTH:
            raise ValueError(
                f"tensor {key} must be a matrix of at most {_MAX_LAYER_WIDTH} columns or rows, got {shape}"
            )
        specs[key] = TensorSpec(_FLOATS, (adapter.rank, outer) if match[2] == "A" else (outer, adapter.rank))
    if not specs:
        raise ValueError("tensors must be those of at least one layer, got none")
    return specs


def _check_levels(table: NDArray[Any], low: int, high: int, name: str) -> None:
    for found in (int(table.min()), int(table.max())) if table.size else ():
        if not low <= found <= high:
            raise BundleError(name, f"levels must be from {low} to {high}, got {found}")


def _check_finite(array: NDArray[Any], what: str, name: str) -> None:
    for start in range(0, len(array), _BLOCK_ROWS):
        if not np.isfinite(array[start : start + _BLOCK_ROWS]).all():
            raise BundleError(name, f"{what} must be finite, got NaN or an infinite value")


def write_bundle(
    path: str | os.PathLike[str],
    *,
    base_model: BaseModel,
    table: NDArray[np.integer[Any]],
    max_level: int,
    clip: float,
    tokenizer_json: bytes,
    variants: Sequence[VariantContent],
    log_prior: FloatArray,
    bos_token_id: int | None = None,
    code_tables: Mapping[str, NDArray[np.integer[Any]]] | None = None,
    chat: ChatFormat | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle atomically; it is loaded and verified before it takes its place.

    ``table`` holds integer levels (V, columns) in -max_level..max_level and is stored as int8 if it
    fits; ``code_tables`` hold codes (V, columns) of variants that name one, whose bits they have.
    Decoders and soft prompts keep float16; other floats become float32. BundleError is raised if
    :func:`load_bundle` would refuse the bundle, or if it cannot be written.
    """
    if table.ndim != 2 or not np.issubdtype(table.dtype, np.integer):
        raise BundleError(TABLE, f"table must be integers (vocabulary, dim), got {table.dtype} with {table.ndim} axes")
    dtype = "int8" if max_level <= 127 else "int16"
    _check_levels(table, -max_level, max_level, TABLE)
    check_tokenizer(tokenizer_json)
    client = {TABLE: dump({"levels": table.astype("int8" if dtype == "int8" else "<i2")}), TOKENIZER: tokenizer_json}
    shapes: dict[str, CodeTable] = {}
    for key, codes in (code_tables or {}).items():
        bits = next((content.variant.bits for content in variants if content.variant.table == key), 0)
        if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer) or not bits:
            message = f"must be integers (vocabulary, codes) that a variant reads, got {codes.dtype} {codes.shape}"
            raise BundleError(codes_file(key), message)
        _check_levels(codes, 0, (1 << bits) - 1, codes_file(key))
        shapes[key] = CodeTable(bits, int(codes.shape[1]))
        client[codes_file(key)] = dump({"levels": codes.astype(np.uint8)})
    server = {PRIOR: dump({"log_prior": log_prior.astype("<f4")})}
    for content in variants:
        name = content.variant.name
        linear = {"weight": content.weight, "bias": content.bias}
        tensors = {key: _as_float(array) for key, array in {**content.tensors, **linear}.items() if array is not None}
        server[f"decoder-{name}.safetensors"] = dump(tensors)
        if content.variant.soft_prompt_length or (content.soft_prompt is not None and len(content.soft_prompt)):
            file = f"soft-prompt-{name}.safetensors"
            if content.soft_prompt is None:
                raise BundleError(file, f"must have {content.variant.soft_prompt_length} rows, got no soft prompt")
            server[file] = dump({"soft_prompt": _as_float(content.soft_prompt)})
        if content.adapter is not None:
            server[adapter_file(name)] = dump({key: _as_float(array) for key, array in content.adapter.tensors.items()})
    manifest = Manifest(
        base_model=base_model,
        dim=int(table.shape[1]),
        table_dtype=dtype,
        max_level=int(max_level),
        clip=float(clip),
        bos_token_id=bos_token_id,
        variants=tuple(content.variant for content in variants),
        files={name: FileEntry.of(data) for name, data in client.items()},
        server_digest="",
        server=ServerSection(
            files={name: FileEntry.of(data) for name, data in server.items()},
            norm_limits={content.variant.name: float(content.norm_limit) for content in variants},
        ),
        code_tables=shapes,
        chat=chat,
    )

    def fill(directory: Path) -> None:
        for folder, contents in (("client", client), ("server", server)):
            for name, data in contents.items():
                files.write_file(directory / folder / name, data)

    return _install(Path(path), manifest, fill, overwrite=overwrite)


def _as_float(array: FloatArray) -> FloatArray:
    return array.astype("<f2" if array.dtype == np.float16 else "<f4")


def _install(path: Path, manifest: Manifest, fill: Callable[[Path], None], *, overwrite: bool) -> Manifest:
    """Install the files that ``fill`` writes with the manifest, which is sealed and returned."""
    try:
        sealed = manifest.sealed()
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(MANIFEST, f"must hold JSON values only, got another value ({error})") from None
    whole, client = strict.canonical(sealed.to_json()), strict.canonical(sealed.client_json())
    parse_manifest(whole, MANIFEST, server=True)

    def fill_all(directory: Path) -> None:
        for folder in ("client", "server"):
            (directory / folder).mkdir()
        fill(directory)
        files.write_file(directory / MANIFEST, whole)
        files.write_file(directory / "client" / MANIFEST, client)
        load_bundle(directory)

    files.install(path, fill_all, overwrite=overwrite)
    return sealed


def pack_client(path: str | os.PathLike[str]) -> bytes:
    """Return the archive of the client part in a directory, or in a bundle's, verified."""
    directory = Path(path)
    if (directory / "client").is_dir():
        directory = directory / "client"
    manifest = load_client(directory).manifest
    limits = {**_MANIFEST_LIMIT, **client_limits(manifest.code_tables)}
    return _tar.pack([(name, files.read_small(directory / name, name, most)) for name, most in limits.items()])


def archive_manifest(data: bytes | bytearray | memoryview) -> Manifest:
    """Return the verified manifest of a client part's archive; the other members are not read."""
    return _unpacked(data)[0]


def _unpacked(data: bytes | bytearray | memoryview) -> tuple[Manifest, dict[str, memoryview]]:
    """Return the manifest and all members of an archive."""
    parsed: list[Manifest] = []

    def rest(found: Mapping[str, memoryview]) -> Mapping[str, int]:
        parsed.append(parse_manifest(bytes(found[MANIFEST]), MANIFEST, server=False))
        return client_limits(parsed[0].code_tables)

    contents = _tar.unpack(data, _MANIFEST_LIMIT, rest)
    return parsed[0], contents


def unpack_client(
    data: bytes | bytearray | memoryview, target: str | os.PathLike[str], *, fingerprint: str | None = None
) -> ClientBundle:
    """Store the client part of an archive as the directory ``target``, verified and atomically.

    With ``fingerprint`` given, an archive of another bundle is refused. If ``target`` already holds
    the same bundle, because another process has fetched it, that one is loaded.
    """
    manifest, contents = _unpacked(data)
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        raise BundleError(MANIFEST, f"fingerprint must be {fingerprint}, got {manifest.fingerprint}")

    def fill(directory: Path) -> None:
        for name, view in contents.items():
            files.write_file(directory / name, view)
        load_client(directory)

    try:
        files.install(Path(target), fill)
    except BundleError:
        if not os.path.lexists(target):
            raise
        present = load_client(target)
        if present.fingerprint != manifest.fingerprint:
            raise
        return present
    return load_client(target, verify=False)


def replace_audit(
    path: str | os.PathLike[str],
    audits: Mapping[str, Mapping[str, Any]],
    epsilon_vocabulary: Mapping[str, float] | None = None,
) -> Manifest:
    """Replace audits of a bundle's variants, which changes its fingerprint.

    ``epsilon_vocabulary`` holds the vocabulary-tight guarantees that were computed with the audits.
    """
    tight = epsilon_vocabulary or {}
    directory = Path(path)
    bundle = load_bundle(directory)
    for name in (*audits, *tight):
        bundle.client.variant(name)
    variants = tuple(
        replace(
            variant,
            audit=dict(audits.get(variant.name, variant.audit)),
            guarantees=replace(
                variant.guarantees,
                epsilon_vocabulary=tight.get(variant.name, variant.guarantees.epsilon_vocabulary),
            ),
        )
        for variant in bundle.manifest.variants
    )

    def fill(fresh: Path) -> None:
        client = bundle.manifest.client_files[1:]
        for folder, names in (("client", client), ("server", server_file_names(variants))):
            for name in names:
                shutil.copyfile(directory / folder / name, fresh / folder / name)

    return _install(directory, replace(bundle.manifest, variants=variants), fill, overwrite=True)
