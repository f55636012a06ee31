"""The packaged demos: SmolLM2 with its bundle, and a tiny language model with its own.

SmolLM2 itself is not packaged: ``delctl model get smollm2`` gets it. examples/smollm2 and
examples/demo_model make what is here.
"""

from pathlib import Path

__all__ = ["PROMPT", "QUESTION", "bundle_path", "model_path", "smollm2_bundle_path"]

_HERE = Path(__file__).resolve().parent

PROMPT = "My fellow citizens, I have come to this House tonight to speak to you about the state of our economy and"
"""A prompt that the tiny model continues."""

QUESTION = "I have had a bad toothache since last night. What should I do?"
"""A question for SmolLM2."""


def model_path() -> Path:
    """Return the directory of the tiny language model, in Hugging Face layout."""
    return _HERE / "model"


def bundle_path() -> Path:
    """Return the directory of the tiny model's bundle."""
    return _HERE / "bundle"


def smollm2_bundle_path() -> Path:
    """Return the directory of SmolLM2's bundle."""
    return _HERE / "smollm2" / "bundle"
