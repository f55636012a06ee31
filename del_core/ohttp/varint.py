"""Variable-length integers of QUIC (RFC 9000, section 16): 1, 2, 4 or 8 bytes, below 2^62."""

from __future__ import annotations

from del_core.ohttp.errors import ObliviousError

_SIZES = (1, 2, 4, 8)


def encode_varint(value: int) -> bytes:
    """Return the shortest form."""
    for exponent, size in enumerate(_SIZES):
        if value < 1 << (8 * size - 2):
            return (value | exponent << (8 * size - 2)).to_bytes(size, "big")
    raise ObliviousError(f"an integer must be below 2^62, got one of {value.bit_length()} bits")


def varint_size(first: int) -> int:
    """Return the size, in bytes, of the integer that begins with this byte."""
    return _SIZES[first >> 6]


def decode_varint(data: bytes | memoryview) -> int:
    """Return the value of the bytes of one integer."""
    return int.from_bytes(data, "big") & ((1 << (8 * len(data) - 2)) - 1)


def prefixed(data: bytes) -> bytes:
    """Return bytes behind their length."""
    return encode_varint(len(data)) + data
