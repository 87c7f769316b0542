"""Bundles of models that match pasts, of rows whose every event is known to the test too."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.export.write import Sources, write_bundle
from llm4msr.knowledge.item_vectors import of_unit_length
from llm4msr.knowledge.pooling import pool
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.model.inputs import Past
from llm4msr.model.net import RankerNet
from llm4msr.pipeline import prepare
from llm4msr.storage import StageOutput, StageResult
from llm4msr.storage.vectors import to_column
from llm4msr.training.batches import to_batch
from llm4msr.training.dataset import Dataset, scenario_names
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.pasts import Pasts
from llm4msr.training.row_files import Rows
from tests.support.data import SCENARIOS, WIDTH, config_of, write_data
from tests.support.partitioned import in_partitions

PARTS = ("candidate", "cosines", "attention", "ids")
USERS, ITEMS, PAST_EVENTS = 12, 15, 8
VECTORS = np.random.default_rng(7).standard_normal((ITEMS + 1, WIDTH // 2)).astype(np.float16)
"""By item number; two items have none."""
VECTORS[[0, 2, 9]] = 0
Event = tuple[str, str, bool]
"""Item, scenario, and whether it was liked."""


class Matching(NamedTuple):
    """A bundle, what it was made of, and all events of each user, the oldest first."""

    output: StageOutput
    data: Dataset
    net: RankerNet
    events: dict[str, list[Event]]


def publish_matching(
    folder: Path, total: int = 1, forget: list[str] | None = None, pooled: bool = False, **model: Any
) -> Matching:
    """A bundle of a net with random parameters over data of `total` partitions; some items have no vector.

    `pooled` says whether it has what pools users from items.
    """
    rng, events = np.random.default_rng(3), dict[str, list[Event]]()
    for user in range(USERS):
        drawn = zip(rng.integers(ITEMS, size=3 + 2 * user), rng.integers(2, size=3 + 2 * user), strict=True)
        events[f"u{user}"] = [(f"i{item}", SCENARIOS[scenario], bool(rng.random() < 0.7)) for item, scenario in drawn]
    config, prepared = prepare_events(folder, events, total, {"match": PARTS} | model)
    data = _dataset(config, prepared)
    net = data.new_net(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    codes = [_codes(net.eval(), data)] if net.uses_users and not pooled else []

    def build(at: Any) -> StageResult:
        forgotten = pa.array(forget or [], pa.string())
        return write_bundle(Sources(config, net, data, codes, VECTORS if pooled else None, forgotten), at, {}, "# card")

    output = storage.publish(storage.path(folder / "export" / f"bundle-{total}"), "export", 1, {}, {}, build)
    return Matching(output, data, net.eval(), events)


def prepare_events(
    folder: Path, events: dict[str, list[Event]], total: int = 1, model: dict[str, Any] | None = None
) -> tuple[Config, StageOutput]:
    """Prepared data of these events in `total` partitions, and its config, whose model has no match by default."""
    rows = [
        [user, item, scenario, int(liked), at, "tv"]
        for user, told in events.items()
        for at, (item, scenario, liked) in enumerate(told)
    ]
    model = {"past_events": PAST_EVENTS, "dropout": 0.0} | (model or {})
    at = write_data(folder, rows, ITEMS, USERS)
    config = config_of(at, split={"by": "user"}, extract={"reads": "items"}, model=model)
    prepared = prepare(config)
    return in_partitions(config, prepared, total, folder / "parts") if total > 1 else (config, prepared)


def _dataset(config: Config, prepared: StageOutput) -> Dataset:
    rng = np.random.default_rng(2)
    users, scenarios = partitions.rows(prepared, "users"), prepared.manifest.info["scenarios"]
    vectors = [rng.standard_normal((rows, WIDTH)).astype(np.float16) for rows in (users, scenarios)]
    store = KnowledgeStore.in_memory(vectors[0], np.arange(users) > 0, vectors[1])
    store.items_ID = of_unit_length(rng.standard_normal((ITEMS + 1, 6)).astype(np.float16))
    store.items_ID[[0, 2, 9]] = 0
    pasts = Pasts(prepared, config.model.past_events, True)
    return Dataset(prepared, FeatureTables.open(prepared, config.model), scenario_names(prepared), store, pasts)


@torch.inference_mode()
def _codes(net: RankerNet, data: Dataset) -> pa.Table:
    assert data.knowledge is not None
    users = np.arange(1, len(data.tables.users))
    codes = net.user_codes(*data.knowledge.lookup(torch.from_numpy(users))).half().numpy()
    ids = pa.array(partitions.raw_ids(data.prepared, users), pa.large_string())
    return pa.table({"id": ids, "code": to_column(codes)})


@torch.inference_mode()
def trained_scores(
    made: Matching, user: str, scenario: str, items: list[str], past: list[Event], pooled: list[Event] | None = None
) -> list[float]:
    """What the net as it trained says of these items for a user of that past; unknown ids are number 0.

    `pooled` are the events that the user's vector is pooled from, where it is not the prepared one.
    """
    item_of = _numbers(strings(made.data.prepared.table("items.parquet")["item_id"]))
    scenario_of = _numbers(made.data.scenario_names)
    user_number = partitions.find_users(made.data.prepared, [user]).get(user, 0)
    item_B = torch.tensor([item_of.get(item, 0) for item in items])
    scenario_B = torch.full_like(item_B, scenario_of.get(scenario, 0))
    context_BC = torch.zeros((len(items), 1), dtype=torch.int64)
    rows = Rows(torch.full_like(item_B, user_number), item_B, scenario_B, torch.zeros(len(items)), context_BC)
    batch = to_batch(rows, made.data.tables, made.data.knowledge if made.net.uses_users else None)
    if pooled is not None:
        seen, liked = np.array([item_of.get(item, 0) for item, _, _ in pooled]), np.array([e[2] for e in pooled])
        known = VECTORS[seen].any(1)
        z_1Z = pool(VECTORS[seen], liked, known, np.array([0]), np.array([len(pooled)])).astype(np.float16)
        batch = batch._replace(z_NZ=torch.from_numpy(z_1Z), known_N=torch.from_numpy(known.any(keepdims=True)))
    item_N = torch.tensor([item_of.get(item, 0) for item, _, _ in past] or [0])
    scenario_N = torch.tensor([scenario_of.get(scenario, 0) for _, scenario, _ in past] or [0])
    liked_N = torch.tensor([liked for _, _, liked in past] or [False])
    columns = (item_N, made.data.tables.item_places(item_N), scenario_N, liked_N)
    if made.net.match is not None:
        batch = batch._replace(past=Past(item_B, *(column.expand(len(items), -1) for column in columns)))
    return torch.sigmoid(made.net(batch)).tolist()


def _numbers(ids: list[str]) -> dict[str, int]:
    return {raw_id: number for number, raw_id in enumerate(ids)}
