"""Tables of the measurements of client and server."""

from __future__ import annotations

from typing import Any

from benchmarks.results_pages.tables import Origin, Table, interval, load, number, percent, table
from benchmarks.serving.table import markdown as serving

__all__ = ["SYSTEMS"]

_TWO_CORES = "2 cores of an AMD EPYC, virtual machine shared with other work"


def _speed() -> str:
    found = load("client.json")["results"]
    return table(
        ("n", "tokens/s on one core", "time over random bytes", "bytes a token"),
        (
            (
                name.removeprefix("n="),
                number(speed, 0),
                number(found["ratio_to_random_bytes"][name], 1),
                str(found["bytes_per_token"][name]),
            )
            for name, speed in found["tokens_per_second_per_core"].items()
        ),
    )


def _size() -> str:
    kept = load("client.json")
    found, install = kept["results"], kept["install"]
    with_code = install["install_mb"] + install["bytecode_mb"]
    lean_with_code = install["lean_install_mb"] + install["lean_bytecode_mb"]
    return table(
        ("what", "measured"),
        (
            ("`import client_lib`", f"{number(found['import_seconds'], 2)} s"),
            ("memory of a process with a client that has encoded a prompt", f"{number(found['rss_mb'], 0)} MB"),
            ("client part of the bundle, on disk and over the wire", f"{number(found['bundle_mb'], 1)} MB"),
            ("the tokenizer's share of encoding a text, n = 4", percent(found["tokenize_share"])),
            ("`pip install .`, byte code included", f"{number(with_code, 0)} MB"),
            ("`pip install .`, without byte code", f"{number(install['install_mb'], 0)} MB"),
            ("`requirements/client.lock`, byte code included", f"{number(lean_with_code, 0)} MB"),
            ("`requirements/client.lock`, without byte code", f"{number(install['lean_install_mb'], 0)} MB"),
        ),
    )


def _padding() -> str:
    found = load("padding.json")["results"]
    first = next(iter(found.values()))
    heads = [f"{name} ({percent(row['added'])} more tokens)" for name, row in first.items() if name != "without"]
    return table(
        ("variant", *heads),
        (
            (
                variant,
                *(
                    interval((row["ratio"], row["ratio_low"], row["ratio_high"]))
                    for name, row in rows.items()
                    if name != "without"
                ),
            )
            for variant, rows in found.items()
        ),
    )


def _length() -> str:
    rows = []
    for variant, fills in load("length.json")["results"].items():
        for name, attacks in fills.items():
            if name == "ratio":
                continue
            exact = [
                f"{percent(one['exact'])} ({percent(one['low'])} to {percent(one['high'])})" for one in attacks.values()
            ]
            rows.append((f"{variant}: {name}", *exact, interval(fills["ratio"][name])))
    return table(("variant and fill", "tokens", "bigrams", "model", "perplexity, padded over plain"), rows)


def _faults() -> str:
    found = load("faults.json")
    rows = [
        ("duration", f"{found['seconds']:.0f} s"),
        ("processes killed (SIGKILL)", ", ".join(f"{count} {kind}" for kind, count in found["kills"].items())),
        ("requests; right, wrong, hung, failed", _outcomes(found)),
        ("resumed on another replica", str(found["resumed"])),
        ("slowest request", f"{number(found['slowest_s'], 1)} s"),
        ("processes left over", str(found["leaked"])),
        ("memory before, after", " MB, ".join(number(one, 0) for one in found["memory_mb"]) + " MB"),
    ]
    return table(("what", "measured"), rows)


def _outcomes(found: dict[str, Any]) -> str:
    outcomes = (found["succeeded"], found["wrong"], found["hung"], sum(found["failed"].values()))
    return f"{found['requests']:,}; {', '.join(f'{one:,}' for one in outcomes)}"


def _recovery() -> str:
    found = load("faults.json")["whole_again_s"]
    return table(
        ("killed", "seconds until everything was there again"),
        ((kind, ", ".join(number(one, 1) for one in seconds)) for kind, seconds in found.items()),
    )


def _overload() -> str:
    found = load("overload.json")
    flood, memory = found["overload"], found["memory_mb"]
    return table(
        ("what", "measured"),
        (
            ("capacity, offered", f"{found['capacity_rps']:.1f}, {found['offered_rps']:.1f} requests/s"),
            ("accepted", str(flood["accepted"]["count"])),
            ("p95 of an accepted request, to one client alone", number(found["p95_ratio_to_alone"], 2)),
            ("refused (503 `overloaded`)", str(flood["refused"]["count"])),
            ("p95 of a refusal", f"{number(flood['refused']['p95_ms'], 1)} ms"),
            ("refusals without `Retry-After`", str(flood["without_retry_after"])),
            ("p95 of the first client afterwards, to before", number(found["recovered_p95_ratio"], 2)),
            ("memory before, at most", f"{memory['before']:,} MB, {memory['most']:,} MB"),
            ("places free after clients that read nothing", f"{number(found['room_after_slow_readers_s'], 1)} s"),
            ("places free after clients that left", f"{number(found['room_after_abandoned_s'], 2)} s"),
        ),
    )


def _fuzz() -> str:
    found = load("fuzz.json")["results"]
    answers = found["request_answers"]
    server_errors = {
        where: sorted(code for code in codes if code.startswith("5") and code != "503")
        for where, codes in answers.items()
    }
    return table(
        ("what", "measured"),
        (
            ("inputs to the frame parser, guided by coverage", number(found["parser_runs"], 0)),
            ("branches reached", number(found["parser_coverage"], 0)),
            ("mutated frames to a server", number(found["frames"], 0)),
            ("raw requests to HAProxy, and past it to the replica", number(found["requests"], 0)),
            ("5xx answers other than 503", str(sum(len(codes) for codes in server_errors.values()))),
            ("findings", str(len(found["findings"]))),
        ),
    )


def _fuzz_server() -> str:
    found = load("fuzz_server.json")["results"]
    answered = sum(counts.get("answered", 0) for counts in found["outcomes"].values())
    memory = found["memory_before_mb"], found["memory_peak_mb"]
    return table(
        ("what", "measured"),
        (
            ("answers of malicious servers", number(found["answers"], 0)),
            ("of them over sockets; the others through the HTTP parser in memory", number(found["over_sockets"], 0)),
            (
                "calls: completions, streams, turns, lists of models, bundles",
                ", ".join(
                    number(sum(found["outcomes"][name].values()), 0)
                    for name in ("complete", "stream", "turn", "models", "bundle")
                ),
            ),
            ("calls that got a valid result all the same", number(answered, 0)),
            (
                "kinds of errors of the family that the others ended with",
                str(len({name for counts in found["outcomes"].values() for name in counts} - {"answered"})),
            ),
            (
                "exceptions outside the family",
                str(sum(one.get("outside the family", 0) for one in found["outcomes"].values())),
            ),
            ("most time of the processor for one call", f"{number(found['slowest_cpu_s'], 2)} s"),
            ("memory of a process after 200 calls, at most", f"{memory[0]:,} MB, {memory[1]:,} MB"),
            ("findings", str(len(found["findings"]))),
        ),
    )


def _oblivious() -> str:
    found = load("oblivious.json")["results"]
    rows = []
    for size in ("16 tokens", "512 tokens"):
        ways = [found[size][way] for way in ("direct", "sealed", "relay")]
        for name, what, unit, digits in (
            ("request_bytes", "request", "bytes", 0),
            ("response_bytes", "response", "bytes", 0),
            ("complete_ms", "completion", "ms", 1),
            ("first_chunk_ms", "first chunk of a stream", "ms", 1),
        ):
            cells = (f"{number(one[name], digits)} {unit}" for one in ways)
            rows.append((f"prompt of {size}: {what}", *cells))
    return table(("what", "directly", "sealed for the gateway", "through a relay"), rows)


def _elasticity() -> str:
    loads = load("elasticity.json")["load"]
    firsts = [[moment["first_p95_ms"] or 0 for moment in one["timeline"]] for one in loads]
    rows = {
        "most clients": [str(max(moment["clients"] for moment in one["timeline"])) for one in loads],
        "requests": [number(one["requests"], 0) for one in loads],
        "failed": [str(sum(one["failed"].values())) for one in loads],
        "wrong": [str(one["wrong"]) for one in loads],
        "503s retried by the client": [str(one["refusals"]) for one in loads],
        "replicas": [f"1 to {one['replicas_at_most']} to {one['replicas_at_the_end']}" for one in loads],
        "second replica after": [f"{number(one['first_new_replica_s'], 0)} s" for one in loads],
        "p95 of the first token, worst 2 s": [f"{max(first) / 1000:.1f} s" for first in firsts],
        "p95 of the first token, at the end": [f"{first[-1] / 1000:.2f} s" for first in firsts],
    }
    return table(("load", *(one["profile"] for one in loads)), ((name, *cells) for name, cells in rows.items()))


def _stack() -> str:
    def row(found: dict[str, Any]) -> tuple[str, ...]:
        loads = found["by_output_tokens"]["16"], found["by_output_tokens"]["256"]
        kinds = ("proxy", "replicas", "proxy's manager")
        costs = [[number(one["cpu_ms_per_request"][kind], 2) for one in loads] for kind in kinds]
        speeds = ", ".join(f"{one['requests_per_s']:.0f}" for one in loads)
        return (str(found["replicas"]), speeds, *(f"{', '.join(cost)} ms" for cost in costs))

    heads = ("requests/s", "proxy: CPU a request", "replicas: CPU a request", "proxy's manager: CPU a request")
    return table(("replicas", *heads), map(row, load("router.json")["results"]["stack"]))


def _idle() -> str:
    def row(found: dict[str, Any]) -> tuple[str, ...]:
        shares = (f"{found['idle_cpu_share'][kind]:.2f}" for kind in ("controller", "rest of Ray", "replicas"))
        controller = f"{found['memory_mb']['controller']} MB"
        return (str(found["replicas"]), *shares, f"{found['replica_mb']} MB", controller, f"{found['start_s']:.0f} s")

    heads = ("controller", "rest of Ray", "all replicas", "memory of a replica", "memory of the controller", "start")
    return table(("replicas", *heads), map(row, load("router.json")["results"]["stack"]))


def _proxy_alone() -> str:
    found = load("router.json")["results"]["proxy_alone"]
    names = {
        "own_answer": "answered by HAProxy itself",
        "forwarded": "a completion's frame forwarded, and its answer back",
    }
    return table(
        ("request", "requests/s", "share of the core", "CPU a request"),
        (
            (
                name,
                number(found[key]["requests_per_s"], 0),
                percent(found[key]["core_share"]),
                f"{found[key]['cpu_ms_per_request']:.3f} ms",
            )
            for key, name in names.items()
        ),
    )


def _cold_start() -> str:
    return table(
        ("engine", "start of the whole server", "request to first token, each round", "median"),
        (
            (
                "mock engine" if one["engine"] == "stand-in" else one["engine"],
                f"{number(one['server_start_s'], 1)} s",
                ", ".join(number(seconds, 1) for seconds in one["first_token_s"]) + " s",
                f"{number(one['median_s'], 1)} s",
            )
            for one in load("cold_start.json")
        ),
    )


SYSTEMS: dict[str, dict[str, Table]] = {
    "client.md": {
        "speed run": Origin("client.json"),
        "speed": _speed,
        "size": _size,
        "padding run": Origin("padding.json", machine="2 cores; 160 held-out passages"),
        "padding": _padding,
        "length run": Origin("length.json"),
        "length": _length,
        "oblivious run": Origin("oblivious.json"),
        "oblivious": _oblivious,
    },
    "performance.md": {
        "serving run": Origin(
            "serving.json",
            date="2026-11-27",
            command="python -m benchmarks.serving --out benchmarks/results/serving.json",
            machine="2 cores of an AMD EPYC, idle otherwise; 13 minutes",
        ),
        "serving": lambda: serving(load("serving.json")),
    },
    "robustness.md": {
        "faults run": Origin("faults.json", date="2026-11-27"),
        "faults": _faults,
        "recovery": _recovery,
        "overload run": Origin(
            "overload.json", date="2026-11-27", command="python -m benchmarks.overload --json", machine=_TWO_CORES
        ),
        "overload": _overload,
        "fuzz run": Origin("fuzz.json"),
        "fuzz": _fuzz,
        "fuzz_server run": Origin("fuzz_server.json"),
        "fuzz_server": _fuzz_server,
    },
    "scaling.md": {
        "elasticity run": Origin("elasticity.json"),
        "elasticity": _elasticity,
        "router run": Origin("router.json"),
        "stack": _stack,
        "idle": _idle,
        "proxy alone": _proxy_alone,
        "cold start run": Origin(
            "cold_start.json",
            date="2026-11-27",
            command="python -m benchmarks.cold_start --rounds 3",
            machine=_TWO_CORES,
        ),
        "cold start": _cold_start,
    },
}
