"""Tables of SmolLM2's bundle: training speed, stages, levels, chat and examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.results_pages.tables import Origin, Table, interval, load, number, percent, table

__all__ = ["SMOLLM2"]

_FILE = "training_smollm2.json"
_LEVELS = ("strict", "balanced", "open")
_PUBLISHED = tuple(f"published-{level}" for level in _LEVELS)
_SHOWN = 120  # characters of an answer


def _speed() -> str:
    rows = load(_FILE)["speed"]["rows"]
    return table(
        ("step", "before, tokens/s", "now, tokens/s"),
        ((one["step"], number(one["before"], 0), number(one["now"], 0)) for one in rows),
    )


_TRAINED_METHODS = {
    "soft prompt": "soft prompt behind counts, from the text",
    "text": "codes with an adapter, from the text",
    "distillation": "codes with an adapter, by distillation",
}


def _products() -> str:
    rows = {(row["method"], row["products"]): row for row in load("training_speed.json")["results"]}

    def line(method: str) -> tuple[str, ...]:
        found = [rows[method, kind] for kind in ("float32", "bfloat16")]
        speeds = (f"{number(row['tokens_per_s'], 0)} ({number(row['seconds'], 2)} s a step)" for row in found)
        return (_TRAINED_METHODS[method], *speeds)

    return table(
        ("what is trained", "float32, tokens/s", "products in bfloat16, tokens/s"), map(line, _TRAINED_METHODS)
    )


def _stages() -> str:
    projection = load(_FILE)["projection"]
    rows = [
        ("principal components, without noise", number(projection["ppl_pca"], 1)),
        (f"projection, {projection['steps']} steps, without noise", number(projection["ppl_projected"], 1)),
        ("clear prompt", number(projection["ppl_clean"], 1)),
    ]
    return table(("stage", "perplexity"), rows)


def _encoder() -> str:
    found = load(_FILE)["encoder"]
    return table(
        ("variant", "steps of the soft prompt", "MAP", "epsilon", "perplexity"),
        (
            (name, str(one["steps"]), percent(one["map"], 1), number(one["epsilon"], 0), number(one["ppl"], 1))
            for name, one in found["variants"].items()
        ),
    )


def _strongest(audit: dict[str, Any]) -> tuple[str, str]:
    """Return the success of the strongest attack that was measured, and its name."""
    found = audit.get("strongest_attack") or {"attack": "map", **audit["map"]}
    return percent(found["success"], 1), found["attack"]


def _level_rows(evaluation: str, names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    found = load(_FILE)
    rows = {row["method"]: row for row in found[evaluation]}
    for method in ("clear prompt", "clear prompt, trained alike"):
        if method in rows:
            yield (method, "", "", "", interval(rows[method]["ppl"], ".1f"), "")
    for name in names:
        row, audit = rows[name], found["audits"][name]
        gap = interval(row["gap_closed"], ".0f", 100) if "gap_closed" in row else ""
        strongest, attack = _strongest(audit)
        yield (
            f"*{name}*",
            number(found["guarantees"][name]["epsilon"], 1),
            percent(audit["map"]["success"], 1),
            f"{strongest} ({attack})",
            interval(row["ppl"], ".1f"),
            gap,
        )
    for method in ("no prompt, trained alike", "no prompt"):
        if method in rows:
            yield (method, "", "", "", interval(rows[method]["ppl"], ".1f"), "")


_HEADS = ("prompt", "epsilon", "MAP", "strongest attack measured", "perplexity", "gap closed, %")


def _levels() -> str:
    return table(_HEADS, _level_rows("evaluation", reversed(_LEVELS)))


def _published() -> str:
    return table(_HEADS, _level_rows("evaluation_published", reversed(_PUBLISHED)))


def _chat() -> str:
    def figure(row: dict[str, Any], name: str, form: str) -> str:
        return interval(row[name], form) if row.get(name) else ""

    return table(
        ("prompt", "perplexity of the answer", "gap closed, %", "similarity", "over others", "ROUGE-L"),
        (
            (
                row["method"] if "prompt" in row["method"] else f"*{row['method']}*",
                interval(row["ppl"], ".2f"),
                interval(row["gap_closed"], ".0f", 100) if row.get("gap_closed") else "",
                figure(row, "similarity", ".2f"),
                figure(row, "similarity_lift", "+.2f"),
                figure(row, "rouge_l", ".2f"),
            )
            for row in load(_FILE)["chat"]["rows"]
        ),
    )


def _examples() -> str:
    """Lay out the answers to the chosen conversations, which the committed file names by place."""
    found = load(_FILE)
    chat, blocks = found["chat"], []
    rows = {row["method"]: row for row in chat["rows"]}
    for place in found["examples"]["chat"]:
        answers = [("the clear prompt", chat["given"][place])]
        answers += [(f"*{level}*", rows[level]["answers"][place]) for level in reversed(_LEVELS)]
        lines = [f'Private: "{_line(chat["private_texts"][place], 75)}"', ""]
        blocks.append("\n".join([*lines, table(("from", "answer"), ((name, _line(text)) for name, text in answers))]))
    return "\n\n".join(blocks)


def _line(text: str, most: int = _SHOWN) -> str:
    """Return the beginning of a text in one line of a Markdown table."""
    line = " ".join(text.replace("<|im_end|>", "").replace("|", "/").split())
    return line if len(line) <= most else f"{line[:most].rsplit(' ', 1)[0]} ..."


def _controls() -> str:
    return table(
        ("control", "steps", "perplexity untrained", "trained"),
        (
            (kind, str(one["steps"]), number(one["ppl_untrained"], 1), number(one["ppl_trained"], 1))
            for kind, one in load(_FILE)["controls"].items()
        ),
    )


def _understood(gap: list[float]) -> str:
    """Say in words which share of the clear prompt's worth is left, by the interval of the gap."""
    value, low, _ = gap
    if low <= 0:
        return "nothing that could be measured"
    words = ((0.2, "a hint of the topic"), (0.45, "the topic, roughly"), (0.6, "topic and course of the text"))
    return next((said for limit, said in words if value < limit), "most of it")


def _readme() -> str:
    found = load(_FILE)
    rows = {row["method"]: row for row in found["evaluation"]}

    def row(name: str) -> tuple[str, ...]:
        gap = rows[name]["gap_closed"]
        strongest, _ = _strongest(found["audits"][name])
        understood = f"{_understood(gap)} ({interval(gap, '.0f', 100)} % of the clear prompt's worth)"
        return name, understood, strongest, number(found["guarantees"][name]["epsilon"], 1)

    heads = ("level", "the model still understands", "an attacker reads, at least", "epsilon")
    return table(heads, map(row, _LEVELS))


SMOLLM2: dict[str, dict[str, Table]] = {
    "smollm2.md": {
        "run": Origin(_FILE),
        "levels": _levels,
        "chat": _chat,
        "examples": _examples,
        "published": _published,
        "controls": _controls,
        "stages": _stages,
        "encoder": _encoder,
        "speed": _speed,
        "products run": Origin("training_speed.json"),
        "products": _products,
    },
    "../../README.md": {"smollm2": _readme, "smollm2 examples": _examples},
}
