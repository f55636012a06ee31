"""Tables of the measurements of client and server."""

from __future__ import annotations

from collections.abc import Callable
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


def _topics() -> str:
    found = load("topics.json")["results"]
    names = {
        "default": "sizes and times, as served by default",
        "padded": "sizes and times, `streaming.padded`",
        "tokens alone": "the exact number of tokens alone",
        "steps alone": "the number of rounds of a padded stream alone",
    }
    rows = [
        (name, f"{percent(one['accuracy'], 1)} ({percent(one['low'], 1)} to {percent(one['high'], 1)})")
        for key, name in names.items()
        for one in [found["accuracy"][key]]
    ]
    return table(("what the classifier sees", f"topics told right; chance is {percent(found['chance'])}"), rows)


def _topics_streams() -> str:
    found = load("topics.json")["results"]
    rows = (
        (
            name,
            number(found[f"events_{name}"]["median"], 0),
            str(found[f"events_{name}"]["kinds"]),
            number(found[f"kilobytes_{name}"], 1),
        )
        for name in ("default", "padded")
    )
    return table(("stream", "events, median", "different numbers of events", "kB, mean"), rows)


_SERVED_MODELS = {"": "the demo's model", "_smollm2": "SmolLM2"}
"""Models that a server was measured with, by the end of the file's name."""


def _by_model(name: str, lines: Callable[[Any], dict[str, str]], head: str = "what") -> str:
    """Lay out the same lines of a file of each model beside each other."""
    columns = [lines(load(f"{name}{end}.json")) for end in _SERVED_MODELS]
    return table((head, *_SERVED_MODELS.values()), ((what, *(one[what] for one in columns)) for what in columns[0]))


def _faults() -> str:
    def lines(found: dict[str, Any]) -> dict[str, str]:
        return {
            "duration": f"{found['seconds']:.0f} s",
            "processes killed (SIGKILL)": ", ".join(f"{count} {kind}" for kind, count in found["kills"].items()),
            "requests; right, wrong, hung, failed": _outcomes(found),
            "resumed on another replica": str(found["resumed"]),
            "slowest request": f"{number(found['slowest_s'], 1)} s",
            "processes left over": str(found["leaked"]),
            "memory before, after": " MB, ".join(number(one, 0) for one in found["memory_mb"]) + " MB",
        }

    return _by_model("faults", lines)


def _outcomes(found: dict[str, Any]) -> str:
    outcomes = (found["succeeded"], found["wrong"], found["hung"], sum(found["failed"].values()))
    return f"{found['requests']:,}; {', '.join(f'{one:,}' for one in outcomes)}"


def _recovery() -> str:
    def lines(found: dict[str, Any]) -> dict[str, str]:
        return {kind: ", ".join(number(one, 1) for one in times) for kind, times in found["whole_again_s"].items()}

    return _by_model("faults", lines, "killed; seconds until everything was there again")


def _overload() -> str:
    def lines(found: dict[str, Any]) -> dict[str, str]:
        flood, memory = found["overload"], found["memory_mb"]
        return {
            "capacity, offered": f"{found['capacity_rps']:.1f}, {found['offered_rps']:.1f} requests/s",
            "accepted": str(flood["accepted"]["count"]),
            "p95 of an accepted request, to one client alone": number(found["p95_ratio_to_alone"], 2),
            "p95 of an accepted request, to full places without refusals": number(found["p95_ratio_to_capacity"], 2),
            "refused (503 `overloaded`)": f"{flood['refused']['count']:,}",
            "p95 of a refusal": f"{number(flood['refused']['p95_ms'], 1)} ms",
            "refusals without `Retry-After`": str(flood["without_retry_after"]),
            "p95 of the first client afterwards, to before": number(found["recovered_p95_ratio"], 2),
            "memory before, at most": f"{memory['before']:,} MB, {memory['most']:,} MB",
            "places free after clients that read nothing": f"{number(found['room_after_slow_readers_s'], 1)} s",
            "places free after clients that left": f"{number(found['room_after_abandoned_s'], 2)} s",
        }

    return _by_model("overload", lines)


def _slow_senders() -> str:
    found = load("slow_senders.json")["results"]
    names = {
        "alone": "nobody",
        "half_heads": f"{number(found['half_heads']['connections'], 0)} with half a head",
        "bodies": f"{found['bodies']['connections']} with unfinished bodies of 15 MiB",
    }
    return table(
        ("beside honest clients", "honest requests served", "p50 ms", "p95 ms"),
        (
            (name, f"{one['served']} of {one['requests']}", number(one["p50_ms"], 1), number(one["p95_ms"], 1))
            for key, name in names.items()
            for one in [found[key]]
        ),
    )


def _slow_senders_held() -> str:
    found = load("slow_senders.json")["results"]
    heads, bodies = found["half_heads"], found["bodies"]
    rows = (
        (
            "half heads that HAProxy held when the honest requests began, ended",
            f"{number(heads['open'][0], 0)}, {number(heads['open'][1], 0)}",
        ),
        ("bytes of unfinished bodies that were sent", f"{bodies['sent_mb']} MB"),
        ("memory of the replica before, at most", f"{bodies['before_mb']} MB, {bodies['most_mb']} MB"),
    )
    return table(("what", "measured"), rows)


def _network() -> str:
    """Make a line for each case: what happened to the requests, and when all was there again."""
    found = load("network.json")["results"]
    without = {f"{name}, no keep-alive": case for name, case in found["without_keep_alive"]["cases"].items()}
    heads = ("requests", "right", "wrong, hung", "failed, then answered, lost", "resumed", "p50, p95, slowest")
    return table(
        ("case", *heads, "all there again after"),
        (
            (
                name,
                number(case["requests"], 0),
                number(case["succeeded"], 0),
                f"{case['wrong']}, {case['hung']}",
                f"{sum(case['failed'].values())}, {case['repeated']}, {case['lost']}",
                str(case["resumed"]),
                ", ".join(f"{number(case[of], 1)} s" for of in ("p50_s", "p95_s", "slowest_s")),
                f"{number(case['moments']['back_s'], 0)} s" if "back_s" in case["moments"] else "-",
            )
            for name, case in (found["cases"] | without).items()
        ),
    )


def _network_size() -> str:
    found = load("network.json")["results"]
    hours = number(found["skew_s"] / 3600, 0)
    return table(
        ("what", "measured"),
        (
            (
                "replicas; machines; clients that ask at the same time",
                "{replicas}; {machines}; {clients}".format(**found),
            ),
            ("clocks of two machines", f"{hours} hour ahead, {hours} hour behind"),
            ("start of everything", f"{number(found['start_s'], 0)} s"),
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
    calls = {name: sum(counts.values()) for name, counts in found["outcomes"].items()}
    sealed = sum(count for name, count in calls.items() if name.startswith("sealed"))
    return table(
        ("what", "measured"),
        (
            ("answers of malicious servers", number(found["answers"], 0)),
            ("of them over sockets; the others through the HTTP parser in memory", number(found["over_sockets"], 0)),
            (
                "calls: completions, streams, turns, chats, lists of models, bundles",
                ", ".join(
                    number(calls[name], 0) for name in ("complete", "stream", "turn", "chat", "models", "bundle")
                ),
            ),
            ("calls whose answers were sealed by a gateway's key", number(sealed, 0)),
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


def _passes() -> str:
    found = load("passes.json")["results"]
    steps = (
        ("request", "client: make a request"),
        ("sign", "server: sign it"),
        ("finish", "client: make the pass and check it"),
        ("take", "client: take a pass from its file"),
        ("check", "server: check a pass"),
        ("spend", "server: record that it is spent"),
    )
    rows = [(what, f"{number(found['ms'][name], 2)} ms") for name, what in steps]
    return table(("what", "measured"), [*rows, *((what, f"{size:,} bytes") for what, size in found["bytes"].items())])


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


def _chart_policies() -> str:
    return table(
        ("chart", "values", "checks passed", "of", "share", "policies passed", "of", "share"),
        (
            (
                chart,
                values,
                *(
                    cell
                    for kind in ("checks", "policies")
                    for cell in _passed(counts[f"{kind}_passed"], counts[f"{kind}_failed"])
                ),
            )
            for chart, cases in load("chart_policies.json")["results"].items()
            for values, counts in cases.items()
        ),
    )


def _passed(passed: int, failed: int) -> tuple[str, str, str]:
    return str(passed), str(passed + failed), percent(passed / (passed + failed), 1)


def _width() -> str:
    """Make a line for each model and load: vLLM's server, then each decoder as a ratio to it."""
    rows = load("width.json")["results"]
    of = ("hidden_size", "vocabulary", "layers", "prompt_tokens", "concurrency")
    decoders = list(dict.fromkeys(row["decoder"] for row in rows if row["system"] == "application"))
    loads: dict[tuple[int, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found = loads.setdefault(tuple(row[name] for name in of), {})
        found.setdefault("ids" if row["system"] == "vllm_serve" else row["system"] + "/" + row["decoder"], row)

    def ratio(row: dict[str, Any] | None) -> str:
        value = None if row is None else row["ttft_ratio_to_vllm_serve"]
        return "-" if value is None else number(value, 2)

    heads = ("width, vocabulary", "layers", "prompt", "at once", "vLLM's server: first token, CPU a request")
    columns = [*(f"application/{name}" for name in decoders), "ray_llm/ids"]
    names = [*decoders, "Ray Serve LLM, ids"]
    return table(
        (*heads, *names, "CPU a request, by decoder"),
        (
            (
                f"{hidden:,}, {vocabulary:,}",
                *map(str, (layers, prompt, concurrency)),
                f"{number(found['ids']['ttft_p50_ms'], 0)} ms, {number(found['ids']['cpu_s_per_request'], 2)} s",
                *(ratio(found.get(column)) for column in columns),
                ", ".join(number(found[name]["cpu_s_per_request"], 2) for name in columns[:-1] if name in found) + " s",
            )
            for (hidden, vocabulary, layers, prompt, concurrency), found in loads.items()
        ),
    )


def _cost() -> str:
    """Make a line for each model and prompt of one request with counts and the linear decoder."""
    rows = [row for row in load("width.json")["results"] if row["concurrency"] == 1]
    of = ("hidden_size", "vocabulary", "layers", "prompt_tokens")
    clear = {tuple(row[name] for name in of): row for row in rows if row["system"] == "vllm_serve"}
    heads = ("width, vocabulary", "layers", "prompt", "first token", "CPU: engine", "replica", "proxy and Ray")
    return table(
        (*heads, "CPU of vLLM's server", "memory: engine, replica"),
        (
            (
                f"{row['hidden_size']:,}, {row['vocabulary']:,}",
                str(row["layers"]),
                str(row["prompt_tokens"]),
                f"{number(row['ttft_p50_ms'], 0)} ms",
                *(f"{number(cpu, 3)} s" for cpu in _of_processes(row)),
                f"{number(clear[tuple(row[name] for name in of)]['cpu_s_per_request'], 3)} s",
                f"{row['memory_mb']['engine']:,} MB, {row['memory_mb']['replica']:,} MB",
            )
            for row in rows
            if row["system"] == "application" and row["decoder"] == "linear"
        ),
    )


def _of_processes(row: dict[str, Any]) -> tuple[float, float, float]:
    """Return the CPU seconds of the engine, the replica, and all others."""
    found = row["cpu_s_by_process"]
    others = sum(seconds for role, seconds in found.items() if role not in ("engine", "replica"))
    return found["engine"], found["replica"], others


def _load_generators() -> str:
    return table(
        ("generator", "asks", "path", "requests", "failed", "requests/s", "first token p50", "answer p50"),
        (
            (
                row["generator"],
                row["target"],
                f"`{row['path']}`",
                str(row["requests"]),
                str(row["failed"]),
                number(row["requests_per_s"], 0),
                f"{number(row['ttft_p50_ms'], 0)} ms" if "ttft_p50_ms" in row else "",
                f"{number(row['latency_p50_ms'], 1)} ms" if "latency_p50_ms" in row else "",
            )
            for row in load("load_generators.json")["results"]
        ),
    )


_STOCK_WAYS = {
    "clear": "ids, exported model without the adapter",
    "ids": "ids, exported model",
    "requests": "private prompts, bare connections",
    "client": "private prompts, `AsyncClient`, to ids from `openai`",
}
_STOCK_MODELS = {
    "tiny": "tiny, no adapter",
    "smollm2-merged": "SmolLM2, adapter merged",
    "smollm2": "SmolLM2, adapter beside the weights",
}


def _stock() -> str:
    """Make a line for each model, number of clients and way; ratios are to the base model."""
    rows = load("stock_path.json")["results"]
    references = {(row["model"], row["way"], row["concurrency"]): row for row in rows}

    def line(row: dict[str, Any]) -> tuple[str, ...]:
        base = references[row["model"], row["reference"], row["concurrency"]]
        return (
            _STOCK_MODELS[row["model"]],
            str(row["concurrency"]),
            _STOCK_WAYS[row["way"]],
            f"{number(base['rps'], 1)}, {number(row['rps'], 1)}",
            _with_quartiles(row["rps_ratio"]),
            f"{number(base['ttft_p50_ms'], 0)}, {number(row['ttft_p50_ms'], 0)} ms",
            _with_quartiles(row["ttft_ratio"]),
            number(row["cpu_ratio"][0], 2),
        )

    return table(
        (
            "model",
            "at once",
            "way",
            "requests/s: base, this",
            "ratio",
            "first token: base, this",
            "ratio",
            "CPU, ratio",
        ),
        (line(row) for name in _STOCK_MODELS for row in rows if row["model"] == name and row["way"] in _STOCK_WAYS),
    )


def _with_quartiles(values: list[float]) -> str:
    """Format a median and the quartiles."""
    median, low, high = (number(value, 2) for value in values)
    return f"{median} ({low} to {high})"


def _affinity() -> str:
    names = {"affinity": "follows the conversation", "none": "does not"}
    engines = {"smollm2": "SmolLM2", "mock": "mock engine, pace of a GPU"}
    return table(
        ("engine", "replicas", "a turn's replica", "requests", "rows found in the cache", "first token p50", "by turn"),
        (
            (
                engines[row["engine"]],
                str(row["replicas"]),
                names[row["kind"]],
                str(row["requests"]),
                percent(row["cached_rows_share"]),
                f"{number(row['ttft_p50_ms'], 0)} ms",
                ", ".join(number(one, 0) for one in row["ttft_ms_by_turn"]) + " ms",
            )
            for row in load("affinity.json")["results"]
        ),
    )


def _mobile_backend() -> str:
    return table(
        ("users at once", "path", "answers/s", "first text, p50", "answer, p50", "answer, p95"),
        (
            (
                str(row["users"]),
                row["path"],
                number(row["answers_per_s"], 1),
                *(f"{number(row[name], 0)} ms" for name in ("first_text_p50_ms", "answer_p50_ms", "answer_p95_ms")),
            )
            for row in load("mobile_backend.json")["results"]["paths"]
        ),
    )


SYSTEMS: dict[str, dict[str, Table]] = {
    "charts.md": {"policies run": Origin("chart_policies.json"), "policies": _chart_policies},
    "client.md": {
        "speed run": Origin("client.json"),
        "speed": _speed,
        "size": _size,
        "padding run": Origin("padding.json", machine="2 cores; 160 held-out passages"),
        "padding": _padding,
        "length run": Origin("length.json"),
        "length": _length,
        "topics run": Origin("topics.json"),
        "topics": _topics,
        "topics streams": _topics_streams,
        "oblivious run": Origin("oblivious.json"),
        "oblivious": _oblivious,
        "passes run": Origin("passes.json"),
        "passes": _passes,
    },
    "mobile-backend.md": {"run": Origin("mobile_backend.json"), "load": _mobile_backend},
    "performance.md": {
        "serving run": Origin(
            "serving.json",
            date="2026-11-27",
            command="python -m benchmarks.serving --out benchmarks/results/serving.json",
            machine="2 cores of an AMD EPYC, idle otherwise; 13 minutes",
        ),
        "serving": lambda: serving(load("serving.json")),
        "smollm2 run": Origin("serving_smollm2.json"),
        "smollm2": lambda: serving(load("serving_smollm2.json")["results"]),
        "width run": Origin("width.json"),
        "width": _width,
        "cost": _cost,
        "stock run": Origin("stock_path.json"),
        "stock": _stock,
        "load generators run": Origin("load_generators.json"),
        "load generators": _load_generators,
    },
    "robustness.md": {
        "faults run": Origin("faults.json", date="2026-11-27"),
        "smollm2 faults run": Origin("faults_smollm2.json"),
        "faults": _faults,
        "recovery": _recovery,
        "network run": Origin("network.json"),
        "network size": _network_size,
        "network": _network,
        "overload run": Origin(
            "overload.json", date="2026-11-27", command="python -m benchmarks.overload --json", machine=_TWO_CORES
        ),
        "smollm2 overload run": Origin("overload_smollm2.json"),
        "overload": _overload,
        "slow senders run": Origin("slow_senders.json"),
        "slow senders": _slow_senders,
        "slow senders held": _slow_senders_held,
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
        "affinity run": Origin("affinity.json"),
        "affinity": _affinity,
        "cold start run": Origin(
            "cold_start.json",
            date="2026-11-27",
            command="python -m benchmarks.cold_start --rounds 3",
            machine=_TWO_CORES,
        ),
        "cold start": _cold_start,
    },
}
