"""``delctl audit`` on a tiny random model: report, refusals, and interruption."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from del_core import accounting
from del_core.audit import settings
from del_core.audit.runner import PartialResults
from del_core.audit.settings import AttackerBudget, AuditConfig, InverterConfig, ProvenConfig
from del_core.bundle import load_bundle, replace_audit
from delctl.main import run
from tests.support.core_bundles import SERVER_FILES, reseal, unchanged
from tests.support.tiny import Tiny, make_tiny

_TEXT = Path(__file__).resolve().parents[1] / "data" / "alice.txt"
_ATTACKS = ("nearest", "map", "sequence", "inverter", "bidirectional", "combined")
_PERPLEXITIES = {"clear prompt": 50.0, "no prompt": 72.0, "open": 60.0, "strict": 80.0}
_KNOWLEDGE = ["BUNDLE", "BUNDLE", "MODEL", "TEXT", "TEXT", "TEXT"]
SMALL = AuditConfig(
    prompts=16,
    length=16,
    tuning=4,
    inverters=(InverterConfig(width=32, layers=1, steps=4, batch=4, evaluate_every=2),),
    leakage_samples=200,
    proven=ProvenConfig(compose_vocabulary=False, tokens=256),
    attacker=AttackerBudget("small", training=0.002, search=0.002, beams=2, candidates=64),
)
"""Sizes that take seconds; the figures mean nothing here."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("audit"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "QUICK", SMALL)


@pytest.fixture
def tiny(made: Tiny, tmp_path: Path) -> Tiny:
    return Tiny(made.model, Path(shutil.copytree(made.bundle, tmp_path / "bundle")), made.seed)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(_TEXT.read_text(encoding="utf-8")[:12_000], encoding="utf-8")
    return path


def _audit(tiny: Tiny, text: Path, out: Path, *more: str) -> int:
    return run(["audit", str(tiny.bundle), "--model", str(tiny.model), "--text", str(text), "--out", str(out), *more])


def test_report_and_update(tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "report"
    replace_audit(tiny.bundle, {"open": {"text_sha256": "0" * 64, "stale": 1}})
    assert _audit(tiny, text, out, "--quick", "--update") == 0
    assert sorted(path.name for path in out.iterdir()) == ["audit.json", "index.html", "tokens.csv"]
    assert [path.name for path in out.parent.iterdir()] == ["report"], "nothing is left of the partial results"
    audit = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    bundle = load_bundle(tiny.bundle)
    assert list(audit["variants"]) == list(bundle.variants)
    for name, variant in audit["variants"].items():
        assert variant["epsilon"] == accounting.epsilon(bundle.mechanism(name), variant["delta"])
        assert 0 < variant["epsilon_vocabulary"] <= variant["epsilon"]
        low, high = variant["leakage_interval"]
        assert low <= variant["leakage_bits"] <= high <= variant["entropy_bits"] + 1
        assert tuple(variant["attacks"]) == _ATTACKS
        assert [rate["knowledge"] for rate in variant["attacks"].values()] == _KNOWLEDGE
        for rate in variant["attacks"].values():
            assert 0 <= rate["blind"]["success"] <= 1
            assert 0 <= rate["prompts_read"] <= 16
            assert 0 <= rate["low"] <= rate["success"] <= rate["high"] <= 1
            assert rate["tokens"] == 256
            assert sum(kind["tokens"] for kind in rate["by_kind"].values()) == 256
            assert rate["cost"]["seconds"] >= 0
        # Optimal for one position up to chance: both saw the same counts.
        assert variant["attacks"]["map"]["high"] >= variant["attacks"]["nearest"]["low"]
        assert list(variant["averaging"]) == ["1", "4", "16"]
        kept = bundle.variants[name].audit
        assert kept["map"]["success"] == variant["attacks"]["map"]["success"]
        assert "stale" not in kept
        best = max(variant["attacks"].values(), key=lambda rate: rate["success"])
        assert (
            bundle.variants[name].strongest_attack["success"] == best["success"] == kept["strongest_attack"]["success"]
        )
        assert variant["attacks"]["bidirectional"]["cost"]["steps"] > 0
        assert variant["attacks"]["bidirectional"]["cost"]["trained_tokens"] > 0
    assert bundle.variants["open"].audit["text_sha256"] == "0" * 64, "what says which text is not held out stays"
    assert audit["variants"]["open"]["leakage_bits"] > audit["variants"]["strict"]["leakage_bits"]
    assert run(["inspect", str(tiny.bundle)]) == 0
    assert "sequence" in capsys.readouterr().out.partition("Audit")[2]


def test_the_page_loads_nothing_and_escapes_what_it_shows(tiny: Tiny, text: Path, tmp_path: Path) -> None:
    hostile = text.read_text(encoding="utf-8").replace("Alice", "<script>alert(1)</script>")
    text.write_text(hostile, encoding="utf-8")
    assert _audit(tiny, text, tmp_path / "report", "--quick", "--quiet") == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=|url\(|@import", page)
    for name in ("open", "strict"):
        assert f"<h2>{name}</h2>" in page
    assert page.count("<svg") == 2 * 4


def test_an_interrupted_audit_leaves_no_report_and_is_resumed(
    tiny: Tiny, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited: list[str] = []
    store = PartialResults.store

    def interrupted(self, name, key, result):
        store(self, name, key, result)
        audited.append(name)
        if len(audited) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialResults, "store", interrupted)
    out = tmp_path / "report"
    assert _audit(tiny, text, out, "--quick", "--quiet") == 130
    assert not out.exists()
    assert _audit(tiny, text, out, "--quick", "--quiet") == 0
    names = list(load_bundle(tiny.bundle).variants)
    assert audited == names, "the variant that was done is not attacked again"
    assert list(json.loads((out / "audit.json").read_text(encoding="utf-8"))["variants"]) == names
    assert len((out / "tokens.csv").read_text(encoding="utf-8").splitlines()) > 2 * 100, "of the kept variant, too"


def test_bad_text_is_refused_and_leaves_nothing(
    tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    contents = {"empty": b" \n", "tiny": b"Alice was beginning to get very tired.", "binary": b"\xff\xfe\x00" * 9000}
    messages = {
        "empty": "must not be empty",
        "tiny": "too few to measure on",
        "binary": "must be UTF-8",
        "absent": "must exist",
    }
    for name, message in messages.items():
        path = tmp_path / name
        if name in contents:
            path.write_bytes(contents[name])
        assert _audit(tiny, path, out, "--quick") == 2, name
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_the_training_text_is_refused(
    tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    replace_audit(tiny.bundle, {"open": {"text_sha256": hashlib.sha256(text.read_bytes()).hexdigest()}})
    assert _audit(tiny, text, tmp_path / "report", "--quick") == 2
    assert "is the one that the bundle was trained on" in capsys.readouterr().err


def test_another_format_or_model_is_refused(
    tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    other = make_tiny(tmp_path / "other", seed=1)
    assert _audit(Tiny(other.model, tiny.bundle, 0), text, out, "--quick") == 2
    assert "checksum" in capsys.readouterr().err
    for path in (tiny.bundle / "manifest.json", tiny.bundle / "client" / "manifest.json"):
        path.write_text(path.read_text(encoding="utf-8").replace('"format_version":1', '"format_version":99'))
    assert _audit(tiny, text, out, "--quick") == 2
    assert "99" in capsys.readouterr().err
    assert not out.exists()


def test_a_bundle_with_nan_is_refused(
    tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in SERVER_FILES:
        path = tiny.bundle / "server" / name
        kept = path.read_bytes()
        tensors = {key: array.copy() for key, array in load_file(path).items()}
        next(iter(tensors.values())).flat[0] = np.nan
        path.write_bytes(save(tensors))
        reseal(tiny.bundle, unchanged)
        assert _audit(tiny, text, tmp_path / "report", "--quick") == 2
        assert "NaN" in capsys.readouterr().err
        assert not (tmp_path / "report").exists()
        path.write_bytes(kept)


def test_a_model_is_needed_for_other_bundles(tiny: Tiny, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", str(tiny.bundle), "--text", str(text), "--out", "x"]) == 2
    assert "--model is needed" in capsys.readouterr().err


def test_the_attackers_text_and_budget_and_the_evaluation_are_in_the_report(
    tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "more.txt"
    whole = _TEXT.read_text(encoding="utf-8")
    more.write_text(whole[12_000:20_000] + whole[:12_000], encoding="utf-8")  # the held-out text is in it
    rows = [{"method": name, "ppl": [ppl, ppl, ppl]} for name, ppl in _PERPLEXITIES.items()]
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text(json.dumps(rows), encoding="utf-8")
    out, budget = tmp_path / "report", "quick,training=0.002,search=0.002,beams=2,candidates=64"
    options = ("--attacker-text", str(more), "--attacker-budget", budget, "--evaluation", str(evaluation))
    assert _audit(tiny, text, out, "--quick", "--update", *options) == 0
    assert "Warning: strict: perplexity 80.0 is no better than without any prompt (72.0)" in capsys.readouterr().err
    audit = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert audit["settings"]["attacker"]["name"] == budget
    attacker = audit["text"]["attacker_text"]
    assert attacker["removed"] > 0.2 * audit["text"]["tokens"], "the parts that tune and measure are taken out"
    assert audit["text"]["attacker_tokens"] > attacker["tokens"] > 1000
    assert audit["quality"]["open"] == {"ppl": 60.0, "ppl_clear": 50.0, "ppl_no_prompt": 72.0}
    assert run(["inspect", str(tiny.bundle), "--json"]) == 0
    described = {one["name"]: one for one in json.loads(capsys.readouterr().out)["variants"]}
    assert described["strict"]["evaluation"]["worse_than_no_prompt"]
    assert not described["open"]["evaluation"]["worse_than_no_prompt"]
    assert described["open"]["mechanism"]["kind"] == "binomial"
    for name, one in described.items():
        rates = {attack: rate["success"] for attack, rate in audit["variants"][name]["attacks"].items()}
        assert one["strongest_attack"]["success"] == max(rates.values())
        assert rates[one["strongest_attack"]["attack"]] == max(rates.values())
    assert run(["inspect", str(tiny.bundle)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("(strongest)") == 2
    assert "Warning: strict: perplexity 80.0" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "must be the array"), ("[", "Expecting value"), ('[{"method": 1}]', "evaluation[0]")],
)
def test_another_evaluation_is_refused(
    content: str, message: str, tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content, encoding="utf-8")
    assert _audit(tiny, text, tmp_path / "report", "--evaluation", str(path)) == 2
    assert message in capsys.readouterr().err


def test_variants_of_equal_noise_are_attacked_once(
    tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("decoder", "soft-prompt"):
        source = tiny.bundle / "server" / f"{kind}-open.safetensors"
        shutil.copyfile(source, source.with_name(f"{kind}-chat.safetensors"))

    def add_chat(value: dict[str, Any]) -> None:
        (opened,) = (one for one in value["variants"] if one["name"] == "open")
        value["variants"].append({**opened, "name": "chat", "task": "chat"})
        server = value["server"]
        for kind in ("decoder", "soft-prompt"):
            server["files"][f"{kind}-chat.safetensors"] = server["files"][f"{kind}-open.safetensors"]
        server["variants"]["chat"] = server["variants"]["open"]

    reseal(tiny.bundle, add_chat)
    assert _audit(tiny, text, tmp_path / "report", "--quick", "--update") == 0
    shown = capsys.readouterr().err
    assert "open: attacking" in shown
    assert "chat: attacking" not in shown
    found = json.loads((tmp_path / "report" / "audit.json").read_text(encoding="utf-8"))["variants"]
    assert found["chat"]["attacks"] == found["open"]["attacks"] != found["strict"]["attacks"]
    audits = {name: variant.audit for name, variant in load_bundle(tiny.bundle).variants.items()}
    assert audits["chat"]["strongest_attack"] == audits["open"]["strongest_attack"]


def test_only_the_named_variants_are_attacked_and_updated(
    tiny: Tiny, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_bundle(tiny.bundle).variants["strict"].audit
    assert _audit(tiny, text, tmp_path / "no", "--variant", "weak") == 2
    assert "weak is not in the bundle, which has open, strict" in capsys.readouterr().err
    assert _audit(tiny, text, tmp_path / "report", "--quick", "--update", "--variant", "open") == 0
    assert list(json.loads((tmp_path / "report" / "audit.json").read_text(encoding="utf-8"))["variants"]) == ["open"]
    after = load_bundle(tiny.bundle).variants
    assert after["strict"].audit == before
    assert "strongest_attack" in after["open"].audit
