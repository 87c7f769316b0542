"""Which files each stage publishes. A manifest comes from storage and is trusted only as far as it names these.

Otherwise a manifest could have any file of the machine read as part of its output, or have a message say to delete it.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from upath import UPath

from llm4msr.text import shorten

FILES = {
    "prepare": r"(users|histories|seen|events|train|valid|test)/p=\d{5}\.parquet|(items|scenarios)\.parquet"
    r"|fields\.json",
    "shuffle": r"rows/p=\d{5}\.parquet",
    "extract": r"(items|scenarios|sums)\.parquet"
    r"|(vectors|index|pooled)/(users|snapshots|items(_by_[a-z]+)?|scenarios|past)-[\w-]+\.parquet",
    "train": r"net\.safetensors|history\.json",
    "tune": r"[a-z-]+\.toml|table\.md|trials\.json",
    "evaluate": r"metrics\.json|table\.md|predictions/(seed=\d+/)?p=\d{5}\.parquet",
    "explain": r"report\.html|[a-z]+\.(csv|parquet)",
    "export": r"(net|coder)\.safetensors|(users|codes|pasts|items)\.arrow|(bundle|selftest)\.json|README\.md"
    r"|items\.parquet",  # of a bundle of version 4 or less, which is refused by its version
    "refresh": r"(users|codes|pasts)\.arrow",
    "vectors": r"(users|items|scenarios)/\d{6,}\.parquet|README\.md",
    "codes": r"codes/\d{6,}\.parquet|README\.md",
    "score": r"candidates\.parquet|lists/p=\d{5}-\d{5,}\.parquet",
}
"""Names relative to the output, as patterns of the whole name."""
SHARD = re.compile(r"\w[\w.-]*/vectors/(users|snapshots|items(_by_[a-z]+)?|scenarios)-[\w-]+\.parquet", re.ASCII)
"""Name of a shard relative to the folder of all versions, since an index may name shards of other versions."""
NAME = re.compile(r"\w[\w.-]*")
"""Name of the folder of one output."""


def find_problem(stage: str, names: Iterable[str], folder: UPath) -> str:
    """What is wrong with these names of the files of that stage's output; empty if nothing is."""
    if stage not in FILES:
        return f"names no stage of this package ('{shorten(stage)}')"
    known = re.compile(FILES[stage], re.ASCII)
    root = os.path.realpath(folder) if isinstance(folder, Path) else ""
    for name in names:
        if not known.fullmatch(name):
            return f"names '{shorten(name)}', which is no file of stage '{stage}'"
        if root and os.path.realpath(folder / name) != os.path.join(root, name):
            return f"names '{name}', which is a link to a file elsewhere"
    return ""
