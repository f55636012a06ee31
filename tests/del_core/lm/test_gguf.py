"""A GGUF file becomes a model directory with the same weights and the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from del_core.bundle import checksum_model
from del_core.lm.check import check_model
from del_core.lm.gguf import convert_gguf
from del_core.lm.model import ModelError, load_base_lm
from tests.support.gguf_file import HEADS, HIDDEN, VOCABULARY, write_gguf


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture(scope="module")
def converted(written: tuple[Path, dict[str, np.ndarray]]) -> Path:
    directory = written[0].parent / "model"
    convert_gguf(written[0], directory, dtype="float32")
    return directory


def test_the_weights_are_those_of_the_file(written: tuple[Path, dict[str, np.ndarray]], converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    state = model.state_dict()
    tensors = written[1]
    np.testing.assert_array_equal(state["model.embed_tokens.weight"].numpy(), tensors["token_embd.weight"])
    layer = "model.layers.0"
    np.testing.assert_array_equal(state[f"{layer}.mlp.down_proj.weight"].numpy(), tensors["blk.0.ffn_down.weight"])
    # The format pairs neighbouring columns for rotary embeddings, transformers halves of a head.
    q = tensors["blk.0.attn_q.weight"].reshape(HEADS, HIDDEN // HEADS // 2, 2, HIDDEN).swapaxes(1, 2)
    np.testing.assert_array_equal(state[f"{layer}.self_attn.q_proj.weight"].numpy(), q.reshape(HIDDEN, HIDDEN))


def test_the_directory_is_complete_and_loads(converted: Path) -> None:
    assert check_model(converted) == ()
    lm = load_base_lm(converted)
    assert tuple(lm.embeddings.shape) == (VOCABULARY, HIDDEN)
    assert lm.bos_token_id is None  # the tokenizer puts none in front
    assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == 2


def test_digits_are_tokens_of_their_own(converted: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert tokenizer.encode("the 42", add_special_tokens=False).tokens == ["the", "\u0120", "4", "2"]
    assert tokenizer.decode(tokenizer.encode("the 42, a").ids) == "the 42, a"


def test_a_second_conversion_has_the_same_checksum(
    written: tuple[Path, dict[str, np.ndarray]], converted: Path, tmp_path: Path
) -> None:
    convert_gguf(written[0], tmp_path / "again", dtype="float32")
    assert checksum_model(tmp_path / "again") == checksum_model(converted)
    assert "transformers_version" not in json.loads((converted / "config.json").read_text())


def test_bfloat16_rounds_and_halves(
    written: tuple[Path, dict[str, np.ndarray]], converted: Path, tmp_path: Path
) -> None:
    convert_gguf(written[0], tmp_path / "half")
    half, whole = (
        AutoModelForCausalLM.from_pretrained(place).get_input_embeddings().weight
        for place in (tmp_path / "half", converted)
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole.float(), rtol=2**-8, atol=0)


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_bytes(b"no such file")
    with pytest.raises(ModelError, match=r"file must be a GGUF file, got .*text\.gguf"):
        convert_gguf(tmp_path / "text.gguf", tmp_path / "out")
    write_gguf(tmp_path / "mamba.gguf", architecture="mamba")
    with pytest.raises(ModelError, match="architecture llama, got 'mamba'"):
        convert_gguf(tmp_path / "mamba.gguf", tmp_path / "out")
    write_gguf(tmp_path / "pre.gguf", pre="tekken")
    with pytest.raises(ModelError, match=r"pre-tokenizer must be one of .*, got 'tekken'"):
        convert_gguf(tmp_path / "pre.gguf", tmp_path / "out")
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, got 'int8'"):
        convert_gguf(tmp_path / "pre.gguf", tmp_path / "out", dtype="int8")
    (tmp_path / "there").mkdir()
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match="directory must not exist yet"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mamba.gguf", "pre.gguf", "text.gguf", "there", "tiny.gguf",
    ]  # fmt: skip
