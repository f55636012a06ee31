"""From text to a bundle through the command line, at a size that takes seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from del_core.accounting import epsilon
from del_core.bundle import load_bundle
from del_core.lm.model import ModelError
from delctl import main
from delctl.commands.bundle import bundle as bundle_command
from delctl.commands.evaluate import evaluate as evaluate_command
from delctl.commands.train import train

_TEXT = Path(__file__).resolve().parents[2] / "data" / "alice.txt"
_SIZES = ("--vocabulary", 400, "--hidden", 64, "--layers", 2, "--heads", 2, "--feed-forward", 128, "--context", 64)
_SHORT = ("--prompt-tokens", 24, "--continuation-tokens", 8, "--batch", 8, "--quiet")


def _run(command, *arguments, code=0):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def _evaluated(*arguments):
    result = CliRunner().invoke(evaluate_command, [*map(str, arguments), "--json", "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, a projection, one variant and their bundle."""
    work = tmp_path_factory.mktemp("pipeline")
    model, projection, variant = work / "model", work / "projection", work / "noisy"
    text = ("--text", _TEXT)
    _run(
        train, "base", *text, "--out", model, *_SIZES, "--steps", 120, "--batch", 8, "--learning-rate", 4e-3, "--quiet"
    )
    _run(train, "projection", "--model", model, *text, "--out", projection, "--dim", 16, "--steps", 20, *_SHORT)
    output = _run(
        train, "soft-prompt", "--model", model, "--projection", projection, *text, "--out", variant,
        "--name", "noisy", "--bits", 2, "--nearest-asr", 0.2, "--steps", 60, *_SHORT,
    )  # fmt: skip
    _run(bundle_command, "--model", model, "--projection", projection, "--variant", variant, "--out", work / "bundle")
    return work, output


def test_each_stage_does_its_work(trained):
    work, output = trained
    stage1 = json.loads((work / "projection/projection.json").read_text())
    stage2 = json.loads((work / "noisy/variant.json").read_text())
    assert stage1["ppl_clean"] < 150, "the base model learned next to nothing"
    assert stage1["ppl_projected"] < stage1["ppl_pca"]
    assert stage2["ppl_clean"] < stage2["ppl_noisy"]
    assert stage2["ppl_soft_prompt"] < stage2["ppl_noisy"], "the soft prompt must help"
    assert "ppl_soft_prompt" in output
    assert "nearest ASR" in output


def test_the_noise_meets_its_target_on_text_that_calibration_did_not_see(trained):
    audit = json.loads((trained[0] / "noisy/variant.json").read_text())["audit"]
    assert audit["nearest"]["tokens"] > 1000
    assert abs(audit["nearest"]["success"] - 0.2) < 0.06
    # MAP is optimal for one token; both attacks saw the same counts, so only chance could reverse
    # this.
    assert audit["map"]["high"] > audit["nearest"]["low"]


def test_the_bundle_holds_what_was_trained(trained):
    bundle = load_bundle(trained[0] / "bundle")
    summary = json.loads((trained[0] / "noisy/variant.json").read_text())
    variant = bundle.variants["noisy"]
    mechanism = bundle.mechanism("noisy")
    assert (variant.bits, variant.ratio_numerator) == (2, summary["ratio_numerator"])
    assert variant.guarantees.epsilon == pytest.approx(epsilon(mechanism, 1e-6), rel=1e-12)
    assert bundle.soft_prompt("noisy").shape == (32, 64)
    assert np.exp(bundle.log_prior).sum() == pytest.approx(1.0, abs=1e-5)
    decoded = bundle.build_decoder("noisy").decode(mechanism.sample(np.asarray(bundle.client.table[:50])))
    assert decoded.shape == (50, 64)
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("rows", [32, 0])
def test_an_encoder_trained_with_noise_goes_the_same_way_into_a_bundle(trained, tmp_path, rows):
    work, _ = trained
    model, text = ("--model", work / "model"), ("--text", _TEXT)
    output = _run(
        train, "encoder", *model, "--projection", work / "projection", *text, "--out", tmp_path / "encoder",
        "--map-asr", 0.25, "--width", 16, "--rows", rows, "--steps", 30, *_SHORT,
    )  # fmt: skip
    assert "ppl_trained" in output
    common = (*model, "--projection", tmp_path / "encoder")
    _run(
        train, "soft-prompt", *common, *text, "--out", tmp_path / "v", "--name", "level", "--map-asr", 0.25,
        "--steps", 10, *_SHORT,
    )  # fmt: skip
    summary = json.loads((tmp_path / "v/variant.json").read_text())
    assert summary["decoder"] == "linear"
    assert summary["calibration"]["attack"] == "map"
    assert summary["calibration"]["low"] <= 0.26
    assert summary["calibration"]["high"] >= 0.24
    _run(bundle_command, *common, "--variant", tmp_path / "v", "--out", tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    assert bundle.variants["level"].soft_prompt_length == 32
    codes = bundle.mechanism("level").sample(np.asarray(bundle.client.table[:40]))
    assert np.isfinite(bundle.build_decoder("level").decode(codes)).all()
    output = _run(
        train, "encoder", *model, "--projection", tmp_path / "encoder", *text, "--out", tmp_path / "again",
        "--map-asr", 0.2, "--width", 16, "--rows", rows, "--steps", 2, *_SHORT,
    )  # fmt: skip
    assert "ppl_trained" in output


def test_a_linear_decoder_is_trained_for_its_noise_without_a_soft_prompt(trained, tmp_path):
    work, _ = trained
    common = ("--model", work / "model", "--projection", work / "projection")
    options = (*common, "--text", _TEXT, "--out", tmp_path / "v", "--name", "alone", "--mu", 4, "--rows", 0)
    refused = _run(train, "soft-prompt", *options, code=2)
    assert "rows must be at least 32 with the linear decoder, got 0: nothing to train" in refused
    _run(train, "soft-prompt", *options, "--train-linear", "--steps", 60, *_SHORT)
    figures = json.loads((tmp_path / "v/variant.json").read_text())
    assert figures["ppl_decoder"] == figures["ppl_soft_prompt"] < figures["ppl_noisy"]
    _run(bundle_command, *common, "--variant", tmp_path / "v", "--out", tmp_path / "b")
    assert load_bundle(tmp_path / "b").soft_prompt("alone").shape == (0, 64)


def test_averaged_noise_decodes_to_what_the_projection_gives(trained):
    """Without a norm limit the mean embedding is D x + a': the whole path is unbiased."""
    bundle = load_bundle(trained[0] / "bundle")
    mechanism, tensors = bundle.mechanism("noisy"), bundle.decoder("noisy")
    levels = np.asarray(bundle.client.table[100:101])
    repeats = 40_000
    y = mechanism.dequantize(mechanism.sample(np.repeat(levels, repeats, axis=0))).astype(np.float64)
    x = levels[0] / mechanism.max_level
    # Each y is within 1 / ratio, so its standard deviation is at most that over sqrt(u); z = 6 for
    # alpha below 1e-6.
    tolerance = 6 / (mechanism.ratio * (mechanism.trials * repeats) ** 0.5)
    assert np.abs(y.mean(0) - x).max() < tolerance
    assert tensors["weight"].shape == (64, 16)


def test_parts_of_different_models_are_refused(trained, tmp_path):
    work, _ = trained
    other = tmp_path / "projection"
    other.mkdir()
    summary = json.loads((work / "projection/projection.json").read_text())
    (other / "projection.json").write_text(json.dumps(summary | {"model_sha256": "0" * 64}))
    result = CliRunner().invoke(
        bundle_command,
        [
            "--model",
            f"{work}/model",
            "--projection",
            str(other),
            "--variant",
            f"{work}/noisy",
            "--out",
            f"{tmp_path}/b",
        ],
    )
    assert result.exit_code != 0
    assert "must be that of the given model" in str(result.exception)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "exactly one of --map-asr, --nearest-asr, --mu, --epsilon and --ratio"),
        (("--mu", 10, "--epsilon", 3), "exactly one of --map-asr, --nearest-asr, --mu, --epsilon and --ratio"),
        (("--nearest-asr", 1.5), "1.5 is not in the range 0<x<1"),
        (("--mu", 10, "--bits", 9), "9 is not in the range 1<=x<=8"),
    ],
)
def test_bad_options_are_named(trained, tmp_path, arguments, message):
    work, _ = trained
    base = ("--model", work / "model", "--projection", work / "projection", "--text", _TEXT, "--out", tmp_path)
    assert message in _run(train, "soft-prompt", *base, "--name", "x", *arguments, code=2)


def test_a_soft_prompt_of_the_encoder_has_whole_blocks(trained, tmp_path):
    work, _ = trained
    base = ("--model", work / "model", "--projection", work / "projection", "--text", _TEXT, "--out", tmp_path)
    message = _run(train, "encoder", *base, "--map-asr", 0.25, "--rows", 40, code=2)
    assert "rows must be a multiple of 32, got 40" in message


def test_conversations_teach_their_answers_behind_a_noise_that_is_given(trained, tmp_path):
    work, _ = trained
    prompt = [("Cat: ", False), ("what did the king say", True), ("\nAlice:", False)]
    line = {"prompt": [{"text": text, "private": private} for text, private in prompt], "answer": " nothing at all"}
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(line) for _ in range(40)))
    common = ("--model", work / "model", "--projection", work / "projection", "--text", _TEXT)
    _run(
        train, "soft-prompt", *common, "--out", tmp_path / "v", "--name", "chat", "--task", "chat", "--ratio", 0.5,
        "--chat", tmp_path / "chat.jsonl", "--steps", 30, *_SHORT,
    )  # fmt: skip
    found = json.loads((tmp_path / "v/variant.json").read_text())
    assert found["ratio_numerator"] == 2**30
    assert found["ppl_soft_prompt"] < 0.8 * found["ppl_noisy"]
    _run(bundle_command, *common[:4], "--variant", tmp_path / "v", "--out", tmp_path / "b")
    assert load_bundle(tmp_path / "b").variants["chat"].task == "chat"
    found = _evaluated(tmp_path / "b", "--model", work / "model", "--chat", tmp_path / "chat.jsonl")
    assert (found["private_texts"], found["given"]) == (["what did the king say"] * 2, [" nothing at all"] * 2)
    by_method = {row["method"]: row for row in found["rows"]}
    assert list(by_method) == ["clear prompt", "no prompt", "chat"]
    assert by_method["chat"]["soft_prompt_ratio"][0] < 0.8
    assert by_method["clear prompt"]["ppl_ratio"] == [1.0, 1.0, 1.0]
    assert len(by_method["chat"]["answers"]) == 2
    message = _run(
        train, "soft-prompt", *common, "--out", tmp_path / "v", "--name", "chat", "--ratio", 0.5, "--mu", 8, code=2
    )
    assert "exactly one of" in message


def test_controls_learn_the_corpus_and_only_one_reads_the_prompt(trained, tmp_path):
    found = {}
    for kind in ("clear", "nothing"):
        _run(
            train, "control", "--model", trained[0] / "model", "--text", _TEXT, "--out", tmp_path / kind,
            "--kind", kind, "--steps", 60, *_SHORT,
        )  # fmt: skip
        found[kind] = json.loads((tmp_path / kind / "control.json").read_text())
    assert found["nothing"]["ppl_trained"] < found["nothing"]["ppl_untrained"]
    assert found["clear"]["ppl_trained"] < found["nothing"]["ppl_trained"]
    assert found["clear"]["steps"] == 60
    controls = ("--control", tmp_path / "clear", "--control", tmp_path / "nothing")
    sizes = ("--passages", 32, "--written", 2, "--prompt-tokens", 24, "--continuation-tokens", 8)
    model = ("--model", trained[0] / "model")
    rows = _evaluated(trained[0] / "bundle", *model, "--text", _TEXT, *controls, *sizes)
    ppl = {row["method"]: row["ppl"][0] for row in rows}
    (variant,) = (row for row in rows if "gap_closed" in row)
    nothing, clear = ppl["no prompt, trained alike"], ppl["clear prompt, trained alike"]
    assert clear < nothing < ppl["no prompt"]
    assert variant["gap_closed"][0] == pytest.approx((nothing - ppl["noisy"]) / (nothing - clear), abs=1e-3)
    with pytest.raises(ModelError, match="model_sha256"):
        _run(evaluate_command, "demo", "--text", _TEXT, "--control", tmp_path / "clear")


def test_a_variant_behind_another_projection_is_refused(trained, tmp_path):
    """Its stated attack success would be that of another table."""
    work, _ = trained
    _run(
        train, "projection", "--model", work / "model", "--text", _TEXT, "--out", tmp_path / "other", "--dim", 16,
        "--steps", 1, *_SHORT,
    )  # fmt: skip
    variant = Path(shutil.copytree(work / "noisy", tmp_path / "noisy"))
    arguments = ["bundle", "--model", work / "model", "--variant", variant, "--out", tmp_path / "b", "--projection"]
    assert main.run(list(map(str, [*arguments, tmp_path / "other"]))) == main.FAILED
    assert not (tmp_path / "b").exists()


def test_a_stated_attack_success_is_measured_again(trained, tmp_path, capsys):
    work, _ = trained
    variant = Path(shutil.copytree(work / "noisy", tmp_path / "noisy"))
    summary = json.loads((variant / "variant.json").read_text())
    del summary["projection_sha256"]  # as earlier versions wrote it
    (variant / "variant.json").write_text(json.dumps(summary))
    arguments = ["bundle", "--model", work / "model", "--variant", variant, "--projection", work / "projection"]
    assert main.run(list(map(str, [*arguments, "--out", tmp_path / "b"]))) == 0
    found = summary["audit"]["map"]
    found |= {name: found[name] / 3 for name in ("success", "low", "high")}
    (variant / "variant.json").write_text(json.dumps(summary))
    assert main.run(list(map(str, [*arguments, "--out", tmp_path / "c"]))) == main.FAILED
    assert "it was trained behind another one" in capsys.readouterr().err
