"""The real path of a count, as a ``release`` for ``verify_sampler``: client library, wire format, server's decoder.

For every call a bundle is written whose table holds the rows asked for, a prompt is made of the words that its
tokenizer maps to them, and the prompt goes through tokenisation, lookup, noise and packing of the client library and
through the parser of the server. Nothing is put in between; the noise comes from the operating system unless a source
is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from client_lib.prompts.encoder import Encoder
from del_core.bundle import BaseModel, Guarantees, Variant, VariantContent, load_client, write_bundle
from del_core.mechanism import Mechanism
from del_core.wire import PrivateSegment, Sampling, Shape, decode_frame

__all__ = ["ClientPath"]

_TOKENS = 2048  # a request


class ClientPath:
    """``release(levels)`` through client and server of one mechanism; bundles go below ``directory``."""

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
            tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(len(table))}, unk_token="w0"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            path = self._directory / f"bundle{len(self._encoders)}"
            _write(path, self._mechanism, table, tokenizer.to_str().encode())
            self._encoders[key] = Encoder(load_client(path / "client"), **self._source)
        return self._encoders[key]


def _write(path: Path, mechanism: Mechanism, table: np.ndarray, tokenizer_json: bytes) -> None:
    rows, dim = table.shape
    content = VariantContent(
        variant=Variant(
            name="tested",
            task="general",
            bits=mechanism.bits,
            ratio_numerator=mechanism.ratio_numerator,
            soft_prompt_length=0,
            guarantees=Guarantees(delta=1e-6, epsilon=1.0, epsilon_vocabulary=None, mu=1.0),
        ),
        weight=np.zeros((2, dim), np.float32),
        bias=np.zeros(2, np.float32),
        norm_limit=1.0,
    )
    write_bundle(
        path,
        base_model=BaseModel(name="test", sha256="0" * 64, hidden_size=2, vocabulary_size=rows),
        table=table,
        max_level=mechanism.max_level,
        clip=1.0,
        tokenizer_json=tokenizer_json,
        variants=[content],
        log_prior=np.full(rows, -np.log(rows), np.float32),
        bos_token_id=None,
    )
