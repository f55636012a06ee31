"""Values of a frame: segments, sampling fields, the request, and limits.

Their ``repr`` omits everything that derives from a prompt: logs and tracebacks do not show it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from del_core._validation import check_integer
from del_core.mechanism import MAX_BITS, TokenMechanism


@dataclass(frozen=True, eq=False)
class PrivateSegment:
    """Prompt tokens that leave the device as noisy counts only: ``codes``, uint8 (tokens, dim)."""

    codes: NDArray[np.uint8] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Number of prompt tokens in the segment."""
        return int(self.codes.shape[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrivateSegment) and np.array_equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash((self.codes.shape, self.codes.tobytes()))


@dataclass(frozen=True)
class PublicSegment:
    """Prompt tokens that the caller sends in the clear: at least one token id."""

    token_ids: tuple[int, ...] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Number of prompt tokens in the segment."""
        return len(self.token_ids)


Segment: TypeAlias = PrivateSegment | PublicSegment


@dataclass(frozen=True)
class StructuredOutputs:
    """What a completion must be, under vLLM's names; exactly one field is set.

    ``json`` is a JSON schema as JSON text, ``choice`` lists the allowed completions.
    """

    json: str | None = field(default=None, repr=False)
    json_object: bool = False
    regex: str | None = field(default=None, repr=False)
    choice: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at a generated token: its own, and the most probable.

    ``top`` has pairs of a token id and its logarithm, the most probable first.
    """

    logprob: float = field(repr=False)
    top: tuple[tuple[int, float], ...] = field(default=(), repr=False)


LEAST_LOGPROB: Final = -9999.0
"""What stands for a logarithm below it, such as that of a probability of 0."""


@dataclass(frozen=True)
class Sampling:
    """Sampling fields of an OpenAI completion, with OpenAI's defaults.

    ``max_tokens`` includes the tokens in ``Request.resume``. ``logit_bias`` has pairs of a token id
    and what is added to its logit. The other fields and the bounds of all are those of
    docs/reference/wire-format.md.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)
    stream: bool = False
    stop_token_ids: tuple[int, ...] = field(default=(), repr=False)
    ignore_eos: bool = False
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None


@dataclass(frozen=True)
class Request:
    """One completion request.

    ``fingerprint`` is that of the bundle whose table made the counts, ``variant`` the privacy
    level. ``resume`` holds token ids already received; generation continues after them, with new
    ones only.
    """

    fingerprint: str
    variant: str
    segments: tuple[Segment, ...]
    sampling: Sampling = Sampling()
    resume: tuple[int, ...] = field(default=(), repr=False)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all segments, without the soft prompt and ``resume``."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def private_tokens(self) -> int:
        """Prompt tokens of the private segments, T of the privacy accounting."""
        return sum(segment.tokens for segment in self.segments if isinstance(segment, PrivateSegment))

    @property
    def remaining_tokens(self) -> int:
        """Tokens that may still be generated; at least 1 in a valid request."""
        return self.sampling.max_tokens - len(self.resume)


@dataclass(frozen=True)
class Shape:
    """Shape of a variant's counts: bits (1 to 8) for each of dim coordinates, or ValueError."""

    bits: int
    dim: int

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, MAX_BITS)
        check_integer("dim", self.dim, 1)

    @classmethod
    def from_mechanism(cls, mechanism: TokenMechanism) -> Shape:
        """Return the shape of a mechanism's counts."""
        return cls(mechanism.bits, mechanism.dim)


@dataclass(frozen=True)
class Limits:
    """Upper bounds, checked before memory is allocated.

    A server sets ``max_prompt_tokens``, ``max_output_tokens`` and ``vocabulary_size`` from its
    model. Without ``vocabulary_size``, token ids may be up to 2^31 - 1.
    """

    max_frame_bytes: int = 16 * 1024 * 1024
    max_header_bytes: int = 1024 * 1024
    max_segments: int = 1024
    max_prompt_tokens: int = 131_072
    max_output_tokens: int = 131_072
    max_stop_strings: int = 4
    max_stop_bytes: int = 256
    max_stop_token_ids: int = 64
    max_logit_biases: int = 300
    max_logprobs: int = 20
    max_structure_bytes: int = 65_536
    max_choices: int = 1024
    vocabulary_size: int | None = None

    @property
    def max_token_id(self) -> int:
        """Largest token id."""
        return 2**31 - 1 if self.vocabulary_size is None else self.vocabulary_size - 1
