"""A parser of server-sent events that does no input or output: bytes in, event data out.

Follows the parsing rules of the HTML standard ("9.2.6 Interpreting an event stream"): lines end in CR, LF or CRLF, a
line that starts with a colon is a comment, ``data`` lines of one event are joined by LF, an empty line dispatches the
event, and an event that the end of the stream cuts off is dropped. Bytes may be split anywhere, also inside a
multi-byte character or between CR and LF. Only ``data`` is used by the protocol; ``event``, ``id`` and ``retry`` are
read over.

Memory is bounded: a line, and an event's data, longer than ``max_event_bytes`` is refused.
"""

from __future__ import annotations

from client_lib.errors import ProtocolError

__all__ = ["EventParser"]

_LF, _CR = b"\n", b"\r"
_BOM = b"\xef\xbb\xbf"


class EventParser:
    """Feed it bytes as they come; it returns the data of every event that they complete."""

    def __init__(self, max_event_bytes: int = 1 << 20) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # the line that is not finished yet
        self._data: list[bytes] = []  # the data lines of the event that is not finished yet
        self._data_bytes = 0
        self._after_cr = False  # the last byte was a CR, so an LF that follows belongs to it
        self._at_start = True  # a byte order mark may still come

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that this piece completes, in order.

        Raises :class:`ProtocolError` if a line or event is longer than allowed or is not UTF-8.
        """
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
            raise ProtocolError(
                f"event stream: a line of more than {self._max_event_bytes} bytes; "
                f"allowed: up to {self._max_event_bytes} bytes"
            )
        self._line += piece

    def _take_line(self, line: bytes) -> str | None:
        """Account for one whole line; the data of an event if the line completes one."""
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
                raise ProtocolError(
                    f"event stream: an event of more than {self._max_event_bytes} bytes; "
                    f"allowed: up to {self._max_event_bytes} bytes"
                )
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
        raise ProtocolError("event stream: an event that is not UTF-8; allowed: UTF-8")


def _line_end(piece: bytes) -> int:
    """The index of the first CR or LF, or -1."""
    line_feed, carriage_return = piece.find(_LF), piece.find(_CR)
    if line_feed < 0 or carriage_return < 0:
        return max(line_feed, carriage_return)
    return min(line_feed, carriage_return)
