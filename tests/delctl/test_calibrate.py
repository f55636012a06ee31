"""``delctl calibrate`` on the demo's model, and its messages for wrong input."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from del_core.accounting import epsilon
from del_core.demo import model_path
from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.config import ProjectionConfig
from del_core.training.projection import train_projection
from delctl.commands.calibrate import calibrate
from delctl.main import REFUSED, run
from tests.support.texts import ALICE


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A projection of the demo's model after one step of training: principal components."""
    out = tmp_path_factory.mktemp("projection")
    lm = load_frozen_lm(model_path(), read_texts([ALICE]))
    config = ProjectionConfig(steps=1, batch=2, prompt_tokens=16, continuation_tokens=4, evaluation_windows=4)
    train_projection(lm, out, config, progress=False)
    return ["--model", str(model_path()), "--projection", str(out), "--text", str(ALICE)]


def _run(*arguments, code=0):
    result = CliRunner().invoke(calibrate, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


@pytest.mark.parametrize("attack", ["map", "nearest"])
def test_an_attack_success_is_met_and_reported_with_its_interval(arguments, attack):
    found = json.loads(_run(*arguments, "--attack", attack, "--asr", 0.2, "--json"))
    assert found[attack]["low"] <= 0.2 <= found[attack]["high"] or abs(found[attack]["success"] - 0.2) < 0.02
    assert found["epsilon_vocabulary"] <= found["epsilon"]
    mechanism = Mechanism(4, 32, found["ratio_numerator"] / 2**31, max_level=MAX_LEVEL)
    assert found["epsilon"] == epsilon(mechanism, 1e-6)


def test_an_epsilon_is_solved_exactly(arguments):
    output = _run(*arguments, "--epsilon", 30, "--bits", 2)
    assert "epsilon            30.00 at delta 1e-06" in output or "epsilon            29.99" in output
    assert "map ASR" in output
    assert "nearest ASR" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give exactly one of --asr and --epsilon"),
        (("--asr", 0.2, "--epsilon", 5), "give exactly one of --asr and --epsilon"),
        (("--attack", "map", "--epsilon", 5), "--attack goes with --asr"),
        (("--asr", 1.5), "1.5 is not in the range 0<x<1"),
        (("--asr", 0.001), "got 0.001"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, options, message):
    assert message in " ".join(_run(*arguments, *options, code=2).split())


@pytest.mark.parametrize("device", ["quantum", "cuda:4096", "meta"])
def test_a_device_that_is_not_here_is_named_beside_those_that_are(arguments, device, capsys):
    assert run(["calibrate", *arguments, "--asr", "0.2", "--device", device]) == REFUSED
    assert "delctl: device must be one of cpu" in (message := capsys.readouterr().err)
    assert message.rstrip().endswith(f"got {device!r}")


def test_a_base_model_is_not_begun_on_a_device_that_is_not_here(tmp_path, capsys):
    assert (
        run(["train", "base", "--text", str(ALICE), "--out", str(tmp_path / "base"), "--device", "quantum"]) == REFUSED
    )
    assert "got 'quantum'" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
