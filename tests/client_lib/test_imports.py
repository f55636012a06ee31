"""What importing the client costs: no framework, no scipy, no HTTP library before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "ray", "vllm", "transformers"}
LATER = {"scipy", "httpx", "tokenizers", "deployments", "cluster", "delctl"}


def modules_after(program: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a program."""
    code = f"{program}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stdout.split())


def test_import_pulls_in_no_framework() -> None:
    loaded = modules_after("import client_lib")
    assert {"client_lib", "del_core", "numpy"} <= loaded
    assert not loaded & (FRAMEWORKS | LATER)


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_a_client_needs_no_framework_either(kind: str) -> None:
    loaded = modules_after(f"import client_lib\nclient_lib.{kind}('http://127.0.0.1:1')")
    assert "httpx" in loaded
    assert not loaded & (FRAMEWORKS | {"scipy"})
