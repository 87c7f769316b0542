"""Vectors as a column of a table, `fixed_size_list`, and as a matrix in memory."""

from typing import Any

import numpy as np
import pyarrow as pa

from llm4msr.arrays import Array


def to_matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> Array:
    """[N, width] of the column's own type, without a copy where the column is one piece; read-only then.

    Null lists are not allowed.
    """
    whole: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = whole.flatten().to_numpy(zero_copy_only=True)
    return np.asarray(flat).reshape(len(whole), whole.type.list_size)


def to_column(matrix_NW: Array) -> pa.FixedSizeListArray:
    """The matrix's rows as lists of its width and type."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix_NW.reshape(-1)), matrix_NW.shape[1])
