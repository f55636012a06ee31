"""Packing of n-bit counts into bytes (docs/reference/wire-format.md, section "Payload").

Count j of a token occupies bits j n .. j n + n - 1 of its row, where bit i is bit i % 8 of byte
i // 8. The bits from dim n on are zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from del_core.errors import INVALID_PADDING, INVALID_VALUE, PAYLOAD_LENGTH_MISMATCH, FrameError

Codes = NDArray[np.uint8]


def row_bytes(dim: int, bits: int) -> int:
    """Return the bytes of one token's packed counts."""
    return (dim * bits + 7) // 8


def _check_shape(dim: int, bits: int) -> None:
    if not 1 <= bits <= 8:
        raise FrameError(INVALID_VALUE, "bits", f"must be from 1 to 8, got {bits}")
    if dim < 1:
        raise FrameError(INVALID_VALUE, "dim", f"must be at least 1, got {dim}")


def check_codes(codes: Codes, field: str) -> None:
    """Raise FrameError, which calls ``codes`` by ``field``, unless they are uint8 (tokens, dim)."""
    if codes.dtype != np.uint8 or codes.ndim != 2:
        found = f"{codes.dtype} with {codes.ndim} axes"
        raise FrameError(INVALID_VALUE, field, f"must be a uint8 array (tokens, dim), got {found}")


def pack_codes(codes: Codes, bits: int) -> bytes:
    """Pack counts (tokens, dim), uint8 in 0..2^bits - 1, into tokens * row_bytes(dim, bits) bytes.

    Raises FrameError for a wrong type or shape, or a count that does not fit.
    """
    check_codes(codes, "codes")
    tokens, dim = codes.shape
    _check_shape(dim, bits)
    if bits < 8 and tokens and int(codes.max()) >= 1 << bits:
        row = int(np.argmax((codes >> bits).any(axis=1)))
        most = (1 << bits) - 1
        raise FrameError(INVALID_VALUE, f"codes[{row}]", f"must hold counts up to {most} at {bits} bits, got one above")
    if bits == 8:
        return codes.tobytes()
    if bits == 1:
        return np.packbits(codes, axis=1, bitorder="little").tobytes()
    if bits in (2, 4):
        return _pack_divisor(codes, bits).tobytes()
    single = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")
    return np.packbits(single.reshape(tokens, dim * bits), axis=1, bitorder="little").tobytes()


def unpack_codes(payload: bytes | bytearray | memoryview, tokens: int, dim: int, bits: int) -> Codes:
    """Unpack a payload into a new uint8 array (tokens, dim); inverse of :func:`pack_codes`.

    Raises FrameError for another size, or for padding that is not zero.
    """
    _check_shape(dim, bits)
    width = row_bytes(dim, bits)
    size = memoryview(payload).nbytes
    if tokens < 0 or size != tokens * width:
        raise FrameError(
            PAYLOAD_LENGTH_MISMATCH,
            "payload",
            f"must have {tokens * width} bytes for {tokens} tokens of {dim} counts of {bits} bits, got {size}",
        )
    rows = np.frombuffer(payload, dtype=np.uint8).reshape(tokens, width)
    used = dim * bits % 8
    if used and tokens:
        dirty = rows[:, -1] >> used
        if dirty.any():
            row = int(np.argmax(dirty != 0))
            message = f"must have zero bits from bit {dim * bits} on, got one that is set"
            raise FrameError(INVALID_PADDING, f"payload row {row}", message)
    if bits == 8:
        return rows.copy()
    if bits == 1:
        return np.unpackbits(rows, axis=1, count=dim, bitorder="little")
    if bits in (2, 4):
        return _unpack_divisor(rows, dim, bits)
    single = np.unpackbits(rows, axis=1, count=dim * bits, bitorder="little").reshape(tokens, dim, bits)
    return np.packbits(single, axis=2, bitorder="little")[:, :, 0]


def _pack_divisor(codes: Codes, bits: int) -> Codes:
    """Pack 2 or 4 bits, of which a byte holds a whole number, by one shift for each place."""
    tokens, dim = codes.shape
    packed = np.zeros((tokens, row_bytes(dim, bits)), dtype=np.uint8)
    for place in range(8 // bits):
        column = codes[:, place :: 8 // bits]
        packed[:, : column.shape[1]] |= column << (bits * place)
    return packed


def _unpack_divisor(rows: Codes, dim: int, bits: int) -> Codes:
    codes: NDArray[Any] = np.empty((len(rows), dim), dtype=np.uint8)
    mask = (1 << bits) - 1
    for place in range(8 // bits):
        column = codes[:, place :: 8 // bits]
        column[...] = (rows[:, : column.shape[1]] >> (bits * place)) & mask
    return codes
