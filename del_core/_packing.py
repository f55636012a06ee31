"""Packing of n-bit counts into bytes: docs/wire-format.md, section "Payload".

Row t holds the counts K_0..K_{dim-1} of token t. Count j occupies the row's bits j n .. j n + n - 1, its least
significant bit first; bit i of a row is bit i % 8 (value 2^(i % 8)) of the row's byte i // 8. A row takes
ceil(dim n / 8) bytes; the bits above dim n in its last byte are zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import INVALID_PADDING, INVALID_VALUE, PAYLOAD_LENGTH_MISMATCH, FrameError

Codes = NDArray[np.uint8]

# Rows are handled in blocks whose bit matrix takes about this many bytes: it stays in the cache, and a large
# payload never needs eight times its size.
_BLOCK_BYTES = 1 << 19


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of one token's packed counts."""
    return (dim * bits + 7) // 8


def _check_shape(dim: int, bits: int) -> None:
    if not 1 <= bits <= 8:
        raise FrameError(INVALID_VALUE, "bits", f"is {bits}; 1 to 8 are allowed")
    if dim < 1:
        raise FrameError(INVALID_VALUE, "dim", f"is {dim}; at least 1 is allowed")


def pack_codes(codes: Codes, bits: int) -> bytes:
    """Counts (tokens, dim), uint8 in 0..2^bits - 1, as tokens * row_bytes(dim, bits) bytes.

    Raises FrameError for another type or shape, or for a count that does not fit.
    """
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise FrameError(
            INVALID_VALUE, "codes", f"is {codes.dtype} with {codes.ndim} axes; a uint8 array (tokens, dim) is allowed"
        )
    tokens, dim = codes.shape
    _check_shape(dim, bits)
    if bits < 8 and tokens and int(codes.max()) >= 1 << bits:
        row = int(np.argmax((codes >> bits).any(axis=1)))
        most = (1 << bits) - 1
        raise FrameError(INVALID_VALUE, f"codes[{row}]", f"has a count above {most}, the most {bits} bits hold")
    if bits == 8:
        return codes.tobytes()
    if bits == 1:
        return np.packbits(codes, axis=1, bitorder="little").tobytes()
    if bits in (2, 4):
        return _pack_divisor(codes, bits).tobytes()
    packed = np.empty((tokens, row_bytes(dim, bits)), dtype=np.uint8)
    step = max(1, _BLOCK_BYTES // (dim * 8))
    for start in range(0, tokens, step):
        block = codes[start : start + step]
        matrix = np.unpackbits(block[:, :, None], axis=2, count=bits, bitorder="little")
        packed[start : start + step] = np.packbits(matrix.reshape(len(block), dim * bits), axis=1, bitorder="little")
    return packed.tobytes()


def unpack_codes(payload: bytes | bytearray | memoryview, tokens: int, dim: int, bits: int) -> Codes:
    """The inverse of :func:`pack_codes`: a new uint8 array (tokens, dim).

    Raises FrameError unless the payload has exactly tokens * row_bytes(dim, bits) bytes and zero padding bits.
    """
    _check_shape(dim, bits)
    width = row_bytes(dim, bits)
    size = memoryview(payload).nbytes
    if tokens < 0 or size != tokens * width:
        raise FrameError(
            PAYLOAD_LENGTH_MISMATCH,
            "payload",
            f"has {size} bytes; {tokens} tokens of {dim} counts of {bits} bits take {tokens * width}",
        )
    rows = np.frombuffer(payload, dtype=np.uint8).reshape(tokens, width)
    used = dim * bits % 8
    if used and tokens:
        dirty = rows[:, -1] >> used
        if dirty.any():
            row = int(np.argmax(dirty != 0))
            raise FrameError(
                INVALID_PADDING,
                f"payload row {row}",
                f"has padding bits set; the top {8 - used} bits of a row's last byte are zero",
            )
    if bits == 8:
        return rows.copy()
    if bits == 1:
        return np.unpackbits(rows, axis=1, count=dim, bitorder="little")
    if bits in (2, 4):
        return _unpack_divisor(rows, dim, bits)
    codes = np.empty((tokens, dim), dtype=np.uint8)
    step = max(1, _BLOCK_BYTES // (dim * 8))
    for start in range(0, tokens, step):
        block = rows[start : start + step]
        matrix = np.unpackbits(block, axis=1, count=dim * bits, bitorder="little").reshape(len(block), dim, bits)
        codes[start : start + step] = np.packbits(matrix, axis=2, bitorder="little")[:, :, 0]
    return codes


def _pack_divisor(codes: Codes, bits: int) -> Codes:
    """Packing where a byte holds a whole number of counts (2 or 4 bits): one shift per place in the byte."""
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
