"""The files of a bundle, written from a trained net and the data it was trained on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import safetensors.torch
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Column, Halves, Ints
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
from llm4msr.bundle.pasts import SCHEMA
from llm4msr.bundle.scorer import candidate_rows
from llm4msr.config import Config
from llm4msr.data import catalogue, partitions
from llm4msr.export import user_pasts
from llm4msr.export.as_trained import AsTrained
from llm4msr.export.calibration import Calibrated
from llm4msr.export.self_test import self_test
from llm4msr.export.user_pasts import Numbers
from llm4msr.knowledge.forget import leave_out
from llm4msr.model.net import RankerNet
from llm4msr.model.serving_fold import can_fold
from llm4msr.model.serving_net import Lines, ServingNet
from llm4msr.storage import StageResult
from llm4msr.storage.vectors import to_column
from llm4msr.training.dataset import Dataset
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.pasts import Pasts


@dataclass(frozen=True)
class Sources:
    """What a bundle is made of."""

    config: Config
    """Of the run, whose `model` built the net."""
    net: RankerNet
    """As it was trained."""
    data: Dataset
    """What it was trained on."""
    codes: Iterable[pa.Table] = ()
    """Tables with `id` and `code`, one for each partition; none without user level, and where `vectors` are given."""
    vectors: Halves | None = None
    """Of the items by their numbers, float16 [I, D], where users' vectors were pooled from them."""
    forget: Column = field(default_factory=lambda: pa.array([], pa.string()))
    """Raw ids of users of whom nothing is written."""
    calibrated: Calibrated | None = None
    """What makes probabilities of the net's scores; None where these stay as they are."""

    @property
    def lines(self) -> Lines | None:
        """What calibrates the net's logits."""
        return None if self.calibrated is None else self.calibrated.lines

    @cached_property
    def pasts(self) -> Pasts:
        """The latest events of all users."""
        return Pasts(self.data.prepared, self.config.model.past_events, fresh=True)

    @cached_property
    def units(self) -> Halves | None:
        """The items' vectors by their numbers, float16 [I, D] of unit length, where the model matches them."""
        vectors = self.net.match.vectors if self.net.match is not None else None
        return None if vectors is None else vectors.unit_ID.numpy()

    @cached_property
    def context(self) -> dict[str, list[str]]:
        """The known values of each context field."""
        context: dict[str, list[str]] = self.data.prepared.json("fields.json")["context"]
        return context

    def numbers(self, row_I: Ints) -> Numbers:
        """What the numbers of the data are in the bundle, given the row of each item."""
        return Numbers(row_I, np.arange(self.data.tables.scenarios))


def write_bundle(sources: Sources, folder: UPath, llm: dict[str, str], card: str) -> StageResult:
    """Write a bundle's files.

    Args:
        sources: what it is made of.
        folder: where the files go.
        llm: what made the vectors, as `llm_identity` tells.
        card: the README.md, in Markdown.
    """
    description, serving = _write_net(sources, folder, llm)
    storage.write_bytes(folder / "README.md", card.encode())
    files = dict.fromkeys((DESCRIPTION, NET, CODER, "README.md"), 1)
    users = (leave_out(table, sources.forget) for table in _users(sources.data))
    files[USERS] = id_table.write(folder / USERS, users, _users_schema(sources.data.tables))
    files[CODES] = id_table.write(folder / CODES, _codes(sources), code_schema(folder))
    row_I, files[ITEMS] = _write_items(folder / ITEMS, sources, serving if description.scorer == "folded" else None)
    files[PASTS] = id_table.write(folder / PASTS, _events(sources, row_I), SCHEMA)
    trained = AsTrained(sources.net, sources.data, sources.vectors, sources.lines)
    test = self_test(trained, sources.context, sources.pasts, sources.forget)
    storage.write_bytes(folder / SELF_TEST, test.model_dump_json(indent=1).encode())
    files[SELF_TEST] = len(test.cases)
    info: dict[str, object] = {
        "users_with_knowledge": files[CODES],
        "users_with_past": files[PASTS],
        "scorer": description.scorer,
        "calibration": description.model_dump()["calibration"],
    }
    return StageResult(files=files, rows=files[USERS], info=info)


def _write_net(sources: Sources, folder: UPath, llm: dict[str, str]) -> tuple[BundleDescription, ServingNet]:
    """Write the net, the coder of users' vectors, and the description of both."""
    config, net, tables = sources.config, sources.net, sources.data.tables
    serving = ServingNet.from_trained(net, tables.fields, tables.scenarios, config.model, sources.lines)
    description = BundleDescription(
        version=VERSION,
        name=config.name,
        model=config.model,
        fields=tables.fields,
        scenarios=sources.data.scenario_names,
        context=sources.context,
        user_features=catalogue.feature_words(sources.data.prepared, "user"),
        pools_items=sources.vectors is not None,
        item_dim=sources.units.shape[1] if sources.units is not None else 0,
        scorer="folded" if can_fold(serving) else "torch",
        calibration=sources.calibrated.report if sources.calibrated is not None else None,
        llm=llm,
    )
    storage.write_bytes(folder / DESCRIPTION, description.model_dump_json(indent=1).encode())
    storage.write_bytes(folder / NET, safetensors.torch.save(serving.state_dict()))
    coder = net.user_code.state_dict() if serving.uses_users else {}
    storage.write_bytes(folder / CODER, safetensors.torch.save(coder))
    return description, serving


def _codes(sources: Sources) -> Iterable[pa.Table]:
    """The codes of users, pooled from the items where these have the vectors."""
    if sources.vectors is None:
        return (leave_out(table, sources.forget) for table in sources.codes)
    every = sources.numbers(np.r_[-1, 1 : len(sources.vectors)])
    prepared, coder = sources.data.prepared, sources.net.user_code
    return user_pasts.encode_all(prepared, sources.pasts, every, sources.vectors, coder, sources.forget)


def _events(sources: Sources, row_I: Ints) -> Iterable[pa.Table]:
    """The latest events of users, where the model reads them or codes are pooled from them."""
    if not sources.config.model.reads_pasts and sources.vectors is None:
        return ()
    return user_pasts.read_all(sources.data.prepared, sources.pasts, sources.numbers(row_I), sources.forget)


def _users_schema(tables: FeatureTables) -> pa.Schema:
    return id_table.table_schema({"slots": pa.list_(pa.int32(), tables.user_slots)}, {})


def _users(data: Dataset) -> Iterator[pa.Table]:
    """The users of each partition, the unknown one left out: id, and slots int32 [S]."""
    for number, users in enumerate(partitions.read_each(data.prepared, "users", ["user_id"])):
        slots = to_column(data.tables.users.open(number))
        table = users.rename_columns(["id"]).append_column("slots", slots)
        yield table.slice(1) if number == 0 else table


def _write_items(file: UPath, sources: Sources, folded: ServingNet | None) -> tuple[Ints, int]:
    """Write the items, with what a folded net reads of them; gives back the row of each number, [I], and the rows."""
    data, units, vectors = sources.data, sources.units, sources.vectors
    slots_IS = data.tables.items_IS.numpy()
    columns = {"slots": to_column(slots_IS[1:].astype(np.int32))}
    if folded is not None:
        none_I0 = np.zeros((len(slots_IS), 0), np.float16)
        columns["row"] = to_column(candidate_rows(folded, slots_IS, none_I0 if units is None else units)[1:])
    if units is not None:
        columns["unit"] = to_column(units[1:])
    if vectors is not None:
        columns["vector"] = to_column(vectors[1:])
    items = data.prepared.table("items.parquet", ["item_id", "title"]).slice(1).rename_columns(["id", "title"])
    row_I = np.r_[-1, id_table.rows_of(items["id"])]
    for name, column in columns.items():
        items = items.append_column(name, column)
    schema = id_table.table_schema({"title": pa.large_string(), **{n: c.type for n, c in columns.items()}}, {})
    return row_I, id_table.write(file, [items], schema)
