"""Who reaches whom, as Kubernetes reads the policies: what is open and should not be, and what should be and is not."""

import ipaddress
from collections.abc import Iterator, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tests.support.manifests.base import At, Problem

COMPONENT = "app.kubernetes.io/component"
JOBS = ("cluster", "extract", "train", "daily")
SUBMITTED = ("extract", "train", "daily")
PORTS = (53, 80, 443, 6379, 6443, 8000, 8080, 8265, 8404, 9101, 10001, 30000, 52365)
"""DNS, HTTP, HTTPS, Ray's GCS, Kubernetes, Serve, metrics, dashboard, HAProxy's two, Ray's client, a replica, Ray's
agent."""
ANY = frozenset(PORTS)
Direction = Literal["ingress", "egress"]


class Peer(NamedTuple):
    """A pod, or an address outside of the cluster."""

    name: str
    labels: Mapping[str, str] = MappingProxyType({})
    namespace: str = "ranking"
    address: str = "10.0.0.9"


def pod(component: str, node: str = "") -> Peer:
    labels = {"app.kubernetes.io/part-of": "llm4msr", COMPONENT: component}
    return Peer(f"{component} {node}".strip(), labels | ({"ray.io/node-type": node} if node else {}))


RAYS = [pod(component, node) for component in (*JOBS, "ranker") for node in ("head", "worker")]
SUBMITTERS = [pod(f"{component}-submit") for component in SUBMITTED]
OURS = [*RAYS, *SUBMITTERS]
DNS = Peer("DNS", {"k8s-app": "kube-dns"}, "kube-system")
OPERATOR = Peer("KubeRay's operator", {"app.kubernetes.io/name": "kuberay-operator"}, "kuberay")
PROMETHEUS = Peer("Prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring")
CLIENT = Peer("a client", {"llm4msr-client": "true"})
INTERNET = Peer("the internet", namespace="", address="192.0.2.1")
STRANGERS = [
    Peer("a pod without labels"),
    Peer("a client of another namespace", CLIENT.labels, "elsewhere"),
    Peer("a ranker's label in another namespace", pod("ranker", "head").labels, "elsewhere"),
    Peer("another pod of the operator's namespace", {}, "kuberay"),
    Peer("another pod of Prometheus' namespace", {}, "monitoring"),
    Peer("another pod of kube-system", {}, "kube-system"),
    Peer("the cloud's metadata", namespace="", address="169.254.169.254"),
    Peer("a machine of the private network", namespace="", address="10.1.2.3"),
]
OTHERS = [DNS, OPERATOR, PROMETHEUS, CLIENT, INTERNET, *STRANGERS]


def wanted(source: Peer, target: Peer) -> frozenset[int]:
    """The ports that one of these needs of another, of which at least one is ours."""
    asking, asked = source.labels.get(COMPONENT), target.labels.get(COMPONENT)
    served = {"ranker": {8265, 8000}}
    if source in RAYS and target in RAYS and asking == asked:
        return ANY
    if source in SUBMITTERS and target in RAYS and asking == f"{asked}-submit":
        return frozenset({8265} if target.name.endswith("head") else ())
    if target in RAYS and source is OPERATOR:
        return frozenset(served.get(str(asked), {8265}))
    if target in RAYS and source is PROMETHEUS:
        return frozenset({8080, 9101} if asked == "ranker" else {8080})
    if target in RAYS and source is CLIENT:
        return frozenset({8000} if asked == "ranker" else ())
    if source in OURS and target is DNS:
        return frozenset({53})
    return frozenset({443} if source in RAYS and target is INTERNET else ())


def network(documents: list[dict[str, Any]]) -> Iterator[Problem]:
    """Each rule opens only what is wanted, what is wanted is open, and every pod of ours is closed otherwise."""
    policies = [each["spec"] | {"name": each["metadata"]["name"]} for each in documents]
    directions: tuple[Direction, ...] = ("ingress", "egress")
    for direction, one in product(directions, OURS):
        governing = [each for each in policies if direction.title() in each["policyTypes"] and selected(each, one)]
        if not governing:
            yield Problem(("NetworkPolicy",), f"no {direction} policy selects {one.name}")
        for other in [*OURS, *OTHERS]:
            yield from _between(governing, direction, one, other)


def _between(policies: list[dict[str, Any]], direction: Direction, one: Peer, other: Peer) -> Iterator[Problem]:
    source, target = (other, one) if direction == "ingress" else (one, other)
    need = wanted(source, target)
    spare = need | _looser(direction, source, target)
    opened: set[int] = set()
    for policy in policies:
        for i, rule in enumerate(policy.get(direction, [])):
            lets = ports(rule, direction, other)
            opened |= lets
            if lets - spare:
                at: At = (f"NetworkPolicy/{policy['name']}", "spec", direction, i)
                yield Problem(at, f"lets {source.name} reach {sorted(lets - spare)} of {target.name}")
    if policies and need - opened:
        yield Problem(
            ("NetworkPolicy",), f"no {direction} lets {source.name} reach {sorted(need - opened)} of {target.name}"
        )


def _looser(direction: Direction, source: Peer, target: Peer) -> frozenset[int]:
    """What one side alone may leave to the other: submitters are held by their egress, heads by whom they ask."""
    if source in SUBMITTERS and target in RAYS:
        other = target.labels[COMPONENT] in SUBMITTED and target.name.endswith("head")
        same = source.labels[COMPONENT] == f"{target.labels[COMPONENT]}-submit"
        return frozenset({8265} if (other if direction == "egress" else same) else ())
    if direction == "egress" and source.name.endswith("head"):
        return frozenset({443, 6443})  # Kubernetes' API, whose address is not known here
    return frozenset()


def selected(policy: dict[str, Any], one: Peer) -> bool:
    return one.namespace == "ranking" and matches(policy["podSelector"], one.labels)


def ports(rule: dict[str, Any], direction: Direction, other: Peer) -> set[int]:
    """Those that a rule opens to a peer; a rule that names no peers, or no ports, opens to all."""
    peers = rule.get("from" if direction == "ingress" else "to")
    if peers is not None and not any(meets(peer, other) for peer in peers):
        return set()
    named = rule.get("ports")
    return (
        set(ANY)
        if named is None
        else {p for e in named for p in PORTS if e["port"] <= p <= e.get("endPort", e["port"])}
    )


def meets(peer: dict[str, Any], other: Peer) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ipaddress.ip_address(other.address)
        inside = [address in ipaddress.ip_network(each) for each in (block["cidr"], *block.get("except", []))]
        return inside[0] and not any(inside[1:])
    if not other.namespace:
        return False
    names = {"kubernetes.io/metadata.name": other.namespace}
    near = matches(peer["namespaceSelector"], names) if "namespaceSelector" in peer else other.namespace == "ranking"
    return near and matches(peer.get("podSelector", {}), other.labels)


def matches(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    """As Kubernetes has it: an empty selector takes all."""
    tests = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, values: key in labels,
        "DoesNotExist": lambda key, values: key not in labels,
    }
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        tests[each["operator"]](each["key"], each.get("values", [])) for each in selector.get("matchExpressions", [])
    )
