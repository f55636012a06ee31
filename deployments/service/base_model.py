"""What the server reads of the base model beside the engine: rows of its embedding table, and its end-of-text tokens.

Public spans and resumed tokens are embedded here, because a prompt that mixes token ids and embeddings is not safe to
give to vLLM. The table is mapped from the model's own file and only the rows asked for are read. numpy and the standard
library only: no tensor is built that the engine does not need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from del_core.bundle import BaseModel, checksum_model
from del_core.errors import DelError

__all__ = ["BaseModelError", "EmbeddingTable", "end_of_text_ids", "verify_checksum"]

# The last parts of the name that the families of causal language models give their input embedding.
_NAMES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the safetensors format's own bound


class BaseModelError(DelError):
    """The base model's directory is not what the bundle or the server needs."""


def verify_checksum(directory: Path, expected: BaseModel) -> None:
    """Raise BaseModelError unless ``directory`` holds exactly the model that the bundle was made for."""
    if not directory.is_dir():
        raise BaseModelError(f"model: {directory} is not a directory; the directory of {expected.name} is required")
    found = checksum_model(directory)
    if found != expected.sha256:
        raise BaseModelError(
            f"model: {directory} has the checksum {found}; the bundle was made for {expected.name} with the checksum "
            f"{expected.sha256}: give the directory of that very model, or make a bundle for this one"
        )


def end_of_text_ids(directory: Path) -> tuple[int, ...]:
    """Token ids that end a text, from generation_config.json or else config.json; empty if the model names none."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if path.is_file():
            ids = _read_json(path).get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


@dataclass(frozen=True)
class EmbeddingTable:
    """The rows of the input embedding W, (vocabulary, hidden size)."""

    _rows: NDArray[Any] = field(repr=False)
    _bfloat16: bool

    @classmethod
    def open(cls, directory: Path, expected: BaseModel) -> EmbeddingTable:
        """Map the table of the model in ``directory``. Raises BaseModelError if there is none of the right shape."""
        found = []
        for path in sorted(directory.glob("*.safetensors")):
            header, start = _read_header(path)
            found += [
                (path, start, name, entry)
                for name, entry in header.items()
                if name.endswith(_NAMES) and isinstance(entry, dict) and len(entry["shape"]) == 2
            ]
        if len(found) != 1:
            names = ", ".join(name for _, _, name, _ in found) or "none"
            raise BaseModelError(
                f"model: {directory} has {len(found)} input embeddings ({names}); exactly one tensor whose name ends "
                f"in {' or '.join(_NAMES)} is required"
            )
        path, start, name, entry = found[0]
        vocabulary, hidden = entry["shape"]
        # Models pad their table beyond the tokeniser's vocabulary, so more rows are fine.
        if hidden != expected.hidden_size or vocabulary < expected.vocabulary_size:
            raise BaseModelError(
                f"model: {path} has {name} of shape ({vocabulary}, {hidden}); at least {expected.vocabulary_size} rows "
                f"of {expected.hidden_size} are required"
            )
        dtypes: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
        if entry["dtype"] not in dtypes:
            raise BaseModelError(f"model: {path} has {name} as {entry['dtype']}; {', '.join(dtypes)} are allowed")
        dtype = dtypes[entry["dtype"]]
        first, last = entry["data_offsets"]
        if last - first != math.prod(entry["shape"]) * dtype.itemsize or start + last > path.stat().st_size:
            raise BaseModelError(f"model: {path} is truncated or its header is wrong for {name}")
        rows = np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=(vocabulary, hidden))
        return cls(rows, entry["dtype"] == "BF16")

    @property
    def hidden_size(self) -> int:
        """Length of a row."""
        return int(self._rows.shape[1])

    def rows(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings (tokens, hidden size), float32, of ids in 0..vocabulary - 1."""
        rows = self._rows[np.asarray(token_ids, dtype=np.int64)]
        if self._bfloat16:
            # A bfloat16 is the upper half of the float32 with the same value.
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(rows, dtype=np.float32)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseModelError(f"model: {path} cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise BaseModelError(f"model: {path} is not a JSON object")
    return value


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The safetensors header of a file and the offset at which the tensors' bytes begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER_BYTES:
            raise BaseModelError(f"model: {path} is not a safetensors file")
        data = file.read(size)
    try:
        header = json.loads(data)
    except ValueError:
        header = None
    if len(data) != size or not isinstance(header, dict):
        raise BaseModelError(f"model: {path} is not a safetensors file, or truncated")
    return header, 8 + size
