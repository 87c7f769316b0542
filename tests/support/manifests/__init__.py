"""Checks a manifest as strictly as a cluster would, and what no schema says.

Each problem is told as `file: Kind/name.path.to.field: what`.
"""

import re
from collections.abc import Mapping

from tests.support.manifests.base import At, Problem, documents
from tests.support.manifests.kinds import Schema
from tests.support.manifests.network import network
from tests.support.manifests.rules import RULES, Secrets
from tests.support.manifests.schemas import against_schema

CREATE = re.compile(
    r"printf '(?P<keys>(\w+=%s\\n)+)' .* \|\s+kubectl create secret generic (?P<name>\S+) --from-env-file=/dev/stdin"
)


def problems(file: str, text: str, schemas: Mapping[str, Schema], secrets: Secrets) -> list[str]:
    """All that is wrong with a file of manifests."""
    found: list[Problem] = []
    policies = [each for each in documents(text) if each.get("kind") == "NetworkPolicy"]
    for document in documents(text):
        kind = str(document.get("kind"))
        at: At = (f"{kind}/{document.get('metadata', {}).get('name')}",)
        if kind not in schemas:
            found.append(Problem(at, f"kind {kind} is none of {', '.join(sorted(schemas))}"))
            continue
        shape = list(against_schema(document, schemas[kind], at))
        found += shape or [problem for rule in RULES for problem in rule(document, at, secrets)]
    if policies and not found:
        found += network(policies)
    return [f"{file}: {problem}" for problem in found]


def created_secrets(readme: str) -> dict[str, frozenset[str]]:
    """Name and keys of each secret made of standard input: `printf 'KEY=%s\\n' ... | kubectl create secret ...`.

    `--from-literal=KEY=VALUE` makes none: the value would stand in the list of processes.
    """
    lines = re.sub(r"(\|)\n", r"\1 ", readme.replace("\\\n", " ")).splitlines()
    made = [CREATE.fullmatch(line) for line in lines]
    return {line["name"]: frozenset(line["keys"].split("=%s\\n")[:-1]) for line in made if line}
