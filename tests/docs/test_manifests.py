"""Every manifest in cluster/ is what a cluster takes, and what is wrong with one is told by file and field."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from llm4msr.serve.app import EVENTS
from tests.support.experiments import ROOT
from tests.support.manifests import created_secrets, problems
from tests.support.manifests.base import documents, nodes, parsed
from tests.support.manifests.kinds import PLAIN, Schema
from tests.support.manifests.schemas import kuberay_schemas
from tests.support.manifests.serve import serve

CLUSTER = ROOT / "cluster"
BASE = CLUSTER / "kuberay" / "kustomization.yaml"
OVERLAYS = sorted(str(file.parent.relative_to(ROOT)) for file in CLUSTER.glob("overlays/*/kustomization.yaml"))
FILES = sorted({*CLUSTER.glob("kuberay/**/*.yaml"), CLUSTER / "prometheus" / "podmonitor.yaml"} - {BASE})
NAMES = [str(file.relative_to(ROOT)) for file in FILES]
CRDS = Path(os.environ.get("LLM4MSR_KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay-crds")
README = (CLUSTER / "README.md").read_text()
SECRETS = created_secrets(README)
UNSHAPED = PLAIN | {kind: {} for kind in ("RayCluster", "RayJob", "RayCronJob", "RayService")}
"""Where KubeRay's schemas are not at hand, all other rules hold."""
RANKER = "cluster/kuberay/ranker.yaml"
FROM_SECRET = "valueFrom:\n" + " " * 20 + "secretKeyRef: {name: llm4msr-api, key: token}"


@pytest.fixture(scope="module")
def schemas() -> dict[str, Schema]:
    if not any(CRDS.glob("ray.io_*.yaml.gz")):
        pytest.skip(f"no KubeRay schemas in {CRDS}: name a folder of KubeRay 1.7's CRDs in LLM4MSR_KUBERAY_CRDS")
    return PLAIN | kuberay_schemas(CRDS)


@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_valid(name: str, schemas: dict[str, Schema]) -> None:
    assert problems(name, (ROOT / name).read_text(), schemas, SECRETS) == []


@pytest.mark.parametrize("name", NAMES)
def test_all_but_kuberays_schemas_holds_without_them(name: str) -> None:
    assert problems(name, (ROOT / name).read_text(), UNSHAPED, SECRETS) == []


MISSHAPEN = {
    "a misspelt field": (
        *("jobs/extract.yaml", "backoffLimit:", "backofLimit:"),
        "RayJob/llm4msr-extract.spec.backofLimit: unknown field (did you mean 'backoffLimit'?)",
    ),
    "a misspelt field deep in a pod": (
        *("ranker.yaml", "periodSeconds: 5", "periodSecond: 5"),
        r".workerGroupSpecs[0].template.spec.containers[0].readinessProbe.periodSecond: unknown field",
    ),
    "a wrong type": (
        *("jobs/train.yaml", "maxReplicas: 8", "maxReplicas: eight"),
        "RayJob/llm4msr-train.spec.rayClusterSpec.workerGroupSpecs[0].maxReplicas: 'eight' is not of type 'integer'",
    ),
}

BROKEN = {
    "a field of a plain kind": (
        *("network.yaml", "namespaceSelector:", "namespaceSelektor:"),
        "NetworkPolicy/llm4msr-jobs.spec.ingress[0].from[0].namespaceSelektor: unknown field",
    ),
    "a budget that Kubernetes cannot keep": (
        *("ranker.yaml", "minAvailable: 1", "minAvailable: 50%"),
        "PodDisruptionBudget/llm4msr-ranker.spec.minAvailable: '50%' is not of type 'integer'",
    ),
    "an unknown secret": (
        *("jobs/extract.yaml", "secretRef: {name: llm4msr-s3}", "secretRef: {name: llm4msr-s4}"),
        ".containers[0].envFrom[0].secretRef: secret 'llm4msr-s4' is none that cluster/README.md creates",
    ),
    "an unknown key of a secret": (
        *("ranker.yaml", "key: token", "key: tokens"),
        ".env[0].valueFrom.secretKeyRef: secret 'llm4msr-api' has no key 'tokens'",
    ),
    "a missing secret": (
        *("daily.yaml", "- secretRef: {name: llm4msr-s3}\n", "\n"),
        ".headGroupSpec.template.spec.containers[0].env: AWS_SECRET_ACCESS_KEY is missing, by reference to a secret",
    ),
    "a secret in the open": (
        *(
            "ranker.yaml",
            "valueFrom:\n                    secretKeyRef: {name: llm4msr-api, key: token}",
            "value: hunter2",
        ),
        ".containers[0].env[0].value: LLM4MSR_API_TOKEN stands here in the open",
    ),
    "a secret in a runtime environment": (
        *("jobs/train.yaml", "backoffLimit:", 'runtimeEnvYAML: "env_vars: {HF_TOKEN: hunter2}"\n  backoffLimit:'),
        "RayJob/llm4msr-train.spec.runtimeEnvYAML.env_vars.HF_TOKEN: stands here in the open",
    ),
    "the ranker's token of Ray for jobs": (
        *("jobs/train.yaml", "secretName: llm4msr-ray-jobs", "secretName: llm4msr-ray-ranker"),
        ".authOptions.secretName: secret 'llm4msr-ray-ranker' is for the ranker alone",
    ),
    "the jobs' token of Ray for the ranker": (
        *("ranker.yaml", "secretName: llm4msr-ray-ranker", "secretName: llm4msr-ray-jobs"),
        ".authOptions.secretName: secret 'llm4msr-ray-jobs' is for jobs alone",
    ),
    "a key that writes, for the ranker": (
        *("ranker.yaml", "{name: llm4msr-s3-read}", "{name: llm4msr-s3}"),
        ".envFrom[0].secretRef: secret 'llm4msr-s3' is for jobs alone",
    ),
    "the API's token for a job": (
        *("daily.yaml", "envFrom: &s3\n", "envFrom: &s3\n" + " " * 18 + "- secretRef: {name: llm4msr-api}\n"),
        ".envFrom[0].secretRef: secret 'llm4msr-api' is for the ranker alone",
    ),
    "a key for a submitter": (
        *("jobs/train.yaml", "- name: submit\n", "- name: submit\n          envFrom: *s3\n"),
        ".submitterPodTemplate.spec.containers[0].envFrom: submitting takes Ray's token alone",
    ),
    "an image by tag": (
        *("jobs/train.yaml", f"-cpu@sha256:{'0' * 64}", "-cpu"),
        ".containers[0].image: is not ghcr.io/OWNER/llm4msr:VERSION-cpu or -gpu, @sha256:DIGEST",
    ),
    "a digest that is none": (
        *("daily.yaml", f"sha256:{'0' * 64}", f"sha256:{'0' * 63}"),
        ".containers[0].image: is not ghcr.io/OWNER/llm4msr:VERSION-cpu or -gpu, @sha256:DIGEST",
    ),
    "disk without a limit": (
        *("ranker.yaml", 'limits: {cpu: "4", memory: 8Gi, ephemeral-storage: 42Gi}', 'limits: {cpu: "4", memory: 8Gi}'),
        ".workerGroupSpecs[0].template.spec.containers[0].resources.limits.ephemeral-storage: missing",
    ),
    "disk that nobody reserves": (
        *("jobs/extract.yaml", "requests: {cpu: 250m, memory: 512Mi, ephemeral-storage: 3Gi}", "requests: {cpu: 250m}"),
        ".submitterPodTemplate.spec.containers[0].resources.requests.ephemeral-storage: missing",
    ),
    "an autoscaler without a limit": (
        *("jobs/cluster.yaml", "limits: {cpu: 500m, memory: 512Mi, ephemeral-storage: 1Gi}", "limits: {cpu: 500m}"),
        "spec.autoscalerOptions.resources.limits.ephemeral-storage: missing",
    ),
    "volumes that hold too much": (
        *("jobs/train.yaml", "cache, emptyDir: {sizeLimit: 50Gi}", "cache, emptyDir: {sizeLimit: 60Gi}"),
        ".workerGroupSpecs[0].template.spec.volumes: hold more than the containers' limits of ephemeral-storage",
    ),
    "a volume without an end": (
        *("daily.yaml", "tmp, emptyDir: {sizeLimit: 20Gi}", "tmp, emptyDir: {}"),
        ".workerGroupSpecs[0].template.spec.volumes[0].emptyDir.sizeLimit: missing",
    ),
    "a volume of KubeRay's without an end": (
        *("ranker.yaml", "- {name: ray-logs, emptyDir: {sizeLimit: 15Gi}}", ""),
        ".headGroupSpec.template.spec.volumes: ray-logs is missing",
    ),
    "a cluster that no policy closes": (
        *("jobs/train.yaml", "app.kubernetes.io/component: train\n", "app.kubernetes.io/component: tune\n"),
        ".headGroupSpec.template.metadata.labels: app.kubernetes.io/component is none that network.yaml closes",
    ),
    "no token": (
        *("jobs/cluster.yaml", "mode: token", "mode: disabled"),
        "RayCluster/llm4msr-jobs.spec.authOptions: needs mode: token",
    ),
    "another Ray": ("jobs/cluster.yaml", "rayVersion: 2.60.0", "rayVersion: 2.59.0", ".rayVersion: is not the one"),
    "root": ("jobs/cluster.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "securityContext: needs runAsNonRoot"),
    "capabilities": (
        *("jobs/cluster.yaml", "drop: [ALL]", "drop: [NET_RAW]"),
        "spec.autoscalerOptions.securityContext.capabilities: needs to be",
    ),
    "a token of Kubernetes": (
        *("jobs/train.yaml", "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
        "spec.automountServiceAccountToken: needs to be false",
    ),
    "a token of Kubernetes in Ray's own container": (
        *("jobs/train.yaml", "- {name: cache, mountPath: /cache}", "- {name: kube-api, mountPath: /api}"),
        ".headGroupSpec.template.spec.containers[0].volumeMounts[1]: mounts a token of Kubernetes",
    ),
    "a verb that is not there": (
        *("daily.yaml", "llm4msr run", "llm4msr rnu"),
        "RayCronJob/llm4msr-daily.spec.jobTemplate.entrypoint: is not `python -m llm4msr VERB",
    ),
    "a misspelt setting": (
        *("daily.yaml", "extract.device=gpu", "extract.devise=gpu"),
        ".entrypoint: unknown key 'extract.devise'; did you mean 'device'?",
    ),
    "GPUs that nobody asks for": (
        *("jobs/extract.yaml", " --set extract.device=gpu", ""),
        "RayJob/llm4msr-extract.spec.entrypoint: needs --set extract.device=gpu, as group 'gpu' begins with 0",
    ),
    "a misspelt key that Ray lets pass": (
        *("ranker.yaml", "route_prefix: /", "rout_prefix: /"),
        ".serveConfigV2.applications[0].rout_prefix: unknown field (did you mean 'route_prefix'?)",
    ),
    "a misspelt argument of ours": (
        *("ranker.yaml", "max_replicas: 8", "max_replcias: 8"),
        ".serveConfigV2.applications[0].args.max_replcias: unknown field (did you mean 'max_replicas'?)",
    ),
    "a wrong type within Serve's config": (
        *("ranker.yaml", "request_timeout_s: 15", "request_timeout_s: soon"),
        ".serveConfigV2.http_options.request_timeout_s: Input should be a valid number",
    ),
}

OPENED = {
    "all of ours to each other": (
        *("&ranker\n      app.kubernetes.io/component: ranker", "&ranker\n      app.kubernetes.io/part-of: llm4msr"),
        "llm4msr-within-ranker.spec.ingress[0]: lets train worker reach [53, 80, 443, 6379,",
    ),
    "one job to another": (
        *("&extract\n      app.kubernetes.io/component: extract", "&extract\n      app.kubernetes.io/component: train"),
        "NetworkPolicy: no ingress lets extract worker reach [53, 80, 443, 6379,",
    ),
    "HAProxy's statistics to Prometheus": (
        *("port: 9101}", "port: 8404}"),
        "llm4msr-ranker.spec.ingress[2]: lets Prometheus reach [8404] of ranker head",
    ),
    "a range of ports": (
        *("port: 9101}", "port: 8080, endPort: 9101}"),
        "llm4msr-ranker.spec.ingress[2]: lets Prometheus reach [8265, 8404] of ranker head",
    ),
    "metrics to the whole namespace": (
        *("          podSelector:\n            matchLabels:\n              app.kubernetes.io/name: prometheus\n", ""),
        "llm4msr-jobs.spec.ingress[1]: lets another pod of Prometheus' namespace reach [8080] of cluster head",
    ),
    "clients of any namespace": (
        *("        - podSelector:               #", "        - namespaceSelector: {}\n          podSelector: #"),
        "llm4msr-ranker.spec.ingress[0]: lets a client of another namespace reach [8000] of ranker head",
    ),
    "clients to every port": (
        *('llm4msr-client: "true"\n      ports:\n        - {protocol: TCP, port: 8000}', 'llm4msr-client: "true"'),
        "llm4msr-ranker.spec.ingress[0]: lets a client reach [53, 80, 443, 6379, 6443, 8080, 8265, 8404, 9101,",
    ),
    "a dashboard to other jobs' submitters": (
        *("component: train-submit\n", "component: daily-submit\n"),
        "llm4msr-within-train.spec.ingress[1]: lets daily-submit reach [8265] of train head",
    ),
    "the operator kept out": (
        *("app.kubernetes.io/name: kuberay-operator", "app.kubernetes.io/name: operator"),
        "NetworkPolicy: no ingress lets KubeRay's operator reach [8265] of cluster head",
    ),
    "the private network": (
        *("except: [10.0.0.0/8, ", "except: ["),
        "llm4msr-jobs.spec.egress[1]: lets cluster worker reach [443] of a machine of the private network",
    ),
    "the cloud's metadata": (
        *("        - {protocol: TCP, port: 6443}\n", "        - {protocol: TCP, port: 80}\n"),
        "llm4msr-autoscaler.spec.egress[0]: lets train head reach [80] of the cloud's metadata",
    ),
    "outgoing traffic of a submitter": (
        "daily-submit]}\n  policyTypes: [Ingress, Egress]",
        "daily-submit]}\n  policyTypes: [Ingress]",
        "NetworkPolicy: no egress policy selects train-submit",
    ),
}


@pytest.mark.parametrize("case", OPENED)
def test_a_port_that_is_open_or_closed_by_mistake_is_told_by_policy(case: str) -> None:
    old, new, wanted = OPENED[case]
    found = told("network.yaml", old, new, UNSHAPED)
    assert any(line.startswith("cluster/kuberay/network.yaml: ") and wanted in line for line in found), found


def told(name: str, old: str, new: str, schemas: dict[str, Schema]) -> list[str]:
    text = (CLUSTER / "kuberay" / name).read_text()
    assert old in text
    return problems(f"cluster/kuberay/{name}", text.replace(old, new), schemas, SECRETS)


@pytest.mark.parametrize("case", MISSHAPEN)
def test_a_misshapen_manifest_is_told_by_file_and_field(case: str, schemas: dict[str, Schema]) -> None:
    name, old, new, wanted = MISSHAPEN[case]
    found = told(name, old, new, schemas)
    assert any(line.startswith(f"cluster/kuberay/{name}: ") and wanted in line for line in found), found


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_told_by_file_and_field(case: str) -> None:
    name, old, new, wanted = BROKEN[case]
    found = told(name, old, new, UNSHAPED)
    assert any(line.startswith(f"cluster/kuberay/{name}: ") and wanted in line for line in found), found


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="replicas stands twice"):
        documents("replicas: 1\nreplicas: 2\n")


def test_a_secret_does_not_belong_into_the_repository() -> None:
    (problem,) = problems("x.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n", PLAIN, SECRETS)
    assert problem.startswith("x.yaml: Secret/x: kind Secret is none of")


def test_the_ray_service_serves_what_serve_yaml_says() -> None:
    (service, _) = documents((ROOT / RANKER).read_text())
    assert parsed(service["spec"]["serveConfigV2"]) == parsed((CLUSTER / "serve.yaml").read_text())


def test_serve_yaml_is_strictly_valid() -> None:
    config = parsed((CLUSTER / "serve.yaml").read_text())
    assert [str(problem) for problem in serve(config, ())] == []
    config["http_options"]["prot"] = 8000
    assert [str(problem) for problem in serve(config, ())] == [
        "http_options.prot: unknown field (did you mean 'port'?)"
    ]


def test_the_readme_creates_no_secret_that_nothing_uses() -> None:
    text = "".join((ROOT / name).read_text() for name in NAMES)
    assert set(SECRETS) == set(re.findall(r"(?:secretName|secretKeyRef|secretRef): \{?(?:name: )?([\w-]+)", text))


def test_the_disruption_budget_selects_the_rankers_workers() -> None:
    ranker, budget = documents((ROOT / RANKER).read_text())
    wanted = budget["spec"]["selector"]["matchLabels"]
    assert wanted.pop("ray.io/node-type") == "worker"  # which KubeRay sets
    templates = [node["template"] for _, node in nodes(ranker, ()) if "template" in node]
    assert len(templates) == 2
    assert all(wanted.items() <= template["metadata"]["labels"].items() for template in templates)


# Kustomize


@cache
def built(folder: str) -> str:
    """What would be applied, as Kustomize says, alone or in kubectl; neither asks a cluster."""
    commands = [["kustomize", "build"], ["kubectl", "kustomize"]]
    command = next((each for each in commands if shutil.which(each[0])), None)
    if command is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    done = subprocess.run([*command, str(ROOT / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_base_has_what_stays() -> None:
    files = {file.name for file in CLUSTER.glob("kuberay/*.yaml")}
    assert {*parsed(BASE.read_text())["resources"]} == files - {BASE.name}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_overlays_are_valid(folder: str, schemas: dict[str, Schema]) -> None:
    assert problems(folder, built(folder), schemas, SECRETS) == []


@pytest.mark.parametrize("folder", OVERLAYS)
def test_all_but_kuberays_schemas_holds_of_overlays_without_them(folder: str) -> None:
    assert problems(folder, built(folder), UNSHAPED, SECRETS) == []


@pytest.mark.parametrize("folder", OVERLAYS)
def test_what_an_overlay_mounts_is_claimed(folder: str) -> None:
    made = documents(built(folder))
    used = [node["claimName"] for each in made for _, node in nodes(each, ()) if "claimName" in node]
    assert used == [each["metadata"]["name"] for each in made if each["kind"] == "PersistentVolumeClaim"] != []


def test_the_log_of_events_lies_on_a_disk_of_its_own_pod() -> None:
    service = next(each for each in documents(built("cluster/overlays/events")) if each["kind"] == "RayService")
    config = parsed(service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    ranker, events = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = events["template"]["spec"]["containers"]
    folder = application["args"].pop("events")
    assert folder in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert "claimName" not in str(ranker)
    assert events["replicas"] == events["minReplicas"] == events["maxReplicas"] == 1

    deployment = application["deployments"].pop()
    assert deployment["name"] == EVENTS
    (asked,) = deployment["ray_actor_options"]["resources"]
    assert asked in parsed(parsed(events["rayStartParams"]["resources"]))
    assert "resources" not in ranker["rayStartParams"]

    del application["args"]["events_days"]
    assert config == parsed((CLUSTER / "serve.yaml").read_text())


# `ray up`


def ray_up(change: Callable[[dict[str, Any]], Any] = lambda config: None) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = parsed((CLUSTER / "ray-up.yaml").read_text())
    change(config)
    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_ray_up_takes_its_config() -> None:
    config = ray_up()
    assert config["available_node_types"]["gpu"]["min_workers"] == 0
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)


def test_ray_up_opens_no_port_to_all_and_keeps_its_role_from_requests() -> None:
    for node in ray_up()["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]  # else Ray makes a group that lets everybody ask port 22
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def test_ray_up_refuses_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        ray_up(lambda config: config.update(idle_timeout_minuets=5))
