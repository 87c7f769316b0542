"""Tables and queries of a database, by any module of Python's DB-API: sqlite3, duckdb, psycopg and others.

Ray's `read_sql` fetches all rows of a query at once, and cuts it in parts only where the database can hash in SQL; here
one task streams them.
"""

import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from llm4msr import storage
from llm4msr.config import SourceConfig
from llm4msr.data.reading.columns import Rows, require_column
from llm4msr.data.reading.named_columns import Convert, hash_rows, read_named
from llm4msr.data.reading.raw_data import RawData, RawTable
from llm4msr.data.reading.raw_tables import SLICE_ROWS, PieceTable
from llm4msr.data.sources.extras import library_errors, needed_by
from llm4msr.errors import ConfigError, DataError
from llm4msr.text import first_line, shorten

ROW_BYTES = 100
"""Bytes that a row may take; a database does not tell."""
_FILES = ("sqlite3", "duckdb")
"""Modules whose database is a file."""
_SERVER_SIDE = ("psycopg", "psycopg2")
"""Modules whose cursors hold all rows unless they have a name."""
_WHAT = "a table or query of the database"
_SECRET = re.compile(r"(?i)\b(password|passwd|pwd)\s*=|://[^/@\s]*:[^/@\s]*@")


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes with `source.sql.version` or, if that is empty, with the content of any row."""
    parts = [config.sql.model_dump_json(), config.table.model_dump_json(), _place(config)]
    if not config.sql.version:
        raw = read(config)
        parts += [_hash_all(table) for table in (raw.interactions.tables(), raw.users.tables(), [raw.items])]
    return storage.digest(*parts)


def _hash_all(tables: Iterable[pa.Table]) -> str:
    """The same for the same rows in any order."""
    hashes = [(len(table), hash_rows(table).sum()) for table in tables if len(table)]
    return f"{sum(count for count, _ in hashes)} {np.array([part for _, part in hashes], np.uint64).sum()}"


def read(config: SourceConfig) -> RawData:
    """As `Source.read`; a ConfigError too where `source.path` holds a password."""
    place = _place(config)
    return read_named(config.table, lambda name: QueryTable(Query(config.sql.module, place, name)))


def _place(config: SourceConfig) -> str:
    if _SECRET.search(config.path):
        raise ConfigError(
            "source.path: holds a password; leave it to where the database's module looks for it, such as PGPASSWORD "
            "or a file of its own"
        )
    return str(storage.path(config.path)) if config.sql.module in _FILES else config.path


class Query(NamedTuple):
    """A table by its name, or a query, and where it is asked."""

    module: str
    place: str
    text: str

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.place}: {shorten(self.text, 100)}"

    @property
    def sql(self) -> str:
        """The query."""
        text = self.text.strip().rstrip(";")
        return text if re.search(r"\s", text) else f"SELECT * FROM {text}"


class QueryTable:
    """The rows of a query, which may come in another order each time."""

    in_order = False

    def __init__(self, query: Query):
        self.where, self._query = query.where, query

    def first(self, names: Sequence[str]) -> Rows:
        """The rows that come first."""
        rows = next(_read_rows(self._query, names), None)
        if rows is None:
            raise DataError(f"{self.where}: no rows")
        return rows

    def read(self, names: Sequence[str], convert: Convert, layout: pa.Schema) -> RawTable:
        """All rows, in one piece."""
        counting = Query(self._query.module, self._query.place, f"SELECT COUNT(*) AS n FROM ({self._query.sql}) AS t")
        count = int(next(_read_rows(counting, ["n"])).table["n"][0].as_py())
        read = functools.partial(_read_query, list(names), convert)
        return PieceTable(layout, count, [self._query], read, count * ROW_BYTES)


def _read_query(names: list[str], convert: Convert, query: Query) -> Iterator[pa.Table]:
    for rows in _read_rows(query, names):
        yield convert(rows, None)


def _read_rows(query: Query, names: Sequence[str]) -> Iterator[Rows]:
    with library_errors(query.where, _WHAT), closing(_connect(query)) as connection:
        named = {"name": "llm4msr"} if query.module in _SERVER_SIDE else {}
        with closing(connection.cursor(**named)) as cursor:
            cursor.execute(query.sql)
            while rows := cursor.fetchmany(SLICE_ROWS):
                header = [column[0] for column in cursor.description]
                yield Rows(_as_table(header, rows, names, query.where), query.where, before=None)


def _connect(query: Query) -> Any:
    with needed_by("sql", query.module.partition(".")[0]):
        module = importlib.import_module(query.module)
    if query.module == "sqlite3":  # which would make a file that is not there
        return module.connect(f"file:{quote(query.place)}?mode=ro", uri=True)
    return module.connect(query.place, **({"read_only": True} if query.module in _FILES else {}))


def _as_table(header: list[str], rows: list[Sequence[Any]], names: Sequence[str], where: str) -> pa.Table:
    columns = {}
    for name in names:
        require_column(name, header, where)
        place = header.index(name)
        try:
            columns[name] = pa.array([row[place] for row in rows])
        except (pa.ArrowException, TypeError, OverflowError) as error:
            why = f"its values have no common type ({first_line(error)}); CAST it in a query"
            raise DataError(f"{where}: column '{name}': {why}") from None
    return pa.table(columns)
