"""The files of a bundle, written from a trained net and the data it was trained on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial

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
from llm4msr.export import partition_tables, user_pasts
from llm4msr.export.as_trained import AsTrained
from llm4msr.export.calibration import Calibrated
from llm4msr.export.self_test import self_test
from llm4msr.export.user_pasts import Numbers, Source
from llm4msr.knowledge.forget import leave_out
from llm4msr.model.embedding import slot_starts
from llm4msr.model.net import RankerNet
from llm4msr.model.serving_fold import can_fold
from llm4msr.model.serving_net import Lines, ServingNet
from llm4msr.storage import StageOutput, StageResult
from llm4msr.storage.vectors import to_column
from llm4msr.training.dataset import Dataset
from llm4msr.training.pasts import Pasts
from llm4msr.training.user_features import UserFeatures


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

    def events(self, row_I: Ints) -> Source:
        """Users' latest events, in the numbers of the bundle, given the row of each item."""
        numbers = Numbers(row_I, np.arange(self.data.tables.scenarios))
        return Source(self.data.prepared, self.config.model.past_events, numbers, self.forget)


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
    files[USERS] = _write_users(folder / USERS, sources)
    files[CODES] = _write_codes(folder / CODES, sources)
    row_I, files[ITEMS] = _write_items(folder / ITEMS, sources, serving if description.scorer == "folded" else None)
    files[PASTS] = _write_events(folder / PASTS, sources, row_I)
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


def _write_users(file: UPath, sources: Sources) -> int:
    """The features of users."""
    tables, prepared = sources.data.tables, sources.data.prepared
    features, start_S = UserFeatures(prepared, sources.config.model), slot_starts(tables.fields, "user")
    make = partial(_users_of, prepared=prepared, features=features, start_S=start_S, forget=sources.forget)
    schema = id_table.table_schema({"slots": pa.list_(pa.int32(), tables.user_slots)}, {})
    return partition_tables.write(file, make, partitions.count(prepared), schema)


def _users_of(partition: int, prepared: StageOutput, features: UserFeatures, start_S: Ints, forget: Column) -> pa.Table:
    """The users of a partition, the unknown one left out: id, and slots int32 [S]."""
    ids = partitions.read(prepared, "users", partition, ["user_id"])["user_id"]
    slots_NS = features.numbers(partition) + start_S
    table = pa.table([ids, to_column(slots_NS.astype(np.int32))], ["id", "slots"])
    return leave_out(table.slice(1) if partition == 0 else table, forget)


def _write_codes(file: UPath, sources: Sources) -> int:
    """The codes of users, pooled from the items where these have the vectors."""
    schema = code_schema(file.parent)
    if sources.vectors is None:
        return id_table.write(file, (leave_out(table, sources.forget) for table in sources.codes), schema)
    source = sources.events(np.r_[-1, 1 : len(sources.vectors)])
    make = partial(user_pasts.codes_of, source=source, vector_ID=sources.vectors, coder=sources.net.user_code)
    return partition_tables.write(file, make, partitions.count(source.prepared), schema)


def _write_events(file: UPath, sources: Sources, row_I: Ints) -> int:
    """The latest events of users, where the model reads them or codes are pooled from them."""
    if not sources.config.model.reads_pasts and sources.vectors is None:
        return id_table.write(file, (), SCHEMA)
    make = partial(user_pasts.events_of, source=sources.events(row_I))
    return partition_tables.write(file, make, partitions.count(sources.data.prepared), SCHEMA)


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
