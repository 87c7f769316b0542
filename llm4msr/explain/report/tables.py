"""The files beside the page: the data behind its pictures, as CSV or Parquet."""

import csv
from typing import NamedTuple, Protocol

import pandas as pd
import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.text import cell


class Section(Protocol):
    """What every section offers."""

    def tables(self) -> dict[str, "Table"]:
        """Its files beside the page, by name."""


class Table(NamedTuple):
    """The content of a file, and what the page says of it."""

    description: str
    rows: pd.DataFrame

    def write(self, file: UPath) -> None:
        """As Parquet or CSV, by the file's suffix; in CSV no cell is a formula."""
        if file.suffix == ".parquet":
            storage.write_table(file, pa.Table.from_pandas(self.rows, preserve_index=False))
            return
        safe = self.rows.map(lambda value: cell(value) if isinstance(value, str) else value)
        text = safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        storage.write_bytes(file, text.encode("utf-8", "replace"))
