"""The base model's directory: checksum, rows of the embedding table, end-of-text tokens.

Public spans and resumed tokens are embedded here, because vLLM does not handle prompts of both
token ids and embeddings safely.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from del_core.bundle import Adapter, BaseModel, BundleError, chat, checksum_model
from del_core.bundle.tensors import EMBEDDING_NAMES, read_header
from del_core.errors import DelError
from del_core.lm.families import row_scale
from deployments.engines.base import LookUp

# Unit roundoff of a type of numbers.
_ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def rounding(dtype: str) -> float:
    """Return the unit roundoff of an engine's type of numbers; that of the coarsest if unknown."""
    return _ROUNDING.get(dtype, max(_ROUNDING.values()))


class BaseModelError(DelError):
    """The base model's directory does not match the bundle, or is malformed."""


def verify_checksum(directory: Path, expected: BaseModel) -> None:
    """Raise BaseModelError unless ``directory`` holds the model that the bundle was made for."""
    if not directory.is_dir():
        raise BaseModelError(f"model must be the directory of {expected.name}, got {directory}")
    found = checksum_model(directory)
    if found != expected.sha256:
        raise BaseModelError(
            f"model {directory} must have the checksum {expected.sha256} of {expected.name}, for which the bundle was "
            f"made, got {found}"
        )


def check_adapter(directory: Path, name: str, adapter: Adapter) -> None:
    """Raise BaseModelError unless the model has every layer of an adapter, of the same sizes.

    Engines leave out what they do not find, so an adapter of another model would have no effect.
    """
    sizes: dict[str, list[int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            sizes |= {key: entry.get("shape") for key, entry in read_header(file)[0].items() if key != "__metadata__"}
    for key, tensor in adapter.tensors.items():
        layer, _, part = key.removesuffix(".weight").removeprefix("base_model.model.").rpartition(".lora_")
        found = sizes.get(f"{layer}.weight")
        own = tensor.shape[1] if part == "A" else tensor.shape[0]
        if found is None or len(found) != 2 or found[1 if part == "A" else 0] != own:
            of = "no such layer" if found is None else f"a layer of shape {tuple(found)}"
            raise BaseModelError(f"model {directory} must have the layer {layer} of the adapter {name}, got {of}")


def end_of_text_ids(directory: Path) -> tuple[int, ...]:
    """Return the end-of-text ids of a model, if any. Raises BaseModelError."""
    try:
        return chat.end_of_text_ids(directory)
    except BundleError as error:
        raise BaseModelError(f"model {error}") from None


@dataclass(frozen=True)
class EmbeddingTable:
    """Rows that the model reads for its tokens, (vocabulary, hidden size).

    They are the rows of the input embedding's weight, times the factor of the model's family.
    """

    directory: Path
    _rows: NDArray[Any] = field(repr=False)
    _bfloat16: bool
    _scale: float = 1.0

    @classmethod
    def open(cls, directory: Path, expected: BaseModel) -> EmbeddingTable:
        """Map the table of the model in ``directory``. Raises BaseModelError."""
        found = []
        for path in sorted(directory.glob("*.safetensors")):
            try:
                with path.open("rb") as file:
                    header, start = read_header(file)
            except ValueError:
                raise BaseModelError(
                    f"model {path} must be a safetensors file; it is another file, or truncated"
                ) from None
            found += [
                (path, start, name, entry)
                for name, entry in header.items()
                if name.endswith(EMBEDDING_NAMES) and isinstance(entry, dict) and len(entry["shape"]) == 2
            ]
        if len(found) != 1:
            names = ", ".join(name for _, _, name, _ in found) or "none"
            raise BaseModelError(
                f"model {directory} must have exactly one tensor whose name ends in {' or '.join(EMBEDDING_NAMES)}, "
                f"got {len(found)} ({names})"
            )
        path, start, name, entry = found[0]
        vocabulary, hidden = entry["shape"]
        # Models pad their table beyond the tokenizer's vocabulary, so more rows are allowed.
        if hidden != expected.hidden_size or vocabulary < expected.vocabulary_size:
            raise BaseModelError(
                f"model {path}: {name} must have at least {expected.vocabulary_size} rows of {expected.hidden_size}, "
                f"got shape ({vocabulary}, {hidden})"
            )
        dtypes: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
        if entry["dtype"] not in dtypes:
            raise BaseModelError(f"model {path}: {name} must be {' or '.join(dtypes)}, got {entry['dtype']}")
        dtype = dtypes[entry["dtype"]]
        first, last = entry["data_offsets"]
        if last - first != math.prod(entry["shape"]) * dtype.itemsize or start + last > path.stat().st_size:
            raise BaseModelError(
                f"model {path} must hold the whole tensor {name}; the file is truncated or its header is wrong"
            )
        rows = np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=(vocabulary, hidden))
        return cls(directory, rows, entry["dtype"] == "BF16")._in_dtype("float32")

    def _in_dtype(self, dtype: str) -> EmbeddingTable:
        """Return the table with the factor that a model of this type of numbers has."""
        path = self.directory / "config.json"
        return replace(self, _scale=row_scale(_read_json(path), dtype)) if path.is_file() else self

    def rows(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return embeddings (tokens, hidden size), float32, of ids in 0..vocabulary - 1."""
        rows = self._rows[np.asarray(token_ids, dtype=np.int64)]
        if self._bfloat16:
            # A bfloat16 is the upper half of the float32 with the same value.
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        return self._scaled(np.asarray(rows, dtype=np.float32))

    def _scaled(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows if self._scale == 1.0 else rows * np.float32(self._scale)

    def matched(self, token_ids: Sequence[int], looked_up: LookUp) -> EmbeddingTable:
        """Return the table in the engine's type; raise BaseModelError if its rows are others.

        ``looked_up`` are the engine's own rows of ``token_ids``. An engine that reads other rows
        for a token than this table would see another prompt than the model was trained with.
        """
        table = self._in_dtype(looked_up.dtype)
        own, other = table.rows(token_ids), looked_up.rows
        if own.shape == other.shape:
            allowed = 4 * rounding(looked_up.dtype) * np.abs(other)
            wrong = np.any(np.abs(own - other) > allowed + np.finfo(np.float32).tiny, axis=1)
            if not wrong.any():
                return table
            token_id = token_ids[int(np.argmax(wrong))]
            found = f"other rows, first for the token id {token_id}"
        else:
            found = f"rows of shape {other.shape} for {len(token_ids)} token ids"
        raise BaseModelError(
            f"model {self.directory} must be read by the engine with the rows of its weights, times {table._scale:g}, "
            f"got {found}; models of this kind cannot be served"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseModelError(f"model {path} must be JSON, got {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise BaseModelError(f"model {path} must be a JSON object, got {type(value).__name__}")
    return value
