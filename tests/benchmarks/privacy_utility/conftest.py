"""A random model with a bundle of counts, and of codes with an adapter, trained for two steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.privacy_utility.pretrained.bench import PretrainedBench
from benchmarks.privacy_utility.pretrained.plan import Plan
from del_core.bundle import Bundle, load_bundle
from del_core.lm.model import FrozenLM, load_frozen_lm
from del_core.lm.text import read_texts
from delctl.main import cli
from tests.support.texts import ALICE
from tests.support.tiny import make_tiny


@dataclass(frozen=True)
class TinyPretrained:
    """Model, bundle and two texts, of which the model's own is the second."""

    lm: FrozenLM
    bundle: Bundle
    texts: dict[str, str]

    def bench(self, plan: Plan, work: Path, out: Path) -> PretrainedBench:
        """Return a bench whose pieces are in ``out`` and whose checkpoints are in ``work``."""
        return PretrainedBench(
            self.lm, self.bundle, self.texts, plan, out=out, work=work, machine="a test", say=lambda line: None
        )


def _delctl(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="package")
def tiny_pretrained(tmp_path_factory):
    """Make the model and its bundle once."""
    work = tmp_path_factory.mktemp("pretrained")
    model, text = make_tiny(work).model, work / "text.txt"
    text.write_text(ALICE.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    source = ("--model", model, "--text", text, "--prompt-tokens", 16, "--continuation-tokens", 4, "--batch", 4)
    short = (*source, "--quiet", "--steps", 2, "--evaluation-windows", 8)
    _delctl("train", "projection", *short, "--out", work / "stage1", "--dim", 16)
    behind = (*short, "--test-windows", 8)
    _delctl("train", "soft-prompt", *behind, "--projection", work / "stage1", "--out", work / "some", "--name", "some",
            "--mu", 20, "--train-linear")  # fmt: skip
    _delctl("train", "codes", *behind, "--out", work / "coded", "--name", "coded", "--epsilon", 6, "--bits", 4,
            "--adapter-rank", 2)  # fmt: skip
    _delctl("bundle", "--model", model, "--projection", work / "stage1", "--variant", work / "some", "--variant",
            work / "coded", "--out", work / "both")  # fmt: skip
    texts = {"alice": ALICE.read_text(encoding="utf-8")[30_000:60_000], "other": text.read_text(encoding="utf-8")}
    return TinyPretrained(load_frozen_lm(model, read_texts([text])), load_bundle(work / "both"), texts)
