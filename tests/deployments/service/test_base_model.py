"""The base model's files: checksum, embedding rows, end-of-text ids, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from del_core.bundle import Adapter, Bundle
from del_core.bundle.manifest import AdapterShape
from deployments.service.base_model import (
    BaseModelError,
    EmbeddingTable,
    check_adapter,
    end_of_text_ids,
    verify_checksum,
)
from tests.support.tiny import EOS_ID, HIDDEN_SIZE, VOCABULARY_SIZE, Tiny

NAME = "model.embed_tokens.weight"


def test_rows_are_those_of_the_model(tiny: Tiny, table: EmbeddingTable) -> None:
    weight = load_file(tiny.model / "model.safetensors")[NAME].numpy()
    ids = (0, VOCABULARY_SIZE - 1, 7, 7)
    rows = table.rows(ids)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, weight[list(ids)])
    assert table.rows(()).shape == (0, HIDDEN_SIZE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_type_of_weights(tmp_path: Path, bundle: Bundle, dtype: torch.dtype) -> None:
    weight = torch.randn(VOCABULARY_SIZE, HIDDEN_SIZE).to(dtype)
    other = {"lm_head.weight": torch.zeros(3, 3), "model.layers.0.embed_tokens.weight_scale": torch.zeros(2)}
    save_file({NAME: weight, **other}, tmp_path / "model.safetensors")
    rows = EmbeddingTable.open(tmp_path, bundle.manifest.base_model).rows(range(VOCABULARY_SIZE))
    np.testing.assert_array_equal(rows, weight.float().numpy())


def test_padded_tables_and_shards(tmp_path: Path, bundle: Bundle) -> None:
    weight = torch.randn(VOCABULARY_SIZE + 64, HIDDEN_SIZE)
    save_file({"model.norm.weight": torch.zeros(4)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"transformer.wte.weight": weight}, tmp_path / "model-00002-of-00002.safetensors")
    rows = EmbeddingTable.open(tmp_path, bundle.manifest.base_model).rows((5,))
    np.testing.assert_array_equal(rows, weight[5:6].numpy())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"lm_head.weight": torch.zeros(VOCABULARY_SIZE, HIDDEN_SIZE)}, "exactly one tensor .*, got 0"),
        ({NAME: torch.zeros(VOCABULARY_SIZE - 1, HIDDEN_SIZE)}, "at least 320 rows of 64, got shape"),
        ({NAME: torch.zeros(VOCABULARY_SIZE, HIDDEN_SIZE + 1)}, "at least 320 rows of 64, got shape"),
        ({NAME: torch.zeros(VOCABULARY_SIZE, HIDDEN_SIZE, dtype=torch.int8)}, "F32 or F16 or BF16, got I8"),
        ({NAME: torch.zeros(320, 64), "wte.weight": torch.zeros(320, 64)}, "exactly one tensor .*, got 2"),
    ],
)
def test_other_tables_are_refused(
    tmp_path: Path, bundle: Bundle, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=reason):
        EmbeddingTable.open(tmp_path, bundle.manifest.base_model)


@pytest.mark.parametrize("size", [4, 100, 20_000])
def test_truncated_weights_are_refused(tiny: Tiny, tmp_path: Path, bundle: Bundle, size: int) -> None:
    data = (tiny.model / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:size])
    with pytest.raises(BaseModelError, match=r"truncated|must be a safetensors file"):
        EmbeddingTable.open(tmp_path, bundle.manifest.base_model)


def test_checksum(tiny: Tiny, tmp_path: Path, bundle: Bundle) -> None:
    expected = bundle.manifest.base_model
    verify_checksum(tiny.model, expected)
    copy = tmp_path / "copy"
    shutil.copytree(tiny.model, copy)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BaseModelError, match=expected.sha256):
        verify_checksum(copy, expected)
    with pytest.raises(BaseModelError, match="must be the directory of"):
        verify_checksum(tmp_path / "nothing", expected)
    with pytest.raises(BaseModelError):
        verify_checksum(tiny.model, replace(expected, sha256="0" * 64))


def test_end_of_text_ids(tiny: Tiny, tmp_path: Path) -> None:
    assert end_of_text_ids(tiny.model) == (EOS_ID,)
    assert end_of_text_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert end_of_text_ids(tmp_path) == (3,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert end_of_text_ids(tmp_path) == (4, 5)
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(BaseModelError, match="generation_config"):
        end_of_text_ids(tmp_path)


@pytest.mark.parametrize(
    ("layer", "shape", "said"),
    [
        ("model.layers.1.self_attn.q_proj", (2, HIDDEN_SIZE), None),
        ("model.layers.7.self_attn.q_proj", (2, HIDDEN_SIZE), "got no such layer"),
        ("model.layers.1.self_attn.q_proj", (2, HIDDEN_SIZE - 1), "got a layer of shape"),
    ],
)
def test_adapters_of_another_model_are_refused(
    tiny: Tiny, layer: str, shape: tuple[int, int], said: str | None
) -> None:
    tensors = {f"base_model.model.{layer}.lora_A.weight": np.zeros(shape, np.float32)}
    adapter = Adapter(AdapterShape(2, 4, ("q_proj",)), tensors)
    if said is None:
        check_adapter(tiny.model, "adapted", adapter)
    else:
        with pytest.raises(BaseModelError, match=f"must have the layer {layer} of the adapter adapted, {said}"):
            check_adapter(tiny.model, "adapted", adapter)
