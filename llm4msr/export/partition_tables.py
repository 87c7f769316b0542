"""Tables by raw id, partition by partition: here where there is one partition, else in tasks of Ray Data.

A table's keys and their order are made where its rows are: the process that writes the file only puts the tables one
after the other.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, pairwise
from operator import itemgetter

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import ray_session
from llm4msr.bundle import id_table
from llm4msr.progress import track

Make = Callable[[int], pa.Table]
"""The table of a partition by its number, with `id` and other columns."""


def write(file: UPath, make: Make, total: int, schema: pa.Schema) -> int:
    """Write the tables of so many partitions as one `id_table`; gives back the number of rows.

    Raises:
        StorageError: as of `id_table.write`.
    """
    return id_table.write(file, [make(0)] if total == 1 else _on_ray(file, make, total, schema), schema)


def _on_ray(file: UPath, make: Make, total: int, schema: pa.Schema) -> Iterator[pa.Table]:
    import ray

    ray_session.connect()
    made = ray.data.range(total, override_num_blocks=min(total, ray_session.MOST_TASKS)).map_batches(
        _keyed, fn_kwargs={"make": make, "schema": schema, "name": str(file)}, batch_size=1, batch_format="pyarrow"
    )
    made.context.execution_options.preserve_order = True
    with track(f"export {file.stem}", total) as progress:
        for table in split(made.iter_batches(batch_size=None, batch_format="pyarrow"), total):
            yield table
            progress.advance(1)


def _keyed(batch: pa.Table, make: Make, schema: pa.Schema, name: str) -> pa.Table:
    number: int = batch["id"][0].as_py()
    table = id_table.with_keys(make(number), schema, name)
    return table.append_column("partition", pa.array(np.full(len(table), number)))


def split(tables: Iterable[pa.Table], total: int) -> Iterator[pa.Table]:
    """One table for each of `total` partitions, from tables whose `partition` ascends from one to the next."""
    done, empty = 0, None
    for number, parts in groupby(chain.from_iterable(map(_runs, tables)), key=itemgetter(0)):
        table = pa.concat_tables([part for _, part in parts]).drop_columns("partition")
        empty = table.slice(0, 0)
        yield from [empty] * (number - done)
        yield table
        done = number + 1
    if empty is not None:
        yield from [empty] * (total - done)


def _runs(table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """The table cut where `partition` changes, each piece with its number."""
    numbers = table["partition"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(table)]
    for start, end in pairwise(starts):
        if end > start:
            yield int(numbers[start]), table.slice(start, end - start)
