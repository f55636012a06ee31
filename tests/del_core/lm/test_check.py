"""What is wrong with a model directory is said in a sentence, before a framework is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from del_core import demo
from del_core.lm.check import check_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped model."""
    return Path(shutil.copytree(demo.model_path(), tmp_path / "model"))


def edit(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def only(directory: Path) -> str:
    (problem,) = check_model(directory)
    assert problem.endswith(".")
    return problem


def test_the_shipped_model_has_no_problem(model: Path) -> None:
    assert check_model(model) == ()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "is not a directory" in only(tmp_path / "none")
    assert "config.json is missing" in only(tmp_path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "mamba"}, "family of the model (mamba) is not supported"),
        ({"model_type": "qwen3_vl", "vision_config": {}}, "images or audio"),
        ({"model_type": "opt", "word_embed_proj_dim": 32, "hidden_size": 64}, "32 columns and the layers 64"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ({"vocab_size": 10**7}, "rows and config.json names 10000000 tokens"),
        ({"vocab_size": 7}, "and the model has 7 rows"),
    ],
)
def test_a_configuration_that_cannot_work(model: Path, values: dict[str, Any], says: str) -> None:
    edit(model, **values)
    assert says in only(model)


def test_weights_beside_the_models_own(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert only(model).startswith("consolidated.safetensors does not belong to the model")


def test_the_index_decides_which_shards_belong(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, model / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert only(model).startswith("model.safetensors does not belong")
    (model / "model.safetensors").unlink()
    assert check_model(model) == ()
    (model / "model-2.safetensors").unlink()
    assert "model-2.safetensors is named in model.safetensors.index.json and is missing." in check_model(model)


def test_tied_weights_that_are_stored_as_the_output_table(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (table,) = [name for name in tensors if name.endswith("embed_tokens.weight")]
    tensors["lm_head.weight"] = tensors.pop(table)
    save_file(tensors, model / "model.safetensors")
    assert "only the output table lm_head.weight" in only(model)


def test_a_truncated_file_and_one_of_another_format(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-1])
    assert f"promises {len(whole)} bytes, got {len(whole) - 1}" in only(model)
    (model / "model.safetensors").write_bytes(b"PK" + bytes(np.zeros(30, np.uint8)))
    assert "is not a safetensors file" in only(model)


def test_an_adapter_beside_the_weights(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert "merge the adapter" in only(model)


def test_a_tokenizer_that_is_missing_or_broken(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be read" in only(model)
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in only(model)
