"""Compare the locked Python packages with known vulnerabilities, without a network.

    check_advisories.py [--most-days N]      compare the locks with requirements/advisories.json
    check_advisories.py --database DIRECTORY [--write DATE]
                                             compare them with a checkout of a database, and with
                                             --write keep its advisories on locked packages

The database has the form of the PyPA advisory database: one OSV record in YAML for each advisory,
below ``vulns/<package>/``. The file that is kept has the date of the database, and every run says
how old it is: an old file says nothing about what was found since. Exits with 1 if a locked version
is affected, or the file is older than ``--most-days``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
KEPT = LOCKS / "advisories.json"

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Advisory:
    """One advisory on one package: ranges [introduced, fixed), and versions that it lists.

    ``fixed`` is None if nothing is fixed; ``last`` says that ``fixed`` is itself affected.
    """

    id: str
    package: str
    aliases: tuple[str, ...]
    ranges: tuple[tuple[str, str | None, bool], ...]
    versions: tuple[str, ...]

    def affects(self, version: Version) -> bool:
        """Return whether a version is affected."""
        if any(version == Version(one) for one in self.versions):
            return True
        for introduced, end, last in self.ranges:
            if introduced != "0" and version < Version(introduced):
                continue
            if end is None or version < Version(end) or (last and version == Version(end)):
                return True
        return False

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Advisory:
        """Return an advisory out of the file that is kept."""
        ranges = tuple((start, end, last) for start, end, last in value["ranges"])
        return cls(value["id"], value["package"], tuple(value["aliases"]), ranges, tuple(value["versions"]))


def locked(directory: Path = LOCKS) -> dict[str, dict[Version, list[str]]]:
    """Return the locked versions of every package, and the locks that have them."""
    found: dict[str, dict[Version, list[str]]] = {}
    for lock in sorted(directory.glob("*.lock")):
        for name, version in _PIN.findall(lock.read_text("utf-8")):
            found.setdefault(canonicalize_name(name), {}).setdefault(Version(version), []).append(lock.name)
    return found


def read_database(directory: Path, packages: Iterable[str]) -> Iterator[Advisory]:
    """Yield the advisories on these packages of a checkout of a database."""
    wanted = set(packages)
    for folder in sorted((directory / "vulns").iterdir()):
        if canonicalize_name(folder.name) in wanted:
            for file in sorted(folder.glob("*.y*ml")):
                yield from _advisories(yaml.safe_load(file.read_text("utf-8")))


def _advisories(record: Mapping[str, Any]) -> Iterator[Advisory]:
    """Yield the advisories of one OSV record; a withdrawn one has none."""
    if record.get("withdrawn"):
        return
    for affected in record.get("affected", ()):
        if affected["package"]["ecosystem"] != "PyPI":
            continue
        spans = [one for one in affected.get("ranges", ()) if one["type"] == "ECOSYSTEM"]
        ranges = tuple(span for one in spans for span in _spans(one["events"]))
        # Ranges say what the list of versions says, in a line.
        versions = () if ranges else tuple(filter(_is_version, affected.get("versions", ())))
        yield Advisory(
            record["id"],
            canonicalize_name(affected["package"]["name"]),
            tuple(record.get("aliases", ())),
            ranges,
            versions,
        )


def _spans(events: Iterable[Mapping[str, str]]) -> Iterator[tuple[str, str | None, bool]]:
    introduced: str | None = None
    for event in events:
        if "introduced" in event:
            introduced = str(event["introduced"])
        elif introduced is not None:
            name = "fixed" if "fixed" in event else "last_affected"
            yield introduced, str(event[name]), name == "last_affected"
            introduced = None
    if introduced is not None:
        yield introduced, None, False


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def findings(advisories: Iterable[Advisory], locks: Mapping[str, Mapping[Version, list[str]]]) -> list[str]:
    """Return a line for every locked version that an advisory affects."""
    return [
        f"{one.package} {version} ({', '.join(names)}): {', '.join((one.id, *one.aliases))}"
        for one in advisories
        for version, names in locks.get(one.package, {}).items()
        if one.affects(version)
    ]


def write(path: Path, date: datetime.date, advisories: Iterable[Advisory]) -> None:
    """Keep advisories with the date of their database."""
    kept = {
        "source": "PyPA advisory database, CC BY 4.0",
        "date": date.isoformat(),
        "advisories": [asdict(one) for one in advisories],
    }
    lines = json.dumps(kept, indent=1)
    path.write_text(re.sub(r"\n {3,}", " ", lines).replace("\n  }", " }") + "\n", encoding="utf-8")


def main(arguments: list[str], today: datetime.date | None = None) -> int:
    """Compare, report and return the status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, metavar="DIRECTORY")
    parser.add_argument("--write", type=datetime.date.fromisoformat, metavar="DATE")
    parser.add_argument("--most-days", type=int, metavar="N")
    given = parser.parse_args(arguments)
    locks = locked()
    if given.database is None:
        kept = json.loads(KEPT.read_text("utf-8"))
        date = datetime.date.fromisoformat(kept["date"])
        advisories = [Advisory.from_json(one) for one in kept["advisories"]]
        age = ((today or datetime.datetime.now(datetime.UTC).date()) - date).days
        source, too_old = f"of {date}, {age} days old", given.most_days is not None and age > given.most_days
    else:
        advisories = list(read_database(given.database, locks))
        source, too_old = f"in {given.database}", False
        if given.write is not None:
            write(KEPT, given.write, advisories)
    found = findings(advisories, locks)
    for line in found:
        print(f"advisories: {line}")
    print(
        f"advisories {source}: {len(advisories)} on {len({one.package for one in advisories})} of {len(locks)} locked "
        f"packages; {len(found)} affect a locked version"
    )
    if too_old:
        print(f"advisories: the file must be at most {given.most_days} days old; write it anew from a database")
    return int(bool(found) or too_old)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
