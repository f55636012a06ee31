"""Encoding of spans: tokenize each on its own, look up table rows, draw counts, pack a frame.

:meth:`Encoder.draw` is the only place where noise is drawn. An :class:`EncodedPrompt` holds the
counts, so that retries and resumed streams carry the same ones: two noisy copies of one prompt
reveal more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast

import numpy as np

from client_lib._validation import invalid, must_be
from client_lib.errors import BundleInvalidError, InvalidRequestError
from client_lib.prompts.chat import ChatTemplate, PromptOrChat, is_chat
from client_lib.prompts.padding import Padding
from client_lib.prompts.span_memory import Recall
from client_lib.prompts.spans import CLEAR, Prompt, Span, spans_of
from client_lib.prompts.tokenizer import guarded, load_tokenizer
from client_lib.prompts.types import DrawnSegment, EncodedPrompt, Tokenized
from del_core.bundle import ClientBundle
from del_core.errors import FrameError
from del_core.mechanism.randomness import random_bytes
from del_core.wire import DEFAULT_LIMITS, PublicSegment, Request, Sampling, Segment, encode_frame, row_bytes

_DRAW_ID_BYTES = 16
_MAX_FILLERS = 8


class Encoder:
    """Encodes prompts for one bundle. Calls are independent, and safe in several threads.

    ``random_source(n)`` must return n bytes of a cryptographic generator.
    """

    def __init__(self, bundle: ClientBundle, *, random_source: Callable[[int], bytes] = random_bytes) -> None:
        self.bundle = bundle
        self._random_source = random_source
        self._tokenizer = load_tokenizer(bundle.tokenizer_path)
        self._fillers: dict[str, tuple[int, ...]] = {}  # tokens of the texts of paddings

    @property
    def fingerprint(self) -> str:
        """The bundle's fingerprint, 64 hexadecimal digits."""
        return self.bundle.fingerprint

    @property
    def variants(self) -> tuple[str, ...]:
        """The variant names, ``clear`` last."""
        return (*self.bundle.variants, CLEAR)

    def token_bytes(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Return the bytes of the text that each token stands for. Raises BundleInvalidError."""
        return guarded(lambda: tuple(map(self._tokenizer.token_bytes, token_ids)))

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The bundle's chat template. Raises ``InvalidRequestError`` if there is none."""
        chat = self.bundle.manifest.chat
        if chat is None:
            raise invalid("template", "given for prompts of messages, as the bundle has none", "None")
        return ChatTemplate.of(chat)

    def spans(self, prompt: PromptOrChat, variant: str) -> tuple[Span, ...]:
        """Return the checked spans of a prompt, or of a chat under the bundle's template."""
        plain = self.chat_template.render(prompt, variant) if is_chat(prompt) else cast(Prompt, prompt)
        return spans_of(plain, variant)

    def end_token_ids(self, prompt: PromptOrChat) -> tuple[int, ...]:
        """Return the tokens that end the answer to a prompt, besides the model's own."""
        return self.chat_template.end_token_ids if is_chat(prompt) else ()

    def encode(self, prompt: PromptOrChat, variant: str) -> EncodedPrompt:
        """Tokenize a prompt and draw its noise. Raises as :meth:`tokenize`."""
        return self.draw(self.tokenize(prompt, variant), variant)

    def tokenize(
        self, prompt: PromptOrChat, variant: str, padding: Padding | None = None, *, before: Sequence[Span] = ()
    ) -> tuple[Tokenized, ...]:
        """Tokenize and check a prompt without drawing noise; spans without tokens are dropped.

        ``before`` are spans that stand in front of the prompt and were encoded earlier. A leading
        begin-of-text token in a public span is dropped if the bundle sends the same one.

        Raises:
            InvalidRequestError: the variant is unknown, or the prompt is not acceptable.
            BundleInvalidError: the tokenizer has tokens that the table lacks.
        """
        self.check_variant(variant)
        tokenized: list[Tokenized] = []
        spans, first = self.spans(prompt, variant), len(before)
        for span, ids in zip(spans, self._ids((*before, *spans))[first:], strict=True):
            if not ids:
                continue
            if padding is None or not span.is_private:
                tokenized.append(Tokenized(span, ids))
            else:
                padded = padding.apply(ids, self._filler(padding.text), len(span.text.encode()))
                tokenized.append(Tokenized(span, padded, padding.name))
        if not tokenized:
            raise invalid("prompt", "at least one token long", "a prompt without tokens")
        self._check_length(tokenized, variant)
        return tuple(tokenized)

    tokenise = tokenize  # alias until 1.0

    def _check_length(self, tokenized: Sequence[Tokenized], variant: str) -> None:
        """Refuse a prompt that no frame can hold, before noise is drawn for it."""
        tokens = sum(len(part.ids) for part in tokenized)
        hidden = sum(len(part.ids) for part in tokenized if part.span.is_private)
        most = DEFAULT_LIMITS.max_prompt_tokens
        if tokens > most:
            raise invalid("prompt", f"at most {most} tokens long", f"{tokens} tokens")
        if hidden:
            mechanism = self.bundle.mechanism(variant)
            room = DEFAULT_LIMITS.max_frame_bytes // row_bytes(mechanism.dim, mechanism.bits)
            if hidden > room:
                raise invalid("prompt", f"at most {room} private tokens long under {variant}", f"{hidden} tokens")

    def count(self, tokenized: Sequence[Tokenized], *, continues: bool = False) -> int:
        """Return the number of tokens of a prompt, with its begin-of-text token."""
        starts = self.bundle.manifest.bos_token_id is not None and not continues
        return starts + sum(len(part.ids) for part in tokenized)

    def draw(
        self, tokenized: Sequence[Tokenized], variant: str, recall: Recall | None = None, *, continues: bool = False
    ) -> EncodedPrompt:
        """Draw the noise of tokenized spans, or recall counts as ``SpanMemory.counts`` does.

        With ``continues``, the spans do not begin a prompt and get no begin-of-text token.
        """
        hidden = [part for part in tokenized if part.span.is_private]
        origin = self._origin(variant)

        def quantize(ids: tuple[int, ...]) -> DrawnSegment:
            levels = self.bundle.table_of(variant)[np.asarray(ids, dtype=np.intp)]
            codes = self.bundle.mechanism(variant).sample(levels, self._random_source)
            return DrawnSegment(codes, random_bytes(_DRAW_ID_BYTES))

        if recall is None:
            drawn, session = [quantize(part.ids) for part in hidden], None
        else:
            drawn, session = recall.memory.counts(hidden, variant, origin, quantize, fresh=recall.fresh)
        counts = iter(drawn)
        segments: list[Segment] = [
            next(counts) if part.span.is_private else PublicSegment(part.ids) for part in tokenized
        ]
        bos_token_id = self.bundle.manifest.bos_token_id
        if bos_token_id is not None and not continues:
            segments.insert(0, PublicSegment((bos_token_id,)))
        return EncodedPrompt(self.fingerprint, variant, tuple(segments), origin, session)

    def _ids(self, spans: Sequence[Span]) -> list[tuple[int, ...]]:
        texts = [(span.text, span.is_private) for span in spans]
        found = guarded(lambda: self._tokenizer.encode_spans(texts, self.bundle.manifest.bos_token_id))
        return [self._checked(ids) for ids in found]

    def _filler(self, text: str) -> tuple[int, ...]:
        if (ids := self._fillers.get(text)) is None:
            if len(self._fillers) >= _MAX_FILLERS:
                self._fillers.clear()
            # Padding stands inside a prompt; it must not depend on what precedes it.
            ids = self._fillers[text] = self._checked(guarded(lambda: self._tokenizer.encode(text, begins=False)))
        return ids

    def _checked(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        rows = self.bundle.table.shape[0]
        if ids and max(ids) >= rows:
            raise BundleInvalidError(
                must_be("tokenizer.json", f"limited to the token ids 0 to {rows - 1} of the table", "a larger id")
            )
        return ids

    def adopt(self, encoded: EncodedPrompt) -> EncodedPrompt | None:
        """Return the same segments for this bundle, or None if their meaning differs under it."""
        if encoded.variant not in self.variants or encoded.origin != self._origin(encoded.variant):
            return None
        return replace(encoded, fingerprint=self.fingerprint)

    def frame(self, encoded: EncodedPrompt, sampling: Sampling, resume: tuple[int, ...] = ()) -> bytes:
        """Return the frame. Raises ``InvalidRequestError`` for values that the wire refuses."""
        if encoded.fingerprint != self.fingerprint:
            raise invalid("prompt", f"encoded for the bundle {self.fingerprint}", encoded.fingerprint)
        bits = 1 if encoded.variant == CLEAR else self.bundle.mechanism(encoded.variant).bits
        request = Request(encoded.fingerprint, encoded.variant, encoded.segments, sampling, resume)
        try:
            return encode_frame(request, bits=bits)
        except FrameError as error:
            name = error.field.removeprefix("header.")
            raise InvalidRequestError(f"{name} {error.message}", code=error.code, field=name) from None

    def check_variant(self, variant: str) -> None:
        """Raise ``InvalidRequestError`` unless the bundle has the variant or it is ``clear``."""
        if variant not in self.variants:
            message = must_be("variant", f"one of {', '.join(self.variants)}", repr(variant))
            raise InvalidRequestError(message, code="unknown_variant", field="variant")

    def _origin(self, variant: str) -> tuple[object, ...]:
        """Return everything that segments depend on besides the prompt and the random bytes."""
        bundle = self.bundle
        files, noise = bundle.manifest.files, None
        if variant != CLEAR:
            noise = (files[bundle.variant(variant).table_file].sha256, bundle.mechanism(variant))
        return (files["tokenizer.json"].sha256, bundle.manifest.bos_token_id, noise)
