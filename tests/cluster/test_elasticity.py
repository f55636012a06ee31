"""Several replicas with mock engines behind HAProxy: affinity, quotas, overload, scaling."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from client_lib import AsyncClient, RateLimitError
from cluster.local import LocalServer, start_local
from del_core import demo
from del_core.bundle import Bundle, load_bundle
from del_core.passes import authorization
from del_core.wire import MEDIA_TYPE, PublicSegment, Request, Sampling, encode_frame
from deployments.auth.keys import hash_key
from deployments.auth.pass_ledger import PassLedger, ledger_path
from deployments.settings import parse_settings
from tests.support.passes import issuer_key
from tests.support.serving_frames import PATH

WITHIN_S = 60.0
SLOTS = 8
QUOTA = 24
PASSES = 3
FRAME_TOKENS = 4  # two of the prompt, two to be generated
KEY = "del-" + "k" * 43
LARGE_QUOTA = 160  # large enough that replicas hold parts of it ahead of need: up to a sixteenth each
LIMITED = {
    "requests": {"requests_per_minute": QUOTA},
    "tokens": {"tokens_per_minute": QUOTA * FRAME_TOKENS},
}
LARGE = {"requests_per_minute": LARGE_QUOTA, "tokens_per_minute": 2 * LARGE_QUOTA * FRAME_TOKENS}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Two replicas, and room for a third; a token takes 5 ms."""
    issuer = tmp_path_factory.mktemp("issuer") / "passes.json"
    issuer_key().save(issuer)
    PassLedger.create(ledger_path(issuer))
    settings = parse_settings(
        {
            "passes": {"key_file": str(issuer)},
            "engine": {"kind": "mock", "step_ms": 5.0, "max_num_seqs": SLOTS},
            "telemetry": {"request_log": True},
            "keys": {
                "names": {
                    "unlimited": {"hashes": [hash_key(KEY)], "passes_per_day": PASSES},
                    # Two of each, since a minute may end while one of them is spent.
                    **{
                        f"{kind}-{turn}": {"hashes": [hash_key(f"{KEY}-{kind}-{turn}")], **limit}
                        for kind, limit in LIMITED.items()
                        for turn in range(2)
                    },
                    **{f"large-{turn}": {"hashes": [hash_key(f"{KEY}-large-{turn}")], **LARGE} for turn in range(2)},
                }
            },
            "scaling": {
                "min_replicas": 2,
                "max_replicas": 3,
                "target_ongoing_requests": 1000,
                "target_outstanding_tokens": 4000,
                "max_ongoing_requests": SLOTS,
                "upscale_delay_s": 0.5,
                "downscale_delay_s": 3600,
                "num_cpus": 0.1,
            },
        }
    )
    with start_local(settings, proxy="haproxy") as server:
        asyncio.run(_until_both_serve(server))
        yield server


async def _until_both_serve(server: LocalServer) -> None:
    """Wait until HAProxy knows both replicas."""
    frame, deadline = frame_of(load_bundle(demo.bundle_path()), 2), time.monotonic() + WITHIN_S
    turn, places = 0, set[str]()
    while len(places) < 2:
        assert time.monotonic() < deadline, places
        answers = await ask(server, frame, [None] * 4, f"first{turn}")
        assert [answer.status_code for answer in answers] == [200] * 4
        places |= set(served_by(server, f"first{turn}", 4).values())
        turn += 1


@pytest.fixture(scope="module")
def demo_bundle() -> Bundle:
    return load_bundle(demo.bundle_path())


def frame_of(bundle: Bundle, max_tokens: int) -> bytes:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return encode_frame(Request(bundle.fingerprint, "clear", (PublicSegment((5, 6)),), sampling), bits=1)


async def ask(
    server: LocalServer, frame: bytes, sessions: list[str | None], name: str, key: str = KEY
) -> list[httpx.Response]:
    """Send all requests at once, with ids that begin with ``name``."""

    async def one(client: httpx.AsyncClient, index: int, session: str | None) -> httpx.Response:
        headers = {
            "content-type": MEDIA_TYPE,
            "x-request-id": f"{name}-{index}",
            "authorization": f"Bearer {key}",
        }
        if session is not None:
            headers["x-session-id"] = session
        return await client.post(server.url + PATH, content=frame, headers=headers)

    async with httpx.AsyncClient(timeout=WITHIN_S) as client:
        return list(await asyncio.gather(*(one(client, *pair) for pair in enumerate(sessions))))


def served_by(server: LocalServer, name: str, expected: int) -> dict[str, str]:
    """Return which replica completed each request, from the replicas' logs."""
    deadline = time.monotonic() + WITHIN_S
    found: dict[str, str] = {}
    while len(found) < expected:
        assert time.monotonic() < deadline, found
        for file in server.directory.glob("r/session_2*/logs/serve/replica_*.log"):
            for line in file.read_text().splitlines():
                if f'"request_id": "{name}-' in line and '"code": "ok"' in line:
                    record = json.loads(line)
                    found[record["request_id"]] = record["replica"]
        time.sleep(0.05)
    return found


async def test_replicas_share_the_record_of_passes(replicas: LocalServer, demo_bundle: Bundle) -> None:
    """A pass that is sent to both replicas at once pays once; a key buys so many, over both."""
    async with AsyncClient(replicas.url, api_key=KEY) as buyer:
        bought = await buyer.request_passes(PASSES, issuer=issuer_key().config.to_bytes())
        with pytest.raises(RateLimitError):
            await buyer.request_passes(1, issuer=issuer_key().config.to_bytes())
    frame = frame_of(demo_bundle, 2)
    async with httpx.AsyncClient(timeout=WITHIN_S) as client:
        for number, data in enumerate(bought):
            headers = {"content-type": MEDIA_TYPE, "authorization": authorization(data)}
            tries = (
                client.post(replicas.url + PATH, content=frame, headers={**headers, "x-session-id": f"{number}-{turn}"})
                for turn in range(6)
            )
            statuses = sorted(answer.status_code for answer in await asyncio.gather(*tries))
            assert statuses == [200] + [401] * 5


async def test_a_conversation_stays_on_its_replica(replicas: LocalServer, demo_bundle: Bundle) -> None:
    frame = frame_of(demo_bundle, 2)
    homes: Counter[str] = Counter()
    for conversation in range(12):
        name = f"stay{conversation}"
        for index in range(4):
            (answer,) = await ask(replicas, frame, [f"conversation-{conversation}"], f"{name}-{index}")
            assert answer.status_code == 200
        places = set(served_by(replicas, name, 4).values())
        assert len(places) == 1, places
        homes.update(places)
    assert len(homes) == 2  # and not all of them on one


async def test_a_busy_replica_gives_of_its_conversations(replicas: LocalServer, demo_bundle: Bundle) -> None:
    """Ten requests of one conversation exceed the bound of one replica: the other one helps."""
    answers = await ask(replicas, frame_of(demo_bundle, 100), ["hot"] * 10, "hot")
    assert [answer.status_code for answer in answers] == [200] * 10
    places = Counter(served_by(replicas, "hot", 10).values())
    assert len(places) == 2
    assert max(places.values()) <= SLOTS


async def test_without_a_conversation_both_share_the_load(replicas: LocalServer, demo_bundle: Bundle) -> None:
    # Not more: a share and a half of twelve is nine, and a replica has eight places.
    answers = await ask(replicas, frame_of(demo_bundle, 100), [None] * 10, "none")
    assert [answer.status_code for answer in answers] == [200] * 10
    assert min(Counter(served_by(replicas, "none", 10).values()).values()) >= 2


@pytest.mark.parametrize("kind", list(LIMITED))
async def test_a_quota_holds_over_both_replicas(replicas: LocalServer, demo_bundle: Bundle, kind: str) -> None:
    frame = frame_of(demo_bundle, 2)
    for turn in range(2):
        minute, answers = time.time() // 60, []
        for part in range(6):
            name = f"{kind}{turn}-{part}"
            answers += await ask(replicas, frame, [None] * SLOTS, name, f"{KEY}-{kind}-{turn}")
        if time.time() // 60 == minute:
            break
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    # Never more than the quota; what a replica holds of it that is too little for a request is left
    # unspent.
    assert QUOTA - 3 <= statuses[200] <= QUOTA
    places = Counter(served_by(replicas, f"{kind}{turn}", statuses[200]).values())
    assert len(places) == 2, places
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_a_quota_survives_a_killed_replica(replicas: LocalServer, demo_bundle: Bundle) -> None:
    """The dead replica's lease is lost, and no replica spends it again."""
    frame = frame_of(demo_bundle, 2)
    for turn in range(2):  # a minute may end on the way
        minute, statuses = time.time() // 60, Counter[int]()

        async def spend(name: str, batches: int, until: int = 0) -> None:
            for batch in range(batches):
                name_now = f"killed{turn}-{name}-{batch}"  # noqa: B023
                answers = await ask(replicas, frame, [None] * SLOTS, name_now, f"{KEY}-large-{turn}")  # noqa: B023
                codes = Counter(answer.status_code for answer in answers)
                statuses.update(codes)  # noqa: B023
                if codes[until] == SLOTS:
                    return

        await spend("before", 6)
        assert statuses == {200: 6 * SLOTS}
        there = set(served_by(replicas, f"killed{turn}-before", 6 * SLOTS).values())
        assert len(there) == 2
        victim = next(process for process in replicas.processes() if process.name().startswith("ray::ServeRepl"))
        victim.kill()
        await spend("alone", 4)
        deadline, index = time.monotonic() + WITHIN_S, 0
        came: set[str] = set()
        while not came:
            assert time.monotonic() < deadline, "no replacement"
            answers = await ask(replicas, frame, [None] * 4, f"free{turn}-{index}")
            served = [answer.status_code for answer in answers].count(200)
            came = set(served_by(replicas, f"free{turn}-{index}", served).values()) - there
            index += 1
        await spend("after", 40, until=429)
        if time.time() // 60 == minute:
            break
    else:
        pytest.fail("both turns went beyond the end of a minute")
    assert set(statuses) <= {200, 429, 503}  # 503: it went to the replica that had just died
    assert statuses[429] >= SLOTS
    assert LARGE_QUOTA - LARGE_QUOTA // 16 - 3 <= statuses[200] <= LARGE_QUOTA
    after = served_by(replicas, f"killed{turn}-after", 1)
    assert came & set(after.values()), after


async def test_what_is_too_much_is_refused_at_once(replicas: LocalServer, demo_bundle: Bundle) -> None:
    """While every slot is taken, a request gets a 503 and accepted requests continue."""
    frame = frame_of(demo_bundle, 900)  # 4.5 s: all 60 have come before the first slot is free again
    began = time.monotonic()
    answers = await ask(replicas, frame, [None] * 60, "flood")
    assert time.monotonic() - began < WITHIN_S / 2
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    assert SLOTS < statuses[200] <= 3 * SLOTS
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.elapsed.total_seconds() < 4.5  # a completion takes as long
    (after,) = await ask(replicas, frame_of(demo_bundle, 2), [None], "after")
    assert after.status_code == 200


async def test_few_long_completions_bring_a_replica(replicas: LocalServer, demo_bundle: Bundle) -> None:
    """Six requests are far below the target for requests; their tokens are above the other."""
    long = asyncio.ensure_future(ask(replicas, frame_of(demo_bundle, 4000), [None] * 6, "long"))
    async with httpx.AsyncClient() as client, asyncio.timeout(WITHIN_S):
        while await _healthy(client, replicas) < 3:
            await asyncio.sleep(0.25)
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)


async def _healthy(client: httpx.AsyncClient, server: LocalServer) -> int:
    text = (await client.get(f"http://{server.metrics[0]}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("ray_serve_deployment_replica_healthy{")]
    return sum(float(line.rsplit(" ", 1)[1]) > 0 for line in lines)


def test_no_replica_at_all_is_an_answer_and_not_a_silence(replicas: LocalServer, demo_bundle: Bundle) -> None:
    """After every replica is killed: a typed 503 or a completion, never a hang."""
    for process in replicas.processes():
        if " ".join(process.cmdline()).startswith("ray::ServeReplica"):
            process.kill()
    frame, headers = frame_of(demo_bundle, 2), {"content-type": MEDIA_TYPE, "authorization": f"Bearer {KEY}"}
    deadline = time.monotonic() + WITHIN_S
    statuses: Counter[int] = Counter()
    while statuses[200] == 0:
        assert time.monotonic() < deadline, statuses
        try:
            answer = httpx.post(replicas.url + PATH, content=frame, headers=headers, timeout=30)
        except httpx.RemoteProtocolError:
            continue  # the connection to the killed replica broke under it
        statuses[answer.status_code] += 1
        if answer.status_code != 200:
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] in ("engine_unavailable", "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            time.sleep(0.2)
