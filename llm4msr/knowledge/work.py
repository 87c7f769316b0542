"""The plan of what is left to ask for a version of the knowledge.

It is kept in the version's folder while it is being made, so that a run that was interrupted goes on with it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator
from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.knowledge.buckets import Bucket
from llm4msr.knowledge.reader import Reader
from llm4msr.storage import stage_files

Kind = Literal["users", "snapshots", "items", "items_by_encoder", "items_by_words", "scenarios"]
FileName = Annotated[str, Field(pattern=r"^(users|snapshots|items(_by_[a-z]+)?|scenarios)-[A-Za-z0-9_-]+\.parquet$")]
"""A plan is read back from storage, and is believed only as far as it names files of its own."""


class Shard(BaseModel):
    """Rows that the LLM is asked about, and that are written, in one piece."""

    name: FileName
    """Of the file that will hold them."""
    kind: Kind
    todo: FileName
    """The file below `work/todo` that holds their prompts, in the row group `group`."""
    group: int = Field(ge=0)
    rows: int = Field(ge=0)


class Work(BaseModel):
    """All that a version needs besides the LLM: where its rows are, or will be."""

    readers: dict[str, Reader]
    """Of each kind of rows."""
    bases: list[Annotated[str, Field(pattern=rf"^({stage_files.NAME.pattern})$")]]
    """Versions whose shards it may refer to."""
    planned: bool = False
    buckets: list[Bucket] = []
    kept: dict[str, int] = {}
    """Rows of each kind that an earlier version holds."""
    steady: int = 0
    """Scenarios whose statistics moved, but by too little to ask again."""
    forgotten: int = 0
    """Ids of the list to forget that the data or an earlier version knows."""
    shards: list[Shard] = []
    files: dict[str, int] = {}
    """The other files of the plan, and the bytes of each."""

    @field_validator("buckets")
    @classmethod
    def _name_index_files(cls, buckets: list[Bucket]) -> list[Bucket]:
        if wrong := [bucket.index_file for bucket in buckets if Bucket.parse(bucket.index_file) != bucket]:
            raise ValueError(f"{wrong[0]}: no index file")
        return buckets

    @classmethod
    def load(cls, folder: UPath) -> "Work | None":
        """The plan of an unfinished run in its folder, if there is one that can be believed."""
        try:
            return cls.model_validate_json(storage.read_bytes(_file(folder)))
        except (StorageError, ValidationError):
            return None

    def save(self, folder: UPath, durable: bool = False) -> None:
        """Write the plan to the folder; `durable` holds even if the machine fails right after."""
        storage.write_bytes(_file(folder), self.model_dump_json().encode(), durable=durable)


def _file(folder: UPath) -> UPath:
    return folder / "work" / "work.json"
