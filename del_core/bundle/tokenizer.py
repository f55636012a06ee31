"""The parts of tokenizer.json that a bundle may have (docs/reference/bundle-format.md, Tokenizer).

A client runs the tokenizer of a server that it does not trust. The file is a program: rules that
chain replacements expand a text without bound, a regular expression may take exponential time, a
splitter of length 0 ends the process, and a rule that turns digits into runs of tokens shows them
in the length of a prompt. Only parts whose output is at most a constant times their input, in
about linear time, are accepted; others are refused by name. Nothing here loads the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from del_core import _json as strict
from del_core.bundle.manifest import TOKENIZER
from del_core.errors import BundleError

MAX_TOKEN_CHARACTERS: Final = 512
"""Longest token; the longest of published vocabularies are runs of 128 spaces."""

_MAX_VALUES: Final = 1 << 22  # in the file; vocabularies of 256,000 tokens have half as many
_MAX_PARTS: Final = 16
_MAX_ADDED_TOKENS: Final = 1 << 16
_MAX_ID: Final = 2**31 - 1

_Check = Callable[[object, str], None]
_Kinds = Mapping[str, Mapping[str, _Check]]

# Regular expressions of published tokenizers. All are linear: whatever an alternative gives back,
# a later one takes as a whole.
_ELISIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES: Final = r"\s+(?!\S)|\s+"
_REST: Final = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BY_CASE: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}"
    rf"|{{1}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"
)
_DIGITS: Final = (r"\p{N}", r"\p{N}+", r"\p{N}{1,3}")


def _by_case(elisions: str, digits: str) -> str:
    return _BY_CASE.replace("{0}", elisions).replace("{1}", digits)


_SPLITS: Final = frozenset(
    {
        *_DIGITS,
        r"\d",
        r"[0-9]",
        r"[0-9][0-9][0-9]",
        r"\s+",
        r"[\r\n]",
        # GPT-2 and its followers
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
        rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
        # GPT-4, Llama 3, Qwen, MiniCPM
        *(rf"{_ELISIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_REST}" for digits in _DIGITS),
        rf"{_ELISIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
        rf"|\s*[\r\n]+|{_SPACES}",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
        rf"|{_SPACES}",
        # GPT-4o, Llama 4, Mistral's Tekken
        *(_by_case(elisions, digits) for elisions in ("", _ELISIONS + "?") for digits in _DIGITS),
        # DeepSeek V3
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # BLOOM, CLIP
        " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    }
)

# Replacements of published tokenizers: none makes a text longer, in characters.
_REPLACEMENTS: Final = frozenset(
    {
        ("String", " ", "▁"),
        ("String", "▁", " "),
        ("String", "``", '"'),
        ("String", "''", '"'),
        ("Regex", " {2,}", " "),
        ("Regex", " {2,}", "▁"),
        ("Regex", r"\s+", " "),
        ("Regex", r"\n", " "),
        ("Regex", r"[\n\r\t]", " "),
        ("Regex", r"\s{2,}|[\n\r\t]", " "),
    }
)


def check_tokenizer(data: bytes, name: str = TOKENIZER) -> None:
    """Raise BundleError unless a tokenizer.json has known parts only; errors call it ``name``."""
    try:
        value = _parse(data)
        if not isinstance(value, dict):
            raise strict.invalid("the file", f"must be a JSON object, got {strict.kind(value)}")
        for part, found in strict.members(value, "the file", optional=_TOP).items():
            _TOP[part](found, part)
    except strict.JsonError as error:
        raise BundleError(name, f"{error.field} {error.message}") from None


def _parse(data: bytes) -> object:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):  # the library may read another of the two
            raise strict.invalid("the file", "must have each member once, got one twice in an object")
        return result

    def constant(_: str) -> float:
        raise strict.invalid("the file", "must have finite numbers, got NaN or Infinity")

    values = sum(map(data.count, (b",", b"[", b"{")))
    if values > _MAX_VALUES:
        raise strict.invalid("the file", f"must have at most {_MAX_VALUES} values, got more")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except strict.JsonError:
        raise
    except (ValueError, RecursionError):
        pass
    raise strict.invalid("the file", "must be a JSON object in UTF-8, got something else")


# ------------------------------------------------------------------------------ values


def _flag(value: object, where: str) -> None:
    strict.boolean(value, where)


def _whole(value: object, where: str, *, low: int, high: int) -> None:
    strict.integer(value, where, low, high)


def _optional(value: object, where: str, *, check: _Check) -> None:
    if value is not None:
        check(value, where)


def _one_of(value: object, where: str, *, allowed: tuple[object, ...]) -> None:
    if not any(type(value) is type(one) and value == one for one in allowed):
        wanted = ", ".join(strict.shown(one) for one in allowed)
        raise strict.invalid(where, f"must be one of {wanted}, got {strict.shown(value)}")


def _string(value: object, where: str, *, least: int = 0, most: int = MAX_TOKEN_CHARACTERS) -> None:
    if not isinstance(value, str) or not least <= len(value) <= most:
        found = f"{len(value)} characters" if isinstance(value, str) else strict.shown(value)
        raise strict.invalid(where, f"must be a string of {least} to {most} characters, got {found}")


def _anything(_: object, __: str) -> None:
    """Accept a member that has no effect on the ids."""


def _parts(value: object, where: str, *, kinds: _Kinds) -> None:
    for index, item in enumerate(strict.array(value, where, least=0, most=_MAX_PARTS)):
        _part(item, f"{where}[{index}]", kinds=kinds)


def _part(value: object, where: str, *, kinds: _Kinds) -> None:
    """Check an object whose ``type`` names one of ``kinds``, with its members only."""
    if not isinstance(value, dict):
        raise strict.invalid(where, f"must be an object with a type, got {strict.kind(value)}")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise strict.invalid(f"{where}.type", f"must be one of {', '.join(kinds)}, got {strict.shown(kind)}")
    checks = kinds[kind]
    for name, item in value.items():
        if name == "type":
            continue
        if name not in checks:
            allowed = ", ".join(("type", *checks))
            raise strict.invalid(where, f"must have no members but {allowed}, got {strict.named(name)}")
        checks[name](item, f"{where}.{name}")


def _pattern(value: object) -> tuple[str, str] | None:
    """Return kind and text of a pattern, which the library writes as an object of one member."""
    if isinstance(value, dict) and len(value) == 1:
        ((kind, text),) = value.items()
        if kind in ("String", "Regex") and isinstance(text, str):
            return kind, text
    return None


def _split_pattern(value: object, where: str) -> None:
    found = _pattern(value)
    if found is None or not (found[1] in _SPLITS if found[0] == "Regex" else 1 <= len(found[1]) <= 16):
        wanted = "must be a string of 1 to 16 characters or a regular expression of a published tokenizer"
        raise strict.invalid(where, f"{wanted}, got {_shown_pattern(found, value)}")


def _shown_pattern(found: tuple[str, str] | None, value: object) -> str:
    return strict.shown(value if found is None else found[1])


def _replace(value: object, where: str) -> None:
    members = strict.members(value, where, required=("type", "pattern", "content"))
    found = _pattern(members["pattern"])
    content = members["content"]
    if found is None or not isinstance(content, str) or (*found, content) not in _REPLACEMENTS:
        pattern = _shown_pattern(found, members["pattern"])
        wanted = "must be a replacement of a published tokenizer, such as ' ' by '\\u2581'"
        raise strict.invalid(where, f"{wanted}, got {pattern} by {strict.shown(content)}")


def _normalizer(value: object, where: str, *, nested: bool = False) -> None:
    _with_replacements(value, where, nested, _NORMALIZERS, "normalizers")


def _decoder(value: object, where: str, *, nested: bool = False) -> None:
    _with_replacements(value, where, nested, _DECODERS, "decoders")


def _with_replacements(value: object, where: str, nested: bool, kinds: _Kinds, inner: str) -> None:
    """Check a part, or a sequence of parts. Replace depends on two members at once."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "Sequence" and not nested:
        members = strict.members(value, where, required=("type", inner))
        for index, item in enumerate(strict.array(members[inner], f"{where}.{inner}", least=0, most=_MAX_PARTS)):
            _with_replacements(item, f"{where}.{inner}[{index}]", True, kinds, inner)
    elif kind == "Replace":
        _replace(value, where)
    else:
        names = dict.fromkeys(("Replace",) if nested else ("Sequence", "Replace"), _NO_MEMBERS)
        _part(value, where, kinds={**kinds, **names})


# ------------------------------------------------------------------------------- parts

_NO_MEMBERS: Final[Mapping[str, _Check]] = {}
_CHARACTER: Final = partial(_string, least=1, most=1)
_BEHAVIOR: Final = partial(
    _one_of, allowed=("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
)
_BYTE_LEVEL: Final[Mapping[str, _Check]] = {"add_prefix_space": _flag, "trim_offsets": _flag, "use_regex": _flag}
_METASPACE: Final[Mapping[str, _Check]] = {
    "replacement": _CHARACTER,
    "str_rep": _CHARACTER,
    "add_prefix_space": _flag,
    "prepend_scheme": partial(_one_of, allowed=("first", "never", "always")),
    "split": _flag,
}

_NORMALIZERS: Final[_Kinds] = {
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents"), _NO_MEMBERS),
    "Strip": {"strip_left": _flag, "strip_right": _flag},
    "Prepend": {"prepend": partial(_one_of, allowed=("▁", " "))},
    "BertNormalizer": {
        "clean_text": _flag,
        "handle_chinese_chars": _flag,
        "strip_accents": partial(_optional, check=_flag),
        "lowercase": _flag,
    },
}

_PRE_TOKENIZERS: Final[_Kinds] = {
    **dict.fromkeys(("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts"), _NO_MEMBERS),
    "ByteLevel": _BYTE_LEVEL,
    "Metaspace": _METASPACE,
    "Digits": {"individual_digits": _flag},
    "Punctuation": {"behavior": _BEHAVIOR},
    "Split": {"pattern": _split_pattern, "behavior": _BEHAVIOR, "invert": _flag},
}
_WITH_SEQUENCE: Final[_Kinds] = {
    "Sequence": {"pretokenizers": partial(_parts, kinds=_PRE_TOKENIZERS)},
    **_PRE_TOKENIZERS,
}

_DECODERS: Final[_Kinds] = {
    **dict.fromkeys(("ByteFallback", "Fuse"), _NO_MEMBERS),
    "ByteLevel": _BYTE_LEVEL,
    "Metaspace": _METASPACE,
    "WordPiece": {"prefix": partial(_string, most=16), "cleanup": _flag},
    "BPEDecoder": {"suffix": partial(_string, most=16)},
    "Strip": {
        "content": _CHARACTER,
        "start": partial(_whole, low=0, high=16),
        "stop": partial(_whole, low=0, high=16),
    },
}


def _template(value: object, where: str, *, sequences: tuple[str, ...]) -> None:
    """Check that a template repeats no sequence, which would multiply the prompt."""
    free = list(sequences)
    for index, item in enumerate(strict.array(value, where, least=0, most=64)):
        place = f"{where}[{index}]"
        kind = next(iter(item), None) if isinstance(item, dict) and len(item) == 1 else None
        if kind not in ("Sequence", "SpecialToken"):
            raise strict.invalid(place, "must be an object with the member Sequence or SpecialToken, got another value")
        members = strict.members(item[kind], f"{place}.{kind}", required=("id", "type_id"))
        if kind == "Sequence":
            name = members["id"]
            if name not in free:
                raise strict.invalid(f"{place}.Sequence.id", f"must name each of {', '.join(sequences)} once at most")
            free.remove(name)


def _special_tokens(value: object, where: str) -> None:
    if not isinstance(value, dict) or len(value) > 64:
        raise strict.invalid(where, "must be an object of at most 64 members, got another value")
    for item in value.values():
        members = strict.members(item, f"{where}[]", required=("id", "ids", "tokens"))
        strict.array(members["ids"], f"{where}[].ids", least=1, most=16)
        strict.array(members["tokens"], f"{where}[].tokens", least=1, most=16)


_POST_PROCESSORS: Final[_Kinds] = {
    "ByteLevel": _BYTE_LEVEL,
    "TemplateProcessing": {
        "single": partial(_template, sequences=("A",)),
        "pair": partial(_template, sequences=("A", "B")),
        "special_tokens": _special_tokens,
    },
    "BertProcessing": {"sep": _anything, "cls": _anything},
    "RobertaProcessing": {"sep": _anything, "cls": _anything, "trim_offsets": _flag, "add_prefix_space": _flag},
}
_POST_WITH_SEQUENCE: Final[_Kinds] = {
    "Sequence": {"processors": partial(_parts, kinds=_POST_PROCESSORS)},
    **_POST_PROCESSORS,
}

# ------------------------------------------------------------------------------- models


def _vocab(value: object, where: str) -> None:
    if not isinstance(value, dict):
        raise strict.invalid(where, f"must be an object of token ids, got {strict.kind(value)}")
    if not value:
        return
    if max(map(len, value)) > MAX_TOKEN_CHARACTERS:
        raise strict.invalid(where, f"must have tokens of at most {MAX_TOKEN_CHARACTERS} characters, got a longer one")
    ids = value.values()
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > _MAX_ID:
        raise strict.invalid(where, f"must have token ids from 0 to {_MAX_ID}, got another value")


def _scored_vocab(value: object, where: str) -> None:
    for item in strict.array(value, where, least=1, most=_MAX_VALUES):
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)):
            raise strict.invalid(where, "must have pairs of a token and its score, got another value")
        token, score = item
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise strict.invalid(
                where, f"must have tokens of at most {MAX_TOKEN_CHARACTERS} characters, got a longer one"
            )
        if type(score) not in (int, float) or not math.isfinite(score) or abs(score) > 1e9:
            raise strict.invalid(where, "must have scores from -1e9 to 1e9, got another value")


def _merges(value: object, where: str) -> None:
    strict.array(value, where, least=0, most=_MAX_VALUES)


def _check_merges(model: Mapping[str, Any], where: str) -> None:
    """Refuse a merge of tokens that the vocabulary lacks, for which the library panics."""
    vocab = model.get("vocab", {})
    for index, merge in enumerate(model.get("merges", ())):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise strict.invalid(f"{where}.merges[{index}]", "must be a pair of tokens, got another value")
        left, right = parts
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise strict.invalid(f"{where}.merges[{index}]", "must join two tokens to one, all in vocab, got others")


_SHORT: Final = partial(_optional, check=partial(_string, most=16))
_TOKEN: Final = partial(_optional, check=_string)
_MODELS: Final[_Kinds] = {
    "BPE": {
        "vocab": _vocab,
        "merges": _merges,
        "dropout": partial(_one_of, allowed=(None, 0.0, 0)),  # ids must not depend on chance
        "unk_token": _TOKEN,
        "continuing_subword_prefix": partial(_one_of, allowed=(None, "")),  # a merge may be shorter
        "end_of_word_suffix": _SHORT,
        "fuse_unk": _flag,
        "byte_fallback": _flag,
        "ignore_merges": _flag,
    },
    "WordPiece": {
        "vocab": _vocab,
        "unk_token": _string,
        "continuing_subword_prefix": partial(_string, most=16),
        "max_input_chars_per_word": partial(_whole, low=1, high=100),  # a word takes cubic time
    },
    "WordLevel": {"vocab": _vocab, "unk_token": _string},
    "Unigram": {
        "vocab": _scored_vocab,
        "unk_id": partial(_optional, check=partial(_whole, low=0, high=_MAX_ID)),
        "byte_fallback": _flag,
    },
}


def _model(value: object, where: str) -> None:
    if isinstance(value, dict) and "type" not in value:  # files of before 2020: the library guesses so, too
        marks = {"merges": "BPE", "max_input_chars_per_word": "WordPiece", "unk_id": "Unigram"}
        value = {"type": next((kind for mark, kind in marks.items() if mark in value), "WordLevel"), **value}
    _part(value, where, kinds=_MODELS)
    if isinstance(value, dict) and value["type"] == "BPE":
        _check_merges(value, where)
    if isinstance(value, dict) and value["type"] in ("WordPiece", "WordLevel"):
        unknown, vocab = value.get("unk_token"), value.get("vocab")
        if not isinstance(vocab, dict) or unknown not in vocab:  # else a word may end in an error of the library
            raise strict.invalid(f"{where}.unk_token", f"must be in the vocabulary, got {strict.shown(unknown)}")


_ADDED_TOKEN: Final[Mapping[str, _Check]] = {
    "id": partial(_whole, low=0, high=_MAX_ID),
    "content": partial(_string, least=1),
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _flag),
}


def _added_tokens(value: object, where: str) -> None:
    for index, item in enumerate(strict.array(value, where, least=0, most=_MAX_ADDED_TOKENS)):
        place = f"{where}[{index}]"
        for name, found in strict.members(item, place, required=("id", "content"), optional=_ADDED_TOKEN).items():
            _ADDED_TOKEN[name](found, f"{place}.{name}")


_LENGTH: Final = partial(_whole, low=0, high=1 << 20)
_BATCHES: Final[Mapping[str, _Check]] = {
    "direction": partial(_one_of, allowed=("Left", "Right")),
    "max_length": _LENGTH,
    "stride": partial(_whole, low=0, high=0),  # one not below the length ends the process
    "strategy": _anything,
    "pad_to_multiple_of": partial(_optional, check=_LENGTH),
    "pad_id": partial(_whole, low=0, high=_MAX_ID),
    "pad_type_id": partial(_whole, low=0, high=_MAX_ID),
    "pad_token": _string,
}


def _batch(value: object, where: str) -> None:
    for name, found in strict.members(value, where, optional=_BATCHES).items():
        _BATCHES[name](found, f"{where}.{name}")


_TOP: Final[Mapping[str, _Check]] = {
    "version": _string,
    "truncation": partial(_optional, check=_batch),
    "padding": partial(_optional, check=_batch),
    "added_tokens": _added_tokens,
    "normalizer": partial(_optional, check=_normalizer),
    "pre_tokenizer": partial(_optional, check=partial(_part, kinds=_WITH_SEQUENCE)),
    "post_processor": partial(_optional, check=partial(_part, kinds=_POST_WITH_SEQUENCE)),
    "decoder": partial(_optional, check=_decoder),
    "model": _model,
}
