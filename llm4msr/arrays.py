"""Types of NumPy arrays by what they hold; a name's suffix (`codes_NK`) tells the shape.

And a column of an Arrow table, of whatever it holds.
"""

from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
AnyInts = npt.NDArray[np.integer]
Hashes = npt.NDArray[np.uint64]
Hashes32 = npt.NDArray[np.uint32]
Halves = npt.NDArray[np.float16]
"""As vectors and codes are stored."""
Singles = npt.NDArray[np.float32]
"""As nets compute."""
Floats = npt.NDArray[np.float64]
"""As metrics are computed."""
AnyFloats = npt.NDArray[np.floating]

Column: TypeAlias = "pa.Array[Any] | pa.ChunkedArray[Any]"
VectorColumn: TypeAlias = "pa.FixedSizeListArray[Any, int]"
Row = TypeVar("Row")


def in_one_piece(column: Column) -> "pa.Array[Any]":
    """The column as an array, which is a copy if it lies in several chunks."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def strings(column: Column) -> list[str]:
    """The values of a string column without nulls."""
    return cast("list[str]", column.to_pylist())  # its type would allow for None


def typed_rows(table: pa.Table, row: type[Row]) -> list[Row]:
    """The rows of a table as dicts of this type, which names the table's columns."""
    return cast("list[Row]", table.to_pylist())
