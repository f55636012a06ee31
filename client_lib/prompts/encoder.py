"""From spans to what is sent: tokenise, look up, quantise, pack.

1. Every span is tokenised on its own with the bundle's tokenizer, without special tokens being added.
2. A private token becomes a row of the bundle's table, ``levels`` (tokens, dim), and the row becomes counts
   (tokens, dim) by :meth:`del_core.mechanism.Mechanism.sample` with random bytes of
   :mod:`del_core.mechanism.randomness`.
3. A public token is sent as its id. If the bundle names a ``bos_token_id`` it goes first, as a public segment.
4. :func:`del_core.wire.encode_frame` packs the segments under a header.

The noise is drawn in step 2 and nowhere else. An :class:`EncodedPrompt` holds the counts, so that everything that is
sent for one prompt (retries, the resumption of a broken stream) carries the same ones: two noisy copies of one prompt
would tell the server more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from client_lib.errors import BundleInvalid, InvalidRequest
from client_lib.prompts.padding import Padding
from client_lib.prompts.spans import CLEAR, Prompt, Span, spans_of
from del_core.bundle import ClientBundle
from del_core.errors import FrameError
from del_core.mechanism.randomness import random_bytes
from del_core.wire import PrivateSegment, PublicSegment, Request, Sampling, Segment, encode_frame

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from client_lib.prompts.span_memory import Recall

__all__ = ["Draw", "DrawnSegment", "EncodedPrompt", "Encoder", "Tokenised"]

_DRAW_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawing of noise: the counts of one private segment.

    ``id`` is 16 random bytes, made when the counts were drawn; it says nothing about them. Whatever sends the same
    counts again carries the same id, so that a ledger charges them once. ``tokens`` is how many tokens they stand for.
    """

    id: bytes = field(repr=False)
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class DrawnSegment(PrivateSegment):
    """The counts of a private span with the identity of their draw, which is never sent."""

    draw_id: bytes = field(repr=False)

    @property
    def draw(self) -> Draw:
        """The draw that these counts came from."""
        return Draw(self.draw_id, self.tokens)


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A span as token ids, padded if asked for; nothing is drawn yet. ``padding`` names what was asked for."""

    span: Span
    ids: tuple[int, ...] = field(repr=False)
    padding: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class EncodedPrompt:
    """A prompt as it will be sent: noise already drawn, so sending it twice reveals nothing more than once.

    ``fingerprint`` and ``variant`` say what it was encoded for. ``origin`` identifies everything that the segments
    depend on (tokenizer, table, noise): under a bundle with another fingerprint but the same origin the segments
    stay valid as they are. ``session`` is the random name of the conversation that the prompt is of, if it is of one.
    """

    fingerprint: str
    variant: str
    segments: tuple[Segment, ...] = field(repr=False)
    origin: tuple[object, ...] = field(repr=False)
    session: str | None = field(default=None, repr=False)

    @property
    def private_tokens(self) -> int:
        """How many tokens are sent as counts; the privacy loss of the prompt composes over these."""
        return sum(segment.tokens for segment in self.segments if isinstance(segment, PrivateSegment))

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The draws of the private segments, in their order; sending them again costs no privacy."""
        return tuple(segment.draw for segment in self.segments if isinstance(segment, DrawnSegment))

    @property
    def tokens(self) -> int:
        """How many tokens the prompt has."""
        return sum(segment.tokens for segment in self.segments)

    def __repr__(self) -> str:
        return f"EncodedPrompt(fingerprint={self.fingerprint!r}, variant={self.variant!r})"


class Encoder:
    """Encodes prompts for one bundle. Stateless between calls and safe to use from several threads.

    ``random_source(n)`` must return n bytes from a cryptographic generator.
    """

    def __init__(self, bundle: ClientBundle, *, random_source: Callable[[int], bytes] = random_bytes) -> None:
        self.bundle = bundle
        self._random_source = random_source
        self._tokenizer = _load_tokenizer(bundle)

    @property
    def fingerprint(self) -> str:
        """The bundle's fingerprint, 64 hexadecimal digits."""
        return self.bundle.fingerprint

    @property
    def variants(self) -> tuple[str, ...]:
        """The names that ``variant`` may have, ``clear`` last."""
        return (*self.bundle.variants, CLEAR)

    def encode(self, prompt: Prompt, variant: str) -> EncodedPrompt:
        """Tokenise the prompt and draw its noise.

        Raises :class:`InvalidRequest` for an unknown variant, what :func:`client_lib.prompts.spans.spans_of` refuses,
        and a
        prompt without a single token; :class:`BundleInvalid` if the tokenizer knows tokens that the table does not.
        """
        return self.draw(self.tokenise(prompt, variant), variant)

    def tokenise(self, prompt: Prompt, variant: str, padding: Padding | None = None) -> tuple[Tokenised, ...]:
        """The first half of :meth:`encode`: all that can fail, and no noise yet. Spans without tokens are left out."""
        self.check_variant(variant)
        tokenised: list[Tokenised] = []
        for span in spans_of(prompt, variant):
            ids = self._ids(span.text)
            if not ids:
                continue
            if padding is None or not span.is_private:
                tokenised.append(Tokenised(span, ids))
            else:
                padded = padding.apply(ids, self._ids(padding.text))
                tokenised.append(Tokenised(span, padded, f"{padding.bucket} {padding.text}"))
        if not tokenised:
            raise InvalidRequest("prompt: no token remains after tokenisation; allowed: at least one", field="prompt")
        return tuple(tokenised)

    def draw(self, tokenised: Sequence[Tokenised], variant: str, recall: Recall | None = None) -> EncodedPrompt:
        """The second half of :meth:`encode`: draw the noise, or recall it for what a conversation has sent before.

        Raises :class:`client_lib.errors.BundleOutdated` as :meth:`client_lib.prompts.span_memory.SpanMemory.counts`
        does.
        """
        hidden = [part for part in tokenised if part.span.is_private]
        origin = self._origin(variant)

        def quantise(ids: tuple[int, ...]) -> DrawnSegment:
            levels = self.bundle.table[np.asarray(ids, dtype=np.intp)]
            codes = self.bundle.mechanism(variant).sample(levels, self._random_source)
            return DrawnSegment(codes, random_bytes(_DRAW_ID_BYTES))

        if recall is None:
            drawn, session = [quantise(part.ids) for part in hidden], None
        else:
            drawn, session = recall.memory.counts(hidden, variant, origin, quantise, fresh=recall.fresh)
        counts = iter(drawn)
        segments: list[Segment] = [
            next(counts) if part.span.is_private else PublicSegment(part.ids) for part in tokenised
        ]
        bos_token_id = self.bundle.manifest.bos_token_id
        if bos_token_id is not None:
            segments.insert(0, PublicSegment((bos_token_id,)))
        return EncodedPrompt(self.fingerprint, variant, tuple(segments), origin, session)

    def _ids(self, text: str) -> tuple[int, ...]:
        ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if ids and max(ids) >= self.bundle.table.shape[0]:
            raise BundleInvalid(
                "tokenizer.json: it has token ids beyond the table; "
                f"allowed: 0 to {self.bundle.table.shape[0] - 1}, one for every row of table.safetensors"
            )
        return ids

    def adopt(self, encoded: EncodedPrompt) -> EncodedPrompt | None:
        """The same segments for this bundle, or None if they would mean something else under it.

        Nothing is drawn anew, so moving a prompt to another bundle this way costs no privacy.
        """
        if encoded.variant not in self.variants or encoded.origin != self._origin(encoded.variant):
            return None
        return replace(encoded, fingerprint=self.fingerprint)

    def frame(self, encoded: EncodedPrompt, sampling: Sampling, resume: tuple[int, ...] = ()) -> bytes:
        """The frame of an encoded prompt. Raises :class:`InvalidRequest` for values that the wire format refuses."""
        if encoded.fingerprint != self.fingerprint:
            raise InvalidRequest(
                f"prompt: encoded for the bundle {encoded.fingerprint}; allowed: {self.fingerprint}", field="prompt"
            )
        bits = 1 if encoded.variant == CLEAR else self.bundle.mechanism(encoded.variant).bits
        request = Request(encoded.fingerprint, encoded.variant, encoded.segments, sampling, resume)
        try:
            return encode_frame(request, bits=bits)
        except FrameError as error:
            name = error.field.removeprefix("header.")
            raise InvalidRequest(f"{name} {error.message}", code=error.code, field=name) from None

    def check_variant(self, variant: str) -> None:
        """Raise :class:`InvalidRequest` unless the bundle has this variant or it is ``clear``."""
        if variant not in self.variants:
            raise InvalidRequest(
                f"variant: {variant!r}; allowed: {', '.join(self.variants)}", code="unknown_variant", field="variant"
            )

    def _origin(self, variant: str) -> tuple[object, ...]:
        """Everything that the segments of a prompt depend on besides the prompt and the random bits."""
        bundle = self.bundle
        files = {name: bundle.manifest.files[name].sha256 for name in ("table.safetensors", "tokenizer.json")}
        noise = None if variant == CLEAR else bundle.mechanism(variant)
        return (files["tokenizer.json"], bundle.manifest.bos_token_id, noise and (files["table.safetensors"], noise))


def _load_tokenizer(bundle: ClientBundle) -> Tokenizer:
    from tokenizers import Tokenizer

    # Whatever the library raises is caught: it reports a malformed file by a bare Exception.
    try:
        tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    except Exception as error:
        raise BundleInvalid(
            f"tokenizer.json: not readable by the tokenizers library ({type(error).__name__}); "
            "allowed: a tokenizer saved by that library"
        ) from error
    # Settings for batches would cut or fill up prompts without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
