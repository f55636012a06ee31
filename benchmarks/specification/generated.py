"""Send what schemathesis generates from a specification; runs in an environment of its own.

Usage: generated.py SPECIFICATION URL MODEL EXAMPLES. The last line of the output is a JSON object.
"""

import json
import re
import sys
import warnings
from collections import Counter

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks

OPERATIONS = (
    ("/chat/completions", "POST"),
    ("/completions", "POST"),
    ("/responses", "POST"),
    ("/models", "GET"),
    ("/models/{model}", "GET"),
    # of the proxy's own description
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/messages", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{id}", "GET"),
    ("/health", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
    ("/openapi.json", "GET"),
    ("/", "GET"),
)
PLAIN = {"prompt": "hello", "input": "hello", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
"""What takes the place of a refused field that a request needs."""
MOST_REPAIRS = 12


def repaired(case, response):
    """Take what was refused out of a request. Return whether there is something left to send.

    Only the first refusal is told, so a request is sent again without it: what stands behind it is
    examined, too.
    """
    try:
        name = re.split(r"[.\[]", str(response.json()["error"]["param"]))[0]
    except (ValueError, KeyError, TypeError):
        return False
    if name == "response_format" and "text" in case.body:  # the name of the other routes
        name = "text"
    if name in PLAIN and case.body.get(name) != PLAIN[name]:
        case.body[name] = PLAIN[name]
        return True
    return name not in PLAIN and case.body.pop(name, None) is not None


def refusal(response):
    """Return the field and the code of an error of OpenAI's or Anthropic's form."""
    try:
        error = response.json()["error"]
        field = re.sub(r"\[\d+\]", "[]", str(error.get("param")))
        # Names of a user's own choice stand in some fields.
        return f"{response.status_code} {error.get('code', error.get('type'))} {field}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{response.status_code} without an error object"


class Seen:
    """What one operation answered."""

    def __init__(self):
        self.answered = 0
        self.refused = Counter()
        self.wrong = Counter()
        self.first = {}

    def note(self, case, response, is_valid):
        if response.status_code < 300:
            self.answered += 1
            # Not events: the specification describes their data, schemathesis takes them whole.
            if is_valid and response.headers["content-type"][0].startswith("application/json"):
                try:
                    case.validate_response(
                        response, checks=[schemathesis.checks.CHECKS.get_one("response_schema_conformance")]
                    )
                except (Exception, BaseExceptionGroup) as error:
                    self.trouble(f"an answer outside the specification: {first_line(error)}", case)
        elif response.status_code >= 500:
            self.trouble(refusal(response), case)
        else:
            self.refused[refusal(response)] += 1
            self.first.setdefault(refusal(response), short(case))

    def trouble(self, what, case):
        self.wrong[what] += 1
        self.first.setdefault(what, short(case))

    def to_json(self):
        return {
            "answered": self.answered,
            "refused": dict(sorted(self.refused.items())),
            "wrong": dict(sorted(self.wrong.items())),
            "first": self.first,
        }


def first_line(error):
    lines = [line.strip() for line in "\n".join(map(str, getattr(error, "exceptions", [error]))).splitlines()]
    return " ".join(line for line in lines if line)[:400]


def short(case):
    return json.dumps(case.body if isinstance(case.body, dict | list) else str(case.body))[:1500]


def examine(operation, url, model, examples):
    modes = [GenerationMode.POSITIVE]
    if operation.method.upper() == "POST":
        modes.append(GenerationMode.NEGATIVE)

    def sent(mode):
        seen = Seen()
        is_valid = mode is GenerationMode.POSITIVE

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def send(case):
            if isinstance(case.body, dict) and is_valid:
                case.body["model"] = model
            if is_valid and case.path_parameters:
                case.path_parameters = dict.fromkeys(case.path_parameters, model)
            for _ in range(MOST_REPAIRS):
                try:
                    response = case.call(base_url=url, timeout=60)
                except Exception as error:  # no answer is an answer that is wrong
                    seen.trouble(f"{type(error).__name__}", case)
                    return
                seen.note(case, response, is_valid)
                is_refused = 400 <= response.status_code < 500
                if not (is_valid and is_refused and isinstance(case.body, dict) and repaired(case, response)):
                    return

        send()
        return seen.to_json()

    return {"valid" if mode is GenerationMode.POSITIVE else "invalid": sent(mode) for mode in modes}


def main():
    """Examine the operations that the specification has."""
    warnings.simplefilter("ignore")
    load_all_checks()
    path, url, model, examples = sys.argv[1:5]
    with open(path, encoding="utf-8") as source:
        schema = schemathesis.openapi.from_dict(json.load(source))
    results = {}
    for route, method in OPERATIONS:
        try:
            operation = schema[route][method]
        except LookupError:
            continue
        print(route, file=sys.stderr, flush=True)
        results[f"{method} {route}"] = examine(operation, url, model, int(examples) if method == "POST" else 3)
    print("\n" + json.dumps(results))


main()
