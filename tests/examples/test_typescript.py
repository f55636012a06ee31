"""The reference client in TypeScript: vectors, counts, and servers that misbehave.

tests/delctl/test_end_to_end.py runs it against a real server.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from del_core.bundle import ClientBundle
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, cut, error, expected_text, expected_tokens, raw
from tests.support.statistics import ALPHA, binomial_pmf, chi_square_excess
from tests.support.typescript import PROJECT, ask, build, node

VECTORS = Path(__file__).parents[1] / "vectors"
PROMPT = "the quick brown fox, naïve 日本語 🙂"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("typescript"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ClientBundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def server(bundle: ClientBundle) -> Iterator[ScriptedServer]:
    with ScriptedServer(bundle).running() as running:
        yield running


def test_it_passes_every_vector(built: Path) -> None:
    done = node(built / "vectors.js", VECTORS)
    assert done.returncode == 0, done.stderr
    counted = dict(line.split() for line in done.stdout.splitlines())
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
        ("codes.json", '"released": [', '"released": [1, '),
    ],
)
def test_a_vector_that_says_something_else_fails(built: Path, tmp_path: Path, name: str, old: str, new: str) -> None:
    text = (VECTORS / name).read_text("utf-8")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new), "utf-8")
    done = node(built / "vectors.js", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}, ")


def test_one_trial_succeeds_with_probability_exactly_q(built: Path) -> None:
    # All 256 first bytes, and for the one that ties the two outcomes beside the threshold.
    code = f"""
        import {{ numerator, sample }} from "{(built / "sampler.js").as_uri()}";
        const draw = (mechanism, level, bytes) =>
            sample(mechanism, Int16Array.of(level), {{ next: () => bytes.shift() }})[0];
        const found = [];
        for (const ratio of [1, 12345678, 2 ** 30, 2 ** 31 - 1]) for (const level of [-127, -5, 0, 1, 100, 127]) {{
            const mechanism = {{ bits: 1, ratioNumerator: BigInt(ratio), maxLevel: 127n }};
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
        import {{ CryptoBytes, numerator, sample }} from "{(built / "sampler.js").as_uri()}";
        const found = [], random = new CryptoBytes();
        for (const bits of [1, 4, 8]) for (const level of [-32767, 12345, 32767]) {{
            const mechanism = {{ bits, ratioNumerator: 2n ** 30n, maxLevel: 32767n }};
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


def test_it_sends_what_the_server_reads(built: Path, server: ScriptedServer, bundle: ClientBundle) -> None:
    from tokenizers import Tokenizer

    found = ask(built, server.url, PROMPT, "--variant", "open", "--max-tokens", "12")
    assert found["text"] == expected_text(expected_tokens(12))
    assert found["token_ids"] == list(expected_tokens(12))
    assert found["finish_reason"] == "length"
    assert found["request_id"] == "req-1"
    assert found["fingerprint"] == bundle.fingerprint
    (request,) = map(server.decode, server.frames)
    ids = Tokenizer.from_file(str(bundle.tokenizer_path)).encode(PROMPT, add_special_tokens=False).ids
    public, private = request.segments
    assert public.token_ids == (0,)  # type: ignore[union-attr]  # the bundle's bos_token_id
    assert private.codes.shape == (len(ids), 8)  # type: ignore[union-attr]


def test_noise_is_drawn_anew_for_every_prompt(built: Path, server: ScriptedServer) -> None:
    for _ in range(2):
        ask(built, server.url, PROMPT, "--variant", "open")
    first, second = server.frames
    assert first != second  # equal counts: less than 2^-500


def test_a_stream_that_breaks_is_resumed_with_the_same_bytes(built: Path, server: ScriptedServer) -> None:
    server.script.extend([cut(500), cut(400)])
    found = ask(built, server.url, PROMPT, "--variant", "open", "--max-tokens", "12", "--stream")
    assert found["text"] == expected_text(expected_tokens(12))
    assert found["token_ids"] == list(expected_tokens(12))
    requests = [server.decode(frame) for frame in server.frames]
    assert len(requests) == 3
    assert {request.segments for request in requests} == {requests[0].segments}
    assert [request.sampling.max_tokens for request in requests] == [12, 12, 12]
    received = [len(request.resume) for request in requests]
    assert received == sorted(received)
    assert received[0] == 0 < received[-1]
    assert requests[-1].resume == expected_tokens(received[-1])


def test_overload_is_waited_out_with_the_same_bytes(built: Path, server: ScriptedServer) -> None:
    server.script.extend(
        [error(503, "overloaded", {"retry-after": "0"}), error(429, "rate_limited", {"retry-after": "0"})]
    )
    assert ask(built, server.url, PROMPT)["finish_reason"] == "length"
    assert len(server.frames) == 3
    assert len(set(server.frames)) == 1


def test_an_internal_error_is_tried_again_once(built: Path, server: ScriptedServer) -> None:
    server.script.extend([error(500, "internal_error", message="it broke")] * 3)
    done = node(built / "main.js", "--url", server.url, text=PROMPT)
    assert (done.returncode, done.stderr) == (1, "it broke\n")
    assert len(server.frames) == 2
    assert len(set(server.frames)) == 1


@pytest.mark.parametrize(("wish", "frames"), [("60.5", 1), ("0.3", 2)])
def test_retry_after_is_waited_for_unless_it_is_long(
    built: Path, server: ScriptedServer, wish: str, frames: int
) -> None:
    server.script.append(error(409, "busy", {"retry-after": wish}, message="busy"))
    done = node(built / "main.js", "--url", server.url, text=PROMPT)
    assert (done.returncode == 0) == (frames == 2)
    assert len(server.frames) == frames


def test_a_refusal_is_told_and_not_repeated(built: Path, server: ScriptedServer) -> None:
    server.script.append(error(400, "invalid_value", message="header.temperature: is 3"))
    done = node(built / "main.js", "--url", server.url, text=PROMPT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "header.temperature: is 3\n"
    assert len(server.frames) == 1


def test_another_bundle_than_announced_is_refused(built: Path, bundle: ClientBundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", table_seed=5)
    swapped = tmp_path / "swapped"
    shutil.copytree(bundle.path, swapped)
    shutil.copyfile(other.path / "table.safetensors", swapped / "table.safetensors")
    with ScriptedServer(bundle).running() as server:
        server.bundle_script.append(raw(_archive(swapped), "application/x-tar"))
        done = node(built / "main.js", "--url", server.url, text=PROMPT)
        assert done.returncode == 1
        assert "table.safetensors: has another SHA-256" in done.stderr
        assert not server.frames


def _archive(directory: Path) -> bytes:
    from del_core.bundle import CLIENT_FILES
    from del_core.bundle import archive as _tar

    return _tar.pack([(name, (directory / name).read_bytes()) for name in CLIENT_FILES])


def test_it_depends_on_nothing_at_run_time() -> None:
    project = json.loads((PROJECT / "package.json").read_text("utf-8"))
    assert "dependencies" not in project
    assert list(project["devDependencies"]) == ["typescript"]
    lock = (PROJECT / "package-lock.json").read_text("utf-8")
    assert "resolved" not in lock
    assert set(json.loads(lock)["packages"]) == {"", "node_modules/typescript"}
    imports = {
        name
        for path in (PROJECT / "src").glob("*.ts")
        for name in re.findall(r'^import .* from "([^"]+)"|^declare module', path.read_text("utf-8"), re.MULTILINE)
        if name and not name.startswith("./")
    }
    assert imports == {"node:fs/promises", "node:util"}
    assert not any("Math.random" in path.read_text("utf-8") for path in (PROJECT / "src").glob("*.ts"))
