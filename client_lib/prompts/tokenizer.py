"""The bundle's tokenizer, run within bounds.

The file comes from a server. Its parts were checked when the bundle was verified
(:mod:`del_core.bundle.tokenizer`), the length of a prompt is checked by ``spans_of``, and whatever
the library still raises becomes a ``BundleInvalidError`` without its text, which may quote both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from client_lib._validation import must_be
from client_lib.errors import BundleInvalidError

if TYPE_CHECKING:
    from del_core.prompts import SpanTokenizer

T = TypeVar("T")


def load_tokenizer(path: Path) -> SpanTokenizer:
    """Load a tokenizer.json. Raises ``BundleInvalidError``."""
    from del_core.prompts import SpanTokenizer  # loads the library

    return guarded(lambda: SpanTokenizer(path.read_bytes()), "a file of the tokenizers library")


def guarded(work: Callable[[], T], wanted: str = "one that tokenizes every text") -> T:
    """Return the result of a call of the library. Raises ``BundleInvalidError``."""
    try:
        return work()
    except Exception as error:  # the library reports a malformed file by a bare Exception
        found = type(error).__name__
    except BaseException as error:
        # A panic in Rust derives from BaseException, and its class cannot be imported.
        found = type(error).__name__
        if found != "PanicException":
            raise
    raise BundleInvalidError(must_be("tokenizer.json", wanted, found))
