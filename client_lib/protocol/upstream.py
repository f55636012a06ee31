"""What a completion is asked of: a DEL server, or a server of OpenAI's API with an exported model.

An exported model (``delctl export``) has a token for each code and for each row of the soft
prompts, so that a private prompt is a list of token ids. Such a server hands out no bundle, and
does not know that these tokens must not be generated: every request lowers their logits by 100, the
most that the API permits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from client_lib._validation import invalid
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.spans import CLEAR
from client_lib.prompts.types import EncodedPrompt
from del_core.bundle import ClientBundle, Variant
from del_core.bundle.code_ids import CodeIds, code_ids
from del_core.wire import MEDIA_TYPE, PublicSegment, Sampling

__all__ = ["UPSTREAMS", "Upstream"]

_LEAST_BIAS = -100.0
_UNSET = Sampling()
_PASSED = (
    *("max_tokens", "temperature", "top_p", "seed", "stop", "stop_token_ids", "ignore_eos", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "stream"),
)


class Upstream(Protocol):
    """A kind of server."""

    path: str
    media_type: str
    has_bundle: bool
    """Whether it hands out the bundle."""

    def serves(self, bundle: ClientBundle) -> Mapping[str, Variant]:
        """Return the variants of a bundle that it can be asked for, besides ``clear``."""

    def content(
        self, encoder: Encoder, encoded: EncodedPrompt, sampling: Sampling, resume: tuple[int, ...] = ()
    ) -> bytes:
        """Return the body of a request. Raises ``InvalidRequestError`` for what cannot be asked."""


class _DelServer:
    path, media_type, has_bundle = "/v1/private/completions", MEDIA_TYPE, True

    def serves(self, bundle: ClientBundle) -> Mapping[str, Variant]:
        return bundle.variants

    def content(
        self, encoder: Encoder, encoded: EncodedPrompt, sampling: Sampling, resume: tuple[int, ...] = ()
    ) -> bytes:
        return encoder.frame(encoded, sampling, resume)


class _OpenAIServer:
    path, media_type, has_bundle = "/v1/completions", "application/json", False

    def serves(self, bundle: ClientBundle) -> Mapping[str, Variant]:
        known = code_ids(bundle.manifest)
        return {name: variant for name, variant in bundle.variants.items() if name in known}

    def content(
        self, encoder: Encoder, encoded: EncodedPrompt, sampling: Sampling, resume: tuple[int, ...] = ()
    ) -> bytes:
        encoder.frame(encoded, sampling, resume)  # the bounds of all fields are those of the frame
        if sampling.logprobs is not None:
            raise invalid("logprobs", "None with upstream openai, which has another form of them", "a number")
        known = code_ids(encoder.bundle.manifest)
        variant = encoded.variant
        if variant != CLEAR and variant not in known:
            names = ", ".join((*known, CLEAR))
            raise invalid(
                "variant", f"one that sends one code for a token with upstream openai: {names}", repr(variant)
            )
        own = known.get(variant)
        body: dict[str, Any] = {"model": variant, "prompt": [*_prompt(encoded, own), *resume]}
        for name in _PASSED:
            value = getattr(sampling, name)
            if value != getattr(_UNSET, name) or name in ("max_tokens", "temperature"):
                body[name] = value
        body["max_tokens"] = sampling.max_tokens - len(resume)
        body["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias} | {
            str(token_id): _LEAST_BIAS for ids in known.values() for token_id in (*ids.codes, *ids.soft_prompt)
        }
        body["return_token_ids"] = True
        if sampling.stream:
            body["stream_options"] = {"include_usage": True}
        if sampling.structured_outputs is not None:
            structure = sampling.structured_outputs
            given = {name: getattr(structure, name) for name in type(structure).__dataclass_fields__}
            body["structured_outputs"] = {
                name: value for name, value in given.items() if value not in (None, False, ())
            }
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _prompt(encoded: EncodedPrompt, own: CodeIds | None) -> list[int]:
    """Return the ids of the soft prompt and of all segments."""
    found: list[int] = [] if own is None else list(own.soft_prompt)
    for segment in encoded.segments:
        if isinstance(segment, PublicSegment):
            found += segment.token_ids
        else:
            assert own is not None
            found += own.of(segment.codes[:, 0].tolist())
    return found


UPSTREAMS: Mapping[str, Upstream] = MappingProxyType({"del": _DelServer(), "openai": _OpenAIServer()})
"""The kinds of servers by the names of the client's option ``upstream``."""
