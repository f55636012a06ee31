"""The TypeScript client: the shared vectors, and the distribution of its counts."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.support.statistics import ALPHA, binomial_pmf, chi_square_excess
from tests.support.typescript import node

VECTORS = Path(__file__).parents[1] / "vectors"


def test_it_passes_every_vector(built: Path) -> None:
    done = node(built / "typescript" / "test" / "vectors.js", VECTORS)
    assert done.returncode == 0, done.stderr
    counted = dict(line.split() for line in done.stdout.splitlines())
    # Those of RFCs are for passes, which the client does not have.
    assert set(counted) == {path.name for path in VECTORS.glob("*.json")}
    for name, count in counted.items():
        cases = json.loads((VECTORS / name).read_text("utf-8")).get("cases", ())
        assert int(count) >= max(1, len(cases))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("packing.json", '"payload": "c563"', '"payload": "c562"'),
        ("frames.json", '"max_tokens": 8', '"max_tokens": 9'),
        ("malformed.json", '"code": "truncated_frame"', '"code": "invalid_magic"'),
        ("levels.json", "2147483649", "2147483650"),
        ("tokenizer.json", "the cat and the hat", "the cat and the hot"),
        ("streams.json", '"finish_reason": "length"', '"finish_reason": "stop"'),
        ("bundle.json", '"fingerprint": "', '"fingerprint": "0'),
        ("bundle_codes.json", '"fingerprint": "', '"fingerprint": "0'),
        ("epsilon.json", '"epsilon": ', '"epsilon": 1'),
        ("codes.json", '"released": [', '"released": [1, '),
    ],
)
def test_a_vector_that_says_something_else_fails(built: Path, tmp_path: Path, name: str, old: str, new: str) -> None:
    text = (VECTORS / name).read_text("utf-8")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new), "utf-8")
    done = node(built / "typescript" / "test" / "vectors.js", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}, ")


def test_one_trial_succeeds_with_probability_exactly_q(built: Path) -> None:
    # All 256 first bytes, and for the one that ties the two outcomes beside the threshold.
    code = f"""
        import {{ numerator, sample }} from "{(built / "typescript" / "src" / "sampler.js").as_uri()}";
        const draw = (mechanism, level, bytes) =>
            sample(mechanism, Int16Array.of(level), {{ next: () => bytes.shift() }})[0];
        const found = [];
        for (const ratio of [1, 12345678, 2 ** 30, 2 ** 31 - 1]) for (const level of [-127, -5, 0, 1, 100, 127]) {{
            const mechanism = {{ bits: 1, dim: 1, ratioNumerator: BigInt(ratio), maxLevel: 127n }};
            const q = numerator(mechanism, level), top = q >>> 24, low = q & 0xffffff;
            let decided = 0;
            for (let first = 0; first < 256; first++) if (first !== top) decided += draw(mechanism, level, [first]);
            const tie = (rest) => draw(mechanism, level, [top, rest >> 16, rest >> 8 & 255, rest & 255]);
            const below = low === 0 || (tie(low - 1) === 1 && tie(0) === 1);
            const threshold = below && tie(low) === 0 && tie(0xffffff) === 0;
            found.push([ratio, level, decided * 2 ** 24 + low, threshold]);
        }}
        console.log(JSON.stringify(found));
    """
    done = node("--input-type=module", "--eval", code)
    assert done.returncode == 0, done.stderr
    for ratio, level, total, threshold in json.loads(done.stdout):
        exact = int(Fraction(abs(level) * ratio, 127) + Fraction(1, 2))
        assert total == 2**31 + (exact if level >= 0 else -exact)
        assert threshold


def test_counts_are_binomial(built: Path) -> None:
    # Fresh randomness of the Web Crypto API: nine chi-squares share ALPHA.
    code = f"""
        import {{ CryptoBytes, numerator, sample }} from "{(built / "typescript" / "src" / "sampler.js").as_uri()}";
        const found = [], random = new CryptoBytes();
        for (const bits of [1, 4, 8]) for (const level of [-32767, 12345, 32767]) {{
            const mechanism = {{ bits, dim: 1, ratioNumerator: 2n ** 30n, maxLevel: 32767n }};
            const levels = new Int16Array(bits === 8 ? 20000 : 200000).fill(level), seen = new Array(1 << bits).fill(0);
            for (const count of sample(mechanism, levels, random)) seen[count]++;
            found.push([bits, numerator(mechanism, level), seen]);
        }}
        console.log(JSON.stringify(found));
    """
    done = node("--input-type=module", "--eval", code)
    assert done.returncode == 0, done.stderr
    for bits, numerator, seen in json.loads(done.stdout):
        assert chi_square_excess(np.array(seen), binomial_pmf(2**bits - 1, numerator), ALPHA / 9) < 1.0
