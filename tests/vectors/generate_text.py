"""Vectors for clients: tokenizer.json and the events of a stream. generate.py writes them."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from del_core.prompts import SpanTokenizer

__all__ = ["streams", "tokenizer"]

TEXTS = (
    "",
    "the cat and the hat",
    " the  the   the\t\tthe \n\n the",
    "It's John's; they'll've 'd 't 'S don\u2019t",
    "12345 1.5e-3 x86_64 \u0663\u0664 \u00bd\u2167",
    "Gr\u00f6\u00dfe na\u00efvet\u00e9 \u65e5\u672c\u8a9e \U0001f642\U0001f643 e\u0301 \ufb01",
    "a\u00a0b\u0085c\ufeffd\u200be\u2028f\u3000g\u180eh",
    "nul \u0000 bell \u0007 delete \u007f",
    "thethethe hehehehe ththth  ",
    "<s>the<s>", "x<s>the</s>", "<|end|>the<|end|>of<|end", "<s", "the<<s>>",
    "trailing   ", "\r\n\r\n", "...!?!  ...\u00bf",
)  # fmt: skip

# Prompts as spans: text, and whether it is public.
PROMPTS = (
    (("the cat", True), (" and", True), ("the hat", False)),
    (("<s>", True), ("the cat", False), ("the hat</s>", True), ("the<s>the", True)),
    (("x</s>", False), ("the<|end|>", True), ("the", True), ("", True), ("the", True)),
)


def _spans(tokenizer: SpanTokenizer, spans: tuple[tuple[str, bool], ...]) -> list[dict[str, Any]]:
    """Return the spans of a prompt with their ids."""
    found = tokenizer.encode_spans((text, not public) for text, public in spans)
    return [{"text": text, "public": public, "ids": ids} for (text, public), ids in zip(spans, found, strict=True)]


def tokenizer() -> list[dict[str, Any]]:
    """Byte-level BPE: texts and what the tokenizers library makes of them."""
    symbols = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    symbols += [chr(256 + place) for place in range(256 - len(symbols))]
    merges = [
        ("h", "e"), ("t", "h"), ("th", "e"), ("\u0120", "the"), ("\u0120", "\u0120"), ("a", "n"), ("an", "d"),
        ("\u0120", "and"), ("a", "t"), ("c", "at"), ("t", "he"), ("\u0120", "c"), ("\u0120c", "at"), ("h", "at"),
        ("1", "2"), ("12", "3"), ("'", "s"), ("\u00c3", "\u00b6"), ("\u010a", "\u010a"), ("the", "the"), ("!", "?"),
    ]  # fmt: skip
    words = [left + right for left, right in merges]
    added = [("<s>", False), ("</s>", False), ("<|end|>", True)]
    vocabulary = dict.fromkeys([*(content for content, _ in added), *symbols, *words])
    ids = {token: place for place, token in enumerate(vocabulary)}
    cases = []
    for name, prefix, regex, ignore in (
        ("plain", False, True, False), ("prefix-space", True, True, False), ("no-regex", False, False, False),
        ("ignore-merges", False, True, True), ("digits", False, True, False), ("digits-together", False, True, False),
    ):  # fmt: skip
        # With merges ignored, whole words of the vocabulary need no merges that lead there.
        extra = {"\u0120hat": len(ids), "Gr": len(ids) + 1} if ignore else {}
        value = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": ids[content],
                    "content": content,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": normalized,
                    "special": not normalized,
                }
                for content, normalized in added
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": prefix,
                "trim_offsets": True,
                "use_regex": regex,
            },
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": ignore,
                "vocab": {**ids, **extra},
                "merges": [list(pair) for pair in merges],
            },
        }
        if name.startswith("digits"):
            digits = {"type": "Digits", "individual_digits": name == "digits"}
            value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, value["pre_tokenizer"]]}
        library = Tokenizer.from_str(json.dumps(value))
        texts = [{"text": text, "ids": library.encode(text, add_special_tokens=False).ids} for text in TEXTS]
        prompts = [{"spans": _spans(SpanTokenizer(json.dumps(value).encode()), spans)} for spans in PROMPTS]
        cases.append({"name": name, "tokenizer": value, "texts": texts, "prompts": prompts})
    return cases


def streams() -> list[dict[str, Any]]:
    """Return event-stream bodies for max_tokens 8 and the result of a client."""
    cases: list[dict[str, Any]] = []

    def event(text: str, ids: list[int], reason: str | None = None, **more: object) -> str:
        choice = {"index": 0, "text": text, "token_ids": ids, "logprobs": None, "finish_reason": reason}
        return json.dumps({"id": "cmpl-1", "object": "text_completion", "choices": [choice], **more})

    def add(name: str, body: str, text: str, ids: list[int], reason: str | None, error: str | None = None) -> None:
        after = {"text": text, "token_ids": ids, "finish_reason": reason, "error": error}
        cases.append({"name": name, "body": body.encode().hex(), **after})

    usage = {"usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}}
    first, last = event(" the", [5, 6]), event(" \u00e9\U0001f642", [7], "length", **usage)
    whole = (" the \u00e9\U0001f642", [5, 6, 7], "length")
    done = "data: [DONE]\n\n"
    add("whole", f"data: {first}\n\ndata: {last}\n\n{done}", *whole)
    add("comments", f": hello\n\n:\ndata: {first}\n:: x\n\n: still here\n\ndata: {last}\n\n{done}", *whole)
    add("carriage-returns", f"data: {first}\r\rdata: {last}\r\r".replace("\n", "\r") + "data: [DONE]\r\r", *whole)
    add("both-line-ends", f"data: {first}\r\n\r\ndata: {last}\r\n\r\ndata: [DONE]\r\n\r\n", *whole)
    add("no-space-after-the-colon", f"data:{first}\n\ndata:{last}\n\ndata:[DONE]\n\n", *whole)
    add("other-fields", f"event: x\nid: 1\ndata: {first}\nretry: 5\n\ndata: {last}\n\n{done}", *whole)
    half = json.dumps(json.loads(first), indent=1).replace("\n", "\ndata: ")
    add("data-over-several-lines", f"data: {half}\n\ndata: {last}\n\n{done}", *whole)
    add("byte-order-mark", f"\ufeffdata: {first}\n\ndata: {last}\n\n{done}", *whole)
    late = event(" the", [])
    add("text-after-its-tokens", f"data: {event('', [5, 6])}\n\ndata: {late}\n\ndata: {last}\n\n{done}", *whole)
    add("unknown-members", f"data: {event(' the', [5, 6], new={'a': [1]})}\n\ndata: {last}\n\n{done}", *whole)
    add("stopped-at-once", f"data: {event('', [2], 'stop')}\n\n{done}", "", [2], "stop")
    add("cut-after-an-event", f"data: {first}\n\n", " the", [5, 6], None)
    add("cut-within-an-event", f"data: {first}\n\ndata: {last[:40]}", " the", [5, 6], None)
    add("cut-before-the-empty-line", f"data: {first}\n\ndata: {last}\n", " the", [5, 6], None)
    add("nothing", "", "", [], None)
    failure = json.dumps(
        {"error": {"message": "gone", "type": "server_error", "param": None, "code": "internal_error"}}
    )
    add("error", f"data: {first}\n\ndata: {failure}\n\n", " the", [5, 6], None, "internal_error")
    return cases
