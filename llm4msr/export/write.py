"""The files of a bundle, written from a trained net and the data it was trained on."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from upath import UPath

from llm4msr import storage
from llm4msr.bundle import id_table
from llm4msr.bundle.files import (
    CODER,
    CODES,
    DESCRIPTION,
    ITEMS,
    NET,
    SELF_TEST,
    USERS,
    VERSION,
    BundleConfig,
    Case,
    SelfTest,
    code_schema,
)
from llm4msr.bundle.messages import RankRequest
from llm4msr.config import Config
from llm4msr.model.net import RankerNet
from llm4msr.model.serving_net import ServingNet
from llm4msr.storage import StageResult
from llm4msr.storage.vectors import to_column
from llm4msr.training.batches import Rows
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables


def write(
    config: Config,
    net: RankerNet,
    data: Dataset,
    codes: Iterable[pa.Table],
    llm: dict[str, str],
    card: str,
    folder: UPath,
) -> StageResult:
    """Write a bundle's files. `codes` are tables of `code_schema`, ascending by id; none without user level."""
    tables, model = data.tables, config.model
    fields = data.prepared.json("fields.json")
    described = BundleConfig(
        version=VERSION,
        name=config.name,
        model=model,
        fields=tables.fields,
        scenarios=data.scenario_names,
        context=fields["context"],
        llm=llm,
    )
    serving = ServingNet.from_trained(net, tables.fields, tables.scenarios, model)
    storage.write_bytes(folder / DESCRIPTION, described.model_dump_json(indent=1).encode())
    storage.write_bytes(folder / NET, safetensors.torch.save(serving.state_dict()))
    coder = net.user_code.state_dict() if serving.uses_users else {}
    storage.write_bytes(folder / CODER, safetensors.torch.save(coder))
    files = dict.fromkeys((DESCRIPTION, NET, CODER, "README.md"), 1)
    files[USERS] = id_table.write(folder / USERS, [_users(data)], _users_schema(tables))
    files[CODES] = id_table.write(folder / CODES, codes, code_schema(folder))
    files[ITEMS] = _write_items(folder / ITEMS, data)
    expected = self_test(net, data, fields["context"])
    storage.write_bytes(folder / SELF_TEST, expected.model_dump_json(indent=1).encode())
    files[SELF_TEST] = len(expected.cases)
    storage.write_bytes(folder / "README.md", card.encode())
    return StageResult(files=files, rows=files[USERS], info={"users_with_knowledge": files[CODES]})


def _users_schema(tables: FeatureTables) -> pa.Schema:
    return id_table.schema({"slots": pa.list_(pa.int32(), tables.users_US.shape[1])}, {})


def _users(data: Dataset) -> pa.Table:
    """The users of the training rows, sorted by id; whoever is not there has the features of the unknown one."""
    raw = data.prepared.table("users.parquet", ["user_id"])["user_id"].combine_chunks()
    order = np.asarray(pc.sort_indices(raw))
    order = order[order != 0]
    slots_US = data.tables.users_US.numpy()[order].astype(np.int32)
    return pa.table({"id": raw.take(pa.array(order)).cast(pa.large_string()), "slots": to_column(slots_US)})


def _write_items(file: UPath, data: Dataset) -> int:
    table = data.prepared.table("items.parquet", ["item_id", "title"])
    slots_IS = data.tables.items_IS.numpy().astype(np.int32)
    storage.write_table(file, table.append_column("slots", to_column(slots_IS)))
    return table.num_rows


CASE_USERS, CASE_ITEMS = 4, 8
"""Of the self-test."""


@torch.inference_mode()
def self_test(net: RankerNet, data: Dataset, context: dict[str, list[str]]) -> SelfTest:
    """Cases of every scenario, for users spread over the vocabulary and the unknown one, scored by the trained net."""
    net.eval()
    raw = {
        side: data.prepared.table(f"{side}s.parquet", [f"{side}_id"])[f"{side}_id"].to_pylist()
        for side in ("user", "item")
    }
    users = np.linspace(0, len(raw["user"]) - 1, CASE_USERS).astype(int).tolist()
    items = np.unique(np.linspace(0, len(raw["item"]) - 1, CASE_ITEMS).astype(int))[1:].tolist() or [0]
    values = {name: islice(known, 1) for name, known in context.items()}
    first: dict[str, Any] = {name: next(known, "") for name, known in values.items()}
    cases = []
    for scenario in range(len(data.scenario_names)):
        user = users[scenario % len(users)]
        request = RankRequest(
            user_id=raw["user"][user],
            scenario=data.scenario_names[scenario],
            items=[raw["item"][item] for item in items],
            context={name: value for name, value in first.items() if value},
        )
        item_B = torch.tensor(items)
        known_C = torch.tensor([int(bool(value)) for value in first.values()], dtype=torch.int64)
        rows = Rows(
            torch.full_like(item_B, user),
            item_B,
            torch.full_like(item_B, scenario),
            torch.zeros(len(items)),
            known_C.expand(len(items), -1),
        )
        batch = data.batch(rows, net)
        cases.append(Case(request=request, scores=torch.sigmoid(net(batch)).tolist()))
    return SelfTest(cases=cases)
