"""What may stand in the tree: every file that git would carry is read and refused if it holds

- a web address whose host is not listed below, or, in a build file or a page, any host name that is not: packages come
  from wherever the user's pip is configured to look, so no package index is named, with PyTorch's CPU wheels as the one
  exception;
- an absolute path of somebody's machine (a home or work directory, a local wheel directory);
- more than 24 MiB under del_core/demo, or any other single file over 1 MiB.

Usage: check_tree.py [ROOT]. Prints one line a finding, exits 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Where software may come from: PyTorch's CPU wheels, where the configured indexes have none; and this machine.
SOURCES = frozenset({"download.pytorch.org", "0.0.0.0"})
# What a page or a comment may point a reader to; nothing is installed from there.
REFERENCES = frozenset(
    {
        "arxiv.org",
        "github.com",
        "json-schema.org",
        "keepachangelog.com",
        "semver.org",
        "www.apache.org",
        "www.contributor-covenant.org",
        "www.gutenberg.org",
        "www.w3.org",
    }
)
# Loopback, and what RFC 2606, RFC 5737 and RFC 6761 reserve for documentation: never somebody's host.
RESERVED_PREFIXES = ("127.", "192.0.2.", "198.51.100.", "203.0.113.")
RESERVED_SUFFIXES = (
    ".example",
    ".example.com",
    ".example.org",
    ".test",
    ".invalid",
    ".localhost",
    ".svc",
    ".cluster.local",
)

# Files that say where software comes from; there only its sources may be named.
BUILD_FILES = re.compile(
    r"(^|/)(Makefile|Dockerfile[^/]*|pyproject\.toml|requirements/.*|scripts/install|\.ci/.*|.*\.cfg)$"
)

URL = re.compile(r"\bhttps?://(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)")
BARE_HOST = re.compile(r"(?<![\w./@-])(?P<host>(?:[a-z0-9-]+\.)+(?:com|dev|io|net|org))(?![\w-])")
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:work|root|home/\w+|Users/\w+|opt/(?:wheels|pypi))(?:/|\b)")

DEMO = "del_core/demo/"
DEMO_BYTES = 24 * 2**20
FILE_BYTES = 2**20


def tracked_files(root: Path) -> list[Path]:
    """Paths, relative to the root, of the files that git tracks or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        check=True,
        capture_output=True,
    ).stdout
    return sorted(
        Path(name.decode()) for name in set(listing.split(b"\0")) if name and (root / name.decode()).is_file()
    )


def host_allowed(host: str, *, in_build_file: bool) -> bool:
    """Whether a file may name a host; this machine, placeholders and what is reserved for documentation always may."""
    host = host.lower().rstrip(".").strip("[]")
    if "." not in host or host in SOURCES or host.startswith(RESERVED_PREFIXES) or host.endswith(RESERVED_SUFFIXES):
        return True
    return host in REFERENCES and not in_build_file


def text_findings(name: str, text: str) -> Iterator[str]:
    """One line for every address and path in a file's text that may not stand there."""
    in_build_file = BUILD_FILES.search(name) is not None
    for number, line in enumerate(text.splitlines(), start=1):
        hosts = {match["host"] for match in URL.finditer(line)}
        if in_build_file or name.endswith(".md"):
            hosts |= {match["host"] for match in BARE_HOST.finditer(line)}
        for host in sorted(hosts):
            if not host_allowed(host, in_build_file=in_build_file):
                yield f"{name}:{number}: names the host {host}, which scripts/check_tree.py does not allow here"
        for match in MACHINE_PATH.finditer(line):
            yield f"{name}:{number}: {match[0]}... is a path of one machine"


def findings(root: Path) -> Iterator[str]:
    """Everything in the tree that may not be there, one line each."""
    demo_bytes = 0
    for path in tracked_files(root):
        name = path.as_posix()
        data = (root / path).read_bytes()
        if name.startswith(DEMO):
            demo_bytes += len(data)
        elif len(data) > FILE_BYTES:
            yield f"{name}: {len(data)} bytes; at most {FILE_BYTES} outside {DEMO}"
        if b"\0" not in data[:8192]:
            yield from text_findings(name, data.decode("utf-8", errors="replace"))
    if demo_bytes > DEMO_BYTES:
        yield f"{DEMO}: {demo_bytes} bytes together; at most {DEMO_BYTES}"


def main() -> int:
    """Print what was found; the number of findings decides the exit status."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    lines = list(findings(root))
    print("\n".join(lines) or "tree: nothing that may not be there")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
