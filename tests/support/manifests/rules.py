"""Rules that no schema has: secrets by reference, confined pods, tokens, disk, names that must exist."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from llm4msr import load
from llm4msr.errors import ConfigError
from tests.support.experiments import ROOT, VERBS
from tests.support.manifests.base import At, Problem, documents, nodes, parsed
from tests.support.manifests.network import COMPONENT, OURS
from tests.support.manifests.serve import serve

Secrets = Mapping[str, frozenset[str]]
"""The keys of each secret that the README has people create."""

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY")
IMAGE = re.compile(r"ghcr\.io/OWNER/llm4msr:[\d.]+-(cpu|gpu)@sha256:[0-9a-f]{64}")
RANKERS = {"llm4msr-api", "llm4msr-ray-ranker", "llm4msr-s3-read"}
"""The ranker's secrets; all others are the jobs', whose pods run the code of who submits them."""
ENTRYPOINT = re.compile(r"python -m llm4msr (?P<verb>\w+) s3://\S+\.toml(?P<settings>( --set \S+=\S+)*)")
LOCKED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
REFERENCES = ("secretKeyRef", "secretRef")
TEMPLATES = ("template", "submitterPodTemplate")
NEEDED = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def containers(document: Any, at: At) -> Iterator[tuple[At, dict[str, Any]]]:
    """Containers of pods, and the options that become the autoscaler's container."""
    for where, node in nodes(document, at):
        for kind in ("containers", "initContainers"):
            yield from (((*where, kind, i), each) for i, each in enumerate(node.get(kind, [])))
        if node.get("enableInTreeAutoscaling"):
            yield (*where, "autoscalerOptions"), node.get("autoscalerOptions", {})


def pods(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """No pod runs as root or mounts Kubernetes' token by itself; each has an identity, and network.yaml covers it."""
    for where, node in nodes(document, at):
        if "containers" in node:
            confined = node.get("securityContext", {})
            if confined.get("runAsNonRoot") is not True or not confined.get("runAsUser"):
                yield Problem((*where, "securityContext"), "needs runAsNonRoot: true and a runAsUser that is not 0")
            if confined.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield Problem((*where, "securityContext", "seccompProfile"), "needs type: RuntimeDefault")
            if node.get("automountServiceAccountToken") is not False:
                yield Problem((*where, "automountServiceAccountToken"), "needs to be false")
            if node.get("serviceAccountName") not in service_accounts():
                yield Problem((*where, "serviceAccountName"), f"is none of {', '.join(service_accounts())}")
        for template in TEMPLATES:
            if template in node and "app.kubernetes.io/part-of" not in labels(node[template]):
                yield Problem((*where, template, "metadata", "labels"), "part-of: llm4msr is missing")
            if template in node and labels(node[template]).get(COMPONENT) not in covered():
                yield Problem((*where, template, "metadata", "labels"), f"{COMPONENT} is none that network.yaml closes")


def unarmed(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """Kubernetes' token is for the autoscaler: code of a job that held it could end other clusters' pods."""
    for where, node in nodes(document, at):
        tokens = {each["name"] for each in node.get("volumes", []) if "serviceAccountToken" in str(each)}
        for i, container in enumerate(node.get("containers", [])):
            for j, mount in enumerate(container.get("volumeMounts", [])):
                if mount["name"] in tokens:
                    yield Problem((*where, "containers", i, "volumeMounts", j), "mounts a token of Kubernetes")


def locked(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """No container gains rights or writes where it need not; Ray counts its CPUs and memory from the limits."""
    for where, container in containers(document, at):
        for field, wanted in LOCKED.items():
            if container.get("securityContext", {}).get(field) != wanted:
                yield Problem((*where, "securityContext", field), f"needs to be {wanted}")
        if where[-1] != "autoscalerOptions":
            if "limits" not in container.get("resources", {}):
                yield Problem((*where, "resources", "limits"), "missing")
            if not IMAGE.fullmatch(str(container.get("image"))):
                yield Problem((*where, "image"), "is not ghcr.io/OWNER/llm4msr:VERSION-cpu or -gpu, @sha256:DIGEST")


def labels(template: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return found


def covered() -> set[str]:
    return {each.labels[COMPONENT] for each in OURS}


def disks(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """A pod takes no more of a node's disk than it says, and what its volumes may hold fits into that."""
    for where, container in containers(document, at):
        sizes = container.get("resources", {})
        for kind in ("requests", "limits"):
            if "ephemeral-storage" not in sizes.get(kind, {}):
                yield Problem((*where, "resources", kind, "ephemeral-storage"), "missing")
    for where, node in nodes(document, at):
        if "containers" in node:
            yield from _volumes(node, where)


def _volumes(node: dict[str, Any], where: At) -> Iterator[Problem]:
    room = sum(
        size(each.get("resources", {}).get("limits", {}).get("ephemeral-storage")) for each in node["containers"]
    )
    empty = {i: each["emptyDir"] for i, each in enumerate(node.get("volumes", [])) if "emptyDir" in each}
    for i, directory in empty.items():
        if "sizeLimit" not in directory:
            yield Problem((*where, "volumes", i, "emptyDir", "sizeLimit"), "missing")
    if sum(size(each.get("sizeLimit")) for each in empty.values()) > room:
        yield Problem((*where, "volumes"), "hold more than the containers' limits of ephemeral-storage")
    if "headGroupSpec" in where and "ray-logs" not in [each["name"] for each in node.get("volumes", [])]:
        yield Problem((*where, "volumes"), "ray-logs is missing: KubeRay would add it for /tmp/ray without a limit")


def size(quantity: str | None) -> int:
    """Bytes of a quantity such as 10Gi; 0 for none."""
    number = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti)", quantity or "0Ki")
    assert number, quantity
    return int(number[1]) << {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[number[2]]


@cache
def service_accounts() -> tuple[str, ...]:
    text = (ROOT / "cluster" / "kuberay" / "access.yaml").read_text()
    return tuple(each["metadata"]["name"] for each in documents(text) if each["kind"] == "ServiceAccount")


def literals(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """A secret never stands in a file: not as a variable, not in a runtime environment, not in a text of YAML."""
    for where, node in nodes(document, at):
        if "value" in node and SECRET_NAME.search(str(node.get("name", ""))):
            yield Problem((*where, "value"), f"{node['name']} stands here in the open; take valueFrom.secretKeyRef")
        for name in node.get("env_vars", {}):
            if SECRET_NAME.search(name):
                yield Problem((*where, "env_vars", name), "stands here in the open; let the pod's env bring it")
        for text in ("runtimeEnvYAML", "serveConfigV2"):
            if text in node:
                yield from literals(parsed(node[text]), (*where, text), secrets)


def references(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """Each secret that is referred to is one that the README creates, with that key."""
    for where, node in nodes(document, at):
        found = [(part, node[part].get("name"), node[part].get("key")) for part in REFERENCES if part in node]
        found += [("secretName", node["secretName"], None)] if "secretName" in node else []
        for part, name, key in found:
            if name not in secrets:
                yield Problem((*where, part), f"secret '{name}' is none that cluster/README.md creates")
            elif (name in RANKERS) != (document.get("kind") == "RayService"):
                yield Problem(
                    (*where, part), f"secret '{name}' is for {'the ranker' if name in RANKERS else 'jobs'} alone"
                )
            elif key and key not in secrets[name]:
                yield Problem((*where, part), f"secret '{name}' has no key '{key}' in cluster/README.md")


def needs(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """Each container of Ray gets, from secrets, what it cannot do without."""
    needed = NEEDED | ({"LLM4MSR_API_TOKEN"} if document.get("kind") == "RayService" else set())
    for where, container in containers(document, at):
        if "submitterPodTemplate" in where:
            for part in {"env", "envFrom"} & set(container):
                yield Problem((*where, part), "submitting takes Ray's token alone, which KubeRay brings")
        elif "image" in container:
            for name in sorted(needed - given(container, secrets)):
                yield Problem((*where, "env"), f"{name} is missing, by reference to a secret")


def given(container: dict[str, Any], secrets: Secrets) -> set[str]:
    """Variables that a container gets from secrets."""
    whole = [each["secretRef"].get("name") for each in container.get("envFrom", []) if "secretRef" in each]
    single = {each["name"] for each in container.get("env", []) if "secretKeyRef" in each.get("valueFrom", {})}
    return single.union(*(secrets.get(name, frozenset()) for name in whole))


def rays(document: Any, at: At, secrets: Secrets) -> Iterator[Problem]:
    """Ray asks for a token and is the version we install; entry points exist; Serve's config is one."""
    for where, node in nodes(document, at):
        if "headGroupSpec" in node:
            auth = node.get("authOptions", {})
            if auth.get("mode") != "token" or "auth_token" not in secrets.get(auth.get("secretName", ""), ()):
                yield Problem((*where, "authOptions"), "needs mode: token and a secretName whose key is auth_token")
            if f"\nray=={node.get('rayVersion')} " not in (ROOT / "cluster" / "docker" / "cpu.txt").read_text():
                yield Problem((*where, "rayVersion"), "is not the one in cluster/docker/cpu.txt")
        if "rayClusterSpec" in node:
            entry = ENTRYPOINT.fullmatch(str(node.get("entrypoint")))
            if not entry or entry["verb"] not in VERBS:
                yield Problem((*where, "entrypoint"), "is not `python -m llm4msr VERB s3://...toml`")
            else:
                yield from settings((*where, "entrypoint"), entry["settings"].split(" --set ")[1:], node)
        if "serveConfigV2" in node:
            yield from serve(parsed(node["serveConfigV2"]), (*where, "serveConfigV2"))


def settings(where: At, overrides: list[str], job: dict[str, Any]) -> Iterator[Problem]:
    """What the entry point sets is known to the config, and asks for the GPUs that the job's cluster does not start."""
    try:
        extract = load(str(ROOT / "jobs" / "configs" / "table.toml"), overrides).extract
    except ConfigError as error:
        yield Problem(where, str(error).partition(": ")[2])
        return
    for group in job["rayClusterSpec"].get("workerGroupSpecs", []):
        if "nvidia.com/gpu" in str(group) and not group.get("minReplicas") and extract.device != "gpu":
            yield Problem(where, f"needs --set extract.device=gpu, as group '{group.get('groupName')}' begins with 0")


RULES = (pods, unarmed, locked, disks, literals, references, needs, rays)
