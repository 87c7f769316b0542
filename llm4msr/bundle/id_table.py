"""Tables by raw id that need not fit into memory: sorted by id, memory-mapped, shared by all processes of a machine.

The file is an Arrow IPC file of record batches. Its first column is `id` (large_string, ascending as UTF-8 bytes
over all batches), the others hold a fixed number of numbers a row. Opening one reads its footer alone, and a lookup
touches a few pages, so the operating system's page cache is the only copy however many processes look up.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from io import IOBase
from pathlib import Path
from typing import cast

import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Array
from llm4msr.errors import StorageError
from llm4msr.storage import arrow_files
from llm4msr.storage.vectors import to_matrix
from llm4msr.text import shorten

Place = tuple[int, int]
"""Batch and row of an id."""

ROWS_PER_BATCH = 1 << 20
SAMPLED = 4096
"""Every so many ids one is kept in memory, so that a lookup reads a few neighbouring pages of the file."""


def table_schema(columns: Mapping[str, pa.DataType], metadata: dict[bytes | str, bytes | str]) -> pa.Schema:
    """The schema of a table with these columns beside `id`."""
    return pa.schema([("id", pa.large_string()), *columns.items()], metadata=metadata)


def write(file: UPath, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables whose ids ascend from one to the next; gives back the number of rows.

    Raises:
        StorageError: the ids do not ascend, or one stands twice; or the place cannot be written.
    """
    rows, last = 0, ""
    with storage.create(file) as stream, pa.ipc.new_file(cast("IOBase", stream), schema) as writer:
        for batch in _rebatch(tables, schema):
            ids = batch["id"].to_numpy(zero_copy_only=False)
            if (rows and ids[0] <= last) or (ids[1:] <= ids[:-1]).any():
                raise StorageError(f"{file}: ids do not ascend, or one stands twice, after row {rows}; nothing written")
            writer.write_batch(batch)
            rows, last = rows + len(batch), ids[-1]
    return rows


def _rebatch(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches of `ROWS_PER_BATCH`, whatever the tables' own sizes."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table.select(schema.names).cast(schema))
        if sum(map(len, waiting)) >= ROWS_PER_BATCH:
            joined = pa.concat_tables(waiting)
            whole = len(joined) - len(joined) % ROWS_PER_BATCH
            yield from _cut(joined.slice(0, whole))
            waiting = [joined.slice(whole)]
    if any(map(len, waiting)):
        yield from _cut(pa.concat_tables(waiting))


def _cut(table: pa.Table) -> list[pa.RecordBatch]:
    """Batches of equal size. Chunks of a column are joined first, since a batch ends where a chunk does."""
    return table.combine_chunks().to_batches(ROWS_PER_BATCH)


class IdTable:
    """A memory-mapped table: `find` the place of an id, then read its `numbers`."""

    def __init__(self, file: Path):
        """Map the file.

        Raises:
            StorageError: no such file, or no table of ids.
        """
        try:
            reader = arrow_files.open_arrow(pa.memory_map(str(file)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            if reader.schema.names[0] != "id" or reader.schema.field(0).type != pa.large_string():
                raise pa.ArrowInvalid("the first column is not 'id'")
            if other := [field.name for field in list(reader.schema)[1:] if not _is_numbers(field.type)]:
                raise pa.ArrowInvalid(f"column '{shorten(other[0])}' has no fixed number of numbers a row")
            for batch in batches:
                batch.validate()  # places within the file
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{file}: not a table of ids ({error}); export again") from None
        self.metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        self._ids = [_Ids(cast("pa.LargeStringArray", batch["id"])) for batch in batches]
        self._windows = [(b, row) for b, ids in enumerate(self._ids) for row in range(0, len(ids), SAMPLED)]
        self._firsts = [self._ids[b][row] for b, row in self._windows]
        self._columns: dict[str, list[Array]] = {
            field.name: [to_matrix(batch[field.name]) for batch in batches]
            for field in reader.schema
            if field.name != "id"
        }

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    def find(self, raw_id: str) -> Place | None:
        """Batch and row of an id, None where it is not in the table."""
        key = raw_id.encode()
        window = bisect_right(self._firsts, key) - 1
        if window < 0:
            return None
        batch, first = self._windows[window]
        ids = self._ids[batch]
        row = bisect_left(ids, key, first, min(first + SAMPLED, len(ids)))
        return (batch, row) if row < len(ids) and ids[row] == key else None

    def numbers(self, column: str, place: Place) -> Array:
        """The numbers of one row, [width]: a view of the file."""
        batch, row = place
        return self._columns[column][batch][row]


class _Ids:
    """A column of strings as a sequence of bytes, each read from the file on access."""

    def __init__(self, column: pa.LargeStringArray):
        _, offsets, data = column.buffers()
        assert offsets is not None, "a string column has offsets"
        first = column.offset
        self._ends = memoryview(offsets).cast("q")[first : first + len(column) + 1]
        self._data = memoryview(data) if data is not None else memoryview(b"")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> bytes:
        return bytes(self._data[self._ends[row] : self._ends[row + 1]])


def _is_numbers(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.int32(), pa.float16())
