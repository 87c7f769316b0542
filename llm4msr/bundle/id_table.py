"""Tables by raw id that need not fit into memory: memory-mapped, shared by all processes of a machine.

The file is an Arrow IPC file with a record batch for each partition of the ids (`hashes.numbers_of`). Its rows
are sorted by `hash`, the CRC-32 of the id (uint32), and where that is equal by `id` (large_string) as UTF-8 bytes. Its
other columns hold a text, a fixed number of numbers or a list of numbers a row. Opening one keeps nothing that grows
with its rows, and a lookup touches a few pages, so the operating system's page cache is the only copy however many
processes look up.
"""

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from io import IOBase
from itertools import compress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Array, Bools, Column, Hashes32, Ints, Ints32, strings
from llm4msr.errors import StorageError
from llm4msr.hashes import checksum, hash_ids, numbers_of
from llm4msr.storage import arrow_files
from llm4msr.storage.vectors import to_matrix
from llm4msr.text import quote, shorten

_KEYS: dict[str, pa.DataType] = {"hash": pa.uint32(), "id": pa.large_string()}
_HOME = "home"
"""A column that is not written: the hash that decides an id's partition."""
LIST = pa.large_list(pa.int32())
"""A column of as many numbers as each row has."""


def table_schema(columns: Mapping[str, pa.DataType], metadata: dict[bytes | str, bytes | str]) -> pa.Schema:
    """The schema of a table with these columns beside its keys."""
    return pa.schema([*_KEYS.items(), *columns.items()], metadata=metadata)


def write(file: UPath, partitions: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write a table for each partition, in their order; gives back the number of rows.

    A table has `id` and the columns of the schema, but for `hash`, its rows in any order; or it is one of `with_keys`.

    Raises:
        StorageError: an id stands twice, or in another partition than its own; or the place cannot be written.
    """
    rows, spans = 0, []
    with storage.create(file) as stream, pa.ipc.new_file(cast("IOBase", stream), schema) as writer:
        for table in partitions:
            keyed = table if _HOME in table.column_names else with_keys(table, schema, str(file))
            home_N = keyed[_HOME].to_numpy()
            spans.append(np.array([home_N.min(), home_N.max()] if len(home_N) else [], np.uint64))
            whole = keyed.select(schema.names).cast(schema).combine_chunks()
            writer.write_batch(next(iter(whole.to_batches()), pa.RecordBatch.from_pylist([], schema)))
            rows += len(table)
        total = len(spans)
        if not _is_power_of_two(total) or any((numbers_of(s, total) != p).any() for p, s in enumerate(spans)):
            raise StorageError(f"{file}: the {total} tables are not the partitions of their ids; nothing written")
    return rows


def with_keys(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """The rows of a table by hash and id, with these as columns, and in another what tells each id's partition.

    Raises:
        StorageError: an id stands twice; the error names the file so.
    """
    ids = strings(table["id"])
    table = table.select(schema.names[1:]).add_column(0, "hash", pa.array(checksum(map(str.encode, ids)))).cast(schema)
    table = table.append_column(_HOME, pa.array(hash_ids(ids)))
    table = table.take(_order(table)).combine_chunks()
    hash_N = table["hash"].to_numpy()
    for row in np.flatnonzero(hash_N[1:] == hash_N[:-1]).tolist():
        if table["id"][row] == table["id"][row + 1]:
            raise StorageError(f"{name}: id {quote(table['id'][row].as_py())} stands twice; nothing written")
    return table


def _order(table: pa.Table) -> Column:
    return pc.sort_indices(table, sort_keys=[(key, "ascending") for key in _KEYS])


def rows_of(ids: Column) -> Ints:
    """The rows that ids have in a table of one partition that holds no others: int64 [N]."""
    hashes = pa.array(checksum(map(str.encode, strings(ids))))
    row_N = np.empty(len(ids), np.int64)
    row_N[_order(pa.table([hashes, ids], ["hash", "id"])).to_numpy()] = np.arange(len(ids))
    return row_N


def _is_power_of_two(total: int) -> bool:
    """Whether a table may have so many partitions; none is an empty table."""
    return total & (total - 1) == 0


class Partition:
    """A mapped batch: `find` the rows of ids, then read its `numbers` or `texts` there."""

    def __init__(self, batch: pa.RecordBatch):
        self._hash_N: Hashes32 = batch["hash"].to_numpy()
        self.numbers: dict[str, Array] = {}
        """By column, [N, width]."""
        self.texts: dict[str, Texts] = {}
        """By column; one is `id`."""
        self.lists: dict[str, Lists] = {}
        """By column."""
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if field.type == pa.large_string():
                self.texts[field.name] = Texts(cast("pa.LargeStringArray", column))
            elif field.type == LIST:
                self.lists[field.name] = Lists(cast("pa.LargeListArray[Any]", column))
            elif field.name != "hash":
                self.numbers[field.name] = to_matrix(column)

    def __len__(self) -> int:
        return len(self._hash_N)

    def find(self, raw_id: str) -> int:
        """The row of an id, -1 where there is none."""
        key, ids, hashes = raw_id.encode(), self.texts["id"], self._hash_N.data  # bisect reads a memoryview faster
        hashed = zlib.crc32(key)
        start = bisect_left(hashes, hashed)
        row = bisect_left(ids, key, start, bisect_right(hashes, hashed, start))
        return row if row < len(ids) and ids[row] == key else -1

    def find_all(self, raw_ids: Sequence[str]) -> Ints:
        """The rows of many ids, int64 [B], as `find` finds each of them."""
        keys = list(map(str.encode, raw_ids))
        if not len(self):
            return np.full(len(keys), -1)
        hash_B = checksum(keys)
        order_B = np.argsort(hash_B)  # who is sought next is near in the file
        row_B = np.empty(len(keys), np.int64)
        row_B[order_B] = np.searchsorted(self._hash_N, hash_B[order_B])
        np.minimum(row_B, len(self) - 1, out=row_B)
        equal_B = self.texts["id"].equal(row_B, keys)
        if not equal_B.all():
            collided_B = ~equal_B & (self._hash_N[row_B] == hash_B)
            row_B[~equal_B] = -1
            for i in np.flatnonzero(collided_B).tolist():
                row_B[i] = self.find(raw_ids[i])
        return row_B


class Texts:
    """A column of texts as a sequence of bytes, in UTF-8, each read from the file on access."""

    def __init__(self, column: pa.LargeStringArray):
        _, offsets, data = column.buffers()
        assert offsets is not None, "a column of texts has offsets"
        self._end_N = np.frombuffer(memoryview(offsets), np.int64)[column.offset : column.offset + len(column) + 1]
        self._byte_T = np.frombuffer(memoryview(data) if data else b"", np.uint8)
        self._ends, self._data = self._end_N.data, self._byte_T.data

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> bytes:
        return bytes(self._data[self._ends[row] : self._ends[row + 1]])

    def equal(self, row_B: Ints, keys: Sequence[bytes]) -> Bools:
        """Whether each row holds the key, bool [B]. Shape suffix T: bytes of all keys."""
        start_B = self._end_N.take(row_B)
        length_B = self._end_N.take(row_B + 1) - start_B
        equal_B: Bools = length_B == np.fromiter(map(len, keys), np.int64)
        if not equal_B.all():
            equal_B[equal_B] = self.equal(row_B[equal_B], list(compress(keys, equal_B)))
            return equal_B
        end_B = np.cumsum(length_B)
        at_T = np.repeat(start_B - end_B + length_B, length_B)
        at_T += np.arange(len(at_T))
        there, sought = self._byte_T.take(at_T), b"".join(keys)
        if there.tobytes() != sought:
            differs_T = there != np.frombuffer(sought, np.uint8)
            equal_B[np.searchsorted(end_B, np.flatnonzero(differs_T), "right")] = False
        return equal_B


class Lists:
    """A column of lists of numbers, each a view of the file."""

    def __init__(self, column: "pa.LargeListArray[Any]"):
        self._ends = column.offsets.to_numpy().data
        self._numbers: Ints32 = column.values.to_numpy()

    def __getitem__(self, row: int) -> Ints32:
        return self._numbers[self._ends[row] : self._ends[row + 1]]


Place = tuple[Partition, int]
"""Partition and row of an id."""


class IdTable:
    """A memory-mapped table: `find` the place of an id, then read its `numbers`."""

    def __init__(self, file: Path):
        """Map the file.

        Raises:
            StorageError: no such file, or no table of ids.
        """
        try:
            reader = arrow_files.open_arrow(pa.memory_map(str(file)))
            _check_schema(reader.schema)
            if not _is_power_of_two(reader.num_record_batches):
                raise pa.ArrowInvalid(f"{reader.num_record_batches} partitions")
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)  # places within the file
                if any(column.null_count for column in batch.columns):
                    raise pa.ArrowInvalid("a value is missing")
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{file}: not a table of ids ({error}); export again") from None
        self.metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        self.partitions = [Partition(batch) for batch in batches]

    def __len__(self) -> int:
        return sum(map(len, self.partitions))

    def find(self, raw_id: str) -> Place | None:
        """Partition and row of an id, None where it is not in the table."""
        if not self.partitions:
            return None
        partition = self.partitions[int(numbers_of(hash_ids([raw_id]), len(self.partitions))[0])]
        row = partition.find(raw_id)
        return None if row < 0 else (partition, row)

    def numbers(self, column: str, place: Place) -> Array:
        """The numbers of one row, [width]: a view of the file."""
        partition, row = place
        return partition.numbers[column][row]


def _check_schema(schema: pa.Schema) -> None:
    if {field.name: field.type for field in list(schema)[:2]} != _KEYS:
        raise pa.ArrowInvalid("the first columns are not 'hash' and 'id'")
    for field in list(schema)[2:]:
        if field.type not in (pa.large_string(), LIST) and not _is_numbers(field.type):
            raise pa.ArrowInvalid(f"column '{shorten(field.name)}' has neither text nor numbers")


def _is_numbers(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.int32(), pa.float16(), pa.float32())
