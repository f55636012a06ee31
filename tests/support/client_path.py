"""The real path of a count, as a ``release`` for ``verify_sampler``.

Every call writes a bundle whose table holds the given rows, and makes a prompt of the words that
its tokenizer maps to them. The prompt goes through tokenization, lookup, noise and packing of the
client library and through the parser of the server. By default the operating system gives the
noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from client_lib.prompts.encoder import Encoder
from del_core.bundle import load_client, write_bundle
from del_core.mechanism import Mechanism
from del_core.wire import PrivateSegment, Sampling, Shape, decode_frame
from tests.support.bundle import bundle_content, make_variant
from tests.support.tokenizer import word_level

__all__ = ["ClientPath"]

_TOKENS = 2048  # a request


class ClientPath:
    """Releases levels through client and server; writes bundles below ``directory``."""

    def __init__(
        self, mechanism: Mechanism, directory: Path, random_source: Callable[[int], bytes] | None = None
    ) -> None:
        self._mechanism, self._directory = mechanism, directory
        self._source = {} if random_source is None else {"random_source": random_source}
        self._encoders: dict[bytes, Encoder] = {}
        self.requests = 0

    def __call__(self, levels: np.ndarray) -> np.ndarray:
        rows, inverse = np.unique(levels, axis=0, return_inverse=True)
        encoder = self._encoder(rows.astype(np.int16))
        ids = inverse.reshape(-1)
        return np.concatenate(
            [self._request(encoder, part) for part in np.split(ids, range(_TOKENS, len(ids), _TOKENS))]
        )

    def _request(self, encoder: Encoder, ids: np.ndarray) -> np.ndarray:
        prompt = encoder.encode(" ".join(f"w{i}" for i in ids.tolist()), "tested")
        frame = encoder.frame(prompt, Sampling())
        shape = Shape(self._mechanism.bits, self._mechanism.dim)
        (segment,) = decode_frame(frame, {"tested": shape}).segments
        assert isinstance(segment, PrivateSegment)
        self.requests += 1
        return segment.codes

    def _encoder(self, table: np.ndarray) -> Encoder:
        key = table.tobytes()
        if key not in self._encoders:
            path = self._directory / f"bundle{len(self._encoders)}"
            _write(path, self._mechanism, table, word_level(len(table)).to_str().encode())
            self._encoders[key] = Encoder(load_client(path / "client"), **self._source)
        return self._encoders[key]


def _write(path: Path, mechanism: Mechanism, table: np.ndarray, tokenizer_json: bytes) -> None:
    variant = make_variant(
        "tested",
        bits=mechanism.bits,
        ratio_numerator=mechanism.ratio_numerator,
        weight=np.zeros((2, table.shape[1]), np.float32),
    )
    content = bundle_content(table, [variant], max_level=mechanism.max_level, tokenizer_json=tokenizer_json)
    write_bundle(path, **content)
