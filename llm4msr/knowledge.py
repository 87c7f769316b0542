"""The knowledge store: a user's or scenario's number -> the LLM's vector, its text and its fingerprint.

Shape suffixes: N users with the unknown one as row 0, S scenarios likewise, Z width of the LLM's vector.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor

from llm4msr import index, storage, wheels
from llm4msr.errors import StorageError
from llm4msr.ranker import KnowledgeStatistics
from llm4msr.storage import StageOutput

Halves = npt.NDArray[np.float16]


class KnowledgeStore:
    """Vectors by dense id; users' vectors are memory-mapped, so workers on a machine share them."""

    def __init__(self, users_NZ: Halves, known_N: npt.NDArray[np.bool_], scenarios_SZ: Halves):
        self.users_NZ, self.known_N, self.scenarios_SZ = users_NZ, known_N, scenarios_SZ
        self._row_of: npt.NDArray[np.int64] | None = None

    @classmethod
    def open(cls, output: StageOutput, users: int, scenarios: int) -> "KnowledgeStore":
        """From a finished extraction; `users` and `scenarios` count the unknown one.

        Raises:
            StorageError: a shard is missing, damaged, of another width or model, or knows ids beyond these counts.
        """
        info = output.manifest.info
        width = int(info["width"])
        cached = cache_of(output).with_suffix(f".{users}")
        cached.parent.mkdir(exist_ok=True)
        with FileLock(f"{cached}.lock"):
            if not cached.exists():
                with tempfile.TemporaryDirectory(dir=cached.parent) as aside:
                    new = Path(aside) / "new"
                    new.mkdir()
                    users_NZ = np.lib.format.open_memmap(new / "users.npy", "w+", np.float16, (users, width))
                    np.save(new / "known.npy", _fill(users_NZ, user_parts(output)))
                    users_NZ.flush()
                    new.rename(cached)
        scenarios_SZ = np.zeros((scenarios, int(info.get("scenario_width", width))), np.float16)
        _fill(scenarios_SZ, parts(output, "scenarios"))
        return cls(np.load(cached / "users.npy", mmap_mode="r"), np.load(cached / "known.npy"), scenarios_SZ)

    def lookup(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors float16 [B, Z] and whether each is known, bool [B], of dense user ids int64 [B]."""
        rows = ids.numpy() if self._row_of is None else self._row_of[ids.numpy()]
        return torch.from_numpy(self.users_NZ[rows]), torch.from_numpy(self.known_N[ids.numpy()])

    def controlled(self, control: str, seed: int) -> "KnowledgeStore":
        """The same store with wrong vectors: `shuffled` among the known users, or `random` normal numbers."""
        if control == "none":
            return self
        rng = np.random.default_rng([seed, 4711])
        scenarios = self.scenarios_SZ.copy()
        if control == "random":
            users = rng.standard_normal(self.users_NZ.shape, np.float32).astype(np.float16)
            scenarios[1:] = rng.standard_normal(scenarios[1:].shape).astype(np.float16)
            return KnowledgeStore(users, self.known_N, scenarios)
        scenarios[1:] = scenarios[1:][rng.permutation(len(scenarios) - 1)]
        mixed = KnowledgeStore(self.users_NZ, self.known_N, scenarios)
        known = np.flatnonzero(self.known_N)
        mixed._row_of = np.arange(len(self.known_N))
        mixed._row_of[known] = known[rng.permutation(len(known))]
        return mixed

    def statistics(self) -> KnowledgeStatistics:
        """Mean and deviation over the known users (all of them users of training rows), and the scenarios.

        Raises:
            StorageError: no user is known.
        """
        known = np.flatnonzero(self.known_N)
        if not len(known):
            raise StorageError("the knowledge store knows no user; look at the errors in its shards")
        total, square = np.zeros(self.users_NZ.shape[1]), np.zeros(self.users_NZ.shape[1])
        for chunk in np.array_split(known, -(-len(known) // 65536)):
            block = self.users_NZ[chunk].astype(np.float64)
            total, square = total + block.sum(0), square + (block**2).sum(0)
        mean = total / len(known)
        scale = np.sqrt(np.maximum(square / len(known) - mean**2, 0)) + 1e-6
        as_float = (torch.from_numpy(part.astype(np.float32)) for part in (mean, scale, self.scenarios_SZ))
        return KnowledgeStatistics(*as_float)


def user_parts(output: StageOutput) -> list[str]:
    """Parts of this version, each a bounded number of its users; together they hold every user once."""
    return parts(output, "users")


def parts(output: StageOutput, kind: str) -> list[str]:
    """The same of `users`, `scenarios` or `items`."""
    return index.parts(output.folder, {name: part.rows for name, part in output.manifest.files.items()}, kind)


def read_part(part: str) -> pa.Table:
    """id int64, raw_id, error and vector fixed_size_list<float16>[Z] of the rows of a part.

    Raises:
        StorageError: a shard is missing, damaged, or holds other rows than the version was made of.
    """
    return index.read(part, ["id", "raw_id", "error", "vector"])


def vectors_of(table: pa.Table) -> Halves:
    """float16 [N, Z] from the column `vector`."""
    vectors = table["vector"].combine_chunks()
    return np.asarray(vectors.flatten().to_numpy().reshape(len(table), vectors.type.list_size))


def good_rows(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows have a vector: bool [N]."""
    return np.array([not error for error in table["error"].to_pylist()], bool)


def texts(output: StageOutput, kind: str = "scenarios") -> list[dict[str, Any]]:
    """Raw id, prompt, answer and error of each scenario (or user)."""
    columns = ["raw_id", "prompt", "answer", "error"]
    tables = [index.read(part, ["id", *columns]) for part in parts(output, kind)]
    if kind == "scenarios" and tables:
        tables = [pa.concat_tables(tables).sort_by("id")]
    return [row for table in tables for row in table.select(columns).to_pylist()]


def cache_of(output: StageOutput) -> Path:
    """Where this machine keeps the vectors of a version, memory-mapped; the suffix is the number of users."""
    digests = {name: part.digest for name, part in output.manifest.files.items()}
    return wheels.cache_folder() / "knowledge" / storage.digest_of(digests)


def _fill(matrix: Halves, where: list[str]) -> npt.NDArray[np.bool_]:
    """Write the good rows of the parts to their places; gives back which rows were written."""
    known = np.zeros(len(matrix), bool)
    for part in where:
        table = index.read(part, ["id", "error", "vector"])
        width = table["vector"].type.list_size
        if width != matrix.shape[1]:
            raise StorageError(
                f"{part}: vectors of width {width}, expected {matrix.shape[1]}; it is another model's: "
                "delete it and its version's manifest.json, then run `llm4msr extract` again"
            )
        ids = table["id"].to_numpy()
        if len(ids) and ids.max() >= len(matrix):
            raise StorageError(f"{part}: id {ids.max()} is beyond the {len(matrix) - 1} prepared ones; extract again")
        good = good_rows(table)
        matrix[ids[good]] = vectors_of(table)[good]
        known[ids[good]] = True
    return known
