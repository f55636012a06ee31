"""``delctl evaluate`` on the demo bundle: rows and messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from del_core.audit import records
from del_core.bundle import load_bundle
from del_core.demo import bundle_path, model_path
from del_core.errors import BundleError
from del_core.evaluation.bundle import BundleView, EvaluationRow, EvaluationSettings, evaluate_bundle
from del_core.lm.model import load_base_lm
from del_core.lm.text import TextError
from delctl.commands.evaluate import evaluate

_TEXT = Path(__file__).parents[2] / "examples/demo_model/held_out.txt"
_SMALL = ["--passages", "12", "--written", "2", "--prompt-tokens", "24", "--continuation-tokens", "8"]


def _run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(evaluate, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


@pytest.fixture(scope="module")
def rows():
    """The rows of a small evaluation."""
    chosen = ["--variant", "balanced", "--variant", "open"]
    output = _run("demo", "--text", str(_TEXT), *chosen, *_SMALL, "--json", "--quiet")
    return {row["method"]: row for row in json.loads(output[output.index("[") :])}


def test_every_variant_lies_between_the_two_ends(rows):
    names = ["balanced", "open"]
    assert list(rows)[:2] == ["clear prompt", "no prompt"]
    assert {name for name in rows if "," not in name} == {"clear prompt", "no prompt", *names}
    clear, nothing = rows["clear prompt"], rows["no prompt"]
    assert clear["attack_success"][0] == 1.0
    assert clear["ppl_ratio"] == [1.0, 1.0, 1.0]
    for name in names:
        assert nothing["attack_success"][1] < rows[name]["attack_success"][0] < 1.0
        assert rows[name]["ppl_ratio"][0] > 1.0
        assert nothing["attack_bits"] < rows[name]["attack_bits"] < clear["attack_bits"]
        assert rows[name]["coh_lift"][0] < rows[name]["coh"][0]
    assert nothing["attack_bits"] == 0.0 == pytest.approx(nothing["coh_lift"][0], abs=1e-4)


def test_soft_prompts_are_judged_on_the_same_passages(rows):
    for name in ("balanced", "open"):
        ratio, bare = rows[name]["soft_prompt_ratio"], rows[f"{name}, soft prompt left out"]
        assert bare["without_soft_prompt"]
        assert ratio[1] <= ratio[0] <= ratio[2]
        assert ratio[0] == pytest.approx(rows[name]["ppl"][0] / bare["ppl"][0], abs=2e-3)
        assert rows[name]["attack_success"] == bare["attack_success"]


def test_the_table_shows_every_variant_once():
    output = _run("demo", "--text", str(_TEXT), "--variant", "open", *_SMALL, "--quiet")
    for name, times in (("clear prompt", 1), ("no prompt", 1), ("open", 1), ("balanced", 0)):
        assert sum(line.startswith(f"{name} ") for line in output.splitlines()) == times


def test_a_view_is_what_the_server_decodes():
    bundle, prompt = load_bundle(bundle_path()), torch.arange(100, 140).reshape(2, 20)
    name = next(iter(bundle.variants))
    view = BundleView(bundle, name)
    seen = view.embed(prompt, torch.Generator().manual_seed(3))
    again = view.embed(prompt, torch.Generator().manual_seed(3))
    other = view.embed(prompt, torch.Generator().manual_seed(4))
    assert seen.shape == (2, 20, bundle.manifest.base_model.hidden_size)
    np.testing.assert_array_equal(seen, again)
    assert view.soft_prompt is not None
    np.testing.assert_array_equal(view.soft_prompt, bundle.soft_prompt(name))
    assert not torch.equal(seen, other)
    assert BundleView(bundle, name, soft_prompt=False).soft_prompt is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "exactly one of --text and --chat"),
        (["demo", "--text", str(_TEXT), "--passages", "4", "--written", "5"], "5 is more than the 4 of --passages"),
        (["demo", "--text", str(_TEXT), "--variant", "loud"], "loud is not in the bundle, which has strict,"),
        (["nowhere", "--text", str(_TEXT)], "nowhere must be a bundle's directory or one of demo, tiny, smollm2"),
        ([str(Path(__file__).parent), "--text", str(_TEXT)], "--model is needed for a bundle that is not the demo's"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    assert message in " ".join(_run(*arguments, code=2).split())


def test_a_short_text_and_another_model_are_refused(tmp_path):
    lm, bundle = load_base_lm(model_path()), load_bundle(bundle_path())
    with pytest.raises(TextError, match="two passages of 128 tokens are needed"):
        evaluate_bundle(bundle, lm, "too short")
    other = type(lm)(lm.model, lm.tokenizer_json, "0" * 64, None)
    with pytest.raises(BundleError, match="was made for a model with checksum"):
        evaluate_bundle(bundle, other, "any")
    with pytest.raises(ValueError, match="written must be at most 8, the number of passages, got 9"):
        EvaluationSettings(passages=8, written=9)


def test_rows_are_read_back_from_their_json(rows):
    for row in rows.values():
        assert records.to_json(records.from_json(EvaluationRow, row)) == row
    with pytest.raises(ValueError, match=r"row\.ppl must be an array of 3 elements, got 2"):
        records.from_json(EvaluationRow, {**rows["open"], "ppl": [1.0, 2.0]}, "row")
