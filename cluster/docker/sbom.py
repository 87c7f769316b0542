"""Add Debian's packages and Python itself to a CycloneDX file: `dpkg-query --show ... | python sbom.py FILE`.

Each line of standard input is NAME, VERSION and ARCHITECTURE, with tabs between them.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def component(name: str, version: str, purl: str) -> dict[str, Any]:
    """An entry of CycloneDX, named by its package URL."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def debian(line: str) -> dict[str, Any]:
    """The entry of a line of standard input."""
    name, version, architecture = line.split("\t")
    return component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}")


def main(file: Path, lines: list[str]) -> None:
    """Write the file anew, with what is not yet in it."""
    sbom = json.loads(file.read_text())
    python = platform.python_version()
    if not lines:
        raise SystemExit("no packages of Debian on standard input")
    sbom["components"] += [component("python", python, f"pkg:generic/python@{python}"), *map(debian, lines)]
    file.write_text(json.dumps(sbom, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.read().splitlines())
