"""Bundles, which training produces and client and server load (docs/reference/bundle-format.md)."""

from del_core._json import canonical as canonical_json
from del_core.bundle.bundle import (
    CLIENT_FILES,
    MAX_ARCHIVE_BYTES,
    Adapter,
    Bundle,
    ClientBundle,
    VariantContent,
    archive_manifest,
    load_bundle,
    load_client,
    pack_client,
    replace_audit,
    unpack_client,
    write_bundle,
)
from del_core.bundle.chat import ChatFormat
from del_core.bundle.files import checksum_model
from del_core.bundle.manifest import (
    CHAT_TASK,
    FORMAT_VERSION,
    GENERAL_TASK,
    RESERVED_VARIANT,
    AdapterShape,
    BaseModel,
    CodeTable,
    FileEntry,
    Guarantees,
    Manifest,
    ServerSection,
    Variant,
    for_chat,
)
from del_core.bundle.signature import SIGNATURE_HEADER, Signature
from del_core.bundle.signing import sign_bundle
from del_core.errors import BundleError

__all__ = [
    "CHAT_TASK",
    "CLIENT_FILES",
    "FORMAT_VERSION",
    "GENERAL_TASK",
    "MAX_ARCHIVE_BYTES",
    "RESERVED_VARIANT",
    "SIGNATURE_HEADER",
    "Adapter",
    "AdapterShape",
    "BaseModel",
    "Bundle",
    "BundleError",
    "ChatFormat",
    "ClientBundle",
    "CodeTable",
    "FileEntry",
    "Guarantees",
    "Manifest",
    "ServerSection",
    "Signature",
    "Variant",
    "VariantContent",
    "archive_manifest",
    "canonical_json",
    "checksum_model",
    "for_chat",
    "load_bundle",
    "load_client",
    "pack_client",
    "replace_audit",
    "sign_bundle",
    "unpack_client",
    "write_bundle",
]
