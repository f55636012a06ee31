"""The packaged demo: a small language model and its bundle (see examples/demo_model)."""

from pathlib import Path

__all__ = ["PROMPT", "bundle_path", "model_path"]

_HERE = Path(__file__).resolve().parent

PROMPT = "My fellow citizens, I have come to this House tonight to speak to you about the state of our economy and"


def model_path() -> Path:
    """Return the directory of the demo language model, in Hugging Face layout."""
    return _HERE / "model"


def bundle_path() -> Path:
    """Return the directory of the demo bundle."""
    return _HERE / "bundle"
