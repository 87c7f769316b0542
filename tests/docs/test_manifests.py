"""Every manifest in cluster/ is what a cluster takes, and what is wrong with one is told by file and field."""

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from tests.helpers import ROOT
from tests.manifests import created_secrets, problems
from tests.manifests.base import documents, nodes, parsed
from tests.manifests.kinds import PLAIN, Schema
from tests.manifests.schemas import kuberay_schemas
from tests.manifests.serve import serve

CLUSTER = ROOT / "cluster"
FILES = sorted([*CLUSTER.glob("kuberay/**/*.yaml"), CLUSTER / "prometheus" / "podmonitor.yaml"])
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
        "NetworkPolicy/llm4msr.spec.ingress[1].from[0].namespaceSelektor: unknown field",
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
    "a module that is not there": (
        *("daily.yaml", "jobs.run", "jobs.rnu"),
        "RayCronJob/llm4msr-daily.spec.jobTemplate.entrypoint: is not `python -m jobs.MODULE",
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
        *("ranker.yaml", "request_timeout_s: 30", "request_timeout_s: soon"),
        ".serveConfigV2.http_options.request_timeout_s: Input should be a valid number",
    ),
}


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


# `ray up` and the images


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


def test_ray_up_refuses_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        ray_up(lambda config: config.update(idle_timeout_minuets=5))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_image_pins_what_the_package_asks_for(kind: str) -> None:
    lines = (CLUSTER / "docker" / f"{kind}.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for asked in map(Requirement, [*project["dependencies"], *extras[kind], *extras["s3"]]):
        name = asked.name.lower()
        assert name in pins, f"{kind}.txt: {name} is missing"
        assert asked.specifier.contains(pins[name], prereleases=True), f"{kind}.txt: {name}=={pins[name]}, not {asked}"


def test_images_are_of_this_version() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    for file in [*FILES, CLUSTER / "docker" / "Dockerfile"]:
        assert {*re.findall(r"llm4msr:([\d.]+)-", file.read_text())} <= {version[1]}, file


def test_the_image_does_not_run_as_root() -> None:
    lines = (CLUSTER / "docker" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    assert all(":latest" not in line for line in lines if line.startswith(("FROM", "ARG")))
