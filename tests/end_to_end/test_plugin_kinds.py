"""One plugin with a mechanism, a decoder, an attack and an engine, from training to serving."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import toys

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("register_mechanism", "register_decoder", "register_attack", "register_engine")
ATTACKED = {
    "played": ["nearest", "map", "sequence", "inverter", "bidirectional", "combined", toys.ATTACK],
    "spun": ["map", "sequence", "inverter", "bidirectional", "combined", toys.ATTACK],
}


@dataclass(frozen=True)
class Made:
    """The work directory of the run, the environment with the plugin, and the run's output."""

    work: Path
    environment: dict[str, str]
    output: str

    def command(self, module: str, *arguments: object) -> str:
        """Return the output of a Python module's run in the environment of the plugin."""
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            env=self.environment,
            cwd=self.work,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("kinds")
    plugin = toys.install_plugin(work / "site", *KINDS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(plugin), str(ROOT)))}
    output = Made(work, environment, "").command("tests.support.toy_kinds_run", work)
    return Made(work, environment, output)


def test_a_plugin_is_trained_bundled_audited_and_decoded(made: Made) -> None:
    without = subprocess.run(
        [sys.executable, "-m", "delctl.main", "inspect", str(made.work / "toy")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=made.work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert without.returncode != 0
    assert "mechanism must be one of binomial" in without.stderr
    lines = made.output.splitlines()
    found = json.loads(lines[-1])
    assert found["gain"] not in (0.0, 1.0), "training has changed it"
    assert found["multiplications"] == [(64 + 1) * 16, 64 + 1]
    assert max(found["differences"]) < 1e-4
    head = next(line for line in lines if line.startswith("variant"))
    assert head.split()[1:4] == ATTACKED["played"][:3]  # further names are broken over lines

    audit = json.loads((made.work / "report" / "audit.json").read_text(encoding="utf-8"))
    manifest = json.loads((made.work / "toy" / "manifest.json").read_text(encoding="utf-8"))
    assert list(audit["variants"]) == list(ATTACKED)
    for variant in manifest["variants"]:
        figures, summary = audit["variants"][variant["name"]], variant["audit"]
        assert variant["decoder"] == "toy"
        assert list(figures["attacks"]) == ATTACKED[variant["name"]]
        assert {*ATTACKED[variant["name"]], "leakage_bits", "data"} <= set(summary)
        assert figures["attacks"][toys.ATTACK]["success"] == figures["guessing"]["success"]
        assert summary[toys.ATTACK]["success"] == figures["guessing"]["success"]
        assert list(figures["averaging"]) == ["1", "4", "16"]
    played, spun = audit["variants"].values()
    assert (spun["mechanism"], spun["ratio"], spun["delta"]) == ("toy", None, 0.0)
    assert "mechanism" not in played
    assert [scope["epsilon"] for scope in spun["scopes"]] == pytest.approx(
        [tokens * spun["epsilon"] for tokens in (1, 32, 256, 4096)]
    )
    for name in ("epsilon_vocabulary", "ceiling", "ceilings", "token_epsilons", "mu", "worst_pair"):
        assert spun[name] is None
        assert played[name] is not None
    assert not {"epsilon_vocabulary", "ceiling"} & set(manifest["variants"][1]["audit"])
    tokens = (made.work / "report" / "tokens.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert {line.partition(",")[0] for line in tokens} == {"played"}
    page = (made.work / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count(toys.ATTACK_LABEL) == len(ATTACKED)
    assert page.count(toys.ATTACK_EXPLANATION) == 1
    assert page.count("do not apply to a mechanism of the kind toy.") == 1
    assert page.count("<h3>Epsilon of every token</h3>") == 1
    evaluated = made.output.partition("\nmethod")[2].partition("\nbundle ")[0].splitlines()
    assert {line.split()[0] for line in evaluated[1:]} >= set(ATTACKED)
    inspected = made.output.partition("Audit: what attacks recovered")[2].splitlines()
    for name, attacks in ATTACKED.items():
        shown = [words[1] for words in map(str.split, inspected[:-1]) if words[:1] == [name]]
        assert set(shown) == set(attacks)


@pytest.mark.cluster
def test_a_plugin_is_served(made: Made) -> None:
    config = made.work / "serve.yaml"
    config.write_text("engine: {kind: toy, token: 9}\n", encoding="utf-8")
    options = ("--bundle", made.work / "toy", "--model", made.work / "model", "--config", config, "--port", 0)
    process = subprocess.Popen(
        [sys.executable, "-m", "delctl.main", "serve", *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
        env=made.environment,
        cwd=made.work,
        # A suite in the background of a shell ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        environment = {**made.environment, "XDG_CACHE_HOME": str(made.work / "cache")}
        client = Made(made.work, environment, "")
        for variant in (*ATTACKED, "clear"):
            options = ("--url", url, "--variant", variant, "--max-tokens", 6, "--json")
            answer = json.loads(client.command("delctl.main", "ask", "the sea", *options))
            assert answer["token_ids"] == [9] * 6, answer
            assert answer["finish_reason"] == "length"
            assert (answer["private_tokens"] > 0) == (variant != "clear"), answer
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
