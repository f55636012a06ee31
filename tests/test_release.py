"""Version, release check, and the workflows and hooks that run the project's own commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import del_core
from scripts import check_release

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def _load(path: str) -> dict[str, Any]:
    """Parse a YAML file; restore the key ``on``, which is a boolean in YAML 1.1."""
    loaded = yaml.safe_load((ROOT / path).read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in loaded.items()}


def test_the_version_has_one_source() -> None:
    assert del_core.__version__ == PROJECT["version"]
    done = subprocess.run(
        [sys.executable, "-m", "delctl.main", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"delctl {PROJECT['version']}\n"
    with pytest.raises(AttributeError, match="nonsense"):
        del_core.nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "found"),
    [
        ("v1.2.3", "1.2.3", "## Unreleased\n\n## 1.2.3 - 2026-01-02\n\n- A.\n", []),
        ("v1.2.3rc1", "1.2.3rc1", "## 1.2.3rc1 - 2026-01-02\n\n- A.\n\n## 1.2.2 - 2026-01-01\n", []),
        ("v1.2.4", "1.2.3", "## 1.2.3 - 2026-01-02\n- A.\n", ["tag must be v1.2.3"]),
        ("v1.2.3.dev0", "1.2.3.dev0", "## 1.2.3.dev0 - 2026-01-02\n- A.\n", ["version must be"]),
        ("v1.2.3", "1.2.3", "## Unreleased\n\n- A.\n", ["must have a section"]),
        ("v1.2.3", "1.2.3", "## 1.2.3 - 2026-01-02\n\n## 1.2.2 - 2026-01-01\n- A.\n", ["must have an entry"]),
    ],
)
def test_release_check(tag: str, version: str, changelog: str, found: list[str]) -> None:
    problems = check_release.problems(tag, version, changelog)
    assert len(problems) == len(found)
    assert all(words in problem for words, problem in zip(found, problems, strict=True))


def test_the_workflow_tests_the_pythons_of_the_classifiers() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert _load(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == named


@pytest.mark.parametrize("name", ["ci", "nightly", "release"])
def test_workflows_run_targets_and_files_that_exist(name: str) -> None:
    jobs = _load(f".github/workflows/{name}.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job.get("steps", []) if "run" in step]
    assert commands
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for command in commands:
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert target in targets, command
        for script in re.findall(r"\bpython (\S+\.py)", command):
            assert (ROOT / script).is_file(), command


def test_every_target_of_tests_is_in_a_workflow() -> None:
    texts = [path.read_text("utf-8") for path in (ROOT / ".github/workflows").glob("*.yml")]
    run = {target for text in texts for target in re.findall(r"\bmake (test[a-z-]*)", text)}
    of_the_makefile = set(re.findall(r"^(test[a-z-]*):", MAKEFILE, re.MULTILINE))
    assert run == of_the_makefile - {"test-again"}  # which repeats others
    assert _load(".github/workflows/nightly.yml")["on"]["schedule"]


def test_a_job_without_a_need_has_no_permission_to_write() -> None:
    for name in ("ci", "nightly", "release"):
        workflow = _load(f".github/workflows/{name}.yml")
        assert workflow["permissions"] == {"contents": "read"}
    jobs = _load(".github/workflows/release.yml")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert set(jobs["publish"]["needs"]) == {"build", "test"}


def test_the_hooks_run_the_commands_of_make_check() -> None:
    checks = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert checks is not None
    commands = {line.strip().replace("$(BIN)/", "").removesuffix(" .") for line in checks[1].splitlines()}
    (repository,) = _load(".pre-commit-config.yaml")["repos"]
    hooks = {hook["entry"].replace(".venv/bin/", "") for hook in repository["hooks"]}
    assert repository["repo"] == "local"
    assert commands <= hooks
