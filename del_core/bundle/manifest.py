"""The manifest of a bundle: values, JSON, fingerprint (docs/reference/bundle-format.md)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Final

from del_core import _json as strict
from del_core.bundle.chat import ChatFormat
from del_core.errors import BundleError
from del_core.mechanism import BINOMIAL, MechanismSpec, TokenMechanism

FORMAT_VERSION: Final = 1
RESERVED_VARIANT: Final = "clear"
GENERAL_TASK: Final = "general"
CHAT_TASK: Final = "chat"
MAX_ADAPTER_RANK: Final = 256
SOFT_PROMPT_STEP: Final = 32  # a soft prompt fills whole cache blocks, so that the engine computes it once

MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_SERVER_FILE_BYTES: Final = 4 * 1024**3

MANIFEST: Final = "manifest.json"
TABLE: Final = "table.safetensors"
TOKENIZER: Final = "tokenizer.json"
PRIOR: Final = "prior.safetensors"
CLIENT_LIMITS: Final = {TABLE: 4 * 1024**3, TOKENIZER: 64 * 1024**2}  # bytes
MAX_CODES_BYTES: Final = 256 * 1024**2
MAX_CODE_TABLES: Final = 16

_MAX_DEPTH: Final = 12  # the format needs 4, the audit section may nest
_MAX_VARIANTS: Final = 64
_MAX_ADAPTED: Final = 32  # names of layers
_Reader = Callable[[object, str], Any]
_hex: Final = partial(strict.text, pattern=re.compile(r"[0-9a-f]{64}"))
_slug: Final = partial(strict.text, pattern=re.compile(r"[a-z0-9-]{1,64}"))
_model_name: Final = partial(strict.text, pattern=re.compile(r"[ -~]{1,256}"))
_module: Final = partial(strict.text, pattern=re.compile(r"[A-Za-z0-9_]{1,64}"))
_dtype: Final = partial(strict.text, pattern=re.compile(r"int8|int16"))
_amount: Final = partial(strict.number, low=0.0, high=1e30)
_positive: Final = partial(_amount, above=True)


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256, in hexadecimal, of a file of the bundle."""

    sha256: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> FileEntry:
        """Return the entry of a file with these bytes."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class BaseModel:
    """The frozen language model: name, checksum (``checksum_model``), b and V."""

    name: str
    sha256: str
    hidden_size: int
    vocabulary_size: int


@dataclass(frozen=True)
class CodeTable:
    """Shape of a table of codes, which a variant may read in place of the bundle's table.

    Attributes:
        bits: codes are 0 to 2^bits - 1; the bits of every variant that reads the table.
        columns: codes of each token.
    """

    bits: int
    columns: int


@dataclass(frozen=True)
class AdapterShape:
    """A low-rank adapter of the LM (LoRA): its products are added times ``alpha / rank``.

    Attributes:
        rank: columns of B and rows of A.
        modules: last names of the linear layers that have one, sorted.
    """

    rank: int
    alpha: int
    modules: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha, "modules": list(self.modules)}


@dataclass(frozen=True)
class Guarantees:
    """Guarantees for one private token, computed when the bundle was made.

    Attributes:
        delta: may be 0 only for a mechanism that is not binomial.
        epsilon: for the worst pair of points of the cube, exact.
        epsilon_vocabulary: for the worst pair of real tokens; None if it was not computed.
        mu: the binomial mechanism's Gaussian parameter; None for another kind.
    """

    delta: float
    epsilon: float
    epsilon_vocabulary: float | None
    mu: float | None


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0


@dataclass(frozen=True)
class Variant:
    """One privacy level of one task.

    Attributes:
        bits: bits per count on the wire.
        ratio_numerator: the binomial mechanism's ratio r = c/A times 2^31; None for another kind.
        soft_prompt_length: rows, a multiple of 32.
        audit: what attacks recovered, with the data and date; JSON values only.
        other: the mechanism, if it is not binomial.
        table: name of the code table that it reads; None for the bundle's table.
        adapter: the adapter with which the LM answers; None for the LM as it is.
    """

    name: str
    task: str
    bits: int
    ratio_numerator: int | None
    soft_prompt_length: int
    guarantees: Guarantees
    decoder: str = "linear"
    audit: Mapping[str, Any] = field(default_factory=dict)
    other: MechanismSpec | None = None
    table: str | None = None
    adapter: AdapterShape | None = None

    @property
    def table_file(self) -> str:
        """Name of the client file that holds the rows of the tokens."""
        return TABLE if self.table is None else codes_file(self.table)

    @property
    def ratio(self) -> float:
        """r = c/A of the binomial mechanism, exact; ValueError for another kind."""
        if self.ratio_numerator is None:
            raise ValueError(f"mechanism must be {BINOMIAL} to have a ratio, got {self.spec.kind}")
        return float(self.ratio_numerator / 2**31)

    @property
    def spec(self) -> MechanismSpec:
        """Kind and parameters of the mechanism."""
        if self.other is not None:
            return self.other
        return MechanismSpec(BINOMIAL, {"bits": self.bits, "ratio_numerator": self.ratio_numerator or 0})

    @property
    def strongest_attack(self) -> dict[str, Any] | None:
        """The attack that the stated audit found to recover most, or None if it has none.

        Keys are ``attack``, ``success`` and, as far as they are stated, ``low``, ``high`` and
        ``tokens``. An audit before ``strongest_attack`` was stated, or one from training, is read
        by its single attacks.
        """
        rates = {
            str(value.get("attack", name)): value
            for name, value in self.audit.items()
            if isinstance(value, Mapping) and _is_share(value.get("success"))
        }
        if not rates:
            return None
        name = max(rates, key=lambda each: float(rates[each]["success"]))
        known = {key: rates[name][key] for key in ("success", "low", "high", "tokens") if key in rates[name]}
        return {"attack": name, **known}

    def to_json(self) -> dict[str, Any]:
        found = {**vars(self), "guarantees": asdict(self.guarantees), "audit": dict(self.audit)}
        if found.pop("other") is not None:
            del found["ratio_numerator"]
            found["mechanism"] = self.spec.to_json()
        if self.table is None:
            del found["table"]
        if self.adapter is None:
            del found["adapter"]
        else:
            found["adapter"] = self.adapter.to_json()
        return found


@dataclass(frozen=True)
class ServerSection:
    """Server section: files and, for each variant, R, the largest norm of y."""

    files: Mapping[str, FileEntry]
    norm_limits: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "variants": {name: {"norm_limit": limit} for name, limit in self.norm_limits.items()},
        }


@dataclass(frozen=True)
class Manifest:
    """A client manifest or, with ``server`` set, the manifest of a whole bundle."""

    base_model: BaseModel
    dim: int
    table_dtype: str
    max_level: int
    clip: float
    bos_token_id: int | None
    variants: tuple[Variant, ...]
    files: Mapping[str, FileEntry]
    server_digest: str
    fingerprint: str = ""
    server: ServerSection | None = None
    format_version: int = FORMAT_VERSION
    code_tables: Mapping[str, CodeTable] = field(default_factory=dict)
    chat: ChatFormat | None = None

    @property
    def client_files(self) -> tuple[str, ...]:
        """Names of the files of the client part, in the order of the archive."""
        return (MANIFEST, *client_limits(self.code_tables))

    def mechanism(self, variant: Variant) -> TokenMechanism:
        """Return a variant's mechanism on its table; ValueError if it is not installed or unfit."""
        if variant.table is None:
            return variant.spec.build(self.dim, self.max_level)
        shape = self.code_tables[variant.table]
        return variant.spec.build(shape.columns, (1 << shape.bits) - 1)

    def client_json(self) -> dict[str, Any]:
        """Return the client manifest as JSON, with the fingerprint if it is set."""
        optional = {"fingerprint", "code_tables", "chat"}
        result = {key: value for key, value in vars(self).items() if key != "server" and (value or key not in optional)}
        if self.chat is not None:
            result["chat"] = self.chat.to_json()
        if self.code_tables:
            result["code_tables"] = {name: asdict(shape) for name, shape in self.code_tables.items()}
        return result | {
            "base_model": asdict(self.base_model),
            "variants": [variant.to_json() for variant in self.variants],
            "files": {name: asdict(entry) for name, entry in self.files.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON, with the server section if there is one."""
        server = {} if self.server is None else {"server": self.server.to_json()}
        return {**self.client_json(), **server}

    def sealed(self) -> Manifest:
        """Return this manifest with new server digest and fingerprint."""
        digest = self.server_digest if self.server is None else digest_of(self.server.to_json())
        bare = replace(self, server_digest=digest, fingerprint="")
        return replace(bare, fingerprint=digest_of(bare.client_json()))


def digest_of(value: object) -> str:
    """Return the SHA-256, in hexadecimal, of a value's canonical JSON."""
    return hashlib.sha256(strict.canonical(value)).hexdigest()


def codes_file(name: str) -> str:
    """Return the name of the client file of a code table."""
    return f"codes-{name}.safetensors"


def for_chat(variants: Iterable[Variant]) -> list[Variant]:
    """Return the variants to chat with: those of that task, else the general ones, else all."""
    found = list(variants)
    for task in (CHAT_TASK, GENERAL_TASK):
        if made_for_it := [one for one in found if one.task == task]:
            return made_for_it
    return found


def adapter_file(name: str) -> str:
    """Return the name of the server file of a variant's adapter."""
    return f"adapter-{name}.safetensors"


def client_limits(code_tables: Collection[str]) -> dict[str, int]:
    """Return the largest size, in bytes, of every client file but the manifest, in order."""
    return {**CLIENT_LIMITS, **{codes_file(name): MAX_CODES_BYTES for name in sorted(code_tables)}}


def server_file_names(variants: Sequence[Variant]) -> list[str]:
    """Return the names of the files in server/."""
    names = [f"decoder-{variant.name}.safetensors" for variant in variants]
    names += [f"soft-prompt-{variant.name}.safetensors" for variant in variants if variant.soft_prompt_length]
    names += [adapter_file(variant.name) for variant in variants if variant.adapter is not None]
    return [*names, PRIOR]


def parse_manifest(data: bytes, name: str, *, server: bool) -> Manifest:
    """Return the manifest, with or without ``server``, in a file that errors call ``name``."""
    try:
        value = strict.parse(data, name="manifest", max_depth=_MAX_DEPTH)
        _object(value, "manifest")
        # A newer manifest may have any other fields, so its version is judged before them.
        version = value.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise strict.invalid(
                "format_version",
                f"must be {FORMAT_VERSION}, got {version}: update this program or fetch an older bundle",
            )
        strict.integer(version, "format_version", FORMAT_VERSION, FORMAT_VERSION)
        if strict.canonical(value) != data:
            raise strict.invalid(
                "manifest", "must be canonical JSON (sorted names, no spaces, shortest numbers), got another form"
            )
        return _manifest(value, server=server)
    except strict.JsonError as error:
        raise BundleError(name, f"{error.field} {error.message}") from None


def _record(value: object, where: str, readers: Mapping[str, _Reader]) -> dict[str, Any]:
    """Return an object's members as ``readers`` read them; it must have these members only."""
    found = strict.members(value, where, required=readers)
    return {key: read(found[key], f"{where}.{key}") for key, read in readers.items()}


def _optional(read: _Reader) -> _Reader:
    return lambda value, where: None if value is None else read(value, where)


def _adapter(value: object, where: str) -> AdapterShape:
    found = strict.members(value, where, required=("rank", "alpha", "modules"))
    items = strict.array(found["modules"], f"{where}.modules", least=1, most=_MAX_ADAPTED)
    modules = tuple(_module(item, f"{where}.modules[{index}]") for index, item in enumerate(items))
    if list(modules) != sorted(set(modules)):
        raise strict.invalid(f"{where}.modules", "must be sorted and unique, got another order")
    return AdapterShape(
        rank=strict.integer(found["rank"], f"{where}.rank", 1, MAX_ADAPTER_RANK),
        alpha=strict.integer(found["alpha"], f"{where}.alpha", 1, 2**16),
        modules=modules,
    )


_BASE_MODEL: Final[Mapping[str, _Reader]] = {
    "name": _model_name,
    "sha256": _hex,
    "hidden_size": partial(strict.integer, low=1, high=2**20),
    "vocabulary_size": partial(strict.integer, low=1, high=2**24),
}


def _manifest(value: dict[str, Any], *, server: bool) -> Manifest:
    optional = ("chat", "code_tables")
    absent = {*optional} if server else {*optional, "server"}
    required = [item.name for item in fields(Manifest) if item.name not in absent]
    found = strict.members(value, "manifest", required=required, optional=optional)
    base_model = BaseModel(**_record(found["base_model"], "base_model", _BASE_MODEL))
    dtype = _dtype(found["table_dtype"], "table_dtype")
    bos = _optional(partial(strict.integer, low=0, high=base_model.vocabulary_size - 1))
    items = strict.array(found["variants"], "variants", least=1, most=_MAX_VARIANTS)
    variants = tuple(_variant(item, f"variants[{index}]") for index, item in enumerate(items))
    names = [variant.name for variant in variants]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise strict.invalid(f"variants[{index}].name", f"must be unique, got {strict.shown(name)} again")
    code_tables = _code_tables(found["code_tables"]) if "code_tables" in found else {}
    manifest = Manifest(
        base_model=base_model,
        dim=strict.integer(found["dim"], "dim", 1, 2**16),
        table_dtype=dtype,
        max_level=strict.integer(found["max_level"], "max_level", 1, 127 if dtype == "int8" else 32767),
        clip=_positive(found["clip"], "clip"),
        bos_token_id=bos(found["bos_token_id"], "bos_token_id"),
        variants=variants,
        files=_files(found["files"], "files", client_limits(code_tables)),
        server_digest=_hex(found["server_digest"], "server_digest"),
        fingerprint=_hex(found["fingerprint"], "fingerprint"),
        server=_server(found["server"], variants) if server else None,
        code_tables=code_tables,
        chat=ChatFormat.from_json(found["chat"], "chat", base_model.vocabulary_size) if "chat" in found else None,
    )
    client = {key: item for key, item in value.items() if key not in ("fingerprint", "server")}
    _same_digest("fingerprint", manifest.fingerprint, digest_of(client))
    if server:
        _same_digest("server_digest", manifest.server_digest, digest_of(value["server"]))
    _check_mechanisms(manifest)
    return manifest


def _same_digest(name: str, found: str, allowed: str) -> None:
    if found != allowed:
        raise strict.invalid(
            name, f"must be {allowed} by the manifest's own content, got {found}: the manifest was altered"
        )


def _variant(value: object, where: str) -> Variant:
    members = _object(value, where)
    other = "mechanism" in members
    readers: dict[str, _Reader] = {
        "name": _slug,
        "task": _slug,
        "bits": partial(strict.integer, low=1, high=8),
        "soft_prompt_length": partial(strict.integer, low=0, high=4096),
        "decoder": _slug,
        "guarantees": partial(_guarantees, binomial=not other),
        "audit": _object,
    }
    if "adapter" in members:
        readers["adapter"] = _adapter
    if other:
        readers["mechanism"] = _spec
        if "table" in members:
            readers["table"] = _slug
        found = _record(value, where, readers)
        found |= {"ratio_numerator": None, "other": found.pop("mechanism")}
    else:
        found = _record(value, where, {**readers, "ratio_numerator": partial(strict.integer, low=1, high=2**31 - 1)})
    if found["name"] == RESERVED_VARIANT:
        raise strict.invalid(f"{where}.name", f'must not be a reserved name, got "{RESERVED_VARIANT}"')
    if (length := found["soft_prompt_length"]) % SOFT_PROMPT_STEP:
        raise strict.invalid(f"{where}.soft_prompt_length", f"must be a multiple of {SOFT_PROMPT_STEP}, got {length}")
    return Variant(**found)


def _guarantees(value: object, where: str, *, binomial: bool) -> Guarantees:
    readers: dict[str, _Reader] = {
        "delta": partial(strict.number, low=0.0, high=1.0, above=binomial),
        "epsilon": _amount,
        "epsilon_vocabulary": _optional(_amount),
        "mu": _positive if binomial else _optional(_positive),
    }
    return Guarantees(**_record(value, where, readers))


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise strict.invalid(where, f"must be an object, got {strict.shown(value)}")
    return value


def _spec(value: object, where: str) -> MechanismSpec:
    members = _object(value, where)
    if _slug(members.get("kind"), f"{where}.kind") == BINOMIAL:
        raise strict.invalid(where, f"must be absent for {BINOMIAL}, which bits and ratio_numerator describe, got it")
    try:
        return MechanismSpec.from_json(members)
    except ValueError as error:
        raise strict.invalid(where, str(error)) from None


def _code_tables(value: object) -> dict[str, CodeTable]:
    members = _object(value, "code_tables")
    if not 1 <= len(members) <= MAX_CODE_TABLES:
        raise strict.invalid("code_tables", f"must have 1 to {MAX_CODE_TABLES} members, got {len(members)}")
    readers: dict[str, _Reader] = {
        "bits": partial(strict.integer, low=1, high=8),
        "columns": partial(strict.integer, low=1, high=2**16),
    }
    return {
        _slug(name, "code_tables"): CodeTable(**_record(item, f"code_tables.{name}", readers))
        for name, item in members.items()
    }


def _check_mechanisms(manifest: Manifest) -> None:
    """Refuse a mechanism that is not installed or disagrees with its table or ``bits``."""
    for index, variant in enumerate(manifest.variants):
        where = f"variants[{index}]"
        if variant.other is None:
            continue
        columns = manifest.dim
        if variant.table is not None:
            if variant.table not in manifest.code_tables:
                known = ", ".join(manifest.code_tables) or "absent, as there are no code tables"
                raise strict.invalid(f"{where}.table", f"must be {known}, got {strict.shown(variant.table)}")
            shape = manifest.code_tables[variant.table]
            columns = shape.columns
            if shape.bits != variant.bits:
                raise strict.invalid(f"{where}.bits", f"must be the {shape.bits} of its table, got {variant.bits}")
        try:
            mechanism = manifest.mechanism(variant)
        except ValueError as error:
            raise strict.invalid(f"{where}.mechanism", str(error)) from None
        if mechanism.bits != variant.bits:
            raise strict.invalid(
                f"{where}.mechanism", f"must have the {variant.bits} bits of the variant, got {mechanism.bits}"
            )
        if mechanism.columns != columns:
            raise strict.invalid(
                f"{where}.mechanism", f"must read the {columns} columns of its table, got {mechanism.columns}"
            )


def _files(value: object, where: str, limits: Mapping[str, int]) -> dict[str, FileEntry]:
    entries = strict.members(value, where, required=limits)
    result: dict[str, FileEntry] = {}
    for name, most in limits.items():
        readers: dict[str, _Reader] = {"sha256": _hex, "size": partial(strict.integer, low=0, high=most)}
        result[name] = FileEntry(**_record(entries[name], f"{where}[{name}]", readers))
    return result


def _server(value: object, variants: Sequence[Variant]) -> ServerSection:
    found = strict.members(value, "server", required=("files", "variants"))
    limits = dict.fromkeys(server_file_names(variants), MAX_SERVER_FILE_BYTES)
    settings = strict.members(found["variants"], "server.variants", required=[variant.name for variant in variants])
    norm_limits: dict[str, float] = {
        name: _record(item, f"server.variants[{name}]", {"norm_limit": _positive})["norm_limit"]
        for name, item in settings.items()
    }
    return ServerSection(_files(found["files"], "server.files", limits), norm_limits)
