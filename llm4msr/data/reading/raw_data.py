"""The raw data that every kind of source gives, and the checks that all of them share."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Column, strings
from llm4msr.errors import DataError, StorageError
from llm4msr.storage.s3 import FAULTS


@dataclass(frozen=True)
class RawData:
    """Three tables with string ids. Names that the source chose have a prefix, so that they never clash with ours."""

    interactions: pa.Table
    users: pa.Table
    items: pa.Table
    implicit: bool
    """Whether only positives are known, so that negatives must be drawn."""

    @property
    def context(self) -> tuple[str, ...]:
        """Names of the context fields; the column of `device` is `c:device`."""
        return _names(self.interactions, schema.CONTEXT)

    @property
    def user_features(self) -> tuple[str, ...]:
        """Names of the users' features; the column of `country` is `f:country`."""
        return _names(self.users, schema.FEATURE)

    @property
    def item_features(self) -> tuple[str, ...]:
        """The same of the items."""
        return _names(self.items, schema.FEATURE)

    def check(self, where: str) -> "RawData":
        """The raw data itself, once its tables have the schema's columns.

        Raises:
            DataError: they have not, or there is no interaction; `where` is named.
        """
        schema.check(self.interactions, schema.RAW_INTERACTIONS, where)
        if not self.interactions.num_rows:
            raise DataError(f"{where}: no interactions; the file is empty")
        schema.check(self.users, schema.RAW_USERS, where)
        schema.check(self.items, schema.RAW_ITEMS, where)
        return self


def _names(table: pa.Table, prefix: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(prefix) for name in table.column_names if name.startswith(prefix))


def require_unique(column: Column, where: str, name: str) -> None:
    """Raise a DataError that names the first value that stands twice, and its row."""
    counts = pc.value_counts(column)
    if len(counts) == len(column):
        return
    repeated = set(strings(counts.field("values").filter(counts.field("counts").to_numpy() > 1)))
    seen = set()
    for row, value in enumerate(strings(column), start=1):
        if value in seen:
            raise DataError(f"{where}: column '{name}': '{value}' stands again in row {row}; ids must be unique")
        if value in repeated:
            seen.add(value)


def file_fingerprint(file: UPath) -> str:
    """Hash of a file's name and content; an object store's ETag and size stand for the content where there is one.

    Raises:
        StorageError: it cannot be found or read.
    """
    try:
        info = file.fs.info(file.path)
    except FAULTS as error:
        raise StorageError(f"{file}: cannot be read ({type(error).__name__}); check source.path and access") from None
    tag = info.get("ETag") or info.get("etag")
    return storage.digest(file.name, f"{tag} {info.get('size')}" if tag else storage.digest_file(file))
