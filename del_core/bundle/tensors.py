"""Safetensors files: ``u64 header length | header (JSON) | tensors``, little-endian.

A bundle's tensors are mapped only after their declared types, shapes and offsets were checked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from del_core import _json as strict
from del_core.errors import BundleError

EMBEDDING_NAMES: Final = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight",
)  # fmt: skip
"""Last parts of the input embedding's name in the families of causal language models."""

MAX_HEADER_BYTES: Final = 64 * 1024  # of a file of a bundle, which holds at most 14 tensors unless it is an adapter
MAX_ADAPTER_HEADER_BYTES: Final = 1024 * 1024
_MAX_MODEL_HEADER_BYTES: Final = 100 * 1024 * 1024  # the bound of the safetensors format
_LENGTH: Final = struct.Struct("<Q")
_DTYPES: Final = {"U8": "uint8", "I8": "int8", "I16": "<i2", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class TensorSpec:
    """Requirements of one tensor: allowed safetensors types and exact shape."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


Specs = Mapping[str, TensorSpec]
SpecsOf = Callable[[Mapping[str, tuple[int, ...]]], Specs]
"""Function from a header's shapes to the tensors of the file; ValueError if out of range."""


def dump(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the safetensors file of these arrays, deterministically."""
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()})


def read_header(file: IO[bytes], most: int = _MAX_MODEL_HEADER_BYTES) -> tuple[dict[str, Any], int]:
    """Return the header of an open safetensors file and the offset of its tensors.

    Raises ValueError for a header longer than ``most`` bytes or the file, or that is no object.
    """
    size = os.fstat(file.fileno()).st_size
    if size < _LENGTH.size:
        raise ValueError(f"must have at least {_LENGTH.size} bytes as a safetensors file, got {size}")
    file.seek(0)
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    most = min(most, size - _LENGTH.size)
    if length > most:
        raise ValueError(f"must have a header of at most {most} bytes, got {length}")
    header = strict.parse(file.read(length), name="header", max_depth=4)
    if not isinstance(header, dict):
        raise strict.invalid("header", f"must be an object, got {strict.kind(header)}")
    return header, _LENGTH.size + length


def map_tensors(
    file: IO[bytes], name: str, specs: Specs | SpecsOf, *, most: int = MAX_HEADER_BYTES
) -> dict[str, NDArray[Any]]:
    """Map an open file read-only; it must hold exactly the tensors of ``specs``.

    If the file determines some sizes, ``specs`` is a function of the shapes in its header. Errors
    call the file ``name``. Its header has at most ``most`` bytes.
    """
    try:
        header, start = read_header(file, most)
        if callable(specs):
            specs = specs(_claimed_shapes(header))
        entries = strict.members(header, "header", required=tuple(specs))
        found = {key: _tensor(entries[key], key, spec) for key, spec in specs.items()}
    except strict.JsonError as error:
        raise BundleError(name, f"{error.field} {error.message}") from None
    except ValueError as error:
        raise BundleError(name, str(error)) from None
    end = 0
    for begin, stop, _, key in sorted((begin, stop, dtype, key) for key, (dtype, begin, stop) in found.items()):
        if begin != end:
            raise BundleError(name, f"tensor {key} must begin at {end}, without gap or overlap, got {begin}")
        end = stop
    size = os.fstat(file.fileno()).st_size
    if start + end != size:
        raise BundleError(name, f"must have {start + end} bytes for its header and tensors, got {size}")
    arrays: dict[str, NDArray[Any]] = {}
    for key, (dtype, begin, _) in found.items():
        shape = specs[key].shape
        if prod(shape) == 0:  # nothing to map, and mmap refuses a length of 0
            arrays[key] = np.empty(shape, dtype=dtype)
        else:
            arrays[key] = np.memmap(file, dtype=dtype, mode="r", offset=start + begin, shape=shape)
    return arrays


def _claimed_shapes(header: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the well-formed shapes in a header; the others are refused when they are compared."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and all(type(extent) is int for extent in shape):
            shapes[key] = tuple(shape)
    return shapes


def _tensor(entry: object, key: str, spec: TensorSpec) -> tuple[str, int, int]:
    """Return type and byte range, from the end of the header, of one tensor after checks."""
    fields = strict.members(entry, key, required=("dtype", "shape", "data_offsets"))
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in spec.dtypes:
        raise strict.invalid(f"{key}.dtype", f"must be {' or '.join(spec.dtypes)}, got {strict.shown(dtype)}")
    shape = strict.array(fields["shape"], f"{key}.shape", least=0, most=8)
    if any(type(extent) is not int for extent in shape) or tuple(shape) != spec.shape:
        found = "x".join(strict.shown(extent) for extent in shape)
        raise strict.invalid(f"{key}.shape", f"must be {'x'.join(map(str, spec.shape))}, got {found}")
    offsets = strict.array(fields["data_offsets"], f"{key}.data_offsets", least=2, most=2)
    begin, stop = (strict.integer(offset, f"{key}.data_offsets", 0, 2**62) for offset in offsets)
    size = prod(spec.shape) * np.dtype(_DTYPES[dtype]).itemsize
    if stop - begin != size:
        raise strict.invalid(
            f"{key}.data_offsets", f"must span the {size} bytes of its type and shape, got {stop - begin}"
        )
    return _DTYPES[dtype], begin, stop
