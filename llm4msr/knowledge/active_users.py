"""Which users get knowledge: all of them, or the most active ones of all partitions."""

import json

import numpy as np
import pyarrow as pa

from llm4msr import ray_session
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.storage import StageOutput


def users_to_read(config: Config, data: StageOutput) -> list[int]:
    """How many users of each partition get knowledge, which are its first: `histories` have the most active first.

    Of users with equally many interactions those of the first partitions come first.
    """
    users_P = np.diff(partitions.offsets(data, "histories"))
    most = config.extract.max_users
    if not most or most >= users_P.sum():
        return [int(count) for count in users_P]
    if len(users_P) == 1:
        return [most]
    jobs = [{"partition": partition} for partition in range(len(users_P))]
    activity = {row["partition"]: _as_ints(row["activity"]) for row in ray_session.run_each(_count, jobs, data=data)}
    return most_active([activity[partition] for partition in range(len(users_P))], most)


def most_active(activity: list[dict[int, int]], most: int) -> list[int]:
    """How many users of each partition are among the `most` most active ones of all.

    Args:
        activity: of each partition, how many users have so many interactions.
        most: at most the number of all users.
    """
    totals: dict[int, int] = {}
    for partition in activity:
        for interactions, users in partition.items():
            totals[interactions] = totals.get(interactions, 0) + users
    left, least = most, 0
    for least in sorted(totals, reverse=True):  # who has as few as the `least` may be left out
        if totals[least] >= left:
            break
        left -= totals[least]
    counts = []
    for partition in activity:
        equals = min(left, partition.get(least, 0))
        left -= equals
        counts.append(equals + sum(users for interactions, users in partition.items() if interactions > least))
    return counts


def _count(batch: pa.Table, data: StageOutput) -> pa.Table:
    """One row: the partition, and how many of its users have so many interactions, as JSON."""
    partition = int(batch["partition"][0].as_py())
    with partitions.parquet(data, "histories", partition) as file:
        interactions = file.read(["interactions"])["interactions"].to_numpy()
    counts = zip(*(values.tolist() for values in np.unique(interactions, return_counts=True)), strict=True)
    return pa.table({"partition": [partition], "activity": [json.dumps(dict(counts))]})


def _as_ints(activity: str) -> dict[int, int]:
    return {int(interactions): users for interactions, users in json.loads(activity).items()}
