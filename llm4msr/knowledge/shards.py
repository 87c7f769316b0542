"""Shards of a version as passes write them: where they lie, what is beside their rows, and what they took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.config import Config
from llm4msr.knowledge.engines.base import Task
from llm4msr.knowledge.index import NOTHING_LIKED
from llm4msr.knowledge.reader import Reader, SourceName
from llm4msr.storage import FileRecord

SHARD_FOLDERS: dict[Task, str] = {"answers": "work/answers", "vectors": "vectors"}
"""Where a version keeps the shards of each pass; the second pass takes over the answers of the first."""


@dataclass(frozen=True)
class Pass:
    """One task of a source over shards of a version, and what is the same for all of them."""

    task: Task
    config: Config
    """Its section `extract` is as the source reads it."""
    folder_uri: str
    """Of the version."""
    readers: dict[str, Reader]
    """Of each kind of rows."""
    scenarios: list[str]
    """Raw ids, in the order of their numbers."""
    source: SourceName = "llm"
    width: int = 0
    """Of the vectors that earlier versions have of the same model; 0 where there are none."""

    @property
    def name(self) -> str:
        """For people: what is done, or who does it."""
        return self.task if self.source == "llm" else self.source

    def shard_folder(self, task: Task | None = None) -> UPath:
        """Where the shards of this pass lie, or those of another task."""
        return storage.path(self.folder_uri) / SHARD_FOLDERS[task or self.task]

    def reader(self, shard: str) -> Reader:
        """Who reads the rows of the shard of this name."""
        return self.readers[shard.partition("-")[0]]

    def write(self, shard: str, table: pa.Table) -> FileRecord:
        """Write the file of a shard."""
        reader, kind = self.reader(shard), shard.partition("-")[0]
        if self.task == "vectors":
            layout = schema.knowledge(table.schema.field("vector").type.list_size)
            table = schema.check(table.select(layout.names), layout, "shard")
        metadata = {"reads": reader.reads, "writes": reader.writes[kind]}
        return storage.write_table(self.shard_folder() / shard, table.replace_schema_metadata(metadata))


class Counts(NamedTuple):
    """Rows of a shard, how many of them failed, and how many of those have nothing to ask about."""

    rows: int
    failed: int
    empty: int

    @classmethod
    def of(cls, errors: Sequence[str]) -> "Counts":
        """From the rows' error column."""
        return cls(len(errors), sum(map(bool, errors)), errors.count(NOTHING_LIKED))
