"""Registries, and a mechanism kind from outside through bundle, frame and ledger."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client_lib.errors import LedgerUnavailable
from client_lib.ledger import Budget, Ledger, SQLiteStore
from client_lib.ledger.store import Entry
from del_core import accounting
from del_core.accounting.composition import Composition
from del_core.bundle import Bundle, BundleError, Guarantees, load_bundle, write_bundle
from del_core.mechanism import BINOMIAL, MECHANISMS, BinomialMechanism, MechanismSpec
from del_core.mechanism.base import mechanism_of_level
from del_core.registry import Registry
from tests.support import core_bundles
from tests.support.bundle import make_tokenizer
from tests.support.toys import ToyMechanism, install_plugin, register_mechanism

ROOT = Path(__file__).parents[2]
TOY = ToyMechanism(3, 1, 1 << 12, core_bundles.DIM, max_level=core_bundles.MAX_LEVEL)

register_mechanism()


def test_names_in_the_order_of_registration() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("two", 2)
    registry.register("one", 1)
    assert list(registry)[:2] == ["two", "one"]
    assert registry.find("one") == registry["one"] == 1
    assert registry.register("one", 1) == 1  # the same kind again, as when a module is imported twice


def test_errors_name_what_is_there() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("two", 2)
    with pytest.raises(ValueError, match=r"^number must be one of two, got 'three'; an installed plugin can"):
        registry.find("three")
    with pytest.raises(KeyError):
        registry["three"]
    with pytest.raises(ValueError, match=r"^number must have a name that is not registered yet, got 'two'$"):
        registry.register("two", 3)


def test_the_binomial_mechanism_is_registered() -> None:
    assert MECHANISMS.find(BINOMIAL) is BinomialMechanism
    mechanism = BinomialMechanism(4, 8, 0.25, max_level=127)
    spec = MechanismSpec(mechanism.kind, mechanism.parameters())
    assert spec.build(8, 127) == mechanism
    with pytest.raises(ValueError, match=r"^mechanism must be of a kind that can be dequantized, got 'toy'$"):
        TOY.dequantize(np.zeros((1, 1), np.uint8))


@pytest.mark.parametrize(
    "value", [{}, {"kind": 3}, {"kind": "toy", "bits": 1.5}, {"kind": "toy", "bits": True}, {"kind": "toy", "x": [1.0]}]
)
def test_a_specification_has_exact_parameters_only(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MechanismSpec.from_json(value)


def test_a_specification_survives_json() -> None:
    spec = MechanismSpec("toy", {"bits": 3, "replaced": 5, "name": "a|b", "each": (1, 2)})
    assert MechanismSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_level_survives_a_ledger() -> None:
    level, amount = TOY.charge(7)
    assert amount == 7
    assert isinstance(level, str)
    assert "|" not in level
    assert mechanism_of_level(level) == TOY
    for malformed in ("", "{}", '{"mechanism": {"kind": "toy"}}', '{"mechanism": []}', "1"):
        with pytest.raises(ValueError, match=r"^level must be"):
            mechanism_of_level(malformed)
    with pytest.raises(ValueError, match=r"^mechanism must be one of binomial"):
        mechanism_of_level(level.replace("toy", "absent"))


def test_kinds_compose() -> None:
    binomial = BinomialMechanism(4, 8, 0.0625)
    one, other = Composition.from_mechanism(TOY, 2), Composition.from_mechanism(binomial, 3)
    both = one + other
    assert one.epsilon(1e-6) == one.epsilon(0.0) == TOY.worst_pair(2).largest_loss
    assert both == other + one
    orders = (1.5, 2.0, 32.0)
    summed = np.add(one.renyi(orders).divergences, other.renyi(orders).divergences)
    assert both.renyi(orders).divergences == pytest.approx(summed)
    assert other.epsilon(1e-6) < both.epsilon(1e-6) <= both.largest_loss
    assert both.largest_loss == pytest.approx(one.largest_loss + other.largest_loss)
    with pytest.raises(ValueError, match=r"^trials must be of binomial levels"):
        _ = both.pair
    assert accounting.epsilon(TOY, 0.0, 2) == one.epsilon(0.0)


def test_the_default_trade_off_is_a_lower_bound_that_meets_pure_privacy() -> None:
    alphas = np.linspace(0.0, 1.0, 21)
    curve = accounting.trade_off(TOY, alphas)
    e = math.exp(TOY.worst_pair().largest_loss)
    exact = np.maximum(0.0, np.maximum(1.0 - e * alphas, (1.0 - alphas) / e))  # of every pure epsilon
    assert curve == pytest.approx(exact, abs=1e-12)
    binomial = BinomialMechanism(2, 8, 0.25)
    bound = [super(type(binomial.worst_pair()), binomial.worst_pair()).type_two_error(a) for a in alphas.tolist()]
    exact = accounting.trade_off(binomial, alphas)
    assert np.all(np.array(bound) <= exact + 1e-12)
    assert bound == pytest.approx(exact, abs=2e-3)


def _toy_content(**more: object) -> dict[str, object]:
    content = core_bundles.variant("toy", 0)
    variant = replace(
        content.variant,
        bits=TOY.bits,
        ratio_numerator=None,
        guarantees=Guarantees(0.0, TOY.worst_pair().largest_loss, None, None),
        other=MechanismSpec(TOY.kind, TOY.parameters()),
        **more,  # type: ignore[arg-type]
    )
    toy = replace(content, variant=variant, weight=content.weight[:, : TOY.dim])
    return core_bundles.content(variants=[core_bundles.variant("open", 32), toy])


def _write(path: Path) -> Bundle:
    write_bundle(path, **_toy_content())  # type: ignore[arg-type]
    return load_bundle(path)


def test_a_bundle_holds_a_mechanism_from_outside(tmp_path: Path) -> None:
    bundle = _write(tmp_path / "bundle")
    assert bundle.mechanism("toy") == TOY
    assert bundle.decoder("toy")["weight"].shape == (core_bundles.HIDDEN, 1)
    variants = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())["variants"]
    assert variants[1]["mechanism"] == {"kind": "toy", "bits": 3, "replaced": 1 << 12}
    assert "ratio_numerator" not in variants[1]
    assert "mechanism" not in variants[0]
    assert isinstance(bundle.mechanism("open"), BinomialMechanism)
    with pytest.raises(BundleError, match=r"decoder of variant toy must be of a kind .* toy has none, got linear"):
        bundle.build_decoder("toy")
    with pytest.raises(ValueError, match="to have a ratio, got toy"):
        _ = bundle.variants["toy"].ratio


@pytest.mark.parametrize(
    ("mechanism", "said"),
    [
        ({"kind": "absent"}, "mechanism must be one of binomial"),
        ({"kind": BINOMIAL}, "bits and ratio_numerator"),
        ({"kind": "toy", "bits": 3, "replaced": 0}, "replaced must be"),
        ({"kind": "toy", "bits": 2, "replaced": 5}, "must have the 3 bits of the variant, got 2"),
        ({"kind": "toy", "bits": 3.5, "replaced": 5}, "bits must be an integer"),
        ({"bits": 3}, "kind"),
        ([], "must be an object, got an array"),
    ],
)
def test_a_manifest_with_a_mechanism_that_is_not_right(tmp_path: Path, mechanism: object, said: str) -> None:
    _write(tmp_path / "bundle")

    def change(value: dict[str, object]) -> None:
        value["variants"][1]["mechanism"] = mechanism  # type: ignore[index]

    core_bundles.reseal(tmp_path / "bundle", change)
    with pytest.raises(BundleError, match=r"variants\[1\]\.mechanism") as caught:
        load_bundle(tmp_path / "bundle")
    assert said in str(caught.value)


def test_a_plugin_adds_a_mechanism_to_every_part(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    table = np.arange(300 * core_bundles.DIM).reshape(300, -1) % core_bundles.MAX_LEVEL
    content = _toy_content()
    content |= {"table": table, "tokenizer_json": tokenizer, "log_prior": np.full(300, -math.log(300))}
    content["base_model"] = replace(content["base_model"], vocabulary_size=300)  # type: ignore[type-var]
    write_bundle(tmp_path / "bundle", **content)  # type: ignore[arg-type]
    plugin = install_plugin(tmp_path / "site", "register_mechanism")
    ledger = tmp_path / "ledger.db"

    def run(*paths: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.support.toy_run", str(tmp_path / "bundle"), str(ledger)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths)))}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    without = run()
    assert without.returncode != 0
    assert re.search(r"mechanism must be one of binomial.*, got 'toy'", without.stderr)
    done = run(plugin)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kind"] == "toy"
    assert found["shape"] == [found["private"], 1]
    spent = TOY.worst_pair(found["private"]).largest_loss
    assert found["epsilon"] == pytest.approx(spent)
    assert found["entries"][0]["tokens"] == found["private"]
    assert found["entries"][0]["mechanism"]["kind"] == "toy"
    assert all(0 <= guess < 300 for guess in found["guesses"])
    # The next process charges on top of what the first one stored.
    again = json.loads(run(plugin).stdout)
    assert again["epsilon"] == pytest.approx(2 * spent)


def test_a_ledger_refuses_a_kind_that_is_not_installed() -> None:
    level, amount = TOY.charge(1)
    store = SQLiteStore(":memory:")
    ledger = Ledger(store, budget=Budget(epsilon=5.0, window=None))
    with store.account("somebody") as account:
        account.add(Entry(math.inf, str(level).replace("toy", "absent"), amount), [b"x"])
    with pytest.raises(LedgerUnavailable, match="mechanism must be one of binomial"):
        ledger.spent("somebody")
