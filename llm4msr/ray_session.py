"""The connection to Ray: started quietly where none is, and its errors turned back into ours."""

import functools
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.progress import Level, level, say
from llm4msr.storage.local_files import full_disk

if TYPE_CHECKING:
    import pyarrow as pa

# No warning from each `ray` command in uv's virtual environments, and no question about usage statistics.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# How often Ray Train looks whether its workers have ended: its own 2 s are the time of four epochs of few rows.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes about our actors' arguments are no errors
# A shuffle's tasks run in processes of their own, which Ray would end after an idle second and start for the next one.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "10000")
# A Ray that is started here keeps 1 GiB of objects in memory, not a third of the machine's, and the others on disk.
os.environ.setdefault("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", str(1 << 30))

MOST_TASKS = 1 << 14
"""Tasks that Ray Data keeps account of at a time; if there are more items than that, a task takes several of them."""
P = ParamSpec("P")
T = TypeVar("T")

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 45.0
"""How long a cluster may take to accept a connection, and then to answer as a cluster."""


def connect() -> None:
    """Join the running cluster (`RAY_ADDRESS`, or inside a job), or start Ray on this machine.

    Raises:
        ConfigError: nobody answers at that address.
        LLM4MSRError: Ray did not start in time.
    """
    import ray

    is_verbose = level() == Level.VERBOSE
    if not ray.is_initialized():
        address, origin = _cluster_address()
        if address:
            refuse_dead_cluster(address, origin)
        elif os.environ.get("RAY_ADDRESS") != "auto":  # one machine, which nobody takes back: a process less a training
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        in_main_thread = threading.current_thread() is threading.main_thread()
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            with without_lines(b"logging.cc"):
                logs = logging.INFO if is_verbose else logging.ERROR
                ray.init(include_dashboard=False, logging_level=logs, log_to_driver=is_verbose)
        except (ConnectionError, ValueError, RuntimeError) as error:
            shown_address = address or ("auto" if os.environ.get("RAY_ADDRESS") == "auto" else "")
            if not shown_address:
                raise
            raise ConfigError(_no_cluster(shown_address, origin, str(error).splitlines()[0])) from None
        except Exception as error:
            if type(error) is not Exception:  # as Ray raises where its processes take over 30 seconds
                raise
            raise LLM4MSRError(f"Ray did not start on this machine: {error} If it is busy, run again later") from None
        if in_main_thread and callable(on_terminate):
            signal.signal(signal.SIGTERM, on_terminate)  # Ray sets its own, which exits with code 15 and no message
    context = ray.data.DataContext.get_current()  # also sets up the loggers that are turned down next
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # one more actor once all are busy
    context.raise_original_map_exception = True  # so that our errors come back as objects, not as text
    if is_verbose:
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors come as exceptions too
    for name in ("ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def without_lines(mark: bytes) -> Iterator[None]:
    """Show standard error when the block ends, C++ code's included, without the lines that contain the mark.

    Ray's core writes there that it took its log level from the environment, and no setting turns that off.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            aside.seek(0)
            os.write(2, b"".join(line for line in aside if mark not in line))


def _cluster_address() -> tuple[str, str]:
    """The cluster that `ray.init` would join, empty if it would start its own; and where the address comes from."""
    if address := os.environ.get("RAY_ADDRESS", ""):
        return ("" if address in ("local", "auto") else address), "RAY_ADDRESS"
    file = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    return (file.read_text().strip() if file.exists() else ""), str(file)


def refuse_dead_cluster(address: str, origin: str) -> None:
    """Ask for an answer from the cluster that `origin` names; `ray.init` alone would wait for many minutes.

    Raises:
        ConfigError: within a minute, if no cluster answers.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:
        host, port = "", 0
    if not host or not port or parts.scheme not in ("", "ray"):
        raise ConfigError(_no_cluster(address, origin, "not HOST:PORT, nor ray://HOST:PORT"))
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(_no_cluster(address, origin, error.strerror or str(error))) from None
    if parts.scheme == "ray":
        return  # Ray's client itself gives up after half a minute
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address]
    try:
        answer = subprocess.run(check, capture_output=True, timeout=ANSWER_SECONDS)
        why = _why_unhealthy(answer.stderr) if answer.returncode else ""
    except subprocess.TimeoutExpired:
        why = _why_unhealthy(b"")
    if why:
        raise ConfigError(_no_cluster(address, origin, why))


def _why_unhealthy(stderr: bytes) -> str:
    """Why the health check failed, from what its process wrote: its exception is out of reach."""
    if b"ray.exceptions.AuthenticationError" in stderr:
        return (
            "it asks for a token that was not given: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token "
            "to the token of its head node"
        )
    return "what listens there does not answer as a Ray cluster"


def _no_cluster(address: str, origin: str, why: str) -> str:
    return (
        f"no Ray cluster at {address} ({why}), as {origin} says; correct it, start the cluster, or set "
        "RAY_ADDRESS=local to run on this machine alone"
    )


def require_resources(key: str, needed: Mapping[str, float]) -> None:
    """Refuse what this Ray can never provide: more CPUs or GPUs than it has, if no autoscaler brings any.

    Args:
        key: the config key that asks for it, and its value, as the message shows them.
        needed: resource -> how much of it, all at once.

    Raises:
        ConfigError: names the key, what there is, and what to do.
    """
    import ray

    connect()
    resources = ray.cluster_resources()
    for resource, amount in needed.items():
        total = resources.get(resource, 0.0)
        if amount > total and not _can_grow():
            raise ConfigError(
                f"{key} needs {amount:g} {resource}s and this Ray has {total:g}, with no autoscaler to bring more; "
                "lower it, or join a cluster that has them (RAY_ADDRESS)"
            )


def _can_grow() -> bool:
    """Whether an autoscaler may bring machines. Where there is none, Ray names each node as a type of its own."""
    from ray.experimental import internal_kv

    if internal_kv._internal_kv_get("__autoscaler_v2_enabled") == b"1":
        return True  # and it says no more than that
    status = json.loads(internal_kv._internal_kv_get("__autoscaling_status") or b"{}")
    kinds = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in kinds.items())


def run_each(
    function: Callable[..., "pa.Table"],
    items: Sequence[Mapping[str, object]],
    gpus: int = 0,
    few: int = 1,
    **shared: object,
) -> Iterator[dict[str, Any]]:
    """Run a function for each item in tasks of Ray Data, and yield the rows that they return as they come.

    Args:
        function: takes an item as an Arrow table of one row, and `shared`; returns a small table.
        items: one for each call.
        gpus: that each task has for itself.
        few: so many items, or less, are worked on in this process: to start tasks would take longer.
        shared: the same arguments for all tasks.
    """
    if len(items) <= few and not gpus:
        import pyarrow as pa

        for item in items:
            yield from function(pa.Table.from_pylist([item]), **shared).to_pylist()
        return
    import ray

    connect()
    results = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_TASKS)).map_batches(
        function, fn_kwargs=shared, batch_size=1, batch_format="pyarrow", num_gpus=gpus or None
    )
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def on_each_node(function: Callable[..., T], argument: object, resource: str = "CPU") -> list[T]:
    """What the function returns on each machine of the cluster that has such a resource: CPU or GPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]
    if resource == "CPU" and nodes == [ray.get_runtime_context().get_node_id()]:
        return [function(argument)]
    task = ray.remote(num_cpus=0, num_gpus=0.01 if resource == "GPU" else 0)(function)
    places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    tasks = [task.options(scheduling_strategy=place).remote(argument) for place in places]
    returned: list[T] = ray.get(tasks)
    return returned


def say_if_busy(needed: float, what: str = "CPU") -> None:
    """Say so if Ray has fewer free CPUs (or GPUs) than a stage asks for: the stage then waits for them."""
    import ray

    for _ in range(20):  # an earlier stage's CPUs become free a moment after its end
        free = ray.available_resources().get(what, 0.0)
        if free >= needed:
            return
        gc.collect()  # Ray Data's actors end with its executor
        time.sleep(0.5)
    say(f"  waiting for {needed:g} {what}s, {free:g} are free: something else runs on this Ray, such as an endpoint")


def unwrap_errors(stage: Callable[P, T]) -> Callable[P, T]:
    """The same function, but instead of an error of Ray's it raises ours that caused it, for a full disk too."""

    @functools.wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return stage(*args, **kwargs)
        except Exception as error:
            ours = our_error(error)
            if ours is None:
                raise
        # Ray's actors keep their CPUs as long as anything refers to them, and a notebook keeps the last error: ours
        # must not refer to anything of the failed run. So it is raised here, after Ray's has been handled.
        traceback.clear_frames(ours.__traceback__)
        ours.__cause__ = ours.__context__ = None
        gc.collect()  # the actors are in reference cycles
        raise ours

    return run


def our_error(error: BaseException) -> LLM4MSRError | None:
    """The error of this package that is behind one of Ray's; None if there is none."""
    import ray.exceptions

    for cause in _causes(error):
        if isinstance(cause, LLM4MSRError) and not isinstance(cause, ray.exceptions.RayTaskError):
            return cause
        if isinstance(cause, OSError) and (full := full_disk(cause, "a disk of this cluster")):
            return full
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error itself and all behind it: causes, what a task raised, what the workers of a training raised."""
    errors, known = [error], {id(error)}
    for effect in errors:
        yield effect
        causes = [getattr(effect, name, None) for name in ("cause", "__cause__", "controller_failure")]
        causes += list((getattr(effect, "worker_failures", None) or {}).values())
        for cause in causes:
            if isinstance(cause, BaseException) and id(cause) not in known:
                known.add(id(cause))
                errors.append(cause)
