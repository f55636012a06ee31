"""The one way to build a prompt: rows of the embedding layer behind the begin-of-text row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from del_core.bundle import BaseModel
from del_core.evaluation.measure import passage_nll
from del_core.evaluation.view import ClearPrompt, NoPrompt, whole_prompt
from del_core.lm.families import FAMILIES, attention_for, row_scale
from del_core.lm.model import BaseLM, load_base_lm
from del_core.training.examples import Conversations, Examples
from deployments.engines.base import LookUp
from deployments.service.base_model import BaseModelError, EmbeddingTable
from tests.support.families import HIDDEN_SIZE, VOCABULARY_SIZE, make_model

SCALED = [name for name, family in FAMILIES.items() if family.row_scale is not None]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BaseLM]:
    """A tiny Gemma 2, whose tokenizer puts a begin-of-text token in front."""
    directory = make_model("gemma2", tmp_path_factory.mktemp("gemma2") / "model")
    return directory, load_base_lm(directory)


@pytest.mark.parametrize("model_type", [*SCALED, "granite", "llama"])
def test_rows_from_the_weights_are_those_of_the_embedding_layer(tmp_path: Path, model_type: str) -> None:
    lm = load_base_lm(make_model(model_type, tmp_path / "model"))
    ids = (0, 5, VOCABULARY_SIZE - 1)
    expected = lm.model.get_input_embeddings()(torch.tensor(ids)).detach()
    assert torch.equal(lm.embeddings[list(ids)], expected)
    table = EmbeddingTable.open(tmp_path / "model", BaseModel("m", lm.checksum, HIDDEN_SIZE, VOCABULARY_SIZE))
    np.testing.assert_array_equal(table.rows(ids), expected.numpy())
    weight = lm.model.get_input_embeddings().weight[list(ids)].detach()
    assert torch.equal(weight, expected) == (model_type not in SCALED)


def test_a_prompt_is_what_the_model_makes_of_its_ids(gemma: tuple[Path, BaseLM]) -> None:
    """Begin of text, scale and attention's cap: rows and ids give the same likelihood."""
    lm = gemma[1]
    tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
    text = "The patient was seen by the doctor because of a fever"
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=True).ids)
    assert int(ids[0]) == lm.bos_token_id
    found = passage_nll(lm, ClearPrompt(lm.embeddings), ids[None, 1:], prompt_tokens=6, seed=0)
    with torch.no_grad():
        log_probabilities = lm.model(input_ids=ids[None]).logits[0].log_softmax(-1)[6:-1]
    expected = -log_probabilities.gather(1, ids[7:, None]).mean()
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)
    examples = Examples.from_windows(ids[None, 1:7], ids[None, 7:], begin=lm.bos_token_id)
    trained = examples.nll(lm.model, lambda pick: lm.embeddings[pick(examples.tokens)], lm.embeddings[:0])
    assert float(trained[0]) == pytest.approx(float(expected), rel=1e-5)


def test_conversations_are_tokenized_as_the_client_sends_them(gemma: tuple[Path, BaseLM], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(gemma[1].tokenizer_json.decode())
    spans = [("<s>She said", False), (" that the sea", True), (" had seen", False)]
    line = {"prompt": [{"text": text, "private": private} for text, private in spans], "answer": " her"}
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps(line)] * 30), "utf-8")
    one = Conversations.read(tmp_path / "chat.jsonl", tokenizer).train[0]
    assert tokenizer.decode(one.prompt, skip_special_tokens=False) == "<s>She said that the sea had seen"
    assert one.private[0] is False
    assert tokenizer.decode([token for token, hidden in zip(one.prompt, one.private, strict=True) if hidden]) == (
        " that the sea"
    )


def test_what_stands_in_front_of_a_prompt(gemma: tuple[Path, BaseLM]) -> None:
    lm, tokens = gemma[1], torch.tensor([[5, 6]])
    view = ClearPrompt(lm.embeddings)
    view.soft_prompt = lm.embeddings[7:9]
    read = whole_prompt(lm, view, tokens, torch.Generator())
    assert torch.equal(read, lm.embeddings[torch.tensor([[7, 8, 0, 5, 6]])])
    nothing = whole_prompt(lm, NoPrompt(lm.embeddings, None), tokens, torch.Generator())
    assert torch.equal(nothing, lm.embeddings[torch.tensor([[0]])])


def test_attention_honors_the_cap(gemma: tuple[Path, BaseLM]) -> None:
    lm = gemma[1]
    assert lm.model.config._attn_implementation == "eager"
    assert attention_for({"attn_logit_softcapping": 50.0}) == "eager"
    assert attention_for({"attn_logit_softcapping": None}) is None
    assert attention_for({}) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("hidden", [64, 2048, 2304, 3584])
def test_the_scale_is_rounded_to_the_models_type(dtype: str, hidden: int) -> None:
    expected = torch.tensor(hidden**0.5).to(getattr(torch, dtype)).float()
    assert row_scale({"model_type": "gemma", "hidden_size": hidden}, dtype) == float(expected)


def test_an_engine_that_reads_other_rows_is_refused(gemma: tuple[Path, BaseLM]) -> None:
    directory, lm = gemma
    table = EmbeddingTable.open(directory, BaseModel("m", lm.checksum, HIDDEN_SIZE, VOCABULARY_SIZE))
    ids = (3, 0, 9)
    rows = table.rows(ids)
    assert table.matched(ids, LookUp(rows, "float32")).rows(ids).tolist() == rows.tolist()
    half = table.matched(ids, LookUp(torch.from_numpy(rows).bfloat16().float().numpy(), "bfloat16"))
    assert half.rows(ids).shape == rows.shape
    wrong = rows.copy()
    wrong[1] /= HIDDEN_SIZE**0.5
    with pytest.raises(BaseModelError, match="times 8, got other rows, first for the token id 0; models of this kind"):
        table.matched(ids, LookUp(wrong, "float32"))
    with pytest.raises(BaseModelError, match=r"got rows of shape \(3, 32\) for 3 token ids"):
        table.matched(ids, LookUp(rows[:, :32], "float32"))
