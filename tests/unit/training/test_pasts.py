"""What each row sees of its user's past, against a loop over the raw rows."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.split import SPLITS, TRAIN
from llm4msr.pipeline import prepare
from llm4msr.storage import StageOutput
from llm4msr.training.batches import RowReader
from llm4msr.training.pasts import Pasts
from tests.support.data import SCENARIOS, config_of, prepared_table, write_data
from tests.support.partitioned import in_partitions
from tests.support.splits import assign

ITEMS, USERS = 60, 12
KINDS: list[dict[str, Any]] = [
    {"kind": "time"},
    {"kind": "time", "by": "user"},
    {"kind": "time", "history_share": 0.5},
    {"kind": "time", "latest": 250},
    {"kind": "leave_last_out"},
    {"kind": "random"},
]
every_kind = pytest.mark.parametrize("split", KINDS, ids=lambda split: "-".join(map(str, split.values())))


class Raw(NamedTuple):
    user: str
    item: str
    scenario: str
    label: int
    order: int


def raw_rows(seed: int = 3) -> list[Raw]:
    """A user takes no item twice, often several at one moment. Some users come late, some items are not described."""
    rng, rows = random.Random(seed), []
    for user in range(USERS):
        start = 80 if user < 3 else 0
        for item in rng.sample(range(ITEMS), 30):
            rows.append(Raw(f"u{user}", f"i{item}", rng.choice(SCENARIOS), rng.randrange(2), rng.randrange(start, 100)))
    rng.shuffle(rows)
    return rows


def config(folder: Path, rows: list[Raw], split: dict[str, Any], label: str = "label") -> Config:
    write_data(folder, [[*row, "phone"] for row in rows], items=ITEMS - 8, users=USERS)
    return config_of(folder, split=split, table={"label": label, "user_features": [], "users": ""})


def splits_of(rows: list[Raw], config: Config) -> dict[tuple[str, str], int]:
    """The split of each user's item; rows that are not used have none."""
    frame = pd.DataFrame({"user_id": [row.user for row in rows], "order": [row.order for row in rows]})
    if config.split.latest:
        kept = frame.sort_values("order", kind="stable").index[-config.split.latest :].sort_values()
        frame, rows = frame.loc[kept].reset_index(drop=True), [rows[at] for at in kept]
    return {(row.user, row.item): int(part) for row, part in zip(rows, assign(frame, config.split, 1), strict=True)}


def check_pasts(rows: list[Raw], config: Config, data: StageOutput, fresh: bool, most: int = 100) -> int:
    """Compare every row of every split with a loop over the raw rows; gives back how many events were seen in all."""
    parts, own = splits_of(rows, config), {(row.user, row.item): row for row in rows}
    items = data.table("items.parquet", ["item_id"])["item_id"].to_pylist()
    scenarios = data.table("scenarios.parquet", ["scenario_id"])["scenario_id"].to_pylist()
    by_user = defaultdict(list)
    for row in rows:
        if (row.user, row.item) in parts and row.item in items:
            by_user[row.user].append(row)
    pasts, at_event, seen = Pasts(data, most, fresh), raw_of_events(data, rows, parts), 0
    for name, part in SPLITS.items():
        for batch in RowReader(data, name, events=True).in_file_order(64):
            assert batch.event_B is not None
            told = [column.tolist() for column in pasts.before(batch.event_B.numpy())]
            for event, item, scenario, label, *past in zip(
                batch.event_B.tolist(),
                batch.item_B.tolist(),
                batch.scenario_B.tolist(),
                batch.label_B,
                *told,
                strict=True,
            ):
                row = at_event[event]
                assert parts[row.user, row.item] == part
                if config.split.negatives == 0 or label > 0.5:
                    assert (row.item if row.item in items else "", row.scenario) == (items[item], scenarios[scenario])
                upto = part if fresh else TRAIN
                expected = [r for r in by_user[row.user] if r.order < row.order and parts[r.user, r.item] <= upto]
                events = [(items[i], scenarios[s], liked) for i, s, liked in zip(*past, strict=True) if i]
                seen += len(events)
                assert len(events) == min(len(expected), most)
                assert all(not i for i in past[0][len(events) :])
                orders = [own[row.user, item_id].order for item_id, _, _ in events]
                assert orders == sorted((r.order for r in expected), reverse=True)[:most]
                whole = {(r.item, r.scenario, int(config.split.negatives > 0 or r.label)) for r in expected}
                assert whole >= set(events)
                assert len(set(events)) == len(events)
    return seen


def raw_of_events(data: StageOutput, rows: list[Raw], parts: dict[tuple[str, str], int]) -> list[Raw]:
    """The raw row of each event, which is found by its user's other rows: events of unknown users and items have no id.

    The events of a partition are those of its users; a user's are in the order of time, and of the source.
    """
    own = defaultdict(list)
    for row in sorted((row for row in rows if (row.user, row.item) in parts), key=lambda row: row.order):
        own[row.user].append(row)
    items = {item: at for at, item in enumerate(data.table("items.parquet", ["item_id"])["item_id"].to_pylist())}
    told = {}
    for theirs in own.values():
        told[tuple((items.get(r.item, 0), parts[r.user, r.item]) for r in theirs)] = theirs
    assert len(told) == len(own)
    events, found, at = prepared_table(data, "events").to_pylist(), list[Raw](), 0
    while at < len(events):
        end = at + 1
        while end < len(events) and events[end]["earlier"]:
            end += 1
        found += told[tuple((event["item"], event["split"]) for event in events[at:end])]
        at = end
    return found


@every_kind
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "stale"])
@pytest.mark.parametrize("total", [1, 4])
def test_no_row_sees_itself_or_a_later_row_or_one_of_its_moment(
    tmp_path: Path, own_cache: Path, split: dict[str, Any], fresh: bool, total: int
):
    rows = raw_rows()
    one = config(tmp_path, rows, split)
    data = prepare(one)
    if total > 1:
        one, data = in_partitions(one, data, total, tmp_path / "several")
        assert partitions.count(data) == total
    seen = check_pasts(rows, one, data, fresh)
    assert seen > 500
    assert check_pasts(rows, one, data, fresh, most=3) < seen


@every_kind
def test_a_negative_sees_what_its_positive_does(tmp_path: Path, own_cache: Path, split: dict[str, Any]):
    rows = raw_rows()
    one = config(tmp_path, rows, split | {"negatives": 2}, label="")
    assert check_pasts(rows, one, prepare(one), fresh=True) > 500


def test_fresh_pasts_know_more_of_test_rows_than_stale_ones_and_no_more_of_training_rows(
    tmp_path: Path, own_cache: Path
):
    data = prepare(config(tmp_path, raw_rows(), {"kind": "time"}))
    counts = {}
    for name in SPLITS:
        event_R = prepared_table(data, name)["event"].to_numpy()
        counts[name] = [int((Pasts(data, 100, fresh).before(event_R).item_BN > 0).sum()) for fresh in (True, False)]
    assert counts["train"][0] == counts["train"][1]
    assert counts["valid"][0] > counts["valid"][1] > 0
    assert counts["test"][0] > counts["test"][1] > 0


def test_the_past_is_mapped_from_the_cache_and_made_once(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    data = prepare(config(tmp_path, raw_rows(), {"kind": "time"}))
    event_R = prepared_table(data, "test")["event"].to_numpy()
    first = Pasts(data, 5, True).before(event_R)
    monkeypatch.setattr("llm4msr.training.pasts.index_events", lambda *_: pytest.fail("built again"))
    for one, other in zip(first, Pasts(data, 5, True).before(event_R), strict=True):
        np.testing.assert_array_equal(one, other)
