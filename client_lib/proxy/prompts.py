"""Requests as encoded prompts: rendering of spans, and reuse of counts sent before."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakValueDictionary

import anyio

from client_lib.async_client import AsyncClient
from client_lib.errors import BundleOutdatedError, ContextFullError, DELClientError, InvalidRequestError
from client_lib.options import SamplingOptions
from client_lib.prompts.answers import AnswerMemory
from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.prompts.detect import detected
from client_lib.prompts.detectors import load_detectors
from client_lib.prompts.memo import check_redraws
from client_lib.prompts.spans import CLEAR, MAX_PROMPT_CHARACTERS, Span, private, public
from client_lib.prompts.surrogates import Surrogates
from client_lib.prompts.types import EncodedPrompt
from client_lib.proxy._http import log
from client_lib.proxy.answers import Choice, Restorer
from client_lib.proxy.history import (
    NO_TOOLS,
    Tools,
    content_of,
    contents,
    is_instruction,
    render,
    selections,
    spans_in,
)
from client_lib.proxy.memory import CountMemory
from client_lib.proxy.metrics import Metrics
from client_lib.proxy.requests import ChatRequest, CompletionRequest
from client_lib.proxy.settings import ProxySettings
from client_lib.proxy.tools import ToolUse, written
from client_lib.streams import AsyncStream
from client_lib.types import Completion

# The part of the room that a chat leaves for an answer, if that many tokens are asked for.
_ANSWER_SHARE = 4
_STRUCTURED_TOKENS = 1024
# What it leaves if none are asked for: long answers are rare, and a turn left out is one forgotten.
_UNASKED_TOKENS = 128
_SEARCHED_AT_ONCE = 20_000  # characters, some 20 ms


@dataclass(frozen=True, slots=True)
class Submission:
    """A request and the proxy's decisions about it; ``fresh`` requests new noise for all of it."""

    asked: CompletionRequest | ChatRequest
    variant: str
    subject: str | None = field(repr=False)
    fresh: bool
    names: list[bytes] = field(default_factory=list, repr=False)
    """The names of its spans in the memory, once it is encoded."""

    @property
    def tools(self) -> ToolUse | None:
        """The tools that the answer may call."""
        return self.asked.tools if isinstance(self.asked, ChatRequest) else None

    @property
    def echo(self) -> str:
        """The prompt, if the answer is to begin with it."""
        asked = self.asked
        return asked.prompt if isinstance(asked, CompletionRequest) and asked.echo else ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An encoded prompt to send; ``dropped`` messages of the chat were left out of it."""

    encoded: EncodedPrompt
    client: AsyncClient = field(repr=False)
    sampling: SamplingOptions = field(repr=False)
    turn: bytes | None = field(repr=False)
    dropped: int
    surrogates: Surrogates | None = None

    @property
    def is_json(self) -> bool:
        """Whether the text of the answer is JSON."""
        structure = self.sampling.get("structured_outputs") or {}
        return "json" in structure or "json_object" in structure

    def restorer(self) -> Restorer:
        """Return what puts the values of the prompt into one of its answers."""
        return Restorer(self.surrogates, is_json=self.is_json)

    async def complete(self, n: int = 1) -> list[Completion]:
        """Return ``n`` completions: of the same counts, which are charged once."""
        found: list[Completion | DELClientError | None] = [None] * n

        async def one(index: int) -> None:
            sampling = self.sampling.copy()
            if (seed := sampling.get("seed")) is not None:
                sampling["seed"] = (seed + index + 2**63) % 2**64 - 2**63
            try:
                # In chunks: a server that is slow says in a stream that it is still there.
                async with self.client.stream(self.encoded, variant=self.encoded.variant, **sampling) as stream:
                    async for _ in stream:
                        pass
                found[index] = stream.completion
            except DELClientError as error:
                found[index] = error
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for index in range(n):
                group.start_soon(one, index)
        for failure in found:
            if isinstance(failure, DELClientError):
                raise failure
        return [one for one in found if isinstance(one, Completion)]

    def stream(self) -> AsyncStream:
        """Return the completion in chunks; nothing is sent before the first is requested."""
        return self.client.stream(self.encoded, variant=self.encoded.variant, **self.sampling)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The spans to send, the name of each, and the counts that are known."""

    spans: list[Span] = field(repr=False)
    names: list[bytes] = field(repr=False)
    known: list[EncodedPrompt | None] = field(repr=False)
    surrogates: Surrogates | None
    dropped: int = 0
    end_token_ids: tuple[int, ...] = ()


class Prompts:
    """Encodes submissions, reusing the counts sent before for the same subject."""

    def __init__(self, client: AsyncClient, settings: ProxySettings, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics
        self._settings = settings
        self._detectors = load_detectors(settings.detectors)
        self._memory = CountMemory(settings.remember_bytes)
        self._answers = AnswerMemory()
        self._of_bundle: tuple[str, ChatTemplate | None] | None = None
        # If two tasks send the same prompt, the second one waits for the counts of the first.
        self._locks: WeakValueDictionary[bytes, anyio.Lock] = WeakValueDictionary()

    async def prepare(self, submission: Submission) -> Prepared:
        """Encode a submission. Nothing is sent or charged."""
        asked, turn = submission.asked, None
        sampling = asked.sampling.copy()
        room = sampling.get("max_tokens", 1)
        if isinstance(asked, ChatRequest):
            most = self._settings.chat_max_tokens
            # A structure that is cut has no value.
            is_structured = "structured_outputs" in sampling or asked.tools is not None
            length = max(most, _STRUCTURED_TOKENS) if is_structured else most
            room = sampling.get("max_tokens", min(length, _UNASKED_TOKENS))
            sampling.setdefault("max_tokens", length)
            turn = self._answers.turns(submission.subject, submission.variant, asked.messages)[-1]
        client = self._client.with_options(subject=submission.subject)
        encoded, plan = await self._encode(submission, room)
        return Prepared(encoded, client, sampling, turn, plan.dropped, plan.surrogates)

    def note_answer(self, prepared: Prepared, choice: Choice) -> None:
        """Note what the server wrote, so that it need not be hidden from the server.

        ``choice`` is as the server wrote it, with placeholders.
        """
        usage = choice.completion.usage
        prompt_tokens = usage.prompt_tokens if choice.is_first else 0
        self._metrics.answered(choice.completion.variant, prompt_tokens, usage.completion_tokens)
        # An answer is public only behind counts that are remembered.
        if prepared.turn is not None and self._settings.remember_bytes:
            # As the application will send it back.
            surrogates = prepared.surrogates or Surrogates()
            json_from = 0 if prepared.is_json else None
            self._answers.note(prepared.turn, *surrogates.restored(choice.completion.text, json_from=json_from))
            if choice.calls:
                whole, json_from = written(choice.text, choice.calls), 0 if prepared.is_json else len(choice.text)
                self._answers.note(prepared.turn, *surrogates.restored(whole, json_from=json_from))

    def forget(self, submission: Submission) -> None:
        """Drop the counts of a prompt that the server can no longer interpret."""
        self._memory.forget(submission.names)

    # --- what is sent -----------------------------------------------------------------------------

    async def _plan(self, submission: Submission, max_tokens: int) -> _Plan:
        asked, is_clear = submission.asked, submission.variant == CLEAR
        room = await self._client.room(variant=submission.variant)
        if isinstance(asked, CompletionRequest):
            surrogates = self._surrogates(is_clear=is_clear)
            hide = partial(self._hide, surrogates)
            spans = [public(asked.prompt)] if is_clear else list(await self._hidden(asked.prompt, hide))
            names = self._memory.names(submission.subject, submission.variant, spans)
            return _Plan(spans, names, self._recall(submission, names, spans), surrogates)
        own = self._own_answers(submission, asked.messages)
        while True:
            plan, first_new = await self._plan_chat(submission, asked, own, room, max_tokens)
            # Behind new noise for an earlier message, an answer in the clear would link the two
            # drawings of that message.
            if all(one is None for one in own[first_new:]):
                return plan
            own[first_new:] = [None] * (len(own) - first_new)

    def _surrogates(self, *, is_clear: bool) -> Surrogates | None:
        """Return the placeholders of a prompt, to be filled while it is hidden."""
        return Surrogates() if self._settings.surrogates and not is_clear else None

    def _hide(self, surrogates: Surrogates | None, text: str) -> Sequence[Span]:
        """Return what somebody wrote as spans."""
        # What is longer than any prompt is refused later, and not searched.
        if self._settings.private != "pii" or len(text) > MAX_PROMPT_CHARACTERS:
            return (private(text),)
        return (detected if surrogates is None else surrogates.spans)(text, self._detectors)

    async def _hidden(self, text: str, hide: Callable[[str], Sequence[Span]]) -> Sequence[Span]:
        """Return the same; a long text is searched beside the event loop, which serves others."""
        return await anyio.to_thread.run_sync(hide, text) if self._searches_long(len(text)) else hide(text)

    def _searches_long(self, length: int) -> bool:
        """Return whether searching this many characters may hold up the event loop."""
        is_long = length > _SEARCHED_AT_ONCE or bool(self._detectors)
        return is_long and self._settings.private == "pii"

    def _own_answers(self, submission: Submission, messages: Sequence[Message]) -> list[str | None]:
        """Return what the server wrote, for the messages that it wrote itself."""
        turns = self._answers.turns(submission.subject, submission.variant, messages)
        if submission.fresh:
            self._answers.forget(turns, messages)
        if submission.fresh or self._settings.private_answers:
            return [None] * len(messages)
        return [self._answers.own(turn, message) for turn, message in zip(turns, messages, strict=False)]

    async def _plan_chat(
        self, submission: Submission, asked: ChatRequest, own: list[str | None], room: int | None, max_tokens: int
    ) -> tuple[_Plan, int]:
        """Return the plan, and the index of the first message that gets new noise."""
        settings, variant, messages = self._settings, submission.variant, asked.messages
        tools = NO_TOOLS
        if asked.tools is not None:
            hide = settings.private_tools and variant != CLEAR
            tools = Tools((private if hide else public)(asked.tools.text), asked.tools.must_call)
        is_public = settings.public_system or settings.private == "user"
        clear = [variant == CLEAR or (is_public and is_instruction(message)) for message in messages]
        template = await self._template()
        surrogates = self._surrogates(is_clear=variant == CLEAR)
        show = (lambda text: (public(text),)) if surrogates is None else surrogates.public
        made = partial(contents, messages, clear, own, template, hide=partial(self._hide, surrogates), show=show)
        is_long = self._searches_long(sum(len(content_of(message)) for message in messages))
        chat = await anyio.to_thread.run_sync(made) if is_long else made()
        kept, dropped = render(chat, template, tools), 0
        if room is not None:
            choices = list(selections(messages)) if settings.trim_history else [list(range(len(messages)))]
            rendered = [partial(_rendered, chat, choice, template, tools) for choice in choices]
            chosen, kept = await self._fit(rendered, variant, room, max_tokens)
            dropped = len(messages) - len(choices[chosen])
        names = self._memory.chat_names(submission.subject, variant, chat, kept)
        places = {id(span): index for index, message in enumerate(chat) for span in spans_in(message)}
        # A template may write messages in another order. Its own parts come first here.
        order = sorted(range(len(kept)), key=lambda index: places.get(id(kept[index]), -1))
        known = self._recall(submission, names, kept, order)
        new = (span for span, part in zip(kept, known, strict=True) if part is None and span.is_private)
        # The definitions of tools stand in front of the chat.
        first_new = min((places.get(id(span), 0) for span in new), default=len(messages))
        ends = () if template is None else template.end_token_ids
        return _Plan(kept, names, known, surrogates, dropped, ends), first_new

    async def _template(self) -> ChatTemplate | None:
        """Return the template of chats: that of the settings, or the bundle's, if it has one."""
        if self._settings.template is not None:
            return self._settings.template
        bundle = await self._client.bundle()
        if self._of_bundle is None or self._of_bundle[0] != bundle.fingerprint:
            chat = bundle.manifest.chat
            self._of_bundle = (bundle.fingerprint, None if chat is None else ChatTemplate.of(chat))
        return self._of_bundle[1]

    def _recall(
        self, submission: Submission, names: Sequence[bytes], spans: Sequence[Span], order: Sequence[int] | None = None
    ) -> list[EncodedPrompt | None]:
        return [None] * len(spans) if submission.fresh else self._memory.recall(names, spans, order)

    async def _fit(
        self, rendered: Sequence[Callable[[], list[Span]]], variant: str, room: int, max_tokens: int
    ) -> tuple[int, list[Span]]:
        """Return the first of ever shorter chats that leaves room for an answer, and its spans.

        Raises ``ContextFullError`` if not even the shortest one fits.
        """
        answer = min(max_tokens, max(1, room // _ANSWER_SHARE))

        async def fits(index: int) -> bool:
            try:
                return await self._client.count_tokens(rendered[index](), variant=variant) + answer <= room
            except InvalidRequestError:  # longer than any frame
                return False

        low, high = 0, len(rendered) - 1
        if low < high:
            low, high = (0, 0) if await fits(0) else (1, high)  # the whole chat, as a rule
        while low < high:  # fewer messages have fewer tokens
            middle = (low + high) // 2
            low, high = (low, middle) if await fits(middle) else (middle + 1, high)
        spans = rendered[low]()
        tokens = await self._client.count_tokens(spans, variant=variant)
        if tokens >= room:
            raise ContextFullError.of(tokens, room)  # before noise is drawn for what cannot be sent
        return low, spans

    # --- its counts -------------------------------------------------------------------------------

    async def _encode(self, submission: Submission, max_tokens: int) -> tuple[EncodedPrompt, _Plan]:
        whose = self._memory.names(submission.subject, submission.variant, ())[0]
        lock = self._locks.setdefault(whose, anyio.Lock())
        async with lock:
            plan = await self._plan(submission, max_tokens)
            submission.names[:] = plan.names
            if self._settings.show is not None:
                self._settings.show(plan.spans)
            # The session id must link no more than equal counts do: without recalled counts it is
            # new.
            recalled = (part.session for part in plan.known if part is not None and part.draws)
            session = next(recalled, None) or secrets.token_hex(16)
            parts = await self._complete_parts(plan, submission.variant)
            if len({part.origin for part in parts}) > 1:
                self._memory.forget(plan.names)
                raise BundleOutdatedError(
                    "prompt: the counts of its beginning, encoded for another bundle, mean something else under the "
                    "one in use; a repeated request spends fresh noise on the whole prompt",
                    meaning_changed=True,
                )
            drawn = [
                (name, part)
                for name, part, known in zip(plan.names[1:], parts, plan.known, strict=True)
                if known is None
            ]
            self._check_redraws(drawn, is_asked=submission.fresh)
            if submission.variant != CLEAR:
                self._metrics.private_tokens[submission.variant] += sum(part.private_tokens for _, part in drawn)
            for name, part in zip(plan.names[1:], parts, strict=True):
                self._memory.remember(name, replace(part, session=part.session or session))
        segments = tuple(segment for part in parts for segment in part.segments)
        encoded = replace(parts[-1], segments=segments, session=session, end_token_ids=plan.end_token_ids)
        return encoded, plan

    async def _complete_parts(self, plan: _Plan, variant: str) -> list[EncodedPrompt]:
        """Return the encoded spans of a plan, drawing noise for what is not known."""
        parts: list[EncodedPrompt] = []
        while len(parts) < len(plan.spans):
            start = len(parts)
            known = plan.known[start]
            if known is not None:
                parts.append(known)
                continue
            end = start
            while end < len(plan.spans) and plan.known[end] is None:
                end += 1
            parts += await self._encode_missing(plan.spans[start:end], variant, plan.spans[:start])
        return parts

    def _check_redraws(self, drawn: Sequence[tuple[bytes, EncodedPrompt]], *, is_asked: bool) -> None:
        """Count drawings, and refuse one too many that a change of the bundle causes."""
        redraws = max((self._memory.count_redraws(name, part) for name, part in drawn if part.draws), default=0)
        if redraws:
            log.warning("a prompt got fresh noise %d times, because the server changed its bundle", redraws)
        if not is_asked:
            check_redraws(redraws, "The header X-Del-Noise: fresh")

    async def _encode_missing(self, spans: list[Span], variant: str, before: list[Span]) -> list[EncodedPrompt]:
        """Encode spans one by one; a begin-of-text token belongs to the first of a prompt."""
        encoded = await self._client.encode(spans, variant=variant, before=before)
        has_start_token = not before and (await self._client.bundle()).manifest.bos_token_id is not None
        start, segments = encoded.segments[:has_start_token], list(encoded.segments[has_start_token:])
        parts: list[EncodedPrompt] = []
        for index, span in enumerate(spans):
            # A span may have no tokens; then there are fewer segments than spans.
            has_tokens = len(segments) == len(spans) - len(parts) or await self._has_tokens(
                span, variant, [*before, *spans[:index]]
            )
            parts.append(replace(encoded, segments=(segments.pop(0),) if has_tokens else ()))
        parts[0] = replace(parts[0], segments=(*start, *parts[0].segments))
        return parts

    async def _has_tokens(self, span: Span, variant: str, before: list[Span]) -> bool:
        try:
            await self._client.encode([public(span.text)], variant=variant, before=before)
        except InvalidRequestError:
            return False
        return True


def _rendered(
    chat: Sequence[Message], choice: Sequence[int], template: ChatTemplate | None, tools: Tools
) -> list[Span]:
    return render([chat[index] for index in choice], template, tools)
