"""A Ray cluster of several nodes on this machine: each is a `ray start` of its own, and all ask for a token."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.support.experiments import ROOT, free_port, kill_all

HOST = "127.0.0.1"
RAY = str(Path(sys.executable).with_name("ray"))
OBJECT_STORE = 300 << 20
EXCLUDED = [".git", ".venv", "runs"]


class Node:
    """One `ray start --block` and all that it started: raylet, agents, workers, on the head the drivers too."""

    def __init__(self, name: str, folder: Path, options: list[str], variables: Mapping[str, str]):
        self.name = name
        every = ["--block", "--node-name", name, "--temp-dir", str(folder / name)]
        every += ["--dashboard-agent-listen-port", "0", "--min-worker-port", "0", "--max-worker-port", "0"]
        every += ["--object-store-memory", str(OBJECT_STORE), "--disable-usage-stats"]
        with (folder / f"{name}.log").open("w") as log:
            self.process = subprocess.Popen(
                [RAY, "start", *every, *options], env=variables, stdout=log, stderr=log, start_new_session=True
            )

    def runs(self, word: str) -> bool:
        """Whether one of its processes has the word in its command line, which is where Ray names an actor."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(word in part for part in process.cmdline()):
                    return True
        return False

    def kill(self) -> None:
        """SIGKILL for all of its processes, as when a machine loses its power."""
        kill_all(self.process)


class RayCluster:
    """`with RayCluster(folder, workers=3) as cluster:` a head without CPUs, where drivers run, and workers of one each.

    `folder` must have a short path, since sockets lie below it. The nodes get this process's environment. Ray's clients
    in this process reach the cluster by the token, if Ray was not imported before.
    """

    def __init__(self, folder: Path, workers: int):
        self.folder, self.workers, self._wanted = folder, list[Node](), workers
        self._port, self._started = free_port(), 0
        self.address = f"http://{HOST}:{free_port()}"
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        self.variables.pop("RAY_ADDRESS", None)
        self.variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job says `python`
        self.access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}

    def __enter__(self) -> "RayCluster":
        os.environ |= self.access
        port = self.address.rpartition(":")[2]
        options = ["--head", "--port", str(self._port), "--dashboard-port", port, "--num-cpus", "0"]
        self.head = Node("head", self.folder, options, self.variables | self.access)
        try:
            self._wait(self._answers, "the head answers")
            for _ in range(self._wanted):
                self.add_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in [*self.workers, self.head]:
            node.kill()

    def add_worker(self) -> Node:
        """One more, under a name that no node had before; returns when the cluster knows it."""
        known = len(self.alive())
        self._started += 1
        options = ["--address", f"{HOST}:{self._port}", "--num-cpus", "1", "--include-log-monitor", "false"]
        node = Node(f"worker{self._started}", self.folder, options, self.variables | self.access)
        self.workers.append(node)
        self._wait(lambda: len(self.alive()) > known, f"{node.name} joins")
        return node

    def kill(self, node: Node) -> float:
        """Kill a worker; gives back the seconds until the cluster noticed."""
        begun = time.monotonic()
        node.kill()
        self.workers.remove(node)
        self._wait(lambda: node.name not in self.alive(), f"the death of {node.name} is noticed")
        return time.monotonic() - begun

    def submission(self, name: str, command: list[str]) -> list[str]:
        """`ray job submit` of a command in the code of this checkout, as the README says it."""
        options = ["--address", self.address, "--submission-id", name, "--working-dir", "."]
        options += ["--runtime-env-json", json.dumps({"excludes": EXCLUDED})]
        return [RAY, "job", "submit", *options, "--", *command]

    def alive(self) -> list[str]:
        """Names of the nodes that the cluster holds alive."""
        from ray.util.state import list_nodes

        filters = [("state", "=", "ALIVE")]
        nodes = list_nodes(self.address, filters, raise_on_missing_output=False)  # it counts dead ones as missing
        return [node.node_name for node in nodes]

    def _answers(self) -> bool:
        with contextlib.suppress(Exception):  # whatever it says while it starts
            return bool(self.alive())
        return False

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.head.process.poll() is not None:
                logs = [file.read_text()[-2000:] for file in sorted(self.folder.glob("*.log"))]
                raise SystemExit(f"waited in vain: {what}\n" + "\n".join(logs))
            time.sleep(0.5)


class Job:
    """One `ray job submit` that waits for the job's end; what it prints goes to a file."""

    def __init__(self, cluster: RayCluster, name: str, command: list[str]):
        self.cluster, self.name, self.log = cluster, name, cluster.folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = self._popen(cluster.submission(name, command), stdout=log, stderr=log)

    def stopped(self) -> tuple[str, int | None]:
        """`ended` after `ray job stop`."""
        command = [RAY, "job", "stop", "--address", self.cluster.address, self.name]
        self._popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait()
        return self.ended()

    def ended(self) -> tuple[str, int | None]:
        """SUCCEEDED, FAILED or STOPPED, and the exit code of the driver where it had one."""
        from ray.job_submission import JobSubmissionClient

        self.process.wait()
        info = JobSubmissionClient(self.cluster.address).get_job_info(self.name)
        return str(info.status.value), info.driver_exit_code

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = 600) -> Any:
        """Poll until `condition` gives something; the job must still run then."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end or self.process.poll() is not None:
                self.process.kill()
                raise SystemExit(f"job {self.name}: waited in vain: {what}\n{self.log.read_text()[-5000:]}")
            time.sleep(0.2)
        return value

    def _popen(self, command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, env=self.cluster.variables | self.cluster.access, **streams)
