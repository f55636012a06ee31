"""The TypeScript client against servers that answer, fail and misbehave.

tests/delctl/test_end_to_end.py runs it against a real server.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from client_lib.prompts.detect import find
from del_core.bundle import ClientBundle
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, cut, error, expected_text, expected_tokens, hang, raw, says
from tests.support.typescript import CLIENTS, PACKAGE, ask, node, run, tool

PROMPT = "the quick brown fox, naïve 日本語 🙂"


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
    done = node(built / "example" / "dist" / "main.js", "--url", server.url, text=PROMPT)
    assert (done.returncode, done.stderr) == (1, "it broke\n")
    assert len(server.frames) == 2
    assert len(set(server.frames)) == 1


@pytest.mark.parametrize(("wish", "frames"), [("60.5", 1), ("0.3", 2)])
def test_retry_after_is_waited_for_unless_it_is_long(
    built: Path, server: ScriptedServer, wish: str, frames: int
) -> None:
    server.script.append(error(409, "busy", {"retry-after": wish}, message="busy"))
    done = node(built / "example" / "dist" / "main.js", "--url", server.url, text=PROMPT)
    assert (done.returncode == 0) == (frames == 2)
    assert len(server.frames) == frames


def test_a_refusal_is_told_and_not_repeated(built: Path, server: ScriptedServer) -> None:
    server.script.append(error(400, "invalid_value", message="header.temperature: is 3"))
    done = node(built / "example" / "dist" / "main.js", "--url", server.url, text=PROMPT)
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
        done = node(built / "example" / "dist" / "main.js", "--url", server.url, text=PROMPT)
        assert done.returncode == 1
        assert "table.safetensors: has another SHA-256" in done.stderr
        assert not server.frames


def _archive(directory: Path) -> bytes:
    from del_core.bundle import CLIENT_FILES
    from del_core.bundle import archive as _tar

    return _tar.pack([(name, (directory / name).read_bytes()) for name in CLIENT_FILES])


# -------------------------------------------------------- noise that is drawn once


def test_a_prompt_that_is_sent_again_has_the_same_counts(built: Path, server: ScriptedServer) -> None:
    run(
        built,
        """
        const client = new del.DelClient(url, { variant: "open", subject: "a" });
        for (const fresh of [false, false, true]) await client.complete(prompt, { fresh });
        await client.with({ subject: "b" }).complete(prompt);
        await client.complete([{ public: "the" }, { private: " fox" }]);
        """,
        url=server.url,
        prompt=PROMPT,
    )
    first, again, fresh, other, spans = (server.decode(frame).segments for frame in server.frames)
    assert first == again
    assert first != fresh  # equal counts: less than 2^-500
    assert other not in (first, fresh)
    assert [type(part).__name__ for part in spans] == ["PublicSegment", "PublicSegment", "PrivateSegment"]


def test_calls_at_the_same_time_share_counts_and_bundle(built: Path, server: ScriptedServer) -> None:
    run(
        built,
        """
        const client = new del.DelClient(url, { variant: "open" });
        await Promise.all([1, 2, 3].map(() => client.complete(prompt)));
        """,
        url=server.url,
        prompt=PROMPT,
    )
    assert len(server.requests_to("/v1/bundle")) == 1
    assert len(set(server.frames)) == 1 < len(server.frames)


def test_a_conversation_repeats_its_counts_and_makes_the_servers_answers_public(
    built: Path, server: ScriptedServer
) -> None:
    found = run(
        built,
        """
        const template = { before: { user: "U:", assistant: "A:" }, after: ".", answer: "A:", endTokenIds: [7] };
        const client = new del.DelClient(url, { variant: "open", template });
        const talk = await client.conversation();
        const chat = [{ role: "user", content: "the fox the fox" }];
        const answer = await talk.complete(chat, { max_tokens: 4 });
        chat.push({ role: "assistant", content: answer.text }, { role: "user", content: "the fox the fox" });
        await talk.complete(chat);
        const key = new Uint8Array(32).fill(1);
        const memory = await talk.save(key);
        await (await client.conversation({ memory, key })).complete(chat);
        memory[40] ^= 1;
        const wrong = await client.conversation({ memory, key }).catch((error) => error.name);
        await talk.complete(chat, { fresh: true });
        return [wrong, new TextDecoder().decode(memory).includes("fox")];
        """,
        url=server.url,
    )
    assert found == ["MemoryInvalidError", False]
    first, second, restored, fresh = (server.decode(frame) for frame in server.frames)
    counts = [[part.codes.tobytes() for part in one.segments if hasattr(part, "codes")] for one in (first, second)]
    assert counts[1][0] == counts[0][0]
    assert len(counts[1]) == 2  # the answer is public
    assert counts[1][1] != counts[1][0]  # the second place of the same text has noise of its own
    assert restored.segments == second.segments
    assert fresh.segments != second.segments
    assert len([part for part in fresh.segments if hasattr(part, "codes")]) == 3
    assert first.sampling.stop_token_ids == (7,)
    sessions = [one.headers["x-session-id"] for one in server.received if "x-session-id" in one.headers]
    assert len(set(sessions[:3])) == 1 < len(set(sessions))


# ---------------------------------------------------------------- limits and trust


def test_a_policy_is_kept_before_anything_is_sent(built: Path, server: ScriptedServer) -> None:
    found = run(
        built,
        """
        const policies = [
          { maxEpsilonPerToken: 1 }, { maxEpsilonPerPrompt: 20 }, { maxPureEpsilonPerToken: 2 },
          { variants: ["strict"] }, { fingerprints: ["0".repeat(64)] }, { minAuditDate: "2026-01-01" },
        ];
        const name = (work) => work.then(() => "sent", (error) => error.name);
        const refused = [];
        for (const policy of policies) {
          const client = new del.DelClient(url, { policy, variant: "open" });
          refused.push(await name(client.complete(prompt)));
        }
        const client = new del.DelClient(url);
        return [...refused, await name(client.complete([{ private: "x" }], { variant: "clear" }))];
        """,
        url=server.url,
        prompt=PROMPT,
    )
    assert found == ["PolicyViolationError"] * 6 + ["InvalidRequestError"]
    assert server.frames == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ratio_numerator": (1 << 29) + 1}, "the epsilon of open at delta 0.000001"),
        ({"table_seed": 9}, "the SHA-256 of the table"),
        ({"names": ("strict", "other")}, "variant open"),
        ({"ratio_numerator": 1 << 28}, None),  # stronger
    ],
)
def test_a_weaker_offer_is_refused_until_it_is_accepted(
    built: Path, bundle: ClientBundle, tmp_path: Path, change: dict[str, object], field: str | None
) -> None:
    other = make_bundle(tmp_path / "other", **change)  # type: ignore[arg-type]
    with ScriptedServer(bundle).running() as server:
        server.bundle_script.append(raw(_archive(bundle.path), "application/x-tar"))
        server.bundle_script.extend([raw(_archive(other.path), "application/x-tar")] * 2)
        found = run(
            built,
            """
            const { FileStorage } = await import("del-serve/node");
            const storage = new FileStorage(path);
            const open = (options) => new del.DelClient(url, { storage, variant: "open", ...options });
            await open().bundle();
            const offer = await open().bundle().then(() => [], (error) => error.changes.map((one) => one.field));
            const accepted = await open({ accept: [fingerprint] }).bundle();
            return [offer, accepted.fingerprint, [...(await open().trust.records()).keys()]];
            """,
            url=server.url,
            path=str(tmp_path / "deep" / "trust.json"),
            fingerprint=other.fingerprint,
        )
    changed, accepted, servers = found
    assert field in changed or (field is None and not changed)
    assert accepted == other.fingerprint
    assert servers == [server.url.partition("://")[2]]
    assert (tmp_path / "deep" / "trust.json").stat().st_mode & 0o777 == 0o600


def test_a_damaged_record_of_trust_never_counts_as_empty(built: Path, server: ScriptedServer) -> None:
    found = run(
        built,
        """
        const storage = new del.MemoryStorage();
        storage.setItem("del-serve.trust", '{"version":1,"servers":{"x":{}}}');
        await new del.DelClient(url, { storage }).bundle();
        """,
        url=server.url,
    )
    assert found["name"] == "TrustUnavailableError"


def test_signatures_are_verified(built: Path, tmp_path: Path) -> None:
    import datetime

    from del_core.bundle import load_client
    from del_core.bundle.signing import new_key, public_key, sign_bundle

    pem, stranger = new_key(), new_key()
    signed = make_bundle(tmp_path / "signed")
    sign_bundle(tmp_path / "signed", pem, signed=datetime.date(2026, 11, 1))
    with ScriptedServer(load_client(signed.path)).running() as server:
        found = run(
            built,
            """
            const storage = new del.MemoryStorage();
            const open = (options) => new del.DelClient(url, { storage, ...options });
            const name = (work) => work.then(() => "accepted", (error) => error.name);
            const first = [];
            for (const one of [key, other]) first.push(await name(open({ trustedKeys: [one] }).bundle()));
            const lying = (how) => async (url, init) => {
              const answer = await fetch(url, init), headers = new Headers(answer.headers);
              how(headers);
              return new Response(answer.body, { headers });
            };
            const header = "x-del-signature";
            const replaced = (headers) => headers.set(header, headers.get(header).replace("2026-11-01", "2026-11-02"));
            const removed = (headers) => headers.delete(header);
            for (const how of [replaced, removed]) first.push(await name(open({ fetch: lying(how) }).bundle()));
            return first;
            """,
            url=server.url,
            key=public_key(pem),
            other=public_key(stranger),
        )
    assert found == ["accepted", "BundleRejectedError", "BundleError", "BundleRejectedError"]


def test_a_budget_is_charged_before_anything_is_sent_and_once_for_each_drawing(
    built: Path, server: ScriptedServer
) -> None:
    found = run(
        built,
        """
        const storage = new del.MemoryStorage();
        const probe = new del.DelClient(url, { storage, variant: "open" });
        const encoded = await probe.encode(prompt);
        const tokens = encoded.draws[0].tokens;
        const both = await probe.epsilon("open", { tokens: 2 * tokens });
        const ledger = new del.Ledger(storage, { epsilon: both });
        const client = probe.with({ ledger, subject: "ann" });
        for (let i = 0; i < 3; i++) await client.complete(encoded);
        const once = await ledger.spent("ann");
        await client.complete(prompt, { fresh: true });
        const refused = await client.complete("x", {}).catch((error) => error.name);
        await client.with({ subject: "ben" }).complete("x", { variant: "strict" });
        await client.with({ subject: "ben" }).complete("x", { variant: "open" });
        const mixed = await ledger.spent("ben");
        const single = await client.epsilon("open");
        const exact = once === await client.epsilon("open", { tokens });
        return [exact, refused, await ledger.spent("ann") === both, mixed > single];
        """,
        url=server.url,
        prompt=PROMPT,
    )
    assert found == [True, "BudgetExceededError", True, True]
    assert len(server.frames) == 6


# ----------------------------------------------------------- a server that changes


def test_a_new_bundle_of_the_same_noise_gets_the_same_counts(built: Path, bundle: ClientBundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", norm_limit=2.0)  # only the server's part differs
    with ScriptedServer(other).running() as server:
        server.bundle_script.append(raw(_archive(bundle.path), "application/x-tar"))
        found = run(
            built,
            """
            const client = new del.DelClient(url, { variant: "open" });
            await client.bundle();
            return (await client.complete(prompt)).finishReason;
            """,
            url=server.url,
            prompt=PROMPT,
        )
    assert found == "length"
    old, new = server.frames
    assert server.decode(old).segments == server.decode(new).segments
    assert server.decode(new).fingerprint == other.fingerprint


def test_counts_are_not_drawn_again_for_a_bundle_in_which_they_mean_something_else(
    built: Path, bundle: ClientBundle, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", ratio_numerator=1 << 28)
    with ScriptedServer(other).running() as server:
        server.bundle_script.append(raw(_archive(bundle.path), "application/x-tar"))
        found = run(
            built,
            'await new del.DelClient(url, { variant: "open" }).complete(prompt);',
            url=server.url,
            prompt=PROMPT,
        )
    assert found["name"] == "BundleOutdatedError"
    assert len(server.frames) == 1


def test_the_context_of_the_server_is_kept(built: Path, bundle: ClientBundle) -> None:
    with ScriptedServer(bundle).running() as server:
        server.context_length = 40
        found = run(
            built,
            """
            const client = new del.DelClient(url, { variant: "open" });
            await client.complete("the quick", { max_tokens: 500 });
            await client.complete("the quick brown fox ".repeat(20));
            """,
            url=server.url,
        )
    assert found["name"] == "ContextFullError"
    (sent,) = map(server.decode, server.frames)
    assert sent.sampling.max_tokens == 40 - sent.prompt_tokens


# -------------------------------------------------------- a server that misbehaves

_CHOICE = '{"choices":[{"index":0,"text":%s,"token_ids":%s,"finish_reason":%s}]}'


_MALFORMED = [
    (_CHOICE % ('"x"', "[1,2,3,4]", '"stop"'), False),  # more tokens than asked for
    (_CHOICE % (json.dumps("x" * 2000), "[1]", '"stop"'), False),  # more text than tokens have
    (_CHOICE % ('"\\ud800"', "[1]", '"stop"'), False),
    (_CHOICE % ('"x"', "[1.5]", '"stop"'), False),
    (_CHOICE % ('"x"', "[1]", "null"), False),
    (_CHOICE % ('"x"', "[1]", '"a\\r\\nb"'), False),
    ("[]", False),
    ("x" * 200_000, False),  # a body beyond what the tokens may take
    ("data: " + "x" * 1_100_000, True),  # an event without an end
    ("data: x\n" * 200_000 + "\n", True),  # an event of very many lines
    ("data: " + _CHOICE % ('"x"', "[1,2,3,4]", "null") + "\n\n", True),
    (("data: " + _CHOICE % (json.dumps("x" * 900), "[]", "null") + "\n\n") * 3, True),  # text without tokens
    ("data: " + _CHOICE % ('"x"', "[1]", '"stop"') + "\n\ndata: " + _CHOICE % ('"y"', "[2]", "null") + "\n\n", True),
    ("data: \udcff\n\n", True),
]


def test_a_malformed_answer_is_refused(built: Path, server: ScriptedServer) -> None:
    for body, stream in _MALFORMED:
        kind = "text/event-stream" if stream else "application/json"
        server.script.append(raw(body.encode("utf-8", "surrogateescape"), kind))
    found = run(
        built,
        """
        const client = new del.DelClient(url, { variant: "open" });
        const errors = [];
        for (const stream of streams) {
          try {
            if (!stream) await client.complete(prompt, { max_tokens: 3 });
            else for await (const chunk of client.stream(prompt, { max_tokens: 3 }));
            errors.push(["accepted", ""]);
          } catch ({ name, message }) {
            errors.push([name, message]);
          }
        }
        return errors;
        """,
        url=server.url,
        prompt=PROMPT,
        streams=[stream for _, stream in _MALFORMED],
    )
    assert [name for name, _ in found] == ["ProtocolError"] * len(_MALFORMED), found
    assert not any("xxx" in message for _, message in found)
    assert len(server.frames) == len(_MALFORMED)


def test_a_bundle_is_bounded_and_nothing_of_a_damaged_one_is_used(built: Path, bundle: ClientBundle) -> None:
    archive = _archive(bundle.path)
    size = bytearray(archive)
    size[124:135] = b"77777777777"  # a manifest of 8 GiB
    for damaged in (bytes(size), archive[:-1], archive + b"x", b"<html>"):
        with ScriptedServer(bundle).running() as server:
            server.bundle_script.append(raw(damaged, "application/x-tar"))
            found = run(built, "await new del.DelClient(url).bundle();", url=server.url)
        assert found["name"] == "BundleError"


def test_silence_ends_and_is_not_retried(built: Path, server: ScriptedServer) -> None:
    server.script.append(hang())
    found = run(
        built,
        'await new del.DelClient(url, { variant: "open", timeout: { read: 0.2 } }).complete(prompt);',
        url=server.url,
        prompt=PROMPT,
    )
    assert found["name"] == "TimeoutExceededError"
    assert len(server.frames) == 1


def test_a_caller_can_leave(built: Path, server: ScriptedServer) -> None:
    server.script.append(says("x" * 700))
    found = run(
        built,
        """
        const leaving = new AbortController();
        const silent = async (url, init) => {
          if (!url.endsWith("completions")) return fetch(url, init);
          setTimeout(() => leaving.abort(new Error("left")));
          return new Promise(() => {});
        };
        const waiting = new del.DelClient(url, { variant: "open", fetch: silent });
        const left = await waiting.complete(prompt, { signal: leaving.signal }).catch((error) => error.message);
        const client = new del.DelClient(url, { variant: "open" });
        const texts = [];
        for await (const chunk of client.stream(prompt, { max_tokens: 100 })) {
          texts.push(chunk.text);
          if (texts.length === 2) break;
        }
        return [left, texts];
        """,
        url=server.url,
        prompt=PROMPT,
    )
    assert found == ["left", ["x" * 7] * 2]


def test_an_address_that_is_not_safe_is_refused(built: Path) -> None:
    urls = ["http://192.0.2.1", "ftp://127.0.0.1", "https://a:b@127.0.0.1", "http://127.0.0.1.example.org", "nonsense"]
    code = "return urls.map((url) => { try { new del.DelClient(url); } catch (error) { return error.name; } });"
    assert run(built, code, urls=urls) == ["InvalidRequestError"] * len(urls)


def test_a_redirect_is_not_followed(built: Path, server: ScriptedServer) -> None:
    from tests.support.scripted_server import status

    server.script.append(status(307, {"location": f"{server.url}/elsewhere"}))
    found = run(
        built,
        'await new del.DelClient(url, { variant: "open", maxRetries: 0 }).complete(prompt);',
        url=server.url,
        prompt=PROMPT,
    )
    assert found["name"] == "ConnectionFailedError"
    assert not server.requests_to("/elsewhere")


def test_a_field_that_is_not_acceptable_is_named_before_anything_is_sent(built: Path, server: ScriptedServer) -> None:
    refused: list[dict[str, object]] = [
        {"max_tokens": 0}, {"max_tokens": 1.5}, {"temperature": 3}, {"top_p": "1"}, {"stop": [""]}, {"stop": 3},
        {"seed": 2**60}, {"logit_bias": {"5000": 1}}, {"logprobs": 21}, {"min_p": -1},
        {"structured_outputs": {"json_object": True, "regex": "a"}},
    ]  # fmt: skip
    found = run(
        built,
        """
        const client = new del.DelClient(url, { variant: "open" });
        const told = ({ name, message }) => [name, message];
        const named = (fields) => client.complete(prompt, fields).then(() => ["", ""], told);
        return Promise.all(refused.map(named));
        """,
        url=server.url,
        prompt=PROMPT,
        refused=refused,
    )
    for fields, (name, message) in zip(refused, found, strict=True):
        assert name == "InvalidRequestError"
        assert message.startswith(next(iter(fields)))
    assert server.frames == []


# ----------------------------------------------------------------------- detectors


def test_detectors_find_what_the_python_client_finds(built: Path) -> None:
    pieces = [
        *"aB3-_. ,:/@+()\n",
        *("DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111", "+49 30 901820", "192.168.10.25", "::1", "fe80::1:2"),
        *("24.12.1983", "December 24th, 1983", "3 of May 2020", "AKIAIOSFODNN7EXAMPLE", "my password is hunter2"),
        *(
            "postgres://ann:pw@db.example/x",
            "ann.o'neil+news@mail.example.org",
            "C01X00T478",
            "12345678",
            "naïve",
            "日本",
        ),
        *(
            "1 555 867 5309",
            "QQ 12 34 56 C",
            "A-2023-004417",
            "3. März 1999",
            "July 4 '76",
            "nurse [at] a [dot] b",
            "pass w0rd!",
        ),
        *(
            "d41d8cd98f00b204e9800998ecf8427e",
            "::ffff:192.0.2.128",
            "001a.2b3c.4d5e",
            "me@[192.0.2.7]",
            "x as my password",
        ),
        *("00:1A:2b:3c:4d:5E", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "x86_64", "555-867-5309", "3.14159"),
        *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "sk-proj-abcdEFGH0123456789abcd", "the fox "),
    ]
    draw = np.random.default_rng(4)
    texts = ["".join(draw.choice(pieces, size=draw.integers(1, 12))) for _ in range(1500)]
    wanted = [[[one.start, one.end, one.kind] for one in find(text)] for text in texts]
    assert sum(map(len, wanted)) > 1500
    code = "return texts.map((text) => del.detect(text).map(({ start, end, kind }) => [start, end, kind]));"
    found = run(built, code, texts=texts)
    assert [pair for pair in zip(texts, wanted, found, strict=True) if pair[1] != pair[2]] == []


def test_detected_text_stays_the_same_text(built: Path) -> None:
    text = "Write to ann@example.org 🙂, or call +49 30 901820."
    spans = run(built, "return del.detected(text);", text=text)
    assert "".join(next(iter(span.values())) for span in spans) == text
    assert [span["private"] for span in spans if "private" in span] == ["ann@example.org", "+49 30 901820"]


# --------------------------------------------------------------------- the package


def test_it_depends_on_nothing_at_run_time_and_packs_what_it_needs(built: Path, tmp_path: Path) -> None:
    project = json.loads((PACKAGE / "package.json").read_text("utf-8"))
    assert not {"dependencies", "peerDependencies", "optionalDependencies"} & project.keys()
    assert "resolved" not in re.sub(
        r'"resolved": "typescript",\s*"link": true', "", (CLIENTS / "package-lock.json").read_text("utf-8")
    )
    sources = {path.name: path.read_text("utf-8") for path in (PACKAGE / "src").glob("*.ts")}
    imports = {
        (name, found)
        for name, text in sources.items()
        for found in re.findall(r'(?:from|import\()\s*"([^"]+)"', text)
        if not found.startswith("./")
    }
    assert imports == {("node.ts", "node:fs/promises"), ("node.ts", "node:path")}
    assert not any("Math.random" in text or "console." in text for text in sources.values())
    package = tmp_path / "package"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("dist", "build", "node_modules"))
    shutil.copytree(built / "node_modules" / "del-serve" / "dist", package / "dist")
    packed = subprocess.run(
        ["npm", "pack", "--dry-run", "--json", "--ignore-scripts"],
        cwd=package,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {entry["path"] for entry in json.loads(packed.stdout)[0]["files"]}
    assert {"LICENSE", "README.md", "package.json"} < names
    for target in project["exports"].values():
        assert {target["types"].removeprefix("./"), target["default"].removeprefix("./")} < names
    assert not any(name.startswith(("src", "test")) for name in names)


def test_the_sizes_in_the_readme_are_current() -> None:
    tool("esbuild/package.json")
    printed = node(PACKAGE / "sizes.mjs").stdout
    stated = (PACKAGE / "README.md").read_text("utf-8")
    number = re.compile(r"([\d.]+) kB")
    table = stated[stated.index("<!-- sizes -->") :]
    found, wanted = ([float(one) for one in number.findall(text)] for text in (table, printed))
    assert len(wanted) == 6
    # Another version of zlib may make a few bytes more or less.
    assert found == pytest.approx(wanted, rel=0.02)
