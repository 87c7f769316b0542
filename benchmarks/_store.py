"""What an extraction left: its finished shards, all of its rows, and whether two of them are the same."""

from typing import Any

import numpy as np
import pyarrow as pa

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.rows import good_rows, read_vectors, row_groups
from llm4msr.pipeline import extracted
from llm4msr.storage.vectors import to_matrix


def shards(config: Config) -> dict[str, str]:
    """Finished shards of users and when each was written."""
    root = storage.path(config.root) / "extract"
    root.fs.invalidate_cache()
    files = root.fs.find(root.path, detail=True)
    done = {name: entry for name, entry in files.items() if "/vectors/users-" in name and name.endswith(".parquet")}
    return {name: str(entry.get("mtime") or entry.get("LastModified")) for name, entry in done.items()}


def users(config: Config) -> pa.Table:
    """The rows of all users of a finished extraction, by raw id."""
    return _rows(row_groups(extracted(config)))


def scenarios(config: Config) -> pa.Table:
    """The same of all scenarios."""
    return _rows(row_groups(extracted(config), "scenarios"))


def compare(actual: pa.Table, expected: pa.Table) -> dict[str, Any]:
    """`same`: the ids and errors are equal, each once; `cosine`: the least of two good rows' vectors."""
    same = actual.select(["id", "raw_id", "error"]).equals(expected.select(["id", "raw_id", "error"]))
    good = (table.filter(pa.array(good_rows(table))) for table in (actual, expected))
    ours, theirs = (to_matrix(table["vector"]).astype(np.float64) for table in good)
    if ours.shape != theirs.shape:
        return {"same": False, "cosine": 0.0}
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return {"same": same, "cosine": float(((ours * theirs).sum(1) / lengths).min())}


def _rows(groups: list[RowGroup]) -> pa.Table:
    return pa.concat_tables([read_vectors(group) for group in groups]).sort_by("raw_id")
