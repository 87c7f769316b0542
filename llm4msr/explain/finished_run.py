"""A finished run as report and explorer read it: tables, knowledge, and the nets trained with and without it.

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
from llm4msr.training.dataset import Dataset
from llm4msr.training.row_files import Rows
from llm4msr.training.trained import TrainedModel

SAMPLE_ROWS = 1_000_000
"""Training rows of a sample: it is as many partitions as have no more, or one."""


@dataclass(frozen=True)
class ModelPair:
    """The model with knowledge, and the plain backbone trained with the same seed if there is one."""

    model: TrainedModel
    plain: TrainedModel | None


@dataclass
class FinishedRun:
    """All that the sections read, of the users of some partitions. Codes, layers and single users are those of the
    first seed."""

    config: Config
    prepared: StageOutput
    extracted: StageOutput
    pairs: Sequence[ModelPair]
    net: RankerNet
    data: Dataset
    items: pd.DataFrame
    """A row per item number: `item_id`, `title`."""
    scenarios: list[ScenarioStatistics]
    """Scenario number n is at place n - 1."""
    partitions: Sequence[int]
    """Whose users are held: the first ones, or a single other."""
    users: pd.DataFrame
    """A row per user, by number (0 = unknown): `user_id`, `rows` (of training), `main` (scenario, 0 = none), `outside`
    (share of the rows outside the main scenario), `known` (has knowledge)."""
    train: pd.DataFrame
    """The training rows: `user`, `item`, `scenario`, `label`; `test` likewise."""
    test: pd.DataFrame

    @classmethod
    def open(cls, pairs: Sequence[ModelPair]) -> "FinishedRun":
        """Load the first model and the tables of `prepare`.

        Raises:
            StorageError: a file is missing or damaged.
        """
        model = pairs[0].model
        prepared, extracted = model.prepared, model.extracted
        net, data = model.load()
        assert extracted is not None
        assert data.knowledge is not None
        items = prepared.table("items.parquet", ["item_id", "title"]).to_pandas()
        scenarios = typed_rows(prepared.table("scenarios.parquet"), ScenarioStatistics)[1:]
        rows_so_far = accumulate(np.diff(partitions.offsets(prepared, "train")).tolist())
        sample = range(max(sum(rows <= SAMPLE_ROWS for rows in rows_so_far), 1))
        tables = _read(prepared, data, sample)
        return cls(model.config, prepared, extracted, pairs, net, data, items, scenarios, sample, **tables)

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
        numbers = dict(zip(partitions.raw_ids(self.prepared, ids), ids.tolist(), strict=True))
        return {numbers[row["raw_id"]]: row for row in find_texts(self.extracted, list(numbers))}

    def codes(self, ids: Ints, chunk: int = 1 << 16) -> Floats:
        """float64 [N, K]: the codes of these users as the model reads them."""
        knowledge, parts = self.data.knowledge, []
        assert knowledge is not None
        self.net.eval()
        with torch.inference_mode():
            for start in range(0, len(ids), chunk):
                vectors = knowledge.lookup(torch.from_numpy(ids[start : start + chunk]))
                parts.append(self.net.user_codes(*vectors).double().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.config.model.code_dim))


def batch_of(data: Dataset, net: RankerNet, user: int, items: Ints, scenario: int) -> Batch:
    """Rows of one user with these items [B] in one scenario; their context is unknown, as in a request without one."""
    item_B = torch.from_numpy(np.asarray(items, np.int64))
    contexts = sum(field.side == "context" for field in data.tables.fields)
    context_BC = torch.zeros((len(item_B), contexts), dtype=torch.int64)
    rows = Rows(
        torch.full_like(item_B, user), item_B, torch.full_like(item_B, scenario), torch.zeros(len(item_B)), context_BC
    )
    return data.batch(rows, net)


class _Tables(TypedDict):
    """Those of `FinishedRun` that depend on the partitions."""

    users: pd.DataFrame
    train: pd.DataFrame
    test: pd.DataFrame


def _read(prepared: StageOutput, data: Dataset, numbers: Sequence[int]) -> _Tables:
    def read(table: str, columns: list[str]) -> pd.DataFrame:
        return pa.concat_tables(partitions.read(prepared, table, n, columns) for n in numbers).to_pandas()

    columns = ["user", "item", "scenario", "label"]
    train, test, users = read("train", columns), read("test", columns), read("users", ["user", "user_id"])
    users = users.set_index("user").rename_axis(None)
    assert data.knowledge is not None
    users = users.join(_activity(train, users.index)).assign(known=data.knowledge.known(users.index.to_numpy()))
    return {"users": users, "train": train, "test": test}


def _activity(train: pd.DataFrame, users: pd.Index) -> pd.DataFrame:
    """`rows`, `main` and `outside` of each of these user numbers, from the training rows."""
    count = train.groupby(["user", "scenario"]).size().reset_index(name="rows")
    first = count.sort_values(["user", "rows", "scenario"], ascending=[True, False, True]).drop_duplicates("user")
    activity = pd.DataFrame({"rows": 0, "main": 0, "outside": 0.0}, index=users)
    total = count.groupby("user")["rows"].sum()
    activity.loc[total.index, "rows"] = total
    activity.loc[first["user"], "main"] = first["scenario"].to_numpy()
    activity.loc[first["user"], "outside"] = 1 - first["rows"].to_numpy() / total.loc[first["user"]].to_numpy()
    return activity
