"""Distillation: the loss is the divergence from what the frozen LM expects of the clear prompt."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from del_core.lm.adapter import attached, new_shape
from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts
from del_core.training.config import VariantConfig
from del_core.training.examples import IGNORED, Examples
from del_core.training.sources import Distilled, SilentSource, TextSource
from delctl.main import cli
from tests.support.texts import ALICE
from tests.support.tiny import make_tiny

_CONFIG = VariantConfig(
    prompt_tokens=8,
    continuation_tokens=4,
    batch=2,
    steps=1,
    min_prompt_tokens=4,
    evaluation_windows=2,
    test_windows=2,
)


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


@torch.no_grad()
def test_inside_a_prompt_every_beginning_is_a_prompt(lm):
    examples, layer, none = _examples(lm), lm.model.get_input_embeddings(), lm.embeddings[:0]
    judged = examples.judging_prompts(0.25)
    assert torch.equal(judged.targets, torch.cat([examples.tokens[:, 1:], examples.targets[:, -1:]], dim=1))
    judged = Examples(
        judged.tokens, judged.private, judged.targets, judged.head, judged.expected(lm.model), judged.weights
    )
    other = examples.tokens.roll(1, dims=0)
    found = judged.loss(lm.model, lambda pick: layer(pick(other)), none)
    ids = torch.cat([other[:, :8], examples.tokens[:, 8:]], dim=1)
    clear, read = (
        lm.model(input_ids=torch.cat([examples.head.expand(len(one), -1), one], dim=1))
        .logits[:, len(examples.head) :]
        .float()
        .log_softmax(dim=-1)
        for one in (examples.tokens, ids)
    )
    each = (clear.exp() * (clear - read)).sum(dim=-1)
    weights = torch.tensor([0.25] * 7 + [1.0] * 4)
    assert found.numpy() == pytest.approx(((each * weights).sum(dim=1) / weights.sum()).numpy(), rel=1e-3, abs=1e-5)
    first = next(judged.split(1)).loss(lm.model, lambda pick: layer(pick(other[:1])), none)
    assert float(first) == pytest.approx(float(found[0]), rel=1e-4)


def test_a_control_without_a_prompt_has_nothing_to_learn_inside_it(lm):
    config = replace(_CONFIG, distillation=True, prompt_weight=0.5)
    silent = Distilled(SilentSource(lm, config), lm.model, None, config).batch(3)
    assert silent.weights is None
    assert int((silent.targets != IGNORED).sum()) == 2 * config.continuation_tokens
    text = Distilled(TextSource(lm, config), lm.model, None, config).batch(3)
    assert (text.targets != IGNORED).all()
    assert text.wanted is not None
    assert len(text.wanted) == text.targets.numel()


@torch.no_grad()
def test_a_share_of_the_text_makes_its_tokens_likelier(lm):
    config = replace(_CONFIG, distillation=True, text_share=0.25)
    source, layer, none = TextSource(lm, config), lm.model.get_input_embeddings(), lm.embeddings[:0]
    alone = Distilled(source, lm.model, None, replace(config, text_share=0.0)).batch(3)
    mixed = Distilled(source, lm.model, None, config).batch(3)
    hard = torch.nn.functional.one_hot(alone.targets[alone.targets != IGNORED], len(lm.embeddings))
    assert mixed.wanted.exp().numpy() == pytest.approx((0.75 * alone.wanted.exp() + 0.25 * hard).numpy(), abs=1e-6)
    # Up to a constant, the loss is 3/4 of the divergence and 1/4 of the text's.
    prompts = (alone.tokens, alone.tokens.roll(1, dims=0))
    losses = [
        [part.loss(lm.model, lambda pick, read=read: layer(pick(read)), none) for read in prompts]
        for part in (mixed, alone, replace(alone, wanted=None))
    ]
    mix, divergence, text = (one - other for one, other in losses)
    assert mix.numpy() == pytest.approx((0.75 * divergence + 0.25 * text).numpy(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["prompt_weight", "text_share"])
def test_settings_of_distillation_without_it_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} goes with distillation, got 0\.3 without it"):
        VariantConfig(steps=1, learning_rate=1e-3, **{name: 0.3})


def test_the_control_that_reads_nothing_learns_what_the_clear_prompt_leads_to(lm):
    config = _CONFIG
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
    options = {
        "text": (),
        "distilled": ("--distillation",),
        "inside": ("--distillation", "--prompt-weight", 0.3),
        "mixed": ("--distillation", "--text-share", 0.5),
    }
    for name, option in options.items():
        result = CliRunner().invoke(
            cli, [str(one) for one in ("train", kind, *common, *option, "--out", tmp_path / name)]
        )
        assert result.exit_code == 0, result.output
        (log,) = (tmp_path / name / "checkpoints").glob("*.jsonl")
        losses[name] = json.loads(log.read_text("utf-8").splitlines()[-1])["loss"]
        written = next(iter((tmp_path / name).glob("[vc][ao][rn]*.json"))).read_text("utf-8")
        assert ('"distillation": true' in written) == (name != "text")
        assert ('"prompt_weight": 0.3' in written) == (name == "inside")
        assert ('"text_share": 0.5' in written) == (name == "mixed")
    assert len({losses["text"], losses["distilled"], losses["mixed"]}) == 3
    assert (losses["inside"] == losses["distilled"]) == (kind == "control")
