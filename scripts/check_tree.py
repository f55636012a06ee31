"""Check every file that git would carry against the rules on files in the tree.

A file is refused if it holds

- a web address whose host is not listed below. Build files and pages may hold no other host name at
  all: packages come from wherever pip is configured to look, so no package index is named, with the
  exception of PyTorch's CPU wheels;
- an absolute path of one machine (a home or work directory, a local wheel directory);
- more than 32 MiB under del_core/demo, or 1 MiB in any other single file.

Usage: check_tree.py [ROOT]. Prints one line for each finding, and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Sources of software: PyTorch's CPU wheels, if the configured indexes have none; and this machine.
SOURCES = frozenset({"download.pytorch.org", "0.0.0.0"})
# Hosts that a page or a comment may refer to; nothing is installed from there.
REFERENCES = frozenset(
    {
        "arxiv.org",
        "creativecommons.org",
        "github.com",
        "iana.org",
        "json-schema.org",
        "keepachangelog.com",
        "semver.org",
        "www.apache.org",
        "www.contributor-covenant.org",
        "www.gutenberg.org",
        "www.w3.org",
    }
)
# Loopback, and the names and addresses that RFC 2606, RFC 5737 and RFC 6761 reserve.
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

# Files that install software may name its sources only.
BUILD_FILES = re.compile(
    r"(^|/)(Makefile|Dockerfile[^/]*|pyproject\.toml|requirements/.*|scripts/install|\.ci/.*|.*\.cfg)$"
)

URL = re.compile(r"\bhttps?://(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)")
BARE_HOST = re.compile(r"(?<![\w./@-])(?P<host>(?:[a-z0-9-]+\.)+(?:com|dev|io|net|org))(?![\w-])")
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:work|root|home/\w+|Users/\w+|opt/(?:wheels|pypi))(?:/|\b)")

DEMO = "del_core/demo/"
DEMO_BYTES = 32 * 2**20
FILE_BYTES = 2**20


def tracked_files(root: Path) -> list[Path]:
    """List the files that git tracks or would add, relative to the root."""
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
    """Tell whether a file may name a host; loopback and reserved names it always may."""
    host = host.lower().rstrip(".").strip("[]")
    if "." not in host or host in SOURCES or host.startswith(RESERVED_PREFIXES) or host.endswith(RESERVED_SUFFIXES):
        return True
    return host in REFERENCES and not in_build_file


def text_findings(name: str, text: str) -> Iterator[str]:
    """Yield a line for every host and path in a file's text that is not allowed."""
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
    """Yield a line for everything in the tree that is not allowed."""
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
    """Print the findings; return 1 if there are any."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    lines = list(findings(root))
    print("\n".join(lines) or "tree: nothing that may not be there")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
