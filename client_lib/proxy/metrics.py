"""The proxy's counters in Prometheus' text format. They name no subject and no request."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Metrics:
    """Counters since the start. For one event loop."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By route and by status, or the code of the error."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The duration until the response began, by route."""
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    completion_tokens: Counter[str] = field(default_factory=Counter)
    private_tokens: Counter[str] = field(default_factory=Counter)
    """Tokens that noise was drawn for, by variant."""
    upstream_errors: Counter[str] = field(default_factory=Counter)

    def answered(self, variant: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the tokens of an answer."""
        self.prompt_tokens[variant] += prompt_tokens
        self.completion_tokens[variant] += completion_tokens

    def text(self, epsilons: Mapping[str, float]) -> str:
        """Return all counters; ``epsilons`` has that of a private token under each variant."""
        spent = {(variant,): tokens * epsilons[variant] for variant, tokens in self.private_tokens.items()}
        families = (
            ("requests", "Requests by route and status.", ("route", "status"), self.requests.items()),
            ("request_seconds", "Time until responses began.", ("route",), _by(self.seconds)),
            ("prompt_tokens", "Prompt tokens of answers.", ("variant",), _by(self.prompt_tokens)),
            ("completion_tokens", "Generated tokens.", ("variant",), _by(self.completion_tokens)),
            ("private_tokens", "Tokens that noise was drawn for.", ("variant",), _by(self.private_tokens)),
            (
                "epsilon",
                "Epsilon of all private tokens, added up over all subjects.",
                ("variant",),
                spent.items(),
            ),
            ("upstream_errors", "Failures of the DEL server by code.", ("code",), _by(self.upstream_errors)),
        )
        lines: list[str] = []
        for name, words, labels, values in families:
            lines += [f"# HELP del_proxy_{name}_total {words}", f"# TYPE del_proxy_{name}_total counter"]
            for key, value in sorted(values):
                shown = ",".join(f'{label}="{_escaped(one)}"' for label, one in zip(labels, key, strict=True))
                lines.append(f"del_proxy_{name}_total{{{shown}}} {value!r}")
        return "\n".join(lines) + "\n"


def _by(counter: Mapping[str, float]) -> Iterable[tuple[tuple[str, ...], float]]:
    return (((key,), value) for key, value in counter.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
