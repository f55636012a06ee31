"""The interface between the service and a language-model engine, and the registry of engines.

An engine takes embeddings and yields token ids; the service handles text, stop strings and
end-of-text tokens. A kind of engine is one module that registers an :class:`EngineKind`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from del_core.bundle import Adapter, Bundle
from del_core.errors import DelError
from del_core.registry import Registry
from del_core.wire import TokenLogprobs
from deployments.sections import Section

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

FinishReason = Literal["stop", "length"]


class EngineDeadError(DelError):
    """The engine has stopped and will not answer again; its replica must be replaced."""


class EngineStartError(DelError):
    """The engine did not start; the message is one sentence with the setting to change."""


@dataclass(frozen=True)
class Grammar:
    """What a completion must be.

    Args:
        text: a grammar of the library llguidance, which its ``LLMatcher.validate_grammar`` accepts.
        tokenizer: path of the model's tokenizer.json.
        end_token_ids: the ids that may end a completion of the grammar; at least one.
    """

    text: str = field(repr=False)
    tokenizer: str
    end_token_ids: tuple[int, ...]

    def matcher(self, tokenizer: LLTokenizer) -> LLMatcher:
        """Return the matcher of a new completion, which gives up beyond bounds of work.

        A step within the bounds takes at most some tenths of a second; a fifth of the library's
        own. Usual schemas need a hundredth of it.
        """
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=100_000,
            step_lexer_fuel=50_000,
            step_max_items=10_000,
            max_lexer_states=20_000,
            max_grammar_size=50_000,
            verbose_errors=False,
        )
        return LLMatcher(tokenizer, self.text, limits=limits, log_level=0)


@dataclass(frozen=True)
class Adjustment:
    """Changes of a token's logit l before it is sampled, in the order of the fields.

    With c, the number of times that the completion has the token so far:

        l <- l / repetition_penalty if l > 0, else l * repetition_penalty       if c > 0
        l <- l - frequency_penalty * c - presence_penalty                       if c > 0
        l <- l + logit_bias[token]
        l <- -infinity unless the grammar allows the token

    The first is Keskar et al., "CTRL", 2019, section 4.1; the second is OpenAI's. The prompt does
    not count: the engine does not know its tokens. ``resumed`` are the completion's tokens that the
    engine's prompt holds.
    """

    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    grammar: Grammar | None = None
    resumed: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class EngineSampling:
    """Sampling of one completion.

    Args:
        temperature: 0 is greedy.
        top_k: sample from this many tokens, 0 from all.
        min_p: sample from tokens that have at least this share of the largest probability.
        logprobs: report the logarithms of this many most probable tokens, None of none. They are
            those of the model, before any of the fields changes them.
        seed: signed 64-bit. The same seed, prompt and engine give the same tokens.
        position: tokens of a resumed completion that the prompt already holds. With a seed, the
            draw for a token depends on its position in the whole completion.
        stop_token_ids: includes the model's end-of-text ids where they apply.
        incremental: yield tokens as they are generated; otherwise the engine may yield all at the
            end, which costs less.
        gather_tokens: after the first tokens, an engine may hold tokens until this many are
            pending, or one has been pending for ``gather_s`` seconds.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    position: int = 0
    stop_token_ids: tuple[int, ...] = field(default=(), repr=False)
    incremental: bool = True
    gather_tokens: int = 1
    gather_s: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    logprobs: int | None = None
    adjustment: Adjustment | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of a completion; the last delta has the finish reason.

    Args:
        cached_rows: prompt rows that the cache held; None if not known.
        gathered: the tokens have been held long enough and must be sent at once.
        logprobs: one for each token, if they were asked for.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason | None = None
    cached_rows: int | None = None
    gathered: bool = False
    logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LookUp:
    """Rows (tokens, hidden size) of an engine's embedding layer, and its type of numbers."""

    rows: NDArray[np.float32] = field(repr=False)
    dtype: str


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt before it is decoded: the soft prompt of a variant, then each segment in order.

    Args:
        variant: the :func:`variant_name`; None for no soft prompt and segments of token ids only.
        segments: counts (tokens, dim), uint8, of a private segment, or token ids.
    """

    variant: str | None
    segments: tuple[NDArray[np.uint8] | tuple[int, ...], ...] = field(repr=False)


def variant_name(bundle: Bundle, variant: str) -> str:
    """Return the name by which an engine knows a bundle's variant and its adapter."""
    return f"{bundle.fingerprint[:16]}-{variant}"


class Engine(Protocol):
    """A language-model engine that serves many requests at once."""

    @property
    def context_length(self) -> int:
        """Most prompt rows and generated tokens of one request; known after :meth:`start`."""

    async def start(self) -> None:
        """Load the model. Called once, before any other method."""

    async def look_up(self, token_ids: Sequence[int]) -> LookUp | None:
        """Return the rows that the model reads for token ids, None if the engine reads none.

        The service compares them at start with the rows that it builds prompts from.
        """

    def generate(
        self,
        request_id: str,
        embeddings: NDArray[np.float32],
        sampling: EngineSampling,
        *,
        cache_salt: str | None = None,
        shared_rows: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """Generate after a prompt; closing the generator early frees the request's resources.

        Args:
            request_id: unique among the requests in flight.
            embeddings: (tokens, hidden size), finite, at least one row.
            cache_salt: cached prefixes are shared only between prompts of the same salt,
            shared_rows: except for this many first rows, which all prompts may share.

        Raises EngineDeadError if the engine has stopped, before or during this request.
        """

    async def check_health(self) -> None:
        """Raise EngineDeadError if the engine has stopped."""

    async def shutdown(self) -> None:
        """Stop the engine and every process that it started. May be called more than once."""


@runtime_checkable
class AdapterEngine(Engine, Protocol):
    """An engine that also answers with adapters. Its ``generate`` takes ``adapter``, a name."""

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known by ``name``. Called before :meth:`start`, which loads it."""


@runtime_checkable
class DecodingEngine(Engine, Protocol):
    """An engine that decodes counts itself, where its model is.

    Its ``generate`` takes an :class:`EncodedPrompt` in place of embeddings.
    """

    def add_bundle(self, bundle: Bundle) -> None:
        """Make the variants of a bundle known. Called before :meth:`start`, which loads them."""

    async def decode(self, prompt: EncodedPrompt) -> LookUp:
        """Return the rows that the model reads for a prompt.

        The service compares them at start with those of the numpy decoders.
        """


class EngineSettings(Section):
    """Settings that every kind of engine has."""

    kind: str = "vllm"
    """Kind of engine: "vllm", "mock" (load tests without a model), or one that a plugin adds."""
    max_model_len: int | None = Field(default=None, ge=64)
    """Most soft prompt, prompt and generated tokens of one request; null: the model's limit, or
    what the KV cache holds if that is less."""
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    """Requests that one step of the engine computes together; others wait inside the engine."""


@dataclass(frozen=True)
class EngineKind:
    """A kind of engine: the model of its section ``engine``, and its constructor.

    ``create`` takes the directory of the base model and the settings. Heavy imports belong inside,
    so that only replicas load them.
    """

    settings: type[EngineSettings]
    create: Callable[[Path, Any], Engine]


ENGINES: Registry[EngineKind] = Registry("engine.kind")


def parse_engine(values: Mapping[str, Any]) -> EngineSettings:
    """Validate the section ``engine`` with the settings model of its kind. Raises ValueError."""
    values = dict(values)
    # Until 1.0: the former spelling of `kind: mock`. Fields of vLLM had no effect beside it.
    pace = values.pop("stand_in", None)
    if isinstance(pace, Mapping):
        general = {name: value for name, value in values.items() if name in EngineSettings.model_fields}
        values = {**general, **pace, "kind": "mock"}
    kind = values.get("kind", EngineSettings.model_fields["kind"].default)
    if not isinstance(kind, str):
        return EngineSettings.model_validate(values)
    return ENGINES.find(kind).settings.model_validate(values)
