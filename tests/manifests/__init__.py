"""Checks a manifest as strictly as a cluster would, and what no schema says.

Each problem is told as `file: Kind/name.path.to.field: what`.
"""

import re
import shlex
from collections.abc import Mapping

from tests.manifests.base import At, Problem, documents
from tests.manifests.kinds import Schema
from tests.manifests.rules import RULES, Secrets
from tests.manifests.schemas import against_schema


def problems(file: str, text: str, schemas: Mapping[str, Schema], secrets: Secrets) -> list[str]:
    """All that is wrong with a file of manifests."""
    found: list[Problem] = []
    for document in documents(text):
        kind = str(document.get("kind"))
        at: At = (f"{kind}/{document.get('metadata', {}).get('name')}",)
        if kind not in schemas:
            found.append(Problem(at, f"kind {kind} is none of {', '.join(sorted(schemas))}"))
            continue
        shape = list(against_schema(document, schemas[kind], at))
        found += shape or [problem for rule in RULES for problem in rule(document, at, secrets)]
    return [f"{file}: {problem}" for problem in found]


def created_secrets(readme: str) -> dict[str, frozenset[str]]:
    """Name and keys of each `kubectl create secret generic NAME --from-literal=KEY=...`."""
    found = {}
    for line in readme.replace("\\\n", " ").splitlines():
        if line.startswith("kubectl create secret generic "):
            words = shlex.split(line)
            found[words[4]] = frozenset(re.findall(r"--from-(?:literal|file)=(\w+)=", line))
    return found
