"""An example for the help of each command, in one place so that none lacks one.

Like :data:`delctl.main.COMMANDS`, the table is read without importing any command.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

__all__ = ["EXAMPLES", "add_examples"]

EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "demo": 'delctl demo --prompt "The doctor says that my fever will not go down."',
        "serve": "delctl serve --bundle smollm2 --model smollm2 --port 8000",
        "up": "delctl up --bundle demo --model demo",
        "status": "delctl status --json",
        "plan": "delctl plan --model-size 8B --gpu l40s --users 10000 --requests-per-user 4",
        "deploy": "delctl deploy serve.yaml",
        "logs": "delctl logs",
        "down": "delctl down",
        "ask": 'delctl ask "My fever will not go down." --url http://127.0.0.1:8000 --variant balanced',
        "chat": "delctl chat --url http://127.0.0.1:8000 --variant balanced",
        "keys new": "delctl keys new",
        "keys gateway": "delctl keys gateway gateway.key",
        "keys passes": "delctl keys passes passes.key --issuer del.example.com",
        "keys signing": "delctl keys signing signing.key",
        "proxy": "delctl proxy --server https://del.example.com --default-variant balanced",
        "passes get": "delctl passes get passes --url https://del.example.com --issuer 0001...",
        "passes left": "delctl passes left passes",
        "relay": "delctl relay --gateway https://del.example.com --port 8082",
        "trust show": "delctl trust show --json",
        "trust accept": "delctl trust accept https://del.example.com",
        "trust forget": "delctl trust forget https://del.example.com",
        "ledger status": "delctl ledger status privacy.db --budget-epsilon 2000 --json",
        "ledger export": "delctl ledger export privacy.db ann --budget-epsilon 2000",
        "ledger erase": "delctl ledger erase privacy.db ann",
        "inspect": "delctl inspect demo --json",
        "audit": "delctl audit demo --model demo --text held_out.txt --out report",
        "evaluate": "delctl evaluate demo --model demo --text held_out.txt --json",
        "train base": "delctl train base --text text.txt --out base",
        "train projection": "delctl train projection --model base --text text.txt --out projection",
        "train encoder": "delctl train encoder --model base --projection projection --text text.txt \\\n"
        "      --map-asr 0.1 --out encoder",
        "train codes": "delctl train codes --model base --text text.txt --name codes --epsilon 8 --out codes",
        "train soft-prompt": "delctl train soft-prompt --model base --projection projection --text text.txt \\\n"
        "      --name balanced --map-asr 0.1 --out balanced",
        "train adapter": "delctl train adapter --model base --variant balanced --text text.txt --out adapter",
        "train control": "delctl train control --model base --kind nothing --text text.txt --out control",
        "calibrate": "delctl calibrate --model base --projection projection --text text.txt --epsilon 40",
        "sign": "delctl sign bundle --key signing.key",
        "log append": "delctl log append log demo",
        "log prove": "delctl log prove log --since 3",
        "log verify": "delctl log verify log",
        "bundle": "delctl bundle --model base --projection projection --variant balanced --out bundle",
    }
)


def add_examples(command: click.Command, path: str) -> None:
    """Put the examples of a command and of those below it at the end of their help."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            add_examples(below, f"{path} {name}")
    elif path in EXAMPLES:
        command.epilog = f"\b\nExample:\n  {EXAMPLES[path]}"
