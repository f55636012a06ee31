"""Variants of codes: k-means, the torch twins, and a variant from text to service."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_arrays

from del_core.audit import settings as audit_settings
from del_core.audit.settings import AttackerBudget, AuditConfig, InverterConfig, ProvenConfig
from del_core.bundle import load_bundle
from del_core.lm.noise import step_generator
from del_core.mechanism import CategoricalMechanism
from del_core.training.codes import DecodeTable, NoisyCodes, quantize
from del_core.training.config import CodesConfig
from delctl.main import cli
from tests.support.statistics import ALPHA, chi_square_excess
from tests.support.texts import ALICE
from tests.support.tiny import make_tiny
from tests.support.toy_kinds_run import serve_one


def _config(**changes):
    return CodesConfig(**{"epsilon": 5.0, "bits": 3, "rows": 0, **changes})


@settings(max_examples=15)
@given(st.integers(2, 40), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2**31 - 1))
def test_codes_use_every_cluster_and_centers_are_means(count, bits, columns, seed):
    generator = np.random.default_rng(seed)
    embeddings = torch.from_numpy(generator.normal(size=(count, 5))).float()
    weights = torch.from_numpy(generator.exponential(size=count)).double()
    codes, centers = quantize(embeddings, weights, _config(bits=bits, columns=columns, seed=seed, iterations=10))
    assert codes.shape == (count, columns)
    assert centers.shape == (columns, 1 << bits, 5)
    used = len(codes[:, 0].unique())
    assert used == min(count, 1 << bits), "a code is empty although there are tokens enough"
    rest = embeddings - sum(centers[column][codes[:, column]] for column in range(columns))
    assert (
        float((weights[:, None] * rest.square()).sum()) <= float((weights[:, None] * embeddings.square()).sum()) + 1e-4
    )


def test_equal_tokens_share_a_code_and_far_ones_do_not():
    points = torch.eye(4).repeat_interleave(25, dim=0) * 10
    codes, _ = quantize(points, torch.ones(100), _config(bits=2))
    assert len(codes.unique()) == 4
    assert all(len(codes[start : start + 25].unique()) == 1 for start in range(0, 100, 25))


def test_the_twin_releases_codes_as_the_sampler_does():
    mechanism = CategoricalMechanism.from_epsilon(2.0, bits=2, dim=2)
    noisy = NoisyCodes(torch.tensor([[3, 0]]), mechanism)
    drawn = noisy.sample(torch.zeros(40_000, dtype=torch.int64), step_generator(0, 1))
    released = mechanism.sample(np.tile(np.array([[3, 0]]), (40_000, 1)))
    for column, own in enumerate((3, 0)):
        share = mechanism.noise_numerators[column] / 2**32 / 4
        chances = np.full(4, share)
        chances[own] += 1 - 4 * share
        for found in (drawn.numpy(), released):
            seen = np.bincount(found[:, column], minlength=4)
            assert chi_square_excess(seen, chances, ALPHA / 4) < 1.0


def test_the_decode_table_starts_at_the_posterior_mean():
    mechanism = CategoricalMechanism.from_epsilon(3.0, bits=2)
    codes, weights = torch.tensor([[0], [1], [1], [3]]), torch.tensor([0.5, 0.2, 0.2, 0.1]).double()
    centers = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [-1.0, 2.0]]])
    table = DecodeTable.posterior_mean(codes, centers, weights, mechanism).codes[0].detach().numpy()
    share = mechanism.noise_numerators[0] / 2**32
    for released in range(4):
        joint = [float(weights[v]) * ((1 - share) * (int(codes[v]) == released) + share / 4) for v in range(len(codes))]
        mean = sum(chance * centers[0, int(codes[v])].numpy() for v, chance in enumerate(joint)) / sum(joint)
        assert table[released] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epsilon": 0.0}, r"epsilon must be a number in \(0, inf\), got 0.0"),
        ({"epsilon": math.nan}, r"epsilon must be a number in \(0, inf\), got nan"),
        ({"bits": 9}, "bits must be an integer from 1 to 8, got 9"),
        ({"columns": 0}, "columns must be an integer from 1 to 16, got 0"),
    ],
)
def test_settings_that_are_not_right(change, said):
    with pytest.raises(ValueError, match=said):
        _config(**change)


# ------------------------------------------------------------- from the text to the service


def _run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception:
        raise AssertionError(result.output) from result.exception
    return result.output


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A random model, a binomial variant, a variant of codes and their bundle."""
    work = tmp_path_factory.mktemp("codes")
    model, text = make_tiny(work).model, work / "text.txt"
    text.write_text(ALICE.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    sizes = ("--prompt-tokens", 16, "--continuation-tokens", 4, "--batch", 4, "--quiet")
    source = ("--model", model, "--text", text)
    _run("train", "projection", *source, "--out", work / "stage1", "--dim", 16, "--steps", 2, *sizes)
    short = ("--test-windows", 16, "--evaluation-windows", 16, *sizes)
    _run(
        "train", "soft-prompt", *source, "--projection", work / "stage1", "--out", work / "counts",
        "--name", "counts", "--mu", 20, "--steps", 2, *short,
    )  # fmt: skip
    _run(
        "train", "codes", *source, "--out", work / "coded", "--name", "coded", "--epsilon", 6, "--bits", 4,
        "--columns", 2, "--steps", 30, *short,
    )  # fmt: skip
    adapter = ("train", "adapter", *source, "--rank", 2, "--steps", 4, *short)
    _run(*adapter, "--variant", work / "coded", "--out", work / "adapted")
    _run(*adapter, "--variant", work / "counts", "--projection", work / "stage1", "--out", work / "adapted-counts")
    _run(
        "bundle", "--model", model, "--projection", work / "stage1", "--variant", work / "adapted-counts",
        "--variant", work / "adapted", "--out", work / "both",
    )  # fmt: skip
    return work


def test_training_improves_on_its_start(work):
    found = json.loads((work / "coded" / "variant.json").read_text("utf-8"))
    assert found["mechanism"] == "categorical"
    assert found["epsilon"] <= 6.0
    assert found["ppl_soft_prompt"] < found["ppl_start"]
    assert found["entropy"] > 4.0, "the codes collapsed"


def test_an_adapter_goes_on_from_its_variant(work):
    for before, after in (("coded", "adapted"), ("counts", "adapted-counts")):
        old, new = (json.loads((work / one / "variant.json").read_text("utf-8")) for one in (before, after))
        assert "adapter_rank" not in old
        assert new["adapter_rank"] == 2
        assert new["held_out_loss"] <= old["held_out_loss"] + 1e-6, "the start was lost"
    bundle = load_bundle(work / "both")
    assert {name: variant.adapter.rank for name, variant in bundle.variants.items()} == {"counts": 2, "coded": 2}


@pytest.fixture(scope="module")
def mixed(work):
    """Two variants that begin as another one, controls alike, and the conversations they learn."""
    chat = work / "chat.jsonl"
    lines = (
        {
            "prompt": [{"text": "Ask: ", "private": False}, {"text": f"the {n} cats", "private": True}],
            "answer": f" {n}!",
        }
        for n in range(40)
    )
    chat.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    common = (
        "--model", work / "model", "--text", work / "text.txt", "--prompt-tokens", 16, "--continuation-tokens", 4,
        "--batch", 2, "--steps", 3, "--test-windows", 4, "--evaluation-windows", 4, "--chat", chat, "--chat-share", 0.5,
        "--distillation", "--adapter-rank", 1, "--start", work / "adapted", "--quiet",
    )  # fmt: skip
    codes = ("train", "codes", *common, "--columns", 2)
    _run(*codes, "--name", "alike", "--epsilon", 3, "--bits", 4, "--out", work / "alike")
    _run(*codes, "--name", "fewer", "--epsilon", 3, "--bits", 2, "--out", work / "fewer")
    for kind in ("clear", "nothing"):
        _run("train", "control", "--kind", kind, *common, "--out", work / f"control-{kind}")
    _run(
        "bundle", "--model", work / "model", "--projection", work / "stage1", "--variant", work / "alike",
        "--variant", work / "fewer", "--out", work / "levels",
    )  # fmt: skip
    return chat


def test_a_variant_begins_as_another_and_keeps_codes_that_are_formed_alike(work, mixed):
    begun, alike, fewer = (
        load_arrays(work / one / "codes.safetensors")["levels"] for one in ("adapted", "alike", "fewer")
    )
    assert np.array_equal(alike, begun)
    assert fewer.max() < 4 <= begun.max()
    written = json.loads((work / "fewer" / "variant.json").read_text("utf-8"))
    assert written["chat_share"] == 0.5
    assert written["chat_sha256"]
    assert {one.adapter.rank for one in load_bundle(work / "levels").variants.values()} == {1}


def test_a_start_of_another_length_and_a_share_of_nothing_are_named(work):
    base = (
        "train", "codes", "--model", work / "model", "--text", work / "text.txt", "--out", work / "no", "--name", "no",
        "--epsilon", 3, "--prompt-tokens", 16, "--continuation-tokens", 4,
    )  # fmt: skip
    for options, said in (
        (("--start", work / "adapted", "--rows", 64), "must be those of the run, 64, got 32"),
        (("--chat-share", 0.5), "--chat-share 0.5 needs --chat FILE"),
    ):
        result = CliRunner().invoke(cli, [str(argument) for argument in (*base, *options)])
        assert result.exit_code
        assert said in result.output + str(result.exception)


def test_variants_for_text_and_chat_are_judged_between_their_controls(work, mixed):
    options = ("--control", work / "control-clear", "--control", work / "control-nothing", "--quiet", "--json")
    found = json.loads(_run("evaluate", work / "levels", "--model", work / "model", "--chat", mixed, *options))
    methods = [row["method"] for row in found["rows"]]
    controls = ["clear prompt, trained alike", "no prompt, trained alike"]
    assert methods == ["clear prompt", "no prompt", *controls, "alike", "fewer"]
    rows = {row["method"]: row for row in found["rows"]}
    clear, nothing, own = (rows[name]["ppl"][0] for name in (*controls, "alike"))
    assert "gap_closed" not in rows[controls[0]]
    # Random models hardly differ, so the share may be far outside 0 to 1.
    assert rows["alike"]["gap_closed"][0] == pytest.approx((nothing - own) / (nothing - clear), rel=0.02, abs=0.02)
    assert rows["alike"]["gap_closed"][0] != rows["fewer"]["gap_closed"][0]


def test_an_adapter_needs_the_projection_of_counts_and_none_of_codes(work):
    base = ("train", "adapter", "--model", work / "model", "--text", work / "text.txt", "--out", work / "no")
    for options, said in (
        (("--variant", work / "counts"), "--projection must be given for a variant of counts"),
        (("--variant", work / "coded", "--projection", work / "stage1"), "--projection must not be given"),
    ):
        result = CliRunner().invoke(cli, [str(argument) for argument in (*base, *options)])
        assert result.exit_code == 2
        assert said in result.output


def test_a_bundle_holds_codes_beside_counts(work):
    bundle = load_bundle(work / "both")
    assert [bundle.mechanism(name).kind for name in bundle.variants] == ["binomial", "categorical"]
    variant = bundle.variants["coded"]
    assert (variant.table, variant.decoder, variant.guarantees.delta) == ("coded", "lookup", 0.0)
    assert bundle.mechanism("coded").worst_pair().largest_loss <= variant.guarantees.epsilon <= 6.0
    assert bundle.client.table_of("coded").shape == (320, 2)


def test_the_service_reads_the_rows_that_training_did(work):
    bundle = load_bundle(work / "both")
    released, rows = serve_one(bundle, work / "model", "coded")
    table = DecodeTable(torch.from_numpy(bundle.decoder("coded")["codes"]))
    assert np.array_equal(rows[-len(released) :], table(torch.from_numpy(released.astype(np.int64))).detach().numpy())


def test_codes_are_audited_and_evaluated(work, monkeypatch):
    other = work / "other.txt"
    other.write_text(ALICE.read_text(encoding="utf-8")[30_000:42_000], encoding="utf-8")
    quick = AuditConfig(
        prompts=4, length=16, tuning=2, leakage_samples=100,
        inverters=(InverterConfig(width=32, layers=1, steps=2, batch=4, evaluate_every=2),),
        proven=ProvenConfig(compose_vocabulary=False, tokens=64),
        attacker=AttackerBudget("small", training=0.002, search=0.002, beams=2, candidates=64),
    )  # fmt: skip
    monkeypatch.setattr(audit_settings, "QUICK", quick)
    held_out = (work / "both", "--model", work / "model", "--text", other)
    _run("audit", *held_out, "--out", work / "report", "--quick")
    report = json.loads((work / "report" / "audit.json").read_text("utf-8"))
    assert set(report["variants"]) == {"counts", "coded"}
    assert "nearest" not in json.dumps(report["variants"]["coded"]["attacks"])
    printed = _run(
        "evaluate", *held_out, "--passages", 2, "--written", 2, "--prompt-tokens", 16, "--continuation-tokens", 4,
        "--quiet",
    )  # fmt: skip
    assert "coded" in printed
