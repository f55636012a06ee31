"""Distillation: the loss is the divergence from what the frozen LM expects of the clear prompt."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from del_core.lm.adapter import attached, new_shape
from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts
from del_core.training.config import VariantConfig
from del_core.training.examples import Examples
from del_core.training.sources import SilentSource, TextSource
from delctl.main import cli
from tests.support.texts import ALICE
from tests.support.tiny import make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("distillation"))


@pytest.fixture(scope="module")
def lm(tiny):
    return load_frozen_lm(tiny.model, read_texts([ALICE]))


def _examples(lm) -> Examples:
    windows = lm.windows(lm.train, 12, 3)
    return Examples.from_windows(windows[:, :8], windows[:, 8:], begin=lm.bos_token_id)


def _logits(lm, examples: Examples, first: torch.Tensor) -> torch.Tensor:
    """The model's log-probabilities at the last prompt token and on, by token ids."""
    ids = torch.cat([examples.head.expand(len(first), -1), first], dim=1)
    return lm.model(input_ids=ids).logits.float().log_softmax(dim=-1)[:, len(examples.head) + 7 :]


@torch.no_grad()
def test_the_loss_is_the_divergence_from_the_clear_prompt(lm):
    examples, layer, none = _examples(lm), lm.model.get_input_embeddings(), lm.embeddings[:0]
    distilled = Examples(
        examples.tokens, examples.private, examples.targets, examples.head, examples.expected(lm.model)
    )
    other = examples.tokens.roll(1, dims=0)  # what is read in place of the prompts
    found = distilled.loss(lm.model, lambda pick: layer(pick(other)), none)
    clear = _logits(lm, examples, examples.tokens)
    read = _logits(lm, examples, torch.cat([other[:, :8], examples.tokens[:, 8:]], dim=1))
    wanted = (clear.exp() * (clear - read)).sum(dim=-1).mean(dim=1)
    assert found.numpy() == pytest.approx(wanted.numpy(), rel=1e-3, abs=1e-5)
    assert (found > 0).all()
    same = distilled.loss(lm.model, lambda pick: layer(pick(examples.tokens)), none)
    assert same.numpy() == pytest.approx(0.0, abs=1e-5)
    assert torch.equal(
        examples.loss(lm.model, lambda pick: layer(pick(other)), none),
        examples.nll(lm.model, lambda pick: layer(pick(other)), none),
    )


def test_what_is_expected_is_that_of_the_model_without_its_adapter(lm):
    examples = _examples(lm)
    before = examples.expected(lm.model)
    with attached(lm.model, new_shape(lm.model, 2)) as adapter:
        for parameter in adapter.parameters().values():
            torch.nn.init.constant_(parameter, 0.1)
        assert not torch.allclose(examples.expected(lm.model), before, atol=1e-3)
        with adapter.disabled():
            assert torch.allclose(examples.expected(lm.model), before, atol=1e-6)
        assert not torch.allclose(examples.expected(lm.model), before, atol=1e-3)
        assert all(parameter.requires_grad for parameter in adapter.parameters().values())


def test_the_control_that_reads_nothing_learns_what_the_clear_prompt_leads_to(lm):
    config = VariantConfig(
        prompt_tokens=8,
        continuation_tokens=4,
        batch=2,
        steps=1,
        min_prompt_tokens=4,
        evaluation_windows=2,
        test_windows=2,
    )
    silent, text = SilentSource(lm, config), TextSource(lm, config)
    assert torch.equal(silent.clear(3).tokens, text.batch(3).tokens)
    columns = slice(-config.continuation_tokens, None)
    assert torch.equal(silent.batch(3).targets[:, columns], silent.clear(3).targets[:, columns])


@pytest.mark.parametrize("kind", ["codes", "control"])
def test_the_commands_distill(tiny, tmp_path, kind):
    own = {"codes": ("--name", "read", "--epsilon", 6, "--bits", 3), "control": ("--kind", "nothing")}[kind]
    sizes = ("--prompt-tokens", 16, "--continuation-tokens", 4, "--batch", 2, "--steps", 1, "--test-windows", 2)
    common = (*own, "--model", tiny.model, "--text", ALICE, *sizes, "--adapter-rank", 2, "--quiet")
    losses = {}
    for name, option in (("text", ()), ("distilled", ("--distillation",))):
        result = CliRunner().invoke(
            cli, [str(one) for one in ("train", kind, *common, *option, "--out", tmp_path / name)]
        )
        assert result.exit_code == 0, result.output
        (log,) = (tmp_path / name / "checkpoints").glob("*.jsonl")
        losses[name] = json.loads(log.read_text("utf-8").splitlines()[-1])["loss"]
        written = next(iter((tmp_path / name).glob("[vc][ao][rn]*.json"))).read_text("utf-8")
        assert ('"distillation": true' in written) == (name == "distilled")
    assert losses["text"] != losses["distilled"]
