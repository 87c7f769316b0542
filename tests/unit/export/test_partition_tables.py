"""Tables come whole, one for each partition, however Ray Data cut them."""

import pyarrow as pa
import pytest

from llm4msr.export.partition_tables import split


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_each_partition_gets_its_rows_and_an_empty_one_none(rows: int) -> None:
    whole = pa.table({"id": list("abcdef"), "partition": [1, 1, 1, 4, 4, 6]})
    tables = [whole.slice(start, rows) for start in range(0, len(whole), rows)]
    parts = list(split(tables, 8))
    assert ["".join(part["id"].to_pylist()) for part in parts] == ["", "abc", "", "", "de", "", "f", ""]
    assert {tuple(part.schema.names) for part in parts} == {("id",)}


def test_no_rows_are_no_partitions() -> None:
    assert list(split([], 4)) == list(split([pa.table({"id": [], "partition": []})], 4)) == []
