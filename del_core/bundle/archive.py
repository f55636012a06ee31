"""The tar archive of a client part (docs/reference/bundle-format.md, section "Archive").

The reader accepts only what the writer produces: POSIX ustar, uncompressed, regular files in a
fixed order, owner and times zero; no links, paths, extension headers or duplicate members.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from del_core.errors import BundleError

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_OCTAL: Final = re.compile(rb"[0-7]{11}\x00")
_ARCHIVE: Final = "archive"


def _header(name: str, size: int) -> bytes:
    """Return the 512-byte header of a regular file (POSIX.1-1988)."""
    fields = [
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0",  # uid
        b"0000000\0",  # gid
        b"%011o\0" % size,
        b"00000000000\0",  # mtime
        b" " * 8,  # checksum, counted as spaces
        b"0",  # type: regular file
        bytes(100),  # link name
        b"ustar\0" + b"00",
        bytes(32),  # user name
        bytes(32),  # group name
        b"0000000\0",  # device major
        b"0000000\0",  # device minor
        bytes(155 + 12),  # prefix, padding
    ]
    block = bytearray(b"".join(fields))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _in_turn(
    files: Mapping[str, memoryview],
    limits: Mapping[str, int],
    following: Callable[[Mapping[str, memoryview]], Mapping[str, int]],
) -> Iterator[tuple[str, int]]:
    yield from limits.items()
    yield from following(files).items()


def pack(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the archive of these files in this order, deterministically."""
    parts: list[bytes] = []
    for name, data in files:
        parts += [_header(name, len(data)), data, bytes(-len(data) % _BLOCK)]
    return b"".join([*parts, _END])


def unpack(
    data: bytes | bytearray | memoryview,
    limits: Mapping[str, int],
    following: Callable[[Mapping[str, memoryview]], Mapping[str, int]] = lambda _: {},
) -> dict[str, memoryview]:
    """Return views of the members, whose names and largest sizes ``limits`` gives in order.

    ``following`` gives those of the members behind them, from the content of the first ones.
    Raises BundleError if the archive is anything else.
    """
    view = memoryview(data).cast("B")
    files: dict[str, memoryview] = {}
    position = 0
    for name, most in _in_turn(files, limits, following):
        header = bytes(view[position : position + _BLOCK])
        if len(header) < _BLOCK:
            raise BundleError(_ARCHIVE, f"must have the header of {name}, got the end at byte {len(view)}")
        found = header[:100].split(b"\0", 1)[0]
        if found != name.encode("ascii"):
            raise BundleError(_ARCHIVE, f"must have the member {name} next, got {ascii(found)[1:]}")
        if header[156:157] != b"0":
            kind = ascii(header[156:157])[1:]
            raise BundleError(name, f"must have the member type '0', a regular file, got {kind}")
        if not _OCTAL.fullmatch(header[124:136]):
            raise BundleError(name, "must have a size field of 11 octal digits and a zero byte, got another")
        size = int(header[124:135], 8)
        if size > most:
            raise BundleError(name, f"must have at most {most} bytes, got {size}")
        if header != _header(name, size):
            raise BundleError(name, "must have the header of docs/reference/bundle-format.md, got another")
        begin = position + _BLOCK
        end = begin + size
        position = end + -size % _BLOCK
        if position > len(view):
            raise BundleError(name, f"must have the {size} bytes that its header declares, got {len(view) - begin}")
        if any(view[end:position]):
            raise BundleError(name, "must be padded with zeros, got other bytes")
        files[name] = view[begin:end]
    rest = view[position : position + len(_END) + 1]
    if rest != _END:
        raise BundleError(_ARCHIVE, f"must end with {len(_END)} zero bytes after its members, got something else")
    return files
