"""Text that the tests train on."""

from pathlib import Path

ALICE = Path(__file__).resolve().parents[1] / "data" / "alice.txt"
