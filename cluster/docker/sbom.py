"""Print the bill of materials (CycloneDX 1.6) of this interpreter's packages, for an image."""

from __future__ import annotations

import importlib.metadata
import json
import re
from typing import Any


def main() -> None:
    """Print every installed distribution with its version, license and package URL."""
    found = {re.sub(r"[-_.]+", "-", one.name).lower(): one for one in importlib.metadata.distributions()}
    components: list[dict[str, Any]] = []
    for name, one in sorted(found.items()):
        part: dict[str, Any] = {
            "type": "library",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
        }
        for expression in one.metadata.get_all("License-Expression") or ():
            part["licenses"] = [{"expression": expression}]
        components.append(part)
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}
    print(json.dumps(bill, indent=1))


if __name__ == "__main__":
    main()
