"""A parser of server-sent events (HTML standard, section 9.2.6): bytes in, event data out.

Bytes may be split anywhere, also inside a character or between CR and LF. Only ``data`` is used. A
line, or an event's data, longer than ``max_event_bytes`` is refused.
"""

from __future__ import annotations

import re

from client_lib._validation import must_be
from client_lib.errors import ProtocolError

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class EventParser:
    """Returns the data of every event that the bytes fed to it complete."""

    def __init__(self, max_event_bytes: int = 1 << 20) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # the unfinished line
        self._data: list[bytes] = []  # the data lines of the unfinished event
        self._data_bytes = 0
        self._after_cr = False  # the last byte was a CR; a following LF belongs to it
        self._at_start = True  # a byte order mark may follow

    def feed(self, piece: bytes) -> list[str]:
        """Return the data of the events that this piece completes. Raises ``ProtocolError``."""
        events: list[str] = []
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        position = 0
        while position < len(piece):
            end = _LINE_END.search(piece, position)
            self._extend(piece[position : end.start() if end else len(piece)])
            if end is None:
                break
            position = end.end()
            self._after_cr = end[0] == b"\r" and position == len(piece)
            event = self._take_line(bytes(self._line))
            self._line.clear()
            if event is not None:
                events.append(event)
        return events

    def _extend(self, piece: bytes) -> None:
        if len(self._line) + len(piece) > self._max_event_bytes:
            raise ProtocolError(must_be("a line of the event stream", f"at most {self._max_event_bytes} bytes", "more"))
        self._line += piece

    def _take_line(self, line: bytes) -> str | None:
        """Process one line; return an event's data if the line completes it."""
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._max_event_bytes:
                raise ProtocolError(must_be("an event's data", f"at most {self._max_event_bytes} bytes", "more"))
            self._data.append(value)
        return None

    def _dispatch(self) -> str | None:
        if not self._data:
            return None
        joined = b"\n".join(self._data)
        self._data.clear()
        self._data_bytes = 0
        try:
            return joined.decode("utf-8")
        except UnicodeDecodeError:
            pass
        # Raised outside the handler: the decoder's error would carry the bytes along as its object.
        raise ProtocolError(must_be("an event's data", "UTF-8", "other bytes"))
