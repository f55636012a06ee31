"""The chat template of a bundle (docs/reference/bundle-format.md, section "Chat").

A model's directory holds it in ``tokenizer_config.json`` or, beside that, ``chat_template.jinja``.
Nothing here renders it; :mod:`del_core.prompts.sandbox` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from del_core import _json as strict
from del_core.errors import BundleError

MAX_TEMPLATE_BYTES: Final = 64 * 1024
MAX_END_TOKENS: Final = 16
_MAX_TOKENS: Final = 16
_TOKEN_NAMES: Final = ("bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token")
_token_name: Final = partial(strict.text, pattern=re.compile(r"[a-z_]{1,32}"))
_token_text: Final = partial(strict.text, pattern=re.compile(r".{1,256}", re.DOTALL))


@dataclass(frozen=True)
class ChatFormat:
    """How a model reads a chat.

    Attributes:
        template: the Jinja source.
        tokens: texts of special tokens that the template may write, such as ``bos_token``.
        end_token_ids: the tokens that end an answer.
    """

    template: str = field(repr=False)
    tokens: Mapping[str, str] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the member ``chat`` of a manifest."""
        return {"template": self.template, "tokens": dict(self.tokens), "end_token_ids": list(self.end_token_ids)}

    @classmethod
    def from_json(cls, value: object, where: str, vocabulary_size: int) -> ChatFormat:
        """Return the chat format in a manifest. Raises JsonError."""
        found = strict.members(value, where, required=("template", "tokens", "end_token_ids"))
        template, tokens = found["template"], found["tokens"]
        if not isinstance(template, str) or not 1 <= len(template.encode("utf-8")) <= MAX_TEMPLATE_BYTES:
            raise strict.invalid(
                f"{where}.template", f"must be a string of 1 to {MAX_TEMPLATE_BYTES} bytes, got another value"
            )
        if not isinstance(tokens, dict) or len(tokens) > _MAX_TOKENS:
            raise strict.invalid(f"{where}.tokens", f"must be an object of at most {_MAX_TOKENS} members")
        texts = {
            _token_name(name, f"{where}.tokens"): _token_text(text, f"{where}.tokens.{name}")
            for name, text in tokens.items()
        }
        ids = strict.array(found["end_token_ids"], f"{where}.end_token_ids", least=0, most=MAX_END_TOKENS)
        ends = [strict.integer(one, f"{where}.end_token_ids", 0, vocabulary_size - 1) for one in ids]
        return cls(template, texts, tuple(ends))


def read_template(config_path: Path) -> tuple[str, dict[str, str]] | None:
    """Return the chat template of a ``tokenizer_config.json``, and the special tokens it names.

    None if there is no template. Of several the one called ``default`` counts. Raises OSError, or
    ValueError for a file of another form.
    """
    config = json.loads(config_path.read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError("it must be a JSON object")
    beside = config_path.parent / "chat_template.jinja"
    source = config.get("chat_template") or (beside.read_text("utf-8") if beside.exists() else None)
    if isinstance(source, list):  # several, by name
        source = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ValueError("its chat_template must be a string")
    named = {name: config.get(name) for name in _TOKEN_NAMES}
    texts = {name: one.get("content") if isinstance(one, dict) else one for name, one in named.items()}
    return source, {name: text for name, text in texts.items() if isinstance(text, str) and text}


def end_of_text_ids(directory: Path) -> tuple[int, ...]:
    """Return the end-of-text ids of generation_config.json, else of config.json, if any.

    Raises BundleError for a file that cannot be read.
    """
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            ids = json.loads(path.read_bytes()).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise BundleError(str(path), f"must be a JSON object, got {type(error).__name__}") from None
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def read_chat(directory: Path) -> ChatFormat | None:
    """Return the chat format of a model's directory, or None if it has no chat template.

    An answer ends at the model's end-of-text tokens and at the tokenizer's ``eos_token``, which is
    the end of a turn where a model has both. Raises BundleError for a file that cannot be read.
    """
    from tokenizers import Tokenizer  # not where clients and servers start

    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return None
    try:
        found = read_template(path)
        if found is None:
            return None
        source, tokens = found
        ends = dict.fromkeys(end_of_text_ids(directory))
        if "eos_token" in tokens:
            token_id = Tokenizer.from_file(str(directory / "tokenizer.json")).token_to_id(tokens["eos_token"])
            ends |= {} if token_id is None else {int(token_id): None}
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(str(path), f"must be readable, got {type(error).__name__}") from None
    return ChatFormat(source, tokens, tuple(ends)[:MAX_END_TOKENS])
