"""A local S3 server (moto's) with one empty bucket."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.experiments import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server(log: Path, bucket: str) -> Iterator[dict[str, str]]:
    """Give the AWS variables that lead to it; ends the server after the block."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    httpx.put(f"{endpoint}/{bucket}").raise_for_status()
                    break
                assert server.poll() is None, f"moto_server ended: {log.read_text()[-2000:]}"
                time.sleep(0.1)
            yield KEYS | {"AWS_ENDPOINT_URL": endpoint}
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def environment(wanted: dict[str, str]) -> Iterator[None]:
    """These variables during the block, then those of before."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
