"""Keys and tokens in the environment of a run: they reach S3 and Ray, and no log, no message and no published file.

And S3 that cannot be used: one message, soon, and the exit code of a wrong input.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import pytest
from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from tests.support.experiments import ROOT, MakeExperiment, free_port, own_ray
from tests.support.fixtures import Spine
from tests.support.s3_server import environment

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIA5NEVERINANYLOG00",
    "AWS_SECRET_ACCESS_KEY": "s3cret/never+in/any/log/000000000000000000",
    "LLM4MSR_API_TOKEN": "api-token-never-in-any-log-0000000000000000",
    "RAY_AUTH_TOKEN": "ray-token-never-in-any-log-0000000000000000",
}


def ran(config: object, changes: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """`python -m llm4msr run` with the secrets, on a Ray of its own."""
    wanted = own_ray() | SECRETS | {"RAY_AUTH_MODE": "token"} | changes
    return subprocess.run(
        [sys.executable, "-m", "llm4msr", "run", str(config)], env=wanted, cwd=ROOT, capture_output=True, timeout=300
    )


def told(*texts: bytes) -> set[str]:
    """Names of the secrets that stand in the texts."""
    return {name for name, value in SECRETS.items() if any(value.encode() in text for text in texts)}


def test_no_secret_in_a_log_or_a_published_file(s3: str, spine: Spine, experiment: MakeExperiment) -> None:
    root = f"{s3}/secrets"
    made = experiment({"storage": root, "evaluate.variants": [], "train.epochs": 1, "extract.max_users": 6})
    folder = spine.folder("prepare")
    bucket = fsspec.filesystem("s3")
    bucket.put(f"{folder}/", f"{root}/prepare/{folder.name}/", recursive=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as logs:  # short, as Ray sockets need it
        done = ran(made, {"RAY_TMPDIR": logs})
        files = [file for file in Path(logs).rglob("*") if file.is_file() and not file.is_symlink()]
        logged = {str(file): file.read_bytes() for file in files}
    assert done.returncode == 0, done.stderr.decode()
    bucket.invalidate_cache()
    published = {name: bucket.cat_file(name) for name in bucket.find(root)}
    assert any("/export/" in name for name in published)
    assert any("/logs/worker-" in name for name in logged)
    assert any(name.endswith("/logs/raylet.out") for name in logged)
    assert told(done.stdout, done.stderr) == set()
    assert {name for name, data in (*published.items(), *logged.items()) if told(data)} == set()


@pytest.fixture
def wrong_keys(s3: str) -> Iterator[None]:
    """The S3 server knows no key at all."""
    switch = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    httpx.post(switch, content=b"0").raise_for_status()
    yield
    httpx.post(switch, content=b"inf").raise_for_status()


def refused(uri: str, variables: dict[str, str]) -> str:
    """The message of a stage whose storage is there."""
    with environment(variables), pytest.raises(StorageError) as error:
        storage.path(uri)
    assert error.value.exit_code == 2
    return str(error.value)


def test_wrong_keys_are_one_message(s3: str, wrong_keys: None) -> None:
    endpoint = f"{os.environ['AWS_ENDPOINT_URL']}/"  # under this name it was not asked yet
    message = refused(f"{s3}/somewhere", {"AWS_ENDPOINT_URL": endpoint} | SECRETS)
    assert message.startswith(f"{s3}: {endpoint} refuses the credentials (InvalidAccessKeyId); ")
    assert told(message.encode()) == set()


def test_a_missing_bucket_is_one_message(s3: str) -> None:
    message = refused("s3://no-such-bucket/somewhere", {})
    assert message.startswith(f"s3://no-such-bucket: no such bucket at {os.environ['AWS_ENDPOINT_URL']}; create it")


def test_no_keys_are_one_message(s3: str, tmp_path: Path) -> None:
    nothing = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_EC2_METADATA_DISABLED": "true"}
    nothing |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONFIG_FILE": str(tmp_path / "none")}
    nothing |= {"AWS_ENDPOINT_URL": f"{os.environ['AWS_ENDPOINT_URL']}/"}
    assert "s3://llm4msr-tests: no credentials; set AWS_ACCESS_KEY_ID" in refused(f"{s3}/somewhere", nothing)


def test_a_job_without_its_s3_ends_with_one_message(s3: str, experiment: MakeExperiment) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    done = ran(experiment({"storage": f"{s3}/silent"}), {"AWS_ENDPOINT_URL": closed})
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        f"error: {s3}: {closed} gives no answer (EndpointConnectionError); check AWS_ENDPOINT_URL, "
        "AWS_DEFAULT_REGION and the network"
    ]
    assert told(done.stdout, done.stderr) == set()


def test_a_store_that_goes_away_is_one_message(s3: str) -> None:
    once = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}
    gone = UPath(f"{s3}/gone/a.json", endpoint_url=f"http://127.0.0.1:{free_port()}", **once)
    with pytest.raises(StorageError, match=rf"{s3}/gone/a.json: cannot be read \(EndpointConnectionError\)"):
        storage.read_bytes(gone)
    with pytest.raises(StorageError, match=r"/gone/a.json: cannot be written \(Could not connect to the endpoint"):
        storage.write_bytes(gone, b"{}")
    with pytest.raises(StorageError, match=r"/gone/manifest.json: cannot be read"):
        storage.open_output(gone.parent)
