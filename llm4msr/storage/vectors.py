"""Vectors as a column of a table, `fixed_size_list`, and as a matrix in memory."""

from typing import cast

import pyarrow as pa

from llm4msr.arrays import Array, Column, VectorColumn, in_one_piece


def to_matrix(column: Column) -> Array:
    """Lists of W numbers each as a matrix [N, W] of the column's own type.

    Without a copy where the column is one piece; read-only then. Null lists are not allowed.
    """
    whole = cast("VectorColumn", in_one_piece(column))
    return whole.flatten().to_numpy(zero_copy_only=True).reshape(len(whole), whole.type.list_size)


def to_column(matrix_NW: Array) -> VectorColumn:
    """The rows of a matrix [N, W] as lists of its width and type."""
    if not matrix_NW.shape[1]:
        numbers = pa.array(matrix_NW.reshape(-1))
        lists = pa.list_(numbers.type, 0)
        return cast("VectorColumn", pa.Array.from_buffers(lists, len(matrix_NW), [None], children=[numbers]))
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix_NW.reshape(-1)), matrix_NW.shape[1])
