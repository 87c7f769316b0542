"""Prepared data of one partition laid out in several, as `prepare` lays out larger data: the same rows, renumbered."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import schema, storage
from llm4msr.arrays import Ints, strings
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data.partitions import PARTITIONED
from llm4msr.data.prepare import folder as prepare_folder
from llm4msr.data.split import SPLITS
from llm4msr.knowledge.extract import folder as extract_folder
from llm4msr.storage import StageOutput, StageResult
from llm4msr.training.trained import TrainedModel
from tests.support.data import publish_knowledge


def in_partitions(config: Config, data: StageOutput, total: int, root: Any) -> tuple[Config, StageOutput]:
    """The config with its storage at `root`, and there its prepared `data` in `total` partitions."""
    config = config.model_copy(update={"storage": str(root)})
    return config, split(data, prepare_folder(config), total)


def split(data: StageOutput, folder: Any, total: int) -> StageOutput:
    """Publish prepared data, which has one partition, in `total`, a power of two; rows keep their order in each.

    Unknown users are dealt to all partitions, since each belongs where the hash of its id says.
    """
    tables = {name: data.table(partitions.file_name(name, 0)) for name in PARTITIONED}
    home_N = partitions.numbers_of(partitions.hash_ids(strings(tables["users"]["user_id"])), total)
    home_N[0] = 0
    place_N, home_S = _places(home_N), home_N[tables["seen"]["user"].to_numpy()]
    place_S = np.r_[0, _places(home_S) + 1]  # 0: not seen
    user_E, earlier_E = (tables["events"][name].to_numpy() for name in ("user", "earlier"))
    home_E = np.where(user_E == 0, np.cumsum(earlier_E == 0) % total, home_N[user_E])
    place_E = _places(home_E)

    def renumber(table: pa.Table, number: int) -> pa.Table:
        place_N[0] = -int(np.count_nonzero(home_N < number))  # so that it is number 0 once the offset is added
        for name, places in (("user", place_N), ("seen", place_S), ("event", place_E)):
            if name in table.column_names:
                at = table.column_names.index(name)
                table = table.set_column(at, name, pa.array(places[table[name].to_numpy()]))
        return table

    def build(at: UPath) -> StageResult:
        files: dict[str, int | storage.FileRecord] = {}
        for name, table in tables.items():
            size = schema.TRAIN_GROUP_ROWS if name == "train" else storage.GROUP_ROWS
            home_R = home_E if name == "events" else home_N[table["user"].to_numpy()]
            if name in SPLITS:
                home_R = home_E[table["event"].to_numpy()]
            for number in range(total):
                file = partitions.file_name(name, number)
                rows = renumber(table.filter(pa.array(home_R == number)), number)
                files[file] = storage.write_table(at / file, rows, size)
        for name in data.manifest.files:
            if "/" not in name:
                storage.write_bytes(at / name, data.read(name))
                files[name] = data.manifest.files[name]
        m = data.manifest
        return StageResult(files=files, rows=m.rows, failed=m.failed, skipped=m.skipped, info=m.info)

    m = data.manifest
    return storage.publish(storage.path(folder), "prepare", m.seed, m.config, m.inputs, build)


def _places(home_R: Ints) -> Ints:
    """Each row's place among those of its partition: int64 [R]."""
    places = np.zeros(len(home_R), np.int64)
    for number in np.unique(home_R):
        rows = home_R == number
        places[rows] = np.arange(rows.sum())
    return places


def rows_by_raw_id(data: StageOutput, name: str) -> pa.Table:
    """A table of all partitions with `user_id` for `user`, without `seen` and `event`, sorted by all flat columns."""
    users = pa.concat_tables(partitions.read_each(data, "users", ["user_id"]))["user_id"]
    table = pa.concat_tables(partitions.read_each(data, name))
    table = table.set_column(0, "user", users.take(table["user"]))
    table = table.drop_columns([column for column in ("seen", "event") if column in table.column_names])
    flat = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    return table.take(pc.sort_indices(table, [(column, "ascending") for column in flat])).combine_chunks()


def model_in_partitions(model: TrainedModel, total: int, root: Any) -> TrainedModel:
    """A model of data in one partition, with data and knowledge laid out in several."""
    config, data = in_partitions(model.config, model.prepared, total, root)
    if model.extracted is None:
        return TrainedModel(config, data, None, model.output)
    shards, offset_P = dict[str, pa.Table](), partitions.offsets(data, "users")
    for name in (name for name in model.extracted.manifest.files if name.startswith("vectors/")):
        table = model.extracted.table(name)
        if "/users-" not in name:
            shards[name.rpartition("/")[2]] = table
            continue
        numbers = partitions.find_users(data, strings(table["raw_id"]))
        number_N = np.array([numbers[raw_id] for raw_id in strings(table["raw_id"])])
        home_N = np.searchsorted(offset_P, number_N, side="right") - 1
        table = table.set_column(table.column_names.index("id"), "id", pa.array(number_N - offset_P[home_N]))
        for number in range(total):
            shards[f"users-{number:05d}-{len(shards):09d}.parquet"] = table.filter(pa.array(home_N == number))
    width = model.extracted.manifest.info["width"]
    return TrainedModel(config, data, publish_knowledge(extract_folder(config, data), shards, width), model.output)
