"""Tasks: how they are read, how a soft prompt learns one through a view, and how it is scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.privacy_utility.baselines import Finish, GaussianNoise
from benchmarks.privacy_utility.tasks import Example, Segment, Task, read_mrpc, read_sentence_polarity
from benchmarks.privacy_utility.understanding import Reader, TaskConfig, auc, auc_interval, batches, train_task
from benchmarks.privacy_utility.views import ClearPrompt, NoPrompt
from del_core.lm.model import BaseLM
from del_core.lm.noise import step_generator
from del_core.lm.text import TextError

_WORDS = ["?", "no", "yes", "so", *"abcdefghij"]


@pytest.fixture(scope="module")
def lm():
    """A small random model, whose outputs suffice for a soft prompt to tell words apart."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(_WORDS), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return BaseLM(model, b"{}", "checksum", None)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def _task(count: int = 160) -> Task:
    """Is there more of a than of b? In sentences of 1 to 6 words."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = ["ab"[1 - label], *rng.choice(list("cdef"), rng.integers(0, 6))]
        rng.shuffle(words)
        examples.append(Example((Segment(" ".join(words), True), Segment(" so", False)), label))
    third = count // 4
    return Task("a or b", ("no", "yes"), examples[2 * third :], examples[:third], examples[third : 2 * third])


_SHORT = TaskConfig(rows=8, steps=60, batch=8, learning_rate=0.1, evaluate_every=20)


def test_a_soft_prompt_learns_the_task_through_a_view(lm, tokenizer, tmp_path):
    scores = train_task(lm, tokenizer, ClearPrompt(lm.embeddings), _task(), tmp_path, _SHORT, progress=False)
    assert scores.soft_prompt.shape == (8, 48)
    assert scores.accuracy.success > 0.8 > _task().majority
    assert scores.auc.low <= scores.auc.value <= scores.auc.high
    assert scores.auc.value > 0.85
    assert scores.correct.mean() == scores.accuracy.success
    # Noise that hides the words leaves nothing to learn.
    hidden = GaussianNoise(lm.embeddings, 1e-3, Finish(3.0))
    blind = train_task(lm, tokenizer, hidden, _task(), tmp_path / "blind", _SHORT, progress=False)
    assert blind.auc.value < 0.75


def test_a_run_that_was_cut_off_ends_the_same(lm, tokenizer, tmp_path):
    noisy = GaussianNoise(lm.embeddings, 1.0, Finish(3.0))
    short = TaskConfig(rows=8, steps=4, batch=8, evaluate_every=2)
    once = train_task(lm, tokenizer, noisy, _task(), tmp_path / "a", short, progress=False)
    again = train_task(lm, tokenizer, noisy, _task(), tmp_path / "a", short, progress=False)
    assert torch.equal(once.soft_prompt, again.soft_prompt)
    assert np.array_equal(once.scores, again.scores)


def test_without_the_prompt_all_examples_are_alike(lm, tokenizer, tmp_path):
    view = NoPrompt(lm.embeddings, 0)
    scores = train_task(
        lm, tokenizer, view, _task(), tmp_path, TaskConfig(rows=8, steps=2, evaluate_every=2), progress=False
    )
    np.testing.assert_allclose(scores.scores, scores.scores[0], atol=1e-5)


def test_padding_and_company_change_nothing(lm, tokenizer):
    task = _task()
    reader = Reader(lm, tokenizer, ClearPrompt(lm.embeddings), task, TaskConfig(rows=8))
    rows, encoded = torch.randn(8, 48, generator=torch.Generator().manual_seed(0)), reader.encode(task.test)
    together = reader.log_odds(rows, task.test, encoded, step_generator(0, 0))
    for index in (0, 3, 11):
        one = reader.log_odds(rows, task.test[index : index + 1], encoded[index : index + 1], step_generator(0, 0))
        assert float(one[0]) == pytest.approx(float(together[index]), abs=1e-4)
        # The LM's own answer to the whole prompt as one text.
        ids = torch.cat(encoded[index])
        inputs = torch.cat([rows, lm.embeddings[ids]])[None]
        logits = lm.model(inputs_embeds=inputs).logits[0, -1]
        expected = float(logits[_WORDS.index("yes")] - logits[_WORDS.index("no")])
        assert float(one[0]) == pytest.approx(expected, abs=1e-4)


def test_verbalizers_have_to_differ(lm, tokenizer):
    task = Task("t", ("no", "no more"), _task().train, [], [])
    with pytest.raises(ValueError, match=r"verbalizers must begin with different tokens, got .*'no', 'no more'"):
        Reader(lm, tokenizer, ClearPrompt(lm.embeddings), task, TaskConfig())


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(pairs):
    scores, labels = (np.array(column, float) for column in zip(*pairs, strict=True))
    ones, zeros = scores[labels == 1], scores[labels == 0]
    if not len(ones) or not len(zeros):
        with pytest.raises(ValueError, match="labels must hold both labels"):
            auc(scores, labels)
        return
    difference = ones[:, None] - zeros[None]
    assert auc(scores, labels) == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)))


def test_auc_interval_holds_a_known_value():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 400)
    interval = auc_interval(rng.normal(0, 1, 800) + 1.0 * labels, labels)
    # Of two unit normals one apart the AUC is Phi(1/sqrt 2) = 0.760; the interval's half width is
    # about 0.033.
    assert interval.low < 0.760 < interval.high
    assert 0.04 < interval.high - interval.low < 0.09


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 300), batch=st.integers(1, 40), seed=st.integers(0, 99), step=st.integers(0, 200))
def testbatches_are_never_empty_and_a_function_of_the_step(count, batch, seed, step):
    lengths = np.random.default_rng(0).integers(1, 50, count)
    picks = batches(lengths, batch, seed, step)
    assert 1 <= len(picks) <= batch
    assert len(set(picks.tolist())) == len(picks)
    assert np.array_equal(picks, batches(lengths, batch, seed, step))


def test_mrpc_is_read_with_its_quotes_and_commas(tmp_path):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    rows = '1\t10\t11\t"The chief \t Mr So \t said "" yes "" ."\tMr So said so .\n0\t12\t13\tA , b\tC\n' + "".join(
        f"{i % 2}\t1\t2\tx{i}\ty{i}\n" for i in range(8)
    )
    (tmp_path / "train.tsv").write_text(header + rows)
    (tmp_path / "test.tsv").write_text(header + rows)
    task = read_mrpc(tmp_path / "train.tsv", tmp_path / "test.tsv", validation=3)
    assert (len(task.train), len(task.validation)) == (7, 3)
    first = task.test[0]
    assert [segment.text for segment in first.segments if segment.private] == [
        'The chief , Mr So , said " yes " .',
        " Mr So said so .",
    ]
    assert first.label == 1
    assert [segment.private for segment in first.segments] == [True, False, True, False]
    # Validation is cut from the training part; nothing is in both.
    assert not {e.segments for e in task.train} & {e.segments for e in task.validation}
    assert task.majority == 0.5


def test_bad_task_files_are_named(tmp_path):
    good, bad = tmp_path / "good.tsv", tmp_path / "bad.tsv"
    good.write_text("label\ttext\n1\tfine\n0\tdull\n")
    with pytest.raises(TextError, match=r"missing\.tsv: not found"):
        read_sentence_polarity(tmp_path / "missing.tsv", good)
    for text, row in (("label\ttext\n1\tfine\n2\tdull\n", 3), ("label\ttext\n1\n", 2), ("label\ttext\n1\ta\tb\n", 2)):
        bad.write_text(text)
        with pytest.raises(TextError, match=rf"bad\.tsv, row {row}: .*label 0 or 1"):
            read_sentence_polarity(good, bad)
