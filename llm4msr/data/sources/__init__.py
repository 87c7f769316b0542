"""The kinds of raw data that can be read: one module for each, named as `source.kind` names it.

To add a kind, write `sources/KIND.py` with two functions, `read(config) -> RawData` and `fingerprint(config) -> str`,
and add `"KIND"` to `SourceConfig.kind` in `llm4msr/config/data.py` (its options, if it has any, become a section
there), and the library that it needs, if any, as an extra to `pyproject.toml`. `data/reading/` has what a reader needs:
columns with checks, tables whose columns the config names, files and their pieces, files larger than memory.
"""

import importlib
from typing import Protocol, cast

from llm4msr.config import SourceConfig
from llm4msr.data.reading.raw_data import RawData


class Source(Protocol):
    """What the module of a kind has."""

    def read(self, config: SourceConfig) -> RawData:
        """Look at the first rows of each table, and read the items; other rows are read as they are asked for.

        Raises:
            MissingExtraError: a library is not installed.
            ConfigError: rows have no order of their own, and `source.table.order` is not set.
            DataError: a missing column, a wrong type, a bad or missing cell, no rows, an item that stands twice.
            StorageError: something is not there, or cannot be read.
        """

    def fingerprint(self, config: SourceConfig) -> str:
        """Hash that changes when a row or an option that decides on rows changes; it raises what `read` does."""


def read(config: SourceConfig) -> RawData:
    """Read the configured source; errors are those of `Source.read`."""
    return find(config.kind).read(config)


def fingerprint(config: SourceConfig) -> str:
    """A hash that changes when the content of the source's files changes.

    Reads all of them, except those of an object store that gives ETags.
    """
    return find(config.kind).fingerprint(config)


def find(kind: str) -> Source:
    """The module that reads this kind."""
    return cast(Source, importlib.import_module(f"{__name__}.{kind}"))


__all__ = ["RawData", "Source", "find", "fingerprint", "read"]
