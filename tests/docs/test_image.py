"""The image: a base by digest, wheels by hash, a list of what is in it; and that nothing else is installed anywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import llm4msr
from tests.support.experiments import ROOT

CLUSTER = ROOT / "cluster"
DOCKER = CLUSTER / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
README = (CLUSTER / "README.md").read_text()
DIGEST = "sha256:" + "ab" * 32
PINS = sorted(file.name for file in DOCKER.glob("*.txt"))
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==([\w.+]+) --hash=sha256:[0-9a-f]{64}")


def pins(name: str) -> dict[str, str]:
    lines = [PIN.fullmatch(line) for line in (DOCKER / name).read_text().splitlines()]
    return {line[1]: line[2] for line in lines if line}


@pytest.mark.parametrize("name", PINS)
def test_each_line_is_one_version_with_its_hash(name: str) -> None:
    lines = (DOCKER / name).read_text().splitlines()
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    assert len(pins(name)) == len(lines) > 0


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_image_pins_what_the_package_asks_for(kind: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = pins(f"{kind}.txt")
    for asked in map(Requirement, [*project["dependencies"], *extras[kind], *extras["s3"]]):
        name = asked.name.lower()
        assert name in known, f"{kind}.txt: {name} is missing"
        assert asked.specifier.contains(known[name], prereleases=True), (
            f"{kind}.txt: {name}=={known[name]}, not {asked}"
        )


def test_what_builds_our_package_is_pinned() -> None:
    (asked,) = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"])
    for name in ("build.txt", "gpu.txt"):  # gpu.txt for `ray up`
        assert asked.specifier.contains(pins(name)["setuptools"])
    assert {"pip", "cyclonedx-bom"} <= pins("build.txt").keys()
    assert pins("uv.txt").keys() == {"uv"}


@pytest.mark.parametrize("name", ["docker/Dockerfile", "ray-up.yaml", "README.md"])
def test_all_that_is_installed_from_an_index_has_its_hash(name: str) -> None:
    text = re.sub(r"\\\n|\n +(?=-r )", " ", (CLUSTER / name).read_text())  # a command on one line
    lines = re.findall(r"pip install (?!'ray\[default\]).*", text)  # that is for the reader's own machine
    assert lines
    for line in lines:
        ours = re.search(r"--no-deps (--no-build-isolation )?(dist/\*\.whl|~/llm4msr|\.`)", line)
        assert ours or "--require-hashes --no-deps" in line, line


def test_nothing_that_is_downloaded_is_run_unseen() -> None:
    for file in CLUSTER.rglob("*"):
        if file.is_file():
            assert not re.search(r"(curl|wget)[^\n]*\|\s*(sudo )?(ba)?sh\b", file.read_text()), file


def test_images_are_of_this_version() -> None:
    for file in [*CLUSTER.rglob("*.yaml"), DOCKER / "Dockerfile", CLUSTER / "README.md"]:
        assert {*re.findall(r"llm4msr:([\d.]+)-", file.read_text())} <= {llm4msr.__version__}, file


def test_the_image_does_not_run_as_root() -> None:
    assert re.findall(r"^USER.*", DOCKERFILE, re.MULTILINE) == ["USER 1000:1000"]


def test_every_stage_stands_on_the_base_that_has_no_default() -> None:
    assert {line.split()[1] for line in re.findall(r"^FROM.*", DOCKERFILE, re.MULTILINE)} == {"${BASE}"}
    assert set(re.findall(r"^ARG BASE.*", DOCKERFILE, re.MULTILINE)) == {"ARG BASE"}
    assert "# syntax" not in DOCKERFILE  # which would be an image of its own, by tag


def command(start: str) -> str:
    """The shell text of the RUN that begins so."""
    found = re.search(rf"^RUN ({re.escape(start)}(?:.*\\\n)*.*)", DOCKERFILE, re.MULTILINE)
    assert found
    return found[1].replace("\\\n", " ")


@pytest.mark.parametrize(
    "base", ["", "python:3.11-slim-bookworm", "python:latest", "python@sha256:abc", f"python@{DIGEST}0"]
)
def test_the_build_refuses_a_base_that_can_be_moved(base: str) -> None:
    done = subprocess.run(
        ["sh", "-c", command('echo "$BASE"')], env=os.environ | {"BASE": base}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"BASE is '{base}': name the base by digest" in done.stderr


def test_the_build_takes_a_base_by_digest() -> None:
    env = os.environ | {"BASE": f"python:3.11-slim-bookworm@{DIGEST}"}
    subprocess.run(["sh", "-c", command('echo "$BASE"')], env=env, check=True)


SOURCES = """Types: deb
# http://snapshot.debian.org/archive/debian/20261110T000000Z
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates

Types: deb
# http://snapshot.debian.org/archive/debian-security/20261110T000000Z
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
"""


@pytest.mark.parametrize("named", [True, False])
def test_debians_packages_are_those_of_the_bases_day(tmp_path: Path, named: bool) -> None:
    sources = tmp_path / "debian.sources"
    sources.write_text(SOURCES if named else SOURCES.replace("# http://snapshot", "# http://elsewhere"))
    before, apt, _ = command("sources=").partition("&& apt-get")
    assert apt
    shell = before.replace("/etc/apt/sources.list.d/debian.sources", str(sources))
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True)
    assert done.returncode == (0 if named else 1)
    assert named or "names no snapshot of Debian" in done.stderr
    assert re.findall(r"^URIs: (\S+)", sources.read_text(), re.MULTILINE) == named * [
        "http://snapshot.debian.org/archive/debian/20261110T000000Z",
        "http://snapshot.debian.org/archive/debian-security/20261110T000000Z",
    ]


def test_the_list_of_what_is_in_the_image_has_debians_packages(tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    file.write_text(json.dumps({"bomFormat": "CycloneDX", "components": [{"name": "ray"}]}))
    script = [sys.executable, DOCKER / "sbom.py", file]
    subprocess.run(script, input="libstdc++6\t12.2.0-14+deb12u1\tamd64\n", text=True, check=True)
    names = {each["name"]: each.get("purl") for each in json.loads(file.read_text())["components"]}
    assert names["libstdc++6"] == "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64"
    assert names.keys() == {"ray", "python", "libstdc++6"}
    assert (
        subprocess.run(script, input="", text=True, capture_output=True).stderr
        == "no packages of Debian on standard input\n"
    )


def test_the_readmes_command_puts_an_image_into_every_manifest(tmp_path: Path) -> None:
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    (sed,) = re.findall(r'^sed -i "s\|&image (?:.*\\\n)*.*', README, re.MULTILINE)
    image = "registry.example/team/llm4msr:0.1.0-cpu"
    subprocess.run(["bash", "-c", f"digest() {{ echo {DIGEST}; }}; IMAGE={image}\n{sed}"], cwd=tmp_path, check=True)
    for name, own in {
        "jobs/train.yaml": True,
        "jobs/cluster.yaml": True,
        "ranker.yaml": True,
        "daily.yaml": False,
    }.items():
        text = (tmp_path / "cluster" / "kuberay" / name).read_text()
        assert (f"image: &image {image}@{DIGEST}\n" in text) is own
        assert ("ghcr.io/OWNER/llm4msr:0.1.0-gpu@sha256:" in text) is not own


def test_no_command_of_the_docs_shows_a_secret_to_other_processes() -> None:
    for name in ("README.md", "SERVING.md"):
        text = (CLUSTER / name).read_text()
        assert not re.search(r"--from-literal=\w*(TOKEN|SECRET|KEY|token|auth)\w*=", text)
        assert not re.search(r"""-H ["']Authorization""", text)
