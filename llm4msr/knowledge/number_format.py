"""The number format of the LLM (`extract.dtype`), where the config leaves it open.

What the store has comes first: vectors of one format are not asked again because another machine runs the next pass.
A new store gets what its machines multiply fast: bfloat16 halves an LLM's time and memory on GPUs and on CPUs with
instructions for it, and on other CPUs it takes many times as long as float32.
"""

from collections.abc import Mapping, Sequence

from upath import UPath

from llm4msr import ray_session
from llm4msr.config import Config, ExtractConfig
from llm4msr.hardware import multiplies_bfloat16
from llm4msr.knowledge import versions
from llm4msr.knowledge.actor_pool import nodes
from llm4msr.knowledge.work import Work
from llm4msr.progress import say
from llm4msr.storage import StageOutput

OLDER_GPUS = frozenset(["K80", "P4", "P100", "T4", "V100"])
"""As Ray names them: these have no bfloat16."""


def settle(config: Config, folder: UPath, revision: str) -> str:
    """The format for the version in `folder`, of a model of this `revision`."""
    e = config.extract
    if e.dtype != "auto":
        return e.dtype
    if begun := Work.load(folder):
        return next((reader.dtype for reader in begun.readers.values() if reader.dtype), "float32")
    held, fast = held_by(config, revision), fastest(e, nodes())
    if held and held != fast:
        say(
            f"  vectors are made in {held}, as the store has them; these machines suit {fast}: "
            f"extract.dtype = '{fast}' asks about all rows once more"
        )
    return held or fast


def expected(config: Config, revision: str) -> str:
    """The same before anything is begun, and as far as this machine knows without Ray."""
    if config.extract.dtype != "auto":
        return config.extract.dtype
    return held_by(config, revision) or ("bfloat16" if multiplies_bfloat16() else "float32")


def used_by(output: StageOutput) -> str:
    """The format in which a version's vectors were made."""
    m = output.manifest
    return str(m.info["dtype"] if "dtype" in m.info else m.config["extract"]["dtype"])


def as_made(config: Config, output: StageOutput) -> Config:
    """The config with the format of a finished version."""
    return in_format(config, used_by(output))


def in_format(config: Config, dtype: str) -> Config:
    """The config with this number format."""
    return config.model_copy(update={"extract": config.extract.model_copy(update={"dtype": dtype})})


def held_by(config: Config, revision: str) -> str:
    """The format of the newest version of the same model below this storage; empty if there is none."""
    made = versions.finished_versions(config)
    return next((used_by(version) for version in made if version.manifest.inputs["revision"] == revision), "")


def fastest(e: ExtractConfig, machines: Sequence[Mapping[str, float]]) -> str:
    """What all machines of the cluster that would run an engine multiply fast, by their resources as Ray has them."""
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    if with_gpus or e.device == "gpu":
        old = {f"accelerator_type:{name}" for name in OLDER_GPUS}
        return "float32" if any(old & machine.keys() for machine in with_gpus) else "bfloat16"
    return "bfloat16" if all(ray_session.on_each_node(multiplies_bfloat16)) else "float32"
