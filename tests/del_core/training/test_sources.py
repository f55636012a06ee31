"""Sources of examples: text and conversations by turns, and the same behind no prompt."""

from __future__ import annotations

import json

import pytest
import torch

from del_core.lm.model import load_frozen_lm
from del_core.lm.perplexity import IGNORED
from del_core.lm.text import read_texts
from del_core.training.config import VariantConfig
from del_core.training.examples import Conversations
from del_core.training.sources import ChatSource, Distilled, MixedSource, TextSource, source_of
from tests.support.texts import ALICE
from tests.support.tiny import make_tiny

_SIZES = {"prompt_tokens": 12, "continuation_tokens": 4, "batch": 3, "steps": 1, "min_prompt_tokens": 4}
_CONFIG = VariantConfig(**_SIZES, evaluation_windows=2, test_windows=2, chat_share=0.25)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_frozen_lm(make_tiny(tmp_path_factory.mktemp("sources")).model, read_texts([ALICE]))


@pytest.fixture(scope="module")
def conversations(lm, tmp_path_factory):
    from tokenizers import Tokenizer

    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    spans = [("Ask: ", False), ("who has {} cats", True), (" and ", False), ("where{}", True), ("?", False)]
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "prompt": [{"text": text.format("many " * (n % 5)), "private": flag} for text, flag in spans],
                    "answer": f" the queen has {n} cats" + " or so" * (n % 3),
                }
            )
            for n in range(60)
        )
    )
    return Conversations.read(path, Tokenizer.from_str(lm.tokenizer_json.decode()))


def test_a_share_of_the_steps_learns_conversations_and_each_source_goes_step_by_step(lm, conversations):
    mixed = source_of(lm, _CONFIG, conversations)
    assert isinstance(mixed, MixedSource)
    text, chat = TextSource(lm, _CONFIG), ChatSource(conversations, _CONFIG, lm.embeddings.device)
    turns = {3: 0, 7: 1, 11: 2}  # a quarter of twelve steps
    for step in range(12):
        own = chat.batch(turns[step]) if step in turns else text.batch(step - sum(one < step for one in turns))
        assert torch.equal(mixed.batch(step).tokens, own.tokens)
        assert torch.equal(mixed.clear(step).targets, own.targets)
    assert [len(part) for part in mixed.validation] == [2, 2]
    assert torch.equal(mixed.test.tokens, text.test.tokens)


def test_one_source_is_that_source(lm, conversations):
    whole = VariantConfig(**_SIZES, evaluation_windows=2, test_windows=2)
    assert type(source_of(lm, whole, None)) is TextSource
    assert type(source_of(lm, whole, conversations)) is ChatSource


@pytest.mark.parametrize("step", [0, 3])
def test_nothing_private_is_read_and_the_same_is_learned(lm, conversations, step):
    """Rows lose private spans of different lengths, so what is expected must stay with its row."""
    silent = source_of(lm, _CONFIG, conversations, silent=True)
    own, clear = Distilled(silent, lm.model, None, _CONFIG).batch(step), silent.clear(step)
    judged, wanted = (one[one != IGNORED].tolist() for one in (own.targets, clear.targets))
    assert judged == wanted
    private = set(clear.tokens[clear.private].tolist()) - set(clear.tokens[~clear.private].tolist())
    assert private
    if step:  # of a window, all but the continuation is private, and may be repeated there
        assert not private & set(own.tokens.flatten().tolist())
    alone = [next(iter(clear.split(1)))] if len(clear) == 1 else list(clear.split(1))
    expected = torch.cat([one.expected(lm.model) for one in alone])
    assert own.wanted is not None
    assert torch.allclose(own.wanted, expected, atol=1e-4)
    parts = list(own.split(2))
    assert torch.equal(torch.cat([part.wanted for part in parts]), own.wanted)
    assert [len(part.wanted) for part in parts] == [int((part.targets != IGNORED).sum()) for part in parts]
