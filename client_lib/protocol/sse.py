"""A parser of server-sent events (HTML standard, section 9.2.6): bytes in, event data out.

Bytes may be split anywhere, also inside a character or between CR and LF. Only ``data`` is used. A
line, or an event's data, longer than ``max_event_bytes`` is refused.
"""

from __future__ import annotations

from client_lib._validation import must_be
from client_lib.errors import ProtocolError

_LF, _CR = b"\n", b"\r"
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
            if piece.startswith(_LF):
                piece = piece[1:]
        while piece:
            end = _line_end(piece)
            if end < 0:
                self._extend(piece)
                break
            self._extend(piece[:end])
            if piece[end : end + 1] == _CR:
                if end + 1 == len(piece):
                    self._after_cr = True
                elif piece[end + 1 : end + 2] == _LF:
                    end += 1
            piece = piece[end + 1 :]
            line = bytes(self._line)
            self._line.clear()
            event = self._take_line(line)
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


def _line_end(piece: bytes) -> int:
    """Return the index of the first CR or LF, or -1."""
    line_feed, carriage_return = piece.find(_LF), piece.find(_CR)
    if line_feed < 0 or carriage_return < 0:
        return max(line_feed, carriage_return)
    return min(line_feed, carriage_return)
