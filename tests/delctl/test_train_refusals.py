"""What cannot be trained or measured is refused in a sentence before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from del_core.demo import bundle_path, model_path
from delctl.main import run
from tests.support.texts import ALICE


@pytest.fixture(scope="module")
def unloadable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1,024 positions whose weights are no file of weights: loading it would say so."""
    directory = tmp_path_factory.mktemp("model")
    shutil.copytree(model_path(), directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    for path in directory.glob("*.safetensors"):
        path.write_bytes(b"no weights")
    return directory


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projection of which only the sizes can be read."""
    directory = tmp_path_factory.mktemp("projection")
    values: dict[str, Any] = {
        "dim": 32, "model_sha256": "0", "text_sha256": "0", "ppl_clean": 1.0, "ppl_pca": 1.0, "ppl_projected": 1.0,
        "steps": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    (directory / "projection.json").write_text(json.dumps(values))
    return directory


CASES = {
    "train base --steps 0": "0 is not in the range x>=1",
    "train base --hidden -64": "-64 is not in the range",
    "train base --batch 0": "0 is not in the range x>=1",
    "train base --learning-rate nan": "must be a finite number, got nan",
    "train projection --learning-rate inf": "must be a finite number, got inf",
    "train projection --learning-rate -1": "-1.0 is not in the range",
    "train projection --dim 100000": "dim must be at most 256, the hidden size of",
    "train projection --prompt-tokens 1000 --continuation-tokens 32":
        "prompt_tokens + continuation_tokens must be at most 1024, the positions of",
    "train soft-prompt --map-asr 0.2 --name clear": "must not be clear",
    "train soft-prompt --map-asr 0.2 --name Strict": "must be 1 to 64 characters of a-z, 0-9 and -, got 'Strict'",
    "train soft-prompt --map-asr 0.2 --name a --prompt-tokens 970":
        "prompt_tokens + continuation_tokens + rows must be at most 1024, the positions of",
    "train soft-prompt --map-asr nan --name a": "must be a finite number, got nan",
    "train soft-prompt --epsilon 1e9 --name a": "epsilon must be at most",
    "train codes --epsilon 4 --name clear": "must not be clear",
    "calibrate --epsilon 1e9": "epsilon must be at most",
    "evaluate --prompt-tokens 2000": "prompt_tokens + continuation_tokens + rows must be at most 1024",
    "ledger status x.db --budget-epsilon 5 --budget-days nan": "must be a finite number, got nan",
    "ask hello --variant open --temperature nan": "must be a finite number, got nan",
}  # fmt: skip


@pytest.mark.parametrize(("line", "words"), CASES.items(), ids=CASES)
def test_a_sentence_before_anything_is_loaded(
    line: str, words: str, unloadable: Path, stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = line.split()
    command = arguments[1] if arguments[0] == "train" else arguments[0]
    if command == "evaluate":
        arguments += [str(bundle_path())]
    if command in ("projection", "soft-prompt", "codes", "calibrate", "evaluate"):
        arguments += ["--model", str(unloadable), "--text", str(ALICE)]
    if command in ("soft-prompt", "calibrate"):
        arguments += ["--projection", str(stage1)]
    if arguments[0] == "train":
        arguments += ["--out", str(tmp_path / "out")] + (["--text", str(ALICE)] if command == "base" else [])
    assert run(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_wrong_model_is_refused_before_stage_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(model_path(), tmp_path / "model"))
    shutil.copyfile(next(model.glob("*.safetensors")), model / "consolidated.safetensors")
    (model / "adapter_config.json").write_text("{}")
    out = tmp_path / "out"
    assert run(["train", "projection", "--model", str(model), "--text", str(ALICE), "--out", str(out), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "consolidated.safetensors does not belong to the model" in said
    assert "adapter_config.json lies beside the weights" in said
    assert not out.exists()
