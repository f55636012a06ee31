"""Check of a model directory before anything is loaded: one sentence for each problem.

It reads config.json, the tokenizer and the headers of the weight files, which takes milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from del_core.bundle.tensors import EMBEDDING_NAMES, read_header
from del_core.lm.families import FAMILIES


def check_model(directory: Path) -> tuple[str, ...]:
    """Return the problems that keep a directory from being trained for or served, as sentences."""
    if not directory.is_dir():
        return (f"{directory} is not a directory.",)
    config = _json(directory / "config.json")
    if isinstance(config, str):
        return (config,)
    problems = [*_config_problems(config), *_weight_problems(directory, config)]
    problems += _tokenizer_problems(directory, config)
    if (directory / "adapter_config.json").exists():
        problems.append(
            "adapter_config.json lies beside the weights: merge the adapter into the model or move it away, "
            "because the server would load the weights without it."
        )
    return tuple(problems)


def check_sizes(directory: Path, *, dim: int | None = None, **tokens: int) -> None:
    """Raise ValueError unless a model has room for a text and for a projection.

    ``tokens`` are the parts of the longest text by name; together they must not exceed the model's
    positions. ``dim`` must not exceed the hidden size. What config.json does not say is not
    checked, and a model without such a file is left to :func:`check_model`.
    """
    config = _json(directory / "config.json")
    if isinstance(config, str):
        return
    hidden = _first_integer(config, "hidden_size", "n_embd")
    if dim is not None and hidden is not None and dim > hidden:
        raise ValueError(f"dim must be at most {hidden}, the hidden size of {directory}, got {dim}")
    parts = {name: count for name, count in tokens.items() if count}
    positions = _first_integer(config, "max_position_embeddings", "n_positions")
    if positions is not None and sum(parts.values()) > positions:
        raise ValueError(
            f"{' + '.join(parts)} must be at most {positions}, the positions of {directory}, "
            f"got {' + '.join(map(str, parts.values()))}"
        )


def _first_integer(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _config_problems(config: Mapping[str, Any]) -> list[str]:
    model_type = config.get("model_type")
    if "vision_config" in config or "audio_config" in config:
        return [f"The model ({model_type}) reads images or audio; only text models are supported."]
    if FAMILIES.get(str(model_type)) is None:
        return [f"The family of the model ({model_type}) is not supported; supported are {', '.join(FAMILIES)}."]
    width, hidden = config.get("word_embed_proj_dim"), config.get("hidden_size")
    if width is not None and width != hidden:
        return [
            f"The embeddings have {width} columns and the layers {hidden} (word_embed_proj_dim); "
            "vLLM takes prompts as embeddings only where both are equal."
        ]
    if config.get("quantization_config"):
        return ["The weights are quantized (quantization_config); give the directory of the unquantized model."]
    return []


def _weight_problems(directory: Path, config: Mapping[str, Any]) -> list[str]:
    present = {path.name for path in directory.glob("*.safetensors")}
    if not present:
        return ["The directory has no *.safetensors file; convert the weights to safetensors first."]
    problems = []
    index_path = directory / "model.safetensors.index.json"
    named = present
    if index_path.exists():
        index = _json(index_path)
        if isinstance(index, str):
            return [index]
        named = set(map(str, index.get("weight_map", {}).values()))
        problems += [
            f"{name} is named in model.safetensors.index.json and is missing." for name in sorted(named - present)
        ]
    elif "model.safetensors" in present:
        named = {"model.safetensors"}
    problems += [
        f"{name} does not belong to the model (its index does not name it); move it away, because the server and the "
        "model's checksum would read it."
        for name in sorted(present - named)
    ]
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(named & present):
        found = _shapes(directory / name)
        if isinstance(found, str):
            problems.append(found)
        else:
            shapes |= found
    tables = [name for name in shapes if name.endswith(EMBEDDING_NAMES) and len(shapes[name]) == 2]
    if problems:
        return problems
    if not tables:
        tied = [name for name in shapes if name.endswith("lm_head.weight")]
        found = f"only the output table {tied[0]}" if tied else "none"
        primary = EMBEDDING_NAMES[0]
        return [f"The weights must hold one input embedding table (a tensor named ...{primary}), got {found}."]
    if len(tables) > 1:
        return [f"The weights must hold one input embedding table, got {', '.join(sorted(tables))}."]
    rows = shapes[tables[0]][0]
    vocabulary = config.get("vocab_size")
    if isinstance(vocabulary, int) and rows < vocabulary:
        return [f"{tables[0]} has {rows} rows and config.json names {vocabulary} tokens (vocab_size)."]
    return []


def _tokenizer_problems(directory: Path, config: Mapping[str, Any]) -> list[str]:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return ["tokenizer.json is missing; save the fast tokenizer of the model into the directory."]
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        return [f"tokenizer.json cannot be read ({type(error).__name__})."]
    vocabulary = config.get("vocab_size")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        return [
            f"The tokenizer knows the id {largest} and the model has {vocabulary} rows of embeddings (vocab_size); "
            "the tokenizer belongs to another model."
        ]
    return []


def _json(path: Path) -> dict[str, Any] | str:
    """Return the object in a file, or the sentence that says why there is none."""
    if not path.is_file():
        return f"{path.name} is missing; a directory of a Hugging Face causal language model is needed."
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return f"{path.name} is not JSON."
    return value if isinstance(value, dict) else f"{path.name} is not a JSON object."


def _shapes(path: Path) -> dict[str, tuple[int, ...]] | str:
    """Return the shapes in a safetensors file, or the sentence that says what is wrong with it."""
    try:
        with path.open("rb") as file:
            header, start = read_header(file)
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError):
        return f"{path.name} is not a safetensors file, or it is truncated."
    size = path.stat().st_size
    return shapes if size >= end else f"{path.name} is truncated: its header promises {end} bytes, got {size}."
