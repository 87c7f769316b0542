"""Users' features as numbers, partition by partition, and which row of the embedding table a user's id has.

Shape suffixes: N users of a partition, S slots.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.arrays import Column, Ints, strings
from llm4msr.config import ModelConfig
from llm4msr.data import catalogue, partitions
from llm4msr.data.catalogue import MAX_VALUES
from llm4msr.hashes import hash_ids
from llm4msr.model.embedding import Field
from llm4msr.storage import StageOutput

ID = "user_id"


class UserFeatures:
    """The features of prepared users, as a model reads them.

    Args:
        prepared: the output of `prepare`.
        model: says whether users' ids are features, and how many rows of the embedding table they have.
    """

    def __init__(self, prepared: StageOutput, model: ModelConfig):
        self._prepared, sizes = prepared, catalogue.field_sizes(prepared)["user"]
        kind = model.user_embedding
        if kind == "auto":
            kind = "whole" if sizes[ID] <= model.user_embedding_rows else "hashed"
        self.hashed_rows = model.user_embedding_rows if kind == "hashed" else 0
        """Rows that users' ids share by their hash; 0 where each has its own, or none."""
        sizes[ID] = self.hashed_rows or sizes[ID]
        columns = partitions.read(prepared, "users", 0)
        several = partitions.count(prepared) > 1
        self.fields = [
            Field(name, "user", size + 1, _width(columns[f"f:{name}"], several))
            for name, size in sizes.items()
            if name != ID or kind != "none"
        ]

    def numbers(self, partition: int) -> Ints:
        """int64 [N, S]: the numbers of each user's fields, 0 = unknown."""
        names = [*(f"f:{field.name}" for field in self.fields), ID]
        table = partitions.read(self._prepared, "users", partition, names)
        columns = [
            self._id_numbers(table)[:, None] if field.name == ID else matrix(table[f"f:{field.name}"], field.slots)
            for field in self.fields
        ]
        return np.concatenate([np.zeros((len(table), 0), np.int64), *columns], axis=1)

    def ids(self, partition: int) -> pa.Table:
        """`user_id` of each user of a partition, and in `f:user_id` the number of that id as a feature."""
        table = partitions.read(self._prepared, "users", partition, [ID, f"f:{ID}"])
        return table.set_column(1, f"f:{ID}", pa.array(self._id_numbers(table)))

    def _id_numbers(self, table: pa.Table) -> Ints:
        """int64 [N]; only users of training rows have a number, so that the others are unknown ones."""
        number_N = table[f"f:{ID}"].to_numpy()
        if not self.hashed_rows:
            return number_N
        hashed_N = 1 + (hash_ids(strings(table[ID])) % np.uint64(self.hashed_rows)).astype(np.int64)
        return np.where(number_N > 0, hashed_N, 0)


def matrix(column: Column, width: int) -> Ints:
    """int64 [N, width] from a column of numbers, or of lists of numbers padded with 0."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not isinstance(lists, pa.ListArray):
        return np.asarray(column.to_numpy())[:, None]
    padded = np.zeros((len(lists), width), np.int64)
    lengths = np.diff(lists.offsets.to_numpy())
    padded[np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy()
    return padded


def list_width(column: Column) -> int:
    """Numbers in the longest list of a column, at least 1; 1 for a column of single numbers."""
    if not pa.types.is_list(column.type):
        return 1
    return max(pc.max(pc.list_value_length(column)).as_py() or 0, 1)


def _width(column: Column, several: bool) -> int:
    """Slots of a field; where there are several partitions, lists are not looked through for the longest."""
    return MAX_VALUES if several and pa.types.is_list(column.type) else list_width(column)
