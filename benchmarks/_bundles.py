"""Bundles to measure serving with: MovieLens-100K as `prepare` makes it, a net of the default sizes, random weights.

Weights and vectors do not change what serving costs, so no LLM is asked and nothing is trained.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.bundle import files
from llm4msr.config import Config, ModelConfig
from llm4msr.export.write import write_bundle
from llm4msr.knowledge.item_vectors import of_unit_length
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.pipeline import prepare
from llm4msr.storage import StageResult
from llm4msr.storage.vectors import to_column
from llm4msr.training.dataset import Dataset

Z, D = 128, 64
"""Width of the made-up LLM's vectors, which serving never sees, and of the items', from which those could be pooled."""


def make_bundle(root: Path, name: str, seed: int = 1, **model: Any) -> str:
    """URI of a bundle below `root`/export."""
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
    prepared = prepare(config)
    data = Dataset.open(config.using("none", seed), prepared, None)
    users, scenarios = len(data.tables.users), data.tables.scenarios
    rng = np.random.default_rng(seed)
    vectors = [rng.standard_normal((rows, Z)).astype(np.float16) for rows in (users, scenarios)]
    data.knowledge = KnowledgeStore.in_memory(vectors[0], np.arange(users) > 0, vectors[1])
    items_ID = rng.standard_normal((len(data.tables.items_IS), D)).astype(np.float16)
    items_ID[0] = 0
    data.knowledge.items_ID = of_unit_length(items_ID)
    net = data.new_net(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    codes = [_codes(net, data)] if net.uses_users else []

    def build(folder: Any) -> StageResult:
        vectors_ID = items_ID if config.model.match and net.uses_users else None
        return write_bundle(config, net, data, codes, {}, "# made for a benchmark", folder, vectors=vectors_ID)

    return str(storage.publish(storage.path(root) / "export" / name, "export", seed, {}, {}, build).folder)


@torch.inference_mode()
def _codes(net: Any, data: Dataset) -> pa.Table:
    assert data.knowledge is not None
    ids = data.prepared.table("users/p=00000.parquet", ["user_id"])["user_id"].to_pylist()
    codes = net.eval().user_codes(*data.knowledge.lookup(torch.arange(1, len(ids)))).half().numpy()
    column = to_column(codes)
    return pa.table({"id": pa.array(ids[1:], pa.large_string()), "code": column}).sort_by("id")


def default_model(**changes: Any) -> ModelConfig:
    """The model that is measured: all defaults but for these."""
    return ModelConfig.model_validate(changes)


def bodies(uri: str, file: Path, candidates: int = 100, requests: int = 500) -> Path:
    """A file of rank requests, one JSON a line: real users, random items."""
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
            }
            out.write(json.dumps(request) + "\n")
    return file
