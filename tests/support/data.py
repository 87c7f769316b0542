"""Small data, configs and outputs that the unit tests share."""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch

from llm4msr import schema, storage
from llm4msr.config import Config, ModelConfig
from llm4msr.data import partitions
from llm4msr.knowledge import item_vectors, sums
from llm4msr.knowledge.extract import folder as extract_folder
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.prompts import render
from llm4msr.model.embedding import Field
from llm4msr.model.inputs import Batch, KnowledgeStatistics
from llm4msr.pipeline import inputs, prepare
from llm4msr.storage import StageOutput, StageResult
from llm4msr.training import loop
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.dataset import Dataset
from llm4msr.training.train import folder as train_folder
from llm4msr.training.train import quality
from tests.support.experiments import PUBLISHED

HEADER = ["user_id", "item_id", "scenario", "label", "ts", "device"]
SCENARIOS = ("home", "search")
WIDTH = 8
"""Width of the made-up LLM's vectors."""

SMALL_MODEL: dict[str, Any] = {"embedding_dim": 4, "code_dim": 4, "hidden": [16, 8], "tower": 8, "experts": 2}
FAST_TRAINING: dict[str, Any] = {"epochs": 3, "batch_size": 128, "learning_rate": 0.02}


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def interactions(users: int = 40, items: int = 20, rows_per_user: int = 25, seed: int = 0) -> list[list[Any]]:
    """Rows in which every other item is liked, with a tenth of the labels turned over."""
    rng = random.Random(seed)
    rows = []
    for at in range(users * rows_per_user):
        user, item = rng.randrange(users), rng.randrange(items)
        liked = (item % 2 == 1) != (rng.random() < 0.1)
        rows.append([f"u{user}", f"i{item}", rng.choice(SCENARIOS), int(liked), at // 3, rng.choice(("phone", "tv"))])
    return rows


def write_data(folder: Path, rows: Sequence[Sequence[Any]] | None = None, items: int = 20, users: int = 40) -> Path:
    """Interactions, items and users that `config_of` reads; the users are u0, u1, ... or else those of the rows."""
    rows = interactions(users, items) if rows is None else rows
    write_csv(folder / "interactions.csv", HEADER, rows)
    named = [f"u{user}" for user in range(users)]
    if not {row[0] for row in rows} & {*named}:
        named = sorted({row[0] for row in rows})
    described = [
        [f"i{i}", f"Title {i}", f"All > {'odd' if i % 2 else 'even'} > c{i % 5}", f"b{i % 3}"] for i in range(items)
    ]
    write_csv(folder / "items.csv", ["item_id", "title", "category_path", "brand"], described)
    write_csv(
        folder / "users.csv", ["user_id", "country"], [[user, "de" if u % 3 else "fr"] for u, user in enumerate(named)]
    )
    return folder


def flip_a_bit(file: Path, at: float = 0.5) -> None:
    """Change one bit at this part of a file's length; its size and times stay."""
    times, data = file.stat(), bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def config_of(folder: Path, storage_at: str = "", **sections: Any) -> Config:
    """A config for `write_data`'s files; sections are merged into the defaults, `table` into `source.table`."""
    table = {
        "interactions": "interactions.csv",
        "items": "items.csv",
        "users": "users.csv",
        "label": "label",
        "order": "ts",
        "title": "title",
        "category": "category_path",
        "context": ["device"],
        "user_features": ["country"],
        "item_features": ["brand"],
    } | sections.pop("table", {})
    document: dict[str, Any] = {
        "name": "tiny",
        "storage": storage_at or str(folder / "out"),
        "source": {"kind": "table", "path": str(folder), "table": table} | sections.pop("source", {}),
        "model": SMALL_MODEL | sections.pop("model", {}),
        "train": FAST_TRAINING | sections.pop("train", {}),
        "extract": PUBLISHED
        | {"engine": "transformers", "model": "none/such", "dtype": "float32"}
        | sections.pop("extract", {}),
    }
    return Config.model_validate(document | sections)


def shard(
    ids: Sequence[int], vectors: np.ndarray, errors: Sequence[str] | None = None, raw: Sequence[str] = ()
) -> pa.Table:
    """Rows of the knowledge store."""
    count, width = vectors.shape
    flat = pa.array(vectors.astype(np.float16).reshape(-1), pa.float16())
    columns = {
        "id": pa.array(ids, pa.int64()),
        "raw_id": pa.array(raw or [f"raw{i}" for i in ids], pa.string()),
        "fingerprint": pa.array(["f"] * count, pa.string()),
        "prompt": pa.array([f"prompt {i}" for i in ids], pa.string()),
        "answer": pa.array([f"answer {i}" for i in ids], pa.string()),
        "tokens": pa.array([3] * count, pa.int64()),
        "error": pa.array(errors or [""] * count, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, width),
    }
    return schema.check(pa.table(columns), schema.knowledge(width), "shard")


def published(folder: Any, files: dict[str, int], stage: str = "prepare") -> StageOutput:
    """A finished output of files that lie there already, with their rows."""
    built = StageResult(files=files, rows=sum(files.values()))
    (storage.path(folder) / storage.MANIFEST).unlink(missing_ok=True)
    return storage.publish(storage.path(folder), stage, 1, {}, {}, lambda _: built, resumable=True)


def publish_knowledge(
    folder: Any, shards: dict[str, pa.Table], width: int = WIDTH, items: ItemVectors | None = None
) -> StageOutput:
    """A finished extraction that holds these shards, and these vectors of items."""

    def build(at: Any) -> StageResult:
        for name, table in shards.items():
            storage.write_table(at / "vectors" / name, table)
        files = {f"vectors/{name}": table.num_rows for name, table in shards.items()}
        users = [table for name, table in shards.items() if name.startswith("users-")]
        storage.write_table(at / sums.FILE, sums.as_table(0, users) if users else sums.LAYOUT.empty_table())
        files[sums.FILE] = 1
        if items is not None:
            files[item_vectors.FILE] = item_vectors.write(at, items).rows
        return StageResult(
            files=files,
            rows=sum(files.values()),
            info={"width": width, "spent": {"vectors": {"tokens": 25_000}, "answers": {}}},
        )

    asked = {"model": "made-up", "revision": "0"}
    return storage.publish(storage.path(folder), "extract", 1, {}, asked, build)


def prepare_and_make_knowledge(config: Config, unknown_users: int = 3) -> tuple[StageOutput, StageOutput]:
    """Prepared data, and an extraction of random vectors, of items too where it reads them, that failed for the last
    few users."""
    data = prepare(config)
    rng = np.random.default_rng(5)
    histories = storage.read_table(data.folder / "histories/p=00000.parquet")
    users, raw = histories["user"].to_pylist(), histories["user_id"].to_pylist()
    scenarios = data.manifest.info["scenarios"] - 1
    errors = [""] * (len(users) - unknown_users) + ["Boom: no answer"] * unknown_users
    parts = {
        "scenarios-000000000.parquet": shard(range(1, scenarios + 1), rng.standard_normal((scenarios, WIDTH))),
        "users-000000000.parquet": shard(users, rng.standard_normal((len(users), WIDTH)), errors, raw),
    }
    items = None
    if config.extract.reads == "items":
        known_I = np.arange(len(data.table("items.parquet"))) > 0
        items = ItemVectors(
            (rng.standard_normal((len(known_I), WIDTH // 2)) * known_I[:, None]).astype(np.float16), known_I
        )
    return data, publish_knowledge(extract_folder(config, data), parts, items=items)


def prepared_table(data: StageOutput, name: str) -> pa.Table:
    """A prepared table, all partitions of it."""
    if name in partitions.PARTITIONED:
        return pa.concat_tables(partitions.read_each(data, name))
    return data.table(f"{name}.parquet")


def publish_trained(config: Config) -> StageOutput:
    """What `train` publishes, trained in this process."""
    data, knowledge = inputs(config)

    def build(folder: Any) -> StageResult:
        best = loop.fit(config, Dataset.open(config, data, knowledge))
        storage.write_bytes(folder / WEIGHTS, safetensors.torch.save(best.best))
        info = quality(config, data, best.progress.best_report) | {
            "best_epoch": best.progress.best_epoch,
            "epochs": best.progress.epoch,
            "parameters": sum(tensor.numel() for tensor in best.best.values()),
        }
        storage.write_bytes(folder / "history.json", json.dumps(best.progress.history).encode())
        files = {WEIGHTS: 1, "history.json": best.progress.epoch}
        return StageResult(files=files, rows=partitions.rows(data, "train"), info=info)

    fingerprints = {"prepare": data.manifest.fingerprint}
    if knowledge is not None:
        fingerprints["extract"] = knowledge.manifest.fingerprint
    return storage.publish(train_folder(config, data, knowledge), "train", config.seed, {}, fingerprints, build)


FIELDS = [
    Field("user_id", "user", 11, 1),
    Field("item_id", "item", 9, 1),
    Field("words", "item", 6, 3),
    Field("scenario_id", "scenario", 4, 1),
]
"""Fields of a ranker without data behind it; its slots are user, item, three words, scenario."""


def model_config(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(SMALL_MODEL | {"dropout": 0.2} | changes)


def statistics(width: int = WIDTH, scenarios: int = 4) -> KnowledgeStatistics:
    import torch

    made = torch.Generator().manual_seed(3)
    vectors = torch.randn(scenarios, width, generator=made)
    vectors[0] = 0
    return KnowledgeStatistics(torch.randn(width, generator=made), torch.rand(width, generator=made) + 0.5, vectors)


def random_batch(rows: int = 23, users: int = 5, seed: int = 0) -> Batch:
    """Rows of every scenario, for users of whom the first has no vector."""
    import torch

    made = torch.Generator().manual_seed(seed)
    slots, start = [], 0
    for field in FIELDS:
        slots.append(start + torch.randint(field.size, (rows, field.slots), generator=made))
        start += field.size
    scenario_B = torch.arange(rows) % 4
    slots[-1] = (start - 4 + scenario_B)[:, None]
    owner_B = torch.randint(users, (rows,), generator=made)
    z_NZ = torch.randn(users, WIDTH, generator=made).half()
    return Batch(torch.cat(slots, dim=1), scenario_B, owner_B, z_NZ, torch.arange(users) > 0)


HOSTILE = (
    "<script>window.hacked = true; document.title = 'hacked'</script>",
    "<img src=x onerror='window.hacked = true'>",
    '"><svg onload=window.hacked=true>',
    "'quoted' & \"double\" &lt;escaped&gt;",
    "\u202eevil gnp.exe\u202c \u2067abc",
    "{{ 7 * 7 }}{% raw %} ${x} </style></title><b>bold</b>",
    "long " + "verylongword" * 830,
    '=HYPERLINK("http://attacker.example/","x")',
    "مرحبا بالعالم",
    "javascript:alert(1)//",
)
"""Titles, names and answers that a page must show as text."""


def hostile_config(folder: Path, **sections: Any) -> Config:
    """Prepared data and knowledge in which titles, categories, scenarios, users and all that the LLM says are hostile.

    The LLM's vectors follow what a user liked, in three groups.
    """
    rng = np.random.default_rng(11)
    shelves = [HOSTILE[0], HOSTILE[4], HOSTILE[6][:250], "Plain shelf", HOSTILE[3]]
    taste = {user: user % 3 for user in range(60)}
    rows = []
    for user, item in ((u, i) for u in taste for i in rng.choice(30, 20, replace=False)):
        liked = rng.random() < (0.9 if item % 3 == taste[user] else 0.2)
        raw = f"{user} {HOSTILE[user % 10][:40]}"
        rows.append([raw, f"i{item}", shelves[rng.integers(5)], int(liked), rng.integers(1000), "phone"])
    write_data(folder, rows)
    items = [[f"i{i}", f"{HOSTILE[i % 10]} {i}", f"All > {HOSTILE[i % 3]}", "b"] for i in range(30)]
    write_csv(folder / "items.csv", ["item_id", "title", "category_path", "brand"], items)
    write_csv(folder / "users.csv", ["user_id", "country"], [[row[0], "de"] for row in rows[::20]])
    config = config_of(folder, split={"by": "user"}, **sections)
    data = prepare(config)
    scenarios = render.scenario_prompts(storage.read_table(data.folder / "scenarios.parquet"), config).to_pylist()
    users = render.user_prompts(storage.read_table(data.folder / "histories/p=00000.parquet"), config).to_pylist()
    centre = rng.standard_normal((3, WIDTH))
    vectors = [centre[taste[int(u["raw_id"].split()[0])]] + 0.3 * rng.standard_normal(WIDTH) for u in users]
    parts = {
        "scenarios-000000000.parquet": _said(scenarios, rng.standard_normal((len(scenarios), WIDTH))),
        "users-000000000.parquet": _said(users, np.stack(vectors)),
    }
    publish_knowledge(extract_folder(config, data), parts)
    return config


def _said(rows: Sequence[dict[str, Any]], vectors: np.ndarray) -> pa.Table:
    """Rows of the knowledge store with real prompts and hostile answers."""
    table = shard([row["id"] for row in rows], vectors)
    said = {
        "raw_id": [row["raw_id"] for row in rows],
        "prompt": [row["prompt"] for row in rows],
        "answer": [f"{HOSTILE[i % 10]}\n{HOSTILE[(i + 1) % 10]}" for i in range(len(rows))],
    }
    for name, values in said.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table


def flipped(file: Path, rng: random.Random) -> None:
    """Turn over one bit of a file, drawn at random."""
    data = bytearray(file.read_bytes())
    at = rng.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8
    file.write_bytes(data)
