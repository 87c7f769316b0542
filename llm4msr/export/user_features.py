"""Features of newer data's users -> places in the embedding table of a bundle in service, partition by partition.

Shape suffixes: N users of a partition, S slots, W values of a feature, V values of the newer vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from llm4msr.arrays import Column, Ints, Ints32, strings
from llm4msr.bundle.id_table import IdTable
from llm4msr.bundle.user_features import UserFeatures
from llm4msr.data import catalogue, partitions
from llm4msr.hashes import hash_ids, numbers_of
from llm4msr.knowledge.forget import leave_out
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_column
from llm4msr.training.user_features import list_width, matrix


def read_all(prepared: StageOutput, features: UserFeatures, kept: IdTable, forget: Column) -> Iterator[pa.Table]:
    """A table for each partition: id, and slots int32 [S].

    Args:
        prepared: the newer data.
        features: those of the bundle; one that the newer data do not have stays as it is.
        kept: the bundle's users, whose ids have a place of their own.
        forget: raw ids of users of whom nothing is kept.
    """
    words = catalogue.feature_words(prepared, "user")
    for number, users in enumerate(partitions.read_each(prepared, "users")):
        users = users.slice(1) if number == 0 else users  # the unknown one
        slots_NS = _kept_slots(strings(users["user_id"]), features, kept)
        for name in words.keys() & features.by_name.keys():
            at, places = features.by_name[name]
            unknown = features.nobody_S[at.start]
            place_V = np.array([unknown, *(places.get(word, unknown) for word in words[name])])
            slots_NS[:, at] = _places(users[f"f:{name}"], place_V, at.stop - at.start)
        table = pa.table([users["user_id"].cast(pa.large_string()), to_column(slots_NS)], ["id", "slots"])
        yield leave_out(table, forget)


def _kept_slots(ids: list[str], features: UserFeatures, kept: IdTable) -> Ints32:
    """What the bundle has of these users, [N, S]; of others nothing."""
    slots_NS = np.tile(features.nobody_S.astype(np.int32), (len(ids), 1))
    home_N = numbers_of(hash_ids(ids), len(kept.partitions))
    for home in np.unique(home_N).tolist():
        (here,) = np.nonzero(home_N == home)
        row_N = kept.partitions[home].find_all([ids[i] for i in here])
        slots_NS[here[row_N >= 0]] = kept.partitions[home].numbers["slots"][row_N[row_N >= 0]]
    return slots_NS


def _places(column: Column, place_V: Ints, slots: int) -> Ints:
    """Those of each user's first known values, [N, slots]."""
    place_NW = place_V[matrix(column, max(list_width(column), slots))]
    first_NW = np.argsort(place_NW == place_V[0], axis=1, kind="stable")[:, :slots]
    return np.take_along_axis(place_NW, first_NW, axis=1)
