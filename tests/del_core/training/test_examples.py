"""Conversations as examples: their spans, their batches, and files that are refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from del_core.demo import model_path
from del_core.lm.model import load_base_lm
from del_core.lm.perplexity import IGNORED
from del_core.lm.text import TextError
from del_core.training.examples import Conversations


@pytest.fixture(scope="module")
def lm():
    return load_base_lm(model_path())


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


def _line(index):
    spans = [("Question: ", False), (f"who has {'many ' * (index % 5)}cats", True), ("\nAnswer:", False)]
    prompt = [{"text": text, "private": private} for text, private in spans]
    return {"prompt": prompt, "answer": f" the queen has {index} cats"}


@pytest.fixture(scope="module")
def conversations(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    path.write_text("\n".join(json.dumps(_line(index)) for index in range(40)) + "\n\n")
    return Conversations.read(path, tokenizer)


def test_parts_are_disjoint_and_the_common_start_is_public(conversations, tokenizer):
    assert [len(part) for part in (conversations.train, conversations.validation, conversations.test)] == [36, 2, 2]
    assert tokenizer.decode(list(conversations.head)) == "Question: "


def test_an_epoch_reads_every_conversation_once(conversations):
    read = [one.answer for step in range(9) for one in conversations.batch(step, 4, seed=0)]
    assert sorted(read) == sorted(one.answer for one in conversations.train)
    assert [one.answer for step in range(9, 18) for one in conversations.batch(step, 4, seed=0)] != read
    assert conversations.batch(3, 4, seed=0) == conversations.batch(3, 4, seed=0)


@torch.no_grad()
def test_a_batch_has_the_losses_of_its_conversations_alone(lm, conversations):
    """What is read for private tokens differs from their embeddings, so a wrong span would show."""
    layer = lm.model.get_input_embeddings()
    table = layer.weight.flip(1)
    soft_prompt = lm.embeddings[5:37]

    def losses(chosen):
        examples = conversations.examples(chosen, torch.device("cpu"))
        assert (examples.targets != IGNORED).sum().item() == sum(len(one.answer) for one in chosen)
        return examples.nll(lm.model, lambda pick: table[pick(examples.tokens)], soft_prompt)

    chosen = conversations.train[:6]
    together = losses(chosen)
    for one, loss in zip(chosen, together, strict=True):
        prompt = torch.tensor(one.prompt)
        rows = torch.where(torch.tensor(one.private)[:, None], table[prompt], layer(prompt))
        answer = torch.tensor(one.answer)
        inputs = torch.cat([soft_prompt, rows, layer(answer[:-1])])[None]
        logits = lm.model(inputs_embeds=inputs).logits[0, -len(answer) :]
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, answer), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(losses([one])[0], loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("not JSON", "be an object"),
        ('{"prompt": "text", "answer": "a"}', "be an object"),
        ('{"prompt": [{"text": "a"}], "answer": "a"}', "be an object"),
        ('{"prompt": [{"text": "a", "private": 1}], "answer": "a"}', "true or false"),
        ('{"prompt": [{"text": "a", "private": true}], "answer": 3}', "strings"),
        ('{"prompt": [{"text": "", "private": true}], "answer": "a"}', "at least one token"),
        ('{"prompt": [{"text": "a", "private": true}], "answer": ""}', "at least one token"),
    ],
)
def test_a_wrong_line_is_named_without_its_text(tmp_path, tokenizer, line, wanted):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(_line(1)) + "\n" + line)
    with pytest.raises(TextError, match=f"line 2 of .* {wanted}") as error:
        Conversations.read(path, tokenizer)
    assert "not JSON" not in str(error.value)


def test_a_missing_and_a_short_file_are_named(tmp_path, tokenizer):
    with pytest.raises(TextError, match="readable"):
        Conversations.read(tmp_path / "none.jsonl", tokenizer)
    path = tmp_path / "short.jsonl"
    path.write_text(json.dumps(_line(1)))
    with pytest.raises(TextError, match="at least 17 conversations, got 1"):
        Conversations.read(path, tokenizer)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_every_private_token_is_read_and_no_public_one(lm, flags, data):
    """Spans of any pattern: exactly the private places are replaced."""
    from del_core.training.examples import Conversation, Examples

    chosen = [Conversation(tuple(data.draw(st.integers(0, 4095)) for _ in row), tuple(row), (7, 8, 9)) for row in flags]
    examples: Examples = Conversations("", tuple(chosen), (), ()).examples(chosen, torch.device("cpu"))
    seen = torch.zeros_like(examples.private)

    def read(pick):
        seen_here = torch.zeros_like(examples.private)
        places = torch.arange(examples.private.numel()).view_as(examples.private)
        seen_here.view(-1)[pick(places).flatten()] = True
        seen.logical_or_(seen_here)
        return torch.zeros(*pick(examples.tokens).shape, lm.embeddings.shape[1])

    with torch.no_grad():
        examples.nll(lm.model, read, lm.embeddings[:0])
    assert torch.equal(seen, examples.private)


def test_a_separator_inside_a_string_ends_no_line(tmp_path, tokenizer):
    lines = [_line(index) for index in range(40)]
    lines[3]["answer"] = " one\u2028two\u0085three"
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert len(Conversations.read(path, tokenizer).train) == 36
    path.write_text("\n\n" + json.dumps(lines[0]) + "\nnothing\n", encoding="utf-8")
    with pytest.raises(TextError, match=r"line 4 of .* must be an object"):
        Conversations.read(path, tokenizer)
