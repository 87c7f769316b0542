"""Manifests against schemas in which an unknown field is an error."""

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.support.manifests.base import At, Problem, unknown
from tests.support.manifests.kinds import METADATA, Schema


@cache
def kuberay_schemas(folder: Path) -> dict[str, Schema]:
    """KubeRay's own schema of each of its kinds, made strict."""
    found = {}
    for file in sorted(folder.glob("*.yaml.gz")):
        definition = yaml.load(gzip.decompress(file.read_bytes()), yaml.CSafeLoader)["spec"]
        (version,) = [each for each in definition["versions"] if each["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        kind = definition["names"]["kind"]
        whole = {"apiVersion": {"enum": ["ray.io/v1"]}, "kind": {"enum": [kind]}, "metadata": METADATA}
        schema["properties"] = {"spec": schema["properties"]["spec"]} | whole
        found[kind] = schema | {"required": ["apiVersion", "kind", "metadata", "spec"]}
    return found


def strict(schema: Schema) -> Schema:
    """The same schema, in which a field that it does not name is an error: a cluster drops those in silence."""
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: strict(field) for name, field in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            made[inner] = strict(schema[inner])
    return made


def against_schema(document: Any, schema: Schema, at: At) -> Iterator[Problem]:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        where = (*at, *error.absolute_path)
        known = error.schema.get("properties", {})
        if error.validator == "additionalProperties" and known:
            for name in sorted(set(error.instance) - set(known)):
                yield Problem((*where, name), unknown(name, known))
        else:
            yield Problem(where, error.message)
