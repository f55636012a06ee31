"""``--json``: every command has it, and prints one JSON document and nothing else on stdout."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from client_lib.ledger import Budget, Ledger, open_store
from client_lib.passes import PassFile
from client_lib.prompts.types import Draw
from client_lib.trust.log import Head
from del_core.mechanism import Mechanism
from delctl.main import run
from delctl.options import always_json_option, json_option
from delctl.terminal import print_json
from tests.delctl.test_examples import commands
from tests.support.bundle import make_bundle
from tests.support.proxy_command import DELCTL
from tests.support.scripted_server import ScriptedServer

INTERACTIVE = {"chat": "a conversation with a person"}
"""Commands without ``--json``, each with its reason."""


def _option(decorator: Any) -> click.Option:
    (option,) = click.command()(decorator(lambda: None)).params
    assert isinstance(option, click.Option)
    return option


def _json_options(command: click.Command) -> list[click.Parameter]:
    return [option for option in command.params if "--json" in option.opts]


@pytest.mark.parametrize("path", sorted(set(commands()) - set(INTERACTIVE)))
def test_every_command_has_the_one_option(path: str) -> None:
    (found,) = _json_options(commands()[path])
    assert isinstance(found, click.Option)
    allowed = [(one.name, one.help, one.expose_value) for one in map(_option, (json_option, always_json_option))]
    assert (found.name, found.help, found.expose_value) in allowed


def test_the_exceptions_are_needed() -> None:
    known = commands()
    assert not [path for path in INTERACTIVE if _json_options(known[path])]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return the document that a command prints."""
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"epsilon": float("inf"), "rates": (0.5, float("nan")), "text": "é"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"epsilon": None, "rates": [0.5, None], "text": "é"}


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signing, gateway, issuer = (str(tmp_path / name) for name in ("signing", "gateway", "issuer"))
    made = said(capsys, "keys", "signing", signing)
    assert made["file"] == signing
    assert len(made["public_key"]) == 64
    assert bytes.fromhex(said(capsys, "keys", "gateway", gateway)["configuration"])
    made = said(capsys, "keys", "passes", issuer, "--issuer", "del.example.com")
    assert Path(made["record"]).is_file()
    assert bytes.fromhex(made["configuration"])


def test_a_file_of_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "passes")
    PassFile(Path(file)).add([])
    assert said(capsys, "passes", "left", file) == {"file": file, "passes": 0}


def test_a_signed_bundle_and_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, key, log = str(tmp_path / "bundle"), str(tmp_path / "key"), str(tmp_path / "log")
    bundle = make_bundle(tmp_path / "bundle")
    public = said(capsys, "keys", "signing", key)["public_key"]
    signed = said(capsys, "sign", place, "--key", key)
    assert (signed["bundle"], signed["key"]) == (place, public)
    added = said(capsys, "log", "append", log, place)
    head = Head.parse(added["head"])
    assert (added["size"], added["root"]) == (1, head.root.hex())
    assert said(capsys, "log", "verify", log, "--fingerprint", bundle.fingerprint) == added
    assert said(capsys, "log", "prove", log, "--since", "0")["head"] == added["head"]


def test_an_accepted_and_a_forgotten_server(
    scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = said(capsys, "trust", "accept", scripted.url, "--yes")
    assert accepted["accepted"]["fingerprint"] == scripted.bundle.fingerprint
    assert accepted["changes"] is None
    scripted.bundle = make_bundle(tmp_path / "other", table_seed=2)
    assert said(capsys, "trust", "accept", scripted.url, "--yes")["changes"]
    assert run(["trust", "accept", scripted.url, "--yes", "--fingerprint", "0" * 64, "--json"]) == 1
    failed = capsys.readouterr()
    assert failed.out == ""
    assert "the server's bundle must be" in failed.err
    forgotten = said(capsys, "trust", "forget", scripted.url)
    assert forgotten == {"server": accepted["server"], "forgotten": forgotten["forgotten"]}
    assert forgotten["forgotten"]["fingerprint"] == scripted.bundle.fingerprint


@pytest.mark.parametrize(
    ("command", "option", "members"),
    [
        ("proxy", "--server", {"url", "server", "models"}),
        ("playground", "--server", {"url", "server"}),
        ("relay", "--gateway", {"url", "gateway"}),
    ],
)
def test_what_listens_prints_its_url(
    command: str, option: str, members: set[str], scripted: ScriptedServer, tmp_path: Path
) -> None:
    words = [*DELCTL, command, option, scripted.url, "--port", "0", "--json"]
    environment = {**os.environ, "DEL_CONFIG_DIR": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            lines = list(itertools.takewhile(lambda line: line != "}\n", process.stdout))
            document = json.loads("".join(lines) + "}")
            with socket.create_connection(("127.0.0.1", int(document["url"].rpartition(":")[2]))):
                pass
        finally:
            process.terminate()
            rest, errors = process.communicate()
    assert set(document) == members, errors
    assert rest == ""
    if command == "proxy":
        offered = {one["name"]: one["epsilon"] for one in document["models"]}
        assert offered["strict"] > 0


def test_an_erased_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "ledger.db")
    with contextlib.closing(Ledger(open_store(place), budget=Budget(1000.0))) as ledger:
        ledger.spend("ann", Mechanism.from_mu(4.0, bits=4, dim=32), [Draw(secrets.token_bytes(16), 3)])
    options = [place, "ann"]
    assert said(capsys, "ledger", "export", *options, "--budget-epsilon", "1000")
    assert said(capsys, "ledger", "erase", *options, "--yes") == {"subject": "ann", "erased": True}
