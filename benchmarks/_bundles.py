"""Bundles to measure serving with: a net of the default sizes, random weights, for data as `prepare` makes them.

Weights and vectors do not change what serving costs, so no LLM is asked and nothing is trained.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.bundle import files
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.export.write import Sources, write_bundle
from llm4msr.knowledge.item_vectors import of_unit_length
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.pipeline import prepare
from llm4msr.storage import StageOutput, StageResult
from llm4msr.storage.vectors import to_column
from llm4msr.training.dataset import Dataset

Z, D = 128, 64
"""Width of the made-up LLM's vectors, which serving never sees, and of the items', from which those could be pooled."""


def make_bundle(root: Path, name: str, seed: int = 1, **model: Any) -> str:
    """URI of a bundle for MovieLens-100K below `root`/export."""
    config = Config.model_validate(
        {
            "name": name,
            "seed": seed,
            "storage": str(root),
            "source": {"kind": "movielens", "path": "ml-100k"},
            "split": {"by": "user"},
            "extract": {"reads": "items" if model.get("match") else "users"},
            "model": model,
        }
    )
    return publish(config, prepare(config))


def publish(config: Config, prepared: StageOutput) -> str:
    """URI of the bundle of a net with random weights for these data, below the config's storage, as its name says."""
    data = Dataset.open(config.using("none", config.seed), prepared, None)
    users, scenarios = len(data.tables.users), data.tables.scenarios
    rng = np.random.default_rng(config.seed)
    users_NZ, scenarios_SZ, items_ID = (
        rng.standard_normal(shape, np.float32).astype(np.float16)
        for shape in ((users, Z), (scenarios, Z), (len(data.tables.items_IS), D))
    )
    data.knowledge = KnowledgeStore.in_memory(users_NZ, np.arange(users) > 0, scenarios_SZ)
    items_ID[0] = 0
    data.knowledge.items_ID = of_unit_length(items_ID)
    net = data.new_net(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    codes = _codes(net, data) if net.uses_users else ()

    def build(folder: Any) -> StageResult:
        vectors_ID = items_ID if config.model.match and net.uses_users else None
        return write_bundle(Sources(config, net, data, codes, vectors_ID), folder, {}, "# made for a benchmark")

    folder = storage.path(config.root) / "export" / config.name
    return str(storage.publish(folder, "export", config.seed, {}, {}, build).folder)


@torch.inference_mode()
def _codes(net: Any, data: Dataset) -> Iterator[pa.Table]:
    """Of the users of each partition."""
    assert data.knowledge is not None
    net.eval()
    for number, users in enumerate(partitions.read_each(data.prepared, "users", ["user", "user_id"])):
        known = users.slice(1) if number == 0 else users
        codes = net.user_codes(*data.knowledge.lookup(torch.from_numpy(known["user"].to_numpy().copy())))
        ids = known["user_id"].cast(pa.large_string())
        yield pa.table([ids, to_column(codes.half().numpy())], ["id", "code"])


def bodies(uri: str, file: Path, candidates: int = 100, requests: int = 500, **fields: Any) -> Path:
    """A file of rank requests with these fields, one JSON a line: real users, random items."""
    folder = Path(uri)
    tables = [pa.ipc.open_file(str(folder / name)).read_all() for name in (files.ITEMS, files.USERS)]
    items, users = (sorted(strings(table["id"])) for table in tables)
    scenarios = files.read_description(folder).scenarios[1:]
    rng = np.random.default_rng(0)
    with file.open("w") as out:
        for _ in range(requests):
            request = {
                "user_id": users[rng.integers(len(users))],
                "scenario": scenarios[rng.integers(len(scenarios))],
                "items": [items[i] for i in rng.integers(len(items), size=candidates)],
                **fields,
            }
            out.write(json.dumps(request) + "\n")
    return file
