"""Strict schemas of the plain Kubernetes kinds that cluster/ uses, with those of their fields that it may use."""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
DURATION: Schema = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def record(*required: str, **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


NAME: Schema = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
"""Also the longest name for which KubeRay can name the pods of a RayJob or a RayService."""
METADATA = record("name", name=NAME, labels=STRINGS, annotations=STRINGS)
EXPRESSION = record(
    *("key", "operator"), key=STRING, operator=one_of("In", "NotIn", "Exists", "DoesNotExist"), values=list_of(STRING)
)
SELECTOR = record(matchLabels=STRINGS, matchExpressions=list_of(EXPRESSION))


def kind(api_version: str, name: str, **fields: Schema) -> Schema:
    required = ["apiVersion", "kind", "metadata", *("spec" for field in fields if field == "spec")]
    return record(*required, apiVersion=one_of(api_version), kind=one_of(name), metadata=METADATA, **fields)


_PEERS = list_of(
    record(
        podSelector=SELECTOR,
        namespaceSelector=SELECTOR,
        ipBlock=record("cidr", cidr=STRING, **{"except": list_of(STRING)}),
    )
)
_PORTS = list_of(record("port", protocol=one_of("TCP", "UDP", "SCTP"), port=PORT, endPort=PORT))
_NETWORK_POLICY = record(
    *("podSelector", "policyTypes"),
    podSelector=SELECTOR,
    policyTypes=list_of(one_of("Ingress", "Egress")),
    ingress=list_of(record(**{"from": _PEERS, "ports": _PORTS})),
    egress=list_of(record(to=_PEERS, ports=_PORTS)),
)
_DISRUPTION_BUDGET = record(
    *("minAvailable", "selector"),
    # Not `maxUnavailable` nor a percentage: Kubernetes refuses both for pods whose owner has no `scale`.
    minAvailable={"type": "integer", "minimum": 1},
    unhealthyPodEvictionPolicy=one_of("AlwaysAllow", "IfHealthyBudget"),
    selector=SELECTOR,
)
_CLAIM = record(
    *("accessModes", "resources"),
    accessModes=list_of(one_of("ReadWriteOncePod")),  # of what one process alone may write
    storageClassName=STRING,
    resources=record("requests", requests=record("storage", storage={"type": "string", "pattern": r"^\d+[KMGT]i$"})),
)
_RELABEL = record(
    sourceLabels=list_of(STRING), targetLabel=STRING, regex=STRING, replacement=STRING, action=STRING, separator=STRING
)
_POD_MONITOR = record(
    *("selector", "podMetricsEndpoints"),
    selector=SELECTOR,
    namespaceSelector=record(any=BOOLEAN, matchNames=list_of(STRING)),
    podMetricsEndpoints=list_of(
        record("port", port=STRING, path=STRING, interval=DURATION, relabelings=list_of(_RELABEL))
    ),
)

PLAIN: dict[str, Schema] = {
    "ServiceAccount": kind("v1", "ServiceAccount", automountServiceAccountToken=BOOLEAN),
    "NetworkPolicy": kind("networking.k8s.io/v1", "NetworkPolicy", spec=_NETWORK_POLICY),
    "PodDisruptionBudget": kind("policy/v1", "PodDisruptionBudget", spec=_DISRUPTION_BUDGET),
    "PersistentVolumeClaim": kind("v1", "PersistentVolumeClaim", spec=_CLAIM),
    "PodMonitor": kind("monitoring.coreos.com/v1", "PodMonitor", spec=_POD_MONITOR),
}
"""No Secret and no ConfigMap among them: those are made by hand, and stay out of the repository."""
