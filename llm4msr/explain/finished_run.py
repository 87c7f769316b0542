"""A finished run as report and explorer read it: tables, knowledge, and a trained net.

Of many users only those of some partitions are held, with all their rows: a sample, as a hash has drawn them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from llm4msr.arrays import Floats, Ints, typed_rows
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.knowledge.rows import find_texts
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.schema import ScenarioStatistics
from llm4msr.storage import StageOutput
from llm4msr.training.batches import to_past
from llm4msr.training.dataset import Dataset
from llm4msr.training.pasts import PastEvents
from llm4msr.training.row_files import Rows
from llm4msr.training.trained import TrainedModel

SAMPLE_ROWS = 1_000_000
"""Training rows of a sample: it is as many partitions as have no more, or one."""


@dataclass
class FinishedRun:
    """A trained model and what it was trained on, of the users of some partitions."""

    config: Config
    prepared: StageOutput
    extracted: StageOutput | None
    """None for a model without knowledge."""
    net: RankerNet
    data: Dataset
    items: pd.DataFrame
    """A row per item number: `item_id`, `title`."""
    scenarios: list[ScenarioStatistics]
    """Scenario number n is at place n - 1."""
    partitions: Sequence[int]
    """Whose users are held: the first ones, or a single other."""
    users: pd.DataFrame
    """A row per user, by number (0 = unknown): `user_id`, `rows` (of training), `main` (scenario, 0 = none), `known`
    (has knowledge)."""
    train: pd.DataFrame
    """The training rows: `user`, `item`, `scenario`, `label`; `test` likewise, with `event`."""
    test: pd.DataFrame

    @classmethod
    def open(cls, model: TrainedModel) -> "FinishedRun":
        """Load the model and the tables of `prepare`.

        Raises:
            StorageError: a file is missing or damaged.
        """
        prepared, (net, data) = model.prepared, model.load()
        items = prepared.table("items.parquet", ["item_id", "title"]).to_pandas()
        scenarios = typed_rows(prepared.table("scenarios.parquet"), ScenarioStatistics)[1:]
        rows_so_far = accumulate(np.diff(partitions.offsets(prepared, "train")).tolist())
        sample = range(max(sum(rows <= SAMPLE_ROWS for rows in rows_so_far), 1))
        tables = _read(prepared, data, sample)
        return cls(model.config, prepared, model.extracted, net, data, items, scenarios, sample, **tables)

    def of_user(self, user: int) -> "FinishedRun":
        """The run with the tables that hold this user."""
        home = self.home(user)
        return self if home in self.partitions else self.at(home)

    def home(self, user: int) -> int:
        """The partition of a user number."""
        return int(partitions.homes(self.prepared, np.array([user]))[0])

    def at(self, partition: int) -> "FinishedRun":
        """The same run with the users of another partition."""
        return replace(self, partitions=[partition], **_read(self.prepared, self.data, [partition]))

    @property
    def sample_note(self) -> str:
        """What part of the users this is; empty if it is all of them."""
        total, users = partitions.count(self.prepared), partitions.rows(self.prepared, "users") - 1
        if len(self.partitions) == total:
            return ""
        return (
            f"{len(self.users) - 1:,} of {users:,} users with all their rows: those of {len(self.partitions)} of "
            f"{total} partitions, into which a hash of the id puts users at random"
        )

    @property
    def scenario_names(self) -> list[str]:
        """By number; 0 is the unknown scenario."""
        return ["unknown", *(row["scenario_id"] for row in self.scenarios)]

    def user_texts(self, ids: Ints) -> dict[int, dict[str, str]]:
        """`prompt`, `answer` and `error` by user number; without the users about whom the LLM was not asked."""
        if self.extracted is None:
            return {}
        numbers = dict(zip(partitions.raw_ids(self.prepared, ids), ids.tolist(), strict=True))
        return {numbers[row["raw_id"]]: row for row in find_texts(self.extracted, list(numbers))}

    def codes(self, ids: Ints, chunk: int = 1 << 16) -> Floats:
        """float64 [N, K]: the codes of these users as the model reads them."""
        knowledge, parts = self.data.knowledge, []
        assert knowledge is not None, "the net reads codes"
        self.net.eval()
        with torch.inference_mode():
            for start in range(0, len(ids), chunk):
                vectors = knowledge.lookup(torch.from_numpy(ids[start : start + chunk]))
                parts.append(self.net.user_codes(*vectors).double().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.config.model.code_dim))


def batch_of(data: Dataset, net: RankerNet, user: int, items: Ints, scenario: int, event: int | None = None) -> Batch:
    """Rows of one user with these items [B] in one scenario; their context is unknown, as in a request without one.

    What is known of the user is what a test row of this event sees (`model.past`), or all of it without one.
    """
    item_B = torch.from_numpy(np.asarray(items, np.int64))
    contexts = sum(field.side == "context" for field in data.tables.fields)
    context_BC = torch.zeros((len(item_B), contexts), dtype=torch.int64)
    user_B, scenario_B, label_B = (
        torch.full_like(item_B, user),
        torch.full_like(item_B, scenario),
        torch.zeros(len(item_B)),
    )
    event_B = None if event is None else torch.full_like(item_B, event)
    rows = Rows(user_B, item_B, scenario_B, label_B, context_BC, torch.zeros_like(item_B), event_B)
    if data.pasts is None or event is not None:
        return data.batch(rows, net)
    past_BN = PastEvents(*(column_1N.repeat(len(items), 0) for column_1N in data.pasts.now(user)))
    batch = replace(data, pasts=None).batch(rows, net)
    return batch._replace(past=to_past(item_B, past_BN, data.tables))


class _Tables(TypedDict):
    """Those of `FinishedRun` that depend on the partitions."""

    users: pd.DataFrame
    train: pd.DataFrame
    test: pd.DataFrame


def _read(prepared: StageOutput, data: Dataset, numbers: Sequence[int]) -> _Tables:
    def read(table: str, columns: list[str]) -> pd.DataFrame:
        return pa.concat_tables(partitions.read(prepared, table, n, columns) for n in numbers).to_pandas()

    columns = ["user", "item", "scenario", "label"]
    train, test, users = read("train", columns), read("test", [*columns, "event"]), read("users", ["user", "user_id"])
    users = users.set_index("user").rename_axis(None)
    known = data.knowledge.known(users.index.to_numpy()) if data.knowledge else False
    users = users.join(_activity(train, users.index)).assign(known=known)
    return {"users": users, "train": train, "test": test}


def _activity(train: pd.DataFrame, users: pd.Index) -> pd.DataFrame:
    """`rows` and `main` of each of these user numbers, from the training rows."""
    count = train.groupby(["user", "scenario"]).size().reset_index(name="rows")
    first = count.sort_values(["user", "rows", "scenario"], ascending=[True, False, True]).drop_duplicates("user")
    activity = pd.DataFrame({"rows": 0, "main": 0}, index=users)
    total = count.groupby("user")["rows"].sum()
    activity.loc[total.index, "rows"] = total
    activity.loc[first["user"], "main"] = first["scenario"].to_numpy()
    return activity
