"""What OpenAI's specification and the proxy's own description allow, sent by schemathesis."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.specification.command import findings, reasons, send
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy

_VARIABLE = "OPENAI_SPECIFICATION"
_MISSING = (
    f"${_VARIABLE} must name openapi.json of https://github.com/openai/openai-openapi, which is not part of this "
    "repository"
)


@pytest.fixture
def any_model(make_proxy: MakeProxy) -> RunningProxy:
    return make_proxy(default_variant="open")


@pytest.mark.slow
def test_what_openai_specifies_is_answered_or_refused_for_a_reason(any_model: RunningProxy, tmp_path: Path) -> None:
    specification = os.environ.get(_VARIABLE)
    if specification is None:
        pytest.fail(_MISSING)
    found = send(Path(specification), tmp_path, url=f"{any_model.url}/v1", model="open", examples=40)
    assert findings(found) == []
    assert len(found) == 5
    assert all(kinds["valid"]["answered"] for kinds in found.values())


@pytest.mark.slow
def test_the_proxy_does_as_it_describes_itself(any_model: RunningProxy, tmp_path: Path) -> None:
    description = tmp_path / "openapi.json"
    description.write_text(any_model.get("/openapi.json").text, "utf-8")
    found = send(description, tmp_path, url=any_model.url, model="open", examples=10)
    assert findings(found, all_fields=False) == []
    assert "POST /v1/messages" in found


def test_the_reasons_of_refusals() -> None:
    listed = reasons()
    assert len({match.pattern for match, _ in listed}) == len(listed)
    assert all(match.pattern.startswith(("400 ", "404 ")) and reason for match, reason in listed)
    committed = json.loads((Path(__file__).parents[3] / "benchmarks/results/specification.json").read_text("utf-8"))
    assert committed["findings"] == []
    assert set(committed["reasons"]) <= {reason for _, reason in listed}
