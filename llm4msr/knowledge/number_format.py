"""The number format of the LLM (`extract.dtype`), where the config leaves it open.

What the store has comes first: vectors of one format are not asked again because another machine runs the next pass.
A new store gets what its machines multiply fast: bfloat16 halves an LLM's time and memory on GPUs and on CPUs with
instructions for it, and on other CPUs it takes many times as long as float32.
"""

from collections.abc import Collection, Mapping, Sequence

from upath import UPath

from llm4msr import ray_session
from llm4msr.config import Config, ExtractConfig
from llm4msr.hardware import multiplies_bfloat16
from llm4msr.knowledge import versions
from llm4msr.knowledge.actor_pool import nodes
from llm4msr.knowledge.work import Work
from llm4msr.progress import say
from llm4msr.storage import Manifest, StageOutput

JOINT = " + "
"""Between the revisions of a version's sources."""


def settle(config: Config, folder: UPath, revisions: Collection[str]) -> str:
    """The format for the version in `folder`, of models of these `revisions`."""
    e = config.extract
    if e.dtype != "auto":
        return e.dtype
    if begun := Work.load(folder):
        return next((reader.dtype for reader in begun.readers.values() if reader.dtype), "float32")
    held, fast = held_by(config, revisions), fastest(e, nodes())
    if held and held != fast:
        say(
            f"  vectors are made in {held}, as the store has them; these machines suit {fast}: "
            f"extract.dtype = '{fast}' asks about all rows once more"
        )
    return held or fast


def expected(config: Config, revisions: Collection[str]) -> str:
    """The same before anything is begun, and as far as this machine knows without Ray."""
    if config.extract.dtype != "auto":
        return config.extract.dtype
    return held_by(config, revisions) or ("bfloat16" if multiplies_bfloat16() else "float32")


def used_by(output: StageOutput) -> str:
    """The format in which a version's vectors were made."""
    return _of(output.manifest)


def _of(manifest: Manifest) -> str:
    return str(manifest.info["dtype"] if "dtype" in manifest.info else manifest.config["extract"]["dtype"])


def as_made(config: Config, output: StageOutput) -> Config:
    """The config with the format of a finished version."""
    return in_format(config, used_by(output))


def in_format(config: Config, dtype: str) -> Config:
    """The config with this number format."""
    return config.model_copy(update={"extract": config.extract.model_copy(update={"dtype": dtype})})


def held_by(config: Config, revisions: Collection[str]) -> str:
    """The format of the newest version below this storage with one of these models; empty if there is none."""
    for manifest in versions.readable_manifests(config):
        if not set(revisions).isdisjoint(manifest.inputs["revision"].split(JOINT)) and _of(manifest):
            return _of(manifest)
    return ""


def fastest(e: ExtractConfig, machines: Sequence[Mapping[str, float]]) -> str:
    """What all machines of the cluster that would run an engine multiply fast, by their resources as Ray has them."""
    if any(machine.get("GPU") for machine in machines):
        return "bfloat16" if all(ray_session.on_each_node(multiplies_bfloat16, "cuda", "GPU")) else "float32"
    if e.device == "gpu":
        return "bfloat16"  # of machines that are still to come nobody can be asked
    return "bfloat16" if all(ray_session.on_each_node(multiplies_bfloat16, "cpu")) else "float32"
