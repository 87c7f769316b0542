"""How many engines fit the cluster, with which of its CPUs and GPUs, and how much each is given at a time."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm4msr import ray_session
from llm4msr.config import Config
from llm4msr.errors import ConfigError

GPU_ROWS, CPU_ROWS, ENDPOINT_ROWS = 1 << 12, 1 << 8, 1 << 10
"""Rows of a shard, if the config names no number: a shard is some minutes of a GPU, less than one of CPUs, and for an
endpoint some requests for each that goes on at once."""


class ActorPool(NamedTuple):
    """How many actors ask, and the CPUs and GPUs of each."""

    actors: int
    """To begin with, and again when one is lost."""
    most: int
    """With machines that come later."""
    cpus: int
    gpus: float


def nodes() -> list[dict[str, float]]:
    """The resources of each machine of the cluster."""
    import ray

    ray_session.connect()
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def rows_per_shard(config: Config, machines: Sequence[Mapping[str, float]] = ()) -> int:
    """Rows of a shard: what the config says, or what suits the GPUs if there are or will be any."""
    rows, waits = config.extract.rows_per_shard, config.extract.device == "gpu"
    if rows != "auto":
        return rows
    if config.extract.engine == "http":
        return ENDPOINT_ROWS
    return GPU_ROWS if waits or any(machine.get("GPU") for machine in machines) else CPU_ROWS


def plan_pool(config: Config, machines: Sequence[Mapping[str, float]], shards: int) -> ActorPool:
    """How many actors fit machines with these resources (`CPU`, `GPU`), at most one for each shard.

    With `extract.actors = "auto"`, each machine that comes later gets as many as it has room for; but not where a
    larger one of those that are here would fill up with engines too, and copies of the model.

    Raises:
        ConfigError: none fits, and none can be waited for.
    """
    e = config.extract
    waits = e.device == "gpu"
    uses_gpus = e.engine != "http" and (waits or any(node.get("GPU") for node in machines))
    gpus = e.tensor_parallel / e.engines_per_gpu if uses_gpus else 0
    hosts = [node for node in machines if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    if not hosts and waits:
        if e.actors == "auto":
            raise ConfigError(f"extract.device = 'gpu': none has {gpus:g} yet; give extract.actors, and they can come")
        actors = min(e.actors, shards)
        return ActorPool(actors, actors, 1, gpus)  # Ray asks the autoscaler for machines
    if not hosts:
        raise ConfigError(f"extract.tensor_parallel = {e.tensor_parallel}: no machine of this cluster has so many GPUs")
    fit = [int(node["GPU"] * e.engines_per_gpu) // e.tensor_parallel if gpus else 1 for node in hosts]
    actors = min(sum(fit) if e.actors == "auto" else e.actors, shards)
    each = [min(most_here, actors) if gpus else -(-actors // len(hosts)) for most_here in fit]
    cpus = max(1, min(int(node["CPU"] // share) for node, share in zip(hosts, each, strict=True)))
    grows = e.actors == "auto" and (gpus or all(node["CPU"] < 2 * cpus for node in hosts))
    return ActorPool(actors, shards if grows else actors, cpus, gpus)
