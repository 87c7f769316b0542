"""The files of a bundle, written from a trained net and the data it was trained on."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import safetensors.torch
from torch import Tensor
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import AnyFloats, Column, Halves, Ints, Singles, VectorColumn
from llm4msr.bundle import id_table
from llm4msr.bundle.files import (
    CODER,
    CODES,
    DESCRIPTION,
    ITEMS,
    NET,
    PASTS,
    SELF_TEST,
    USERS,
    VERSION,
    BundleDescription,
    code_schema,
)
from llm4msr.bundle.messages import ScorerKind
from llm4msr.bundle.pasts import SCHEMA
from llm4msr.bundle.scorer import candidate_rows
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.export import user_pasts
from llm4msr.export.self_test import self_test
from llm4msr.export.user_pasts import Numbers
from llm4msr.knowledge.forget import leave_out
from llm4msr.model.net import RankerNet
from llm4msr.model.serving_fold import can_fold
from llm4msr.model.serving_net import ServingNet
from llm4msr.storage import StageResult
from llm4msr.storage.vectors import to_column
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.pasts import Pasts

NOBODY = pa.array([], pa.string())


def write_bundle(
    config: Config,
    net: RankerNet,
    data: Dataset,
    codes: Iterable[pa.Table],
    llm: dict[str, str],
    card: str,
    folder: UPath,
    forget: Column = NOBODY,
    vectors: Halves | None = None,
) -> StageResult:
    """Write a bundle's files.

    Args:
        config: of the run, whose `model` built the net.
        net: as it was trained.
        data: what it was trained on.
        codes: tables with `id` and `code`, one for each partition of the ids; none without user level, and where
            `vectors` are given, which users are then pooled from.
        llm: what made the vectors, as `llm_identity` tells.
        card: the README.md, in Markdown.
        folder: where the files go.
        forget: raw ids of users of whom nothing is written.
        vectors: of the items by their numbers, float16 [I, D], where users' vectors were pooled from them.
    """
    tables, model = data.tables, config.model
    fields, units = data.prepared.json("fields.json"), _units(net)
    pasts = Pasts(data.prepared, model.past_events, fresh=True)
    serving = ServingNet.from_trained(net, tables.fields, tables.scenarios, model)
    scorer: ScorerKind = "folded" if can_fold(serving) else "torch"
    description = BundleDescription(
        version=VERSION,
        name=config.name,
        model=model,
        fields=tables.fields,
        scenarios=data.scenario_names,
        context=fields["context"],
        pools_items=vectors is not None,
        item_dim=units.shape[1] if units is not None else 0,
        scorer=scorer,
        llm=llm,
    )
    storage.write_bytes(folder / DESCRIPTION, description.model_dump_json(indent=1).encode())
    storage.write_bytes(folder / NET, safetensors.torch.save(serving.state_dict()))
    coder = net.user_code.state_dict() if serving.uses_users else {}
    storage.write_bytes(folder / CODER, safetensors.torch.save(coder))
    files = dict.fromkeys((DESCRIPTION, NET, CODER, "README.md"), 1)
    users = (leave_out(table, forget) for table in _users(data))
    files[USERS] = id_table.write(folder / USERS, users, _users_schema(tables))
    if vectors is None:
        codes = (leave_out(table, forget) for table in codes)
    else:
        same = Numbers(np.r_[-1, 1 : len(vectors)], np.arange(tables.scenarios))
        codes = user_pasts.encode_all(data.prepared, pasts, same, vectors, net.user_code, forget)
    files[CODES] = id_table.write(folder / CODES, codes, code_schema(folder))
    rows = _candidate_rows(serving, data, units) if scorer == "folded" else None
    row_I, files[ITEMS] = _write_items(folder / ITEMS, data, {"row": rows, "unit": units, "vector": vectors})
    numbers = Numbers(row_I, np.arange(tables.scenarios))
    keeps_pasts = model.reads_pasts or vectors is not None
    events = user_pasts.read_all(data.prepared, pasts, numbers, forget) if keeps_pasts else ()
    files[PASTS] = id_table.write(folder / PASTS, events, SCHEMA)
    test = self_test(net, data, fields["context"], pasts, forget, vectors)
    storage.write_bytes(folder / SELF_TEST, test.model_dump_json(indent=1).encode())
    files[SELF_TEST] = len(test.cases)
    storage.write_bytes(folder / "README.md", card.encode())
    info = {"users_with_knowledge": files[CODES], "users_with_past": files[PASTS], "scorer": scorer}
    return StageResult(files=files, rows=files[USERS], info=info)


def _users_schema(tables: FeatureTables) -> pa.Schema:
    return id_table.table_schema({"slots": pa.list_(pa.int32(), tables.user_slots)}, {})


def _users(data: Dataset) -> Iterator[pa.Table]:
    """The users of each partition, the unknown one left out: id, and slots int32 [S]."""
    for number, users in enumerate(partitions.read_each(data.prepared, "users", ["user_id"])):
        slots = to_column(data.tables.users.open(number))
        table = users.rename_columns(["id"]).append_column("slots", slots)
        yield table.slice(1) if number == 0 else table


def _units(net: RankerNet) -> Halves | None:
    """The items' vectors by their numbers, float16 [I, D] of unit length, where the model matches them."""
    vectors = net.match.vectors if net.match is not None else None
    return None if vectors is None else vectors.unit_ID.numpy()


def _candidate_rows(serving: ServingNet, data: Dataset, units: Halves | None) -> Singles:
    """What a folded net reads of the items, by their numbers, [I, R]."""
    slots_IS = data.tables.items_IS.numpy()
    return candidate_rows(serving, slots_IS, np.zeros((len(slots_IS), 0), np.float16) if units is None else units)


def _write_items(file: UPath, data: Dataset, vectors: Mapping[str, AnyFloats | None]) -> tuple[Ints, int]:
    """Write the items with these numbers; gives back the row of each item number in the file, [I], and the rows."""
    items = data.prepared.table("items.parquet", ["item_id", "title"]).slice(1).rename_columns(["id", "title"])
    columns = {"slots": _slots(data.tables.items_IS[1:])}
    columns |= {name: to_column(vectors_ID[1:]) for name, vectors_ID in vectors.items() if vectors_ID is not None}
    schema = id_table.table_schema({"title": pa.large_string(), **{n: c.type for n, c in columns.items()}}, {})
    row_I = np.r_[-1, id_table.rows_of(items["id"])]
    for name, column in columns.items():
        items = items.append_column(name, column)
    return row_I, id_table.write(file, [items], schema)


def _slots(slots_NS: Tensor) -> VectorColumn:
    return to_column(slots_NS.numpy().astype(np.int32))
