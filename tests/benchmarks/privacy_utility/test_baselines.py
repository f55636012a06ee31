"""The methods that are compared: each does what it says, and its guesser is the best there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.privacy_utility.baselines import (
    METRICS,
    Finish,
    GaussianNoise,
    MetricNoise,
    TokenReplacement,
    best_of,
    calibrate_view,
    finishes,
    token_distances,
)
from benchmarks.privacy_utility.local_model import LocalModel, LocalRewriter
from benchmarks.privacy_utility.views import DELTA, ClearPrompt, DelView, NoPrompt
from del_core.evaluation.view import whole_prompt
from del_core.lm.model import BaseLM
from del_core.lm.noise import NoisyTable, step_generator
from del_core.mechanism import Mechanism

_V, _B, _D = 60, 16, 6


def _embeddings(seed: int = 0) -> torch.Tensor:
    return torch.randn(_V, _B, generator=torch.Generator().manual_seed(seed))


def _log_prior(seed: int = 0) -> np.ndarray:
    weights = np.random.default_rng(seed).pareto(1.5, _V) + 0.3
    return np.log(weights / weights.sum())


def _tokens(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).choice(_V, count, p=np.exp(_log_prior()))


def _del_view(ratio: float = 0.3) -> DelView:
    levels = torch.randint(-100, 101, (_V, _D), generator=torch.Generator().manual_seed(2), dtype=torch.int16)
    noisy = NoisyTable(levels, Mechanism(2, _D, Mechanism.nearest_ratio(ratio), max_level=100))
    weight = torch.randn(_B, _D, generator=torch.Generator().manual_seed(3))
    return DelView("DEL", noisy, lambda y: y @ weight.T, torch.ones(4, _B))


def _family(name: str):
    embeddings = _embeddings()
    if name == "gaussian":
        return lambda strength: GaussianNoise(embeddings, strength, Finish())
    if name == "metric":
        return lambda strength: MetricNoise(embeddings, strength, Finish())
    distances = token_distances(embeddings, name)
    return lambda strength: TokenReplacement(embeddings, distances, strength)


_FAMILIES = ["gaussian", "metric", *METRICS]


def _views():
    return [
        ClearPrompt(_embeddings()),
        NoPrompt(_embeddings(), 3),
        _del_view(),
        *(_family(name)(2.0) for name in _FAMILIES),
    ]


@pytest.mark.parametrize("view", _views(), ids=lambda view: view.name)
def test_every_view_gives_embeddings_drawn_from_the_generator_alone(view):
    tokens = torch.from_numpy(_tokens(30)).view(5, 6)
    first, again, other = (view.embed(tokens, step_generator(seed, 0)) for seed in (1, 1, 2))
    assert first.shape[0] == 5
    assert first.shape[2] == _B
    assert torch.equal(first, again)
    assert view.local_model is None
    noisy = view.bits_per_token and not isinstance(view, ClearPrompt)
    assert torch.equal(first, other) != bool(noisy)


def test_shapes_and_what_goes_over_the_wire():
    tokens = torch.from_numpy(_tokens(30)).view(5, 6)
    generator = torch.Generator()
    assert NoPrompt(_embeddings(), 3).embed(tokens, generator).tolist() == _embeddings()[3].expand(5, 1, -1).tolist()
    assert torch.equal(ClearPrompt(_embeddings()).embed(tokens, generator), _embeddings()[tokens])
    assert NoPrompt(_embeddings(), None).embed(tokens, generator).shape == (5, 0, _B)
    assert _del_view().embed(tokens, generator).shape == (5, 6, _B)
    behind = whole_prompt(_tiny_lm(0, 1), _del_view(), tokens, generator)
    assert behind.shape == (5, 4 + 6, _B)
    assert torch.equal(behind[:, :4], torch.ones(5, 4, _B))
    assert [view.bits_per_token for view in _views()] == [6.0, 0.0, 16.0, 16.0 * _B, 16.0 * _B, 6.0, 6.0]


def test_the_ends_of_the_scale_of_privacy():
    tokens, prior = _tokens(500), _log_prior()
    assert ClearPrompt(_embeddings()).attack(tokens, prior, 0).rate.success == 1.0
    nothing = NoPrompt(_embeddings(), 3).attack(tokens, prior, 0).rate
    assert nothing.success == np.mean(tokens == np.argmax(prior))
    assert nothing.low < nothing.success < nothing.high


@pytest.mark.parametrize("name", _FAMILIES)
def test_no_noise_gives_all_away_and_much_noise_only_the_prior(name):
    tokens, prior, family = _tokens(2000), _log_prior(), _family(name)
    assert family(1e4).attack(tokens, prior, 0).rate.success == 1.0
    floor = NoPrompt(_embeddings(), 3).attack(tokens, prior, 0).rate.success
    assert family(1e-6).attack(tokens, prior, 0).rate.success == pytest.approx(floor, abs=0.01)


def test_lengths_and_directions_of_the_noise():
    # Standard errors over 20,000 draws; six of them fail a right sampler less than once in 10^8.
    count, strength = 20_000, 2.0
    tokens = torch.zeros(count, dtype=torch.int64)
    for kind, mean, variance in (
        (GaussianNoise, None, None),
        (MetricNoise, _B / strength, _B / strength**2),
    ):
        view = kind(_embeddings(), strength, Finish())
        noise = (view.embed(tokens[None], torch.Generator().manual_seed(5)) - _embeddings()[0])[0].double()
        assert noise.mean(0).norm() < 6 * math.sqrt(noise.square().sum(1).mean() / count)
        if mean is None:
            assert float(noise.square().mean()) == pytest.approx(
                1 / strength**2, abs=6 * math.sqrt(2 / (count * _B)) / strength**2
            )
        else:
            lengths = noise.norm(dim=1)
            assert float(lengths.mean()) == pytest.approx(mean, abs=6 * math.sqrt(variance / count))
            # The fourth central moment of Gamma(b) is 3 b^2 + 6 b, so the variance's variance is (2
            # b^2 + 6 b)/count.
            error = math.sqrt((2 * _B**2 + 6 * _B) / count) / strength**2
            assert float(lengths.var()) == pytest.approx(variance, abs=6 * error)


def test_the_noise_guessers_use_the_density_that_the_noise_has():
    """The scores equal those computed token by token from the densities, on the same noise."""
    tokens, prior, strength = _tokens(300), _log_prior(), 1.3
    for kind, log_density in (
        (GaussianNoise, lambda r: -0.5 * strength**2 * r**2),
        (MetricNoise, lambda r: -strength * r),
    ):
        view, table = kind(_embeddings(), strength, Finish()), _embeddings().double()
        sent = view.embed(torch.from_numpy(tokens)[None], torch.Generator().manual_seed(7))[0].double()
        scores = torch.stack([log_density((sent - row).norm(dim=1)) for row in table], dim=1) + torch.as_tensor(prior)
        found = view.attack(tokens, prior, 7)
        assert found.rate.successes == int((scores.argmax(1).numpy() == tokens).sum())
        posterior = scores.log_softmax(1).numpy()[np.arange(len(tokens)), tokens]
        assert found.bits == pytest.approx(np.mean(posterior - prior[tokens]) / math.log(2), abs=1e-4)


def test_finishes():
    embeddings, tokens = _embeddings(), torch.from_numpy(_tokens(40)).view(4, 10)
    noisy = GaussianNoise(embeddings, 0.5, Finish()).embed(tokens, step_generator(1, 0))
    limited = GaussianNoise(embeddings, 0.5, Finish(2.0)).embed(tokens, step_generator(1, 0))
    assert limited.norm(dim=-1).max() <= 2.0 + 1e-4
    assert torch.allclose(torch.cosine_similarity(noisy, limited, dim=-1), torch.ones(4, 10), atol=1e-5)
    snapped = GaussianNoise(embeddings, 0.5, Finish(nearest=True)).embed(tokens, step_generator(1, 0))
    assert torch.equal(snapped, embeddings[torch.cdist(noisy, embeddings).argmin(-1)])
    # The best of a list by a loss that is known to have its least value at one of them.
    views = [GaussianNoise(embeddings, 0.5, finish) for finish in finishes(embeddings)]
    assert best_of(views, lambda view: abs(view.finish.limit - views[3].finish.limit)) is views[3]


@settings(max_examples=20, deadline=None)
@given(metric=st.sampled_from(METRICS), strength=st.floats(0.01, 30.0), seed=st.integers(0, 2**31))
def test_token_replacement_is_the_exponential_mechanism(metric, strength, seed):
    view = TokenReplacement(_embeddings(), token_distances(_embeddings(), metric), strength)
    distance = token_distances(_embeddings(), metric).double()
    assert torch.equal(distance.diagonal(), torch.zeros(_V, dtype=torch.float64))
    expected = torch.exp(-0.5 * strength * distance)
    expected /= expected.sum(1, keepdim=True)
    assert torch.allclose(view.log_channel.double().exp(), expected, atol=1e-6)
    # A guarantee of the definition: no replacement tells two tokens apart by more than epsilon.
    ratios = expected.log()[:, None] - expected.log()[None]
    assert view.epsilon() == pytest.approx(float(ratios.max()), rel=1e-4, abs=1e-4)
    drawn = view.replace(torch.randint(_V, (7, 9), generator=torch.Generator().manual_seed(seed)), torch.Generator())
    assert drawn.shape == (7, 9)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < _V


def test_replacements_have_the_channels_frequencies():
    view, count = _family("euclidean")(4.0), 40_000
    drawn = view.replace(torch.full((count,), 11), torch.Generator().manual_seed(3))
    share = torch.bincount(drawn, minlength=_V).double() / count
    p = view.log_channel[11].double().exp()
    # Six standard errors of each share, and two draws for the rarest: 60 shares fail less than once
    # in a million runs.
    assert bool(((share - p).abs() <= 6 * (p * (1 - p) / count).sqrt() + 2 / count).all())


def test_the_replacement_guesser_is_as_good_as_the_channel_allows():
    view, prior = _family("euclidean")(6.0), np.exp(_log_prior())
    # The Bayes success rate: over all that may be seen, the probability of the likeliest cause.
    best = float((view.log_channel.double().exp() * torch.as_tensor(prior)[:, None]).amax(0).sum())
    rate = view.attack(_tokens(40_000, seed=9), _log_prior(), 4).rate
    assert rate.success == pytest.approx(best, abs=6 * math.sqrt(best * (1 - best) / 40_000))


def test_bits_gained_are_the_channels_information():
    """Of the replacement, whose mutual information with the token is a finite sum."""
    view, prior, count = _family("euclidean")(6.0), np.exp(_log_prior()), 40_000
    channel = view.log_channel.double().exp().numpy()
    per_token = (channel * np.log2(channel / (prior @ channel))).sum(1)
    gained = view.attack(_tokens(count, seed=9), _log_prior(), 4).bits
    spread = float(prior @ (channel * np.log2(channel / (prior @ channel)) ** 2).sum(1)) ** 0.5
    assert gained == pytest.approx(float(prior @ per_token), abs=6 * spread / math.sqrt(count))


def test_bits_gained_lie_between_none_and_those_of_the_token():
    tokens, prior = _tokens(3000), _log_prior()
    clear, nothing = (
        view.attack(tokens, prior, 0).bits for view in (ClearPrompt(_embeddings()), NoPrompt(_embeddings(), 3))
    )
    assert nothing == 0.0
    assert clear == pytest.approx(float(-prior[tokens].mean() / math.log(2)))
    for name in _FAMILIES:
        family = _family(name)
        assert family(1e4).attack(tokens, prior, 0).bits == pytest.approx(clear, abs=1e-3)
        assert family(1e-6).attack(tokens, prior, 0).bits == pytest.approx(0.0, abs=1e-3)
    few, many = (_del_view(ratio).attack(tokens, prior, 0).bits for ratio in (0.05, 0.5))
    assert 0 < few < many < clear


@pytest.mark.parametrize("name", _FAMILIES)
@pytest.mark.parametrize("target", [0.4, 0.7])
def test_calibration_meets_the_target_on_other_text(name, target):
    prior = _log_prior()
    view = calibrate_view(_family(name), target, _tokens(20_000), prior)
    rate = view.attack(_tokens(20_000, seed=8), prior, 99).rate
    assert rate.success == pytest.approx(target, abs=0.02)  # 4 standard errors of the two samples together


def test_calibration_out_of_reach_says_what_can_be_reached():
    with pytest.raises(ValueError, match=r"target must be from 0\.\d+ to 1\.0000, got 0\.001"):
        calibrate_view(_family("metric"), 0.001, _tokens(2000), _log_prior())
    with pytest.raises(ValueError, match="metric must be one of euclidean, cosine, got 'manhattan'"):
        token_distances(_embeddings(), "manhattan")


def test_epsilons():
    """Of two tokens only, where all of them are known in closed form."""
    pair = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert MetricNoise(pair, 0.5, Finish()).epsilon() == pytest.approx(2.5)
    # Balle and Wang (2018): Phi(d/(2s) - eps s/d) - exp(eps) Phi(-d/(2s) - eps s/d) = delta, here
    # with d/s = 2.5.
    epsilon = GaussianNoise(pair, 0.5, Finish()).epsilon()

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    found = phi(1.25 - epsilon / 2.5) - math.exp(epsilon) * phi(-1.25 - epsilon / 2.5)
    assert found == pytest.approx(DELTA, rel=1e-6)
    replaced = TokenReplacement(pair, token_distances(pair, "euclidean"), 3.0)  # the mean of 0, 5, 5, 0 is 2.5
    assert replaced.epsilon() == pytest.approx(3.0 * 0.5 * 2.0, rel=1e-5)
    assert ClearPrompt(pair).epsilon() is None
    assert NoPrompt(pair, 0).epsilon() == 0.0
    assert 0.0 < _del_view(0.1).epsilon() < _del_view(0.5).epsilon()


@pytest.mark.parametrize("view", _views(), ids=lambda view: view.name)
def test_client_cost_is_measured(view):
    cost = view.client_cost(_tokens(8))
    free = isinstance(view, ClearPrompt | NoPrompt)
    assert (cost.seconds == 0.0) == (cost.megabytes == 0.0) == free


def _tiny_lm(seed: int, layers: int) -> BaseLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=_V, hidden_size=_B, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    return BaseLM(LlamaForCausalLM(config).eval().requires_grad_(False), b"{}", "checksum", None)


def test_a_local_rewriter_reads_the_servers_text_and_then_the_clear_prompt():
    server, local, replaced = _tiny_lm(0, 2), _tiny_lm(1, 1), _family("euclidean")(3.0)
    view = LocalRewriter(local, replaced, server, separator=0, written=5)
    tokens = torch.from_numpy(_tokens(12)).view(3, 4)
    read = view.embed(tokens, step_generator(1, 0))
    table = local.embeddings
    assert read.shape == (3, 5 + 1 + 4, _B)
    assert torch.equal(read[:, 5], table[0].expand(3, -1))
    assert torch.equal(read[:, 6:], table[tokens])
    # The server's part is what transformers' own greedy generation writes from the replaced prompt.
    embedded = replaced.embed(tokens, step_generator(1, 0))
    written = server.model.generate(
        inputs_embeds=embedded,
        attention_mask=torch.ones(embedded.shape[:2], dtype=torch.int64),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(read[:, :5], table[written])
    flat = _tokens(1000)
    assert view.attack(flat, _log_prior(), 3) == replaced.attack(flat, _log_prior(), 3)
    cost, alone = view.client_cost(_tokens(8)), LocalModel(local, written=5).client_cost(_tokens(8))
    weights = sum(p.numel() * 4 for p in local.model.parameters()) / 1e6
    assert cost.megabytes > alone.megabytes > weights
    assert cost.seconds > 0.0
