"""What the integration tests run on: a tiny random Llama, a small generated table, and configs that name them."""

import contextlib
import copy
import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from llm4msr import Config, load
from llm4msr.storage.vectors import to_matrix

ROOT = Path(__file__).parents[2]
VERBS = ("prepare", "extract", "train", "evaluate", "export", "explain", "refresh", "score", "run", "tune", "serve")

SCENARIOS = ("books", "films", "music")
USERS, ITEMS = 60, 40
REAL_USERS = 6
SAD_USER = "user-sad"
"""A user with many rows who likes nothing, so that there is nothing to ask the LLM about."""

PUBLISHED = {"reads": "users", "pooling": "last", "point_in_time": False}
"""The published form, in which the LLM reads users; where a test asks for items, the rest stays."""

TABLE_CONFIG: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "source": {
        "kind": "table",
        "table": {
            "interactions": "interactions.csv",
            "items": "items.csv",
            "users": "users.csv",
            "label": "label",
            "order": "time",
            "title": "title",
            "category": "category_path",
            "context": ["device"],
            "user_features": ["age"],
        },
    },
    "split": {"by": "user"},
    "extract": {
        **PUBLISHED,
        "engine": "transformers",
        "dtype": "float32",
        "answer_tokens": 8,
        "rows_per_shard": 4,
    },
    "model": {"embedding_dim": 8, "code_dim": 8, "hidden": [32, 16], "tower": 8, "experts": 2},
    "train": {"epochs": 12, "patience": 12, "batch_size": 64, "learning_rate": 5e-3},
}


def tiny_llama(folder: Path) -> Path:
    """A 2-layer random Llama with a byte-level tokenizer, in Hugging Face's layout.

    Head width 32 is the least that vLLM's CPU attention takes. The weights are wide, so that prompts differ.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>", "<eos>"], show_progress=False
    )
    bytes_only.train_from_iterator(["what this user liked in each scenario, oldest first"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<eos>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_table(folder: Path) -> Path:
    """Interactions, items and users as CSV; a user likes the items of the own group, in whatever scenario."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    rows = []
    for user in range(USERS):
        for item in rng.choice(ITEMS, size=26, replace=False):
            liked = rng.random() < (0.9 if user % 2 == item % 2 else 0.1)
            rows.append([f"user-{user}", f"item-{item}", SCENARIOS[rng.integers(3)], int(liked)])
    for item in range(ITEMS):
        rows.append([SAD_USER, f"item-{item}", SCENARIOS[item % 3], 0])
    timed = [
        [*row, time_, ("phone", "desktop")[rng.integers(2)]]
        for row, time_ in zip(rows, rng.permutation(len(rows)), strict=True)
    ]
    write_csv(folder / "interactions.csv", ["user_id", "item_id", "scenario", "label", "time", "device"], timed)
    items = [
        [f"item-{i}", f"Title number {i}", f"Things > {('Red', 'Blue')[i % 2]} > Size {i % 5}"] for i in range(ITEMS)
    ]
    write_csv(folder / "items.csv", ["item_id", "title", "category_path"], items)
    users = [[f"user-{u}", str(20 + 10 * (u % 4))] for u in range(USERS)] + [[SAD_USER, "20"]]
    write_csv(folder / "users.csv", ["user_id", "age"], users)
    return folder


def write_csv(file: Path, header: list[str], rows: list[list[Any]]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def config_file(folder: Path, changes: Mapping[str, Any]) -> Path:
    """A TOML file with `TABLE_CONFIG` and changes by dotted key; `storage` is below `folder` unless changed."""
    document = copy.deepcopy(TABLE_CONFIG)
    for key, value in {"storage": str(folder / "runs"), **changes}.items():
        *sections, last = key.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.toml"
    file.write_text(to_toml(document))
    return file


def to_toml(document: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of nested tables; a JSON string, number, boolean or list is written the same in TOML."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in document.items() if not isinstance(value, dict)]
    tables = [
        f"\n[{prefix}{key}]\n{to_toml(value, f'{prefix}{key}.')}"
        for key, value in document.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*plain, *tables]) + "\n"


class Experiment:
    """A config file and what it stands for: `llm4msr <verb> str(experiment)` and `stage(experiment.config)`."""

    def __init__(self, file: Path):
        self.file = file

    def __str__(self) -> str:
        return str(self.file)

    @property
    def config(self) -> Config:
        return load(str(self.file))

    @property
    def root(self) -> Path:
        return Path(self.config.root)


MakeExperiment = Callable[..., Experiment]


def read_store(folder: Path) -> pa.Table:
    """All rows of an extraction's `vectors`, scenarios first, sorted by id within each."""
    kinds = [sorted(folder.glob(f"vectors/{kind}-*")) for kind in ("scenarios", "users")]
    tables = [pa.concat_tables([pq.read_table(file) for file in files]).sort_by("id") for files in kinds if files]
    return pa.concat_tables(tables).replace_schema_metadata()


def matrix(store: pa.Table) -> np.ndarray:
    """float64 [rows, width] from the column `vector`."""
    return to_matrix(store["vector"]).astype(np.float64)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` with the same row of `b`."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and bytes of each Parquet file in a folder."""
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(folder.glob("*.parquet"))}


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "llm4msr", *arguments]


def own_ray() -> dict[str, str]:
    """Environment for a subprocess that starts a Ray of its own."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None, seconds: float = 180
) -> None:
    """Poll until `condition`; fails if the process, if one is given, ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode} before it could be killed"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def kill_all(process: subprocess.Popen[Any]) -> None:
    """SIGKILL the process and all that it started, at once: no handler runs. Returns when all are gone."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    _, alive = psutil.wait_procs(family[1:], timeout=60)
    assert not alive


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
