"""Conversion of a GGUF file to a Hugging Face model directory that training and vLLM read.

The weights are dequantized, so the directory computes the function of the GGUF file, not that of
the model that was quantized. Only models of the Llama architecture are accepted.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from del_core.lm.model import ModelError
from del_core.lm.progress import UNOBSERVED, Observer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""Types in which the weights may be stored."""

# GGUF readers know the tokenizer's model but not the pre-tokenizer, which the file only names.
# One builder for each name (`tokenizer.ggml.pre`) for which the default of the reader is not right.
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
_CONFIG = (
    "attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "intermediate_size",
    "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "pad_token_id", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "vocab_size",
)  # fmt: skip
_STEPS = 3
_DEFAULT_PRE = frozenset({"", "default", "gpt-2"})


def convert_gguf(file: Path, directory: Path, *, dtype: str = "bfloat16", observer: Observer = UNOBSERVED) -> None:
    """Convert ``file`` to the model directory ``directory``, which must not exist yet.

    The directory appears when it is complete. ``dtype`` is one of :data:`DTYPES`; bfloat16 rounds
    the dequantized weights to 8 bits of mantissa. ``observer`` hears of every
    step, and of the share of all that is done.

    Raises:
        ModelError: the file is not GGUF, of another architecture or of an unknown tokenizer, or the
            directory exists.
        ModuleNotFoundError: the package ``gguf`` is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if directory.exists():
        raise ModelError(f"directory must not exist yet, got {directory}")
    pre_tokenizer = _checked_pre_tokenizer(file)
    directory.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        _write_model(file, stage, DTYPES[dtype], observer)
        observer.step("writing the tokenizer", 2, _STEPS)
        _write_tokenizer(file, stage, pre_tokenizer)
        os.chmod(stage, 0o755)  # mkdtemp makes a directory that only its owner may read
        os.rename(stage, directory)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def _checked_pre_tokenizer(file: Path) -> pre_tokenizers.PreTokenizer | None:
    """Check the header of the file; return the pre-tokenizer that has to replace the reader's."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"file must be a GGUF file, got {file}")
    from gguf import GGUFReader

    def text(name: str) -> str:
        field = reader.get_field(name)
        return "" if field is None else str(field.contents())

    reader = GGUFReader(file)
    architecture, pre = text("general.architecture"), text("tokenizer.ggml.pre")
    if architecture != "llama":
        raise ModelError(f"file must hold a model of the architecture llama, got {architecture!r} in {file}")
    if reader.get_field("tokenizer.ggml.tokens") is None:
        raise ModelError(f"file must hold a tokenizer, got none in {file}")
    if pre in _PRE_TOKENIZERS:
        return _PRE_TOKENIZERS[pre]()
    if text("tokenizer.ggml.model") == "gpt2" and pre not in _DEFAULT_PRE:
        known = ", ".join(sorted(_PRE_TOKENIZERS | dict.fromkeys(_DEFAULT_PRE - {""})))
        raise ModelError(f"pre-tokenizer must be one of {known}, got {pre!r} in {file}")
    return None


def _write_model(file: Path, stage: Path, dtype: torch.dtype, observer: Observer) -> None:
    observer.step("reading the weights", 0, _STEPS)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model that was read from GGUF refuses to be saved; its weights in a fresh model do not.
    config = LlamaConfig(**{name: getattr(read.config, name) for name in _CONFIG})
    with torch.device("meta"):
        fresh = LlamaForCausalLM(config)
    fresh.load_state_dict(read.state_dict(), assign=True)
    fresh.tie_weights()
    observer.step("writing the weights", 1, _STEPS)
    fresh.to(dtype).save_pretrained(stage)
    (stage / "model.safetensors").chmod(0o644)
    # A bundle names its model by a checksum that covers config.json, so nothing in it may depend on
    # the release of transformers that happened to write it.
    saved = json.loads((stage / "config.json").read_text("utf-8"))
    values = {name: saved[name] for name in (*_CONFIG, "architectures", "dtype", "model_type")}
    (stage / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_tokenizer(file: Path, stage: Path, pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(stage)
    if pre_tokenizer is not None:
        made = Tokenizer.from_file(str(stage / "tokenizer.json"))
        made.pre_tokenizer = pre_tokenizer
        made.save(str(stage / "tokenizer.json"))
    settings = stage / "tokenizer_config.json"
    values = json.loads(settings.read_text("utf-8"))
    values.pop("gguf_file", None)
    settings.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
