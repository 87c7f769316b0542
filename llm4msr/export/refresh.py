"""What is newly known of users, for a bundle that is being served: nothing is trained, and no endpoint restarts.

<storage>/export/<bundle>/             what endpoints serve
<storage>/codes/<bundle>/<version>/    a folder for each refresh: codes of newer knowledge, newer events, or both, and
                                       users' newer features
<storage>/codes/<bundle>/latest.json   which of them endpoints shall use; they look now and then

Where users are pooled from items, newer events give newer codes by the vectors of the bundle, and no LLM is asked.
"""

import json
from functools import partial
from typing import NamedTuple

import numpy as np
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import Column, strings
from llm4msr.bundle import files, id_table
from llm4msr.bundle.files import LATEST, BundleDescription, codes_root
from llm4msr.bundle.id_table import IdTable, Partition
from llm4msr.bundle.user_features import UserFeatures
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.export import partition_tables, user_codes, user_features, user_pasts
from llm4msr.export.export import llm_identity
from llm4msr.export.user_pasts import Numbers, Source
from llm4msr.knowledge.forget import ids_to_forget, leave_out
from llm4msr.storage import StageOutput, StageResult
from llm4msr.storage.local_copy import open_local


class Served(NamedTuple):
    """A bundle in service."""

    output: StageOutput
    description: BundleDescription

    @classmethod
    def open(cls, output: StageOutput) -> "Served":
        """From its finished output."""
        return cls(output, files.read_description(output.folder, output.checksum(files.DESCRIPTION)))

    @property
    def needs_knowledge(self) -> bool:
        """Whether newer codes are made of newer vectors."""
        return self.description.model.reads_codes and not self.description.pools_items


@ray_session.unwrap_errors
def refresh(config: Config, prepared: StageOutput, knowledge: StageOutput | None, served: Served) -> StageOutput:
    """Publish what is newly known of all users, and point the bundle's endpoints to it.

    Args:
        config: the run's.
        prepared: newer data, whose events are read if the model reads any.
        knowledge: newer vectors, where the bundle needs them.
        served: the bundle.

    Raises:
        ConfigError: the bundle was trained on vectors of another LLM, or its model knows nothing of users.
        StorageError: the bundle is damaged.
    """
    output, description = served
    reads_events = description.model.reads_pasts or description.pools_items
    if not (description.model.reads_codes or reads_events):
        raise ConfigError(f"{output.folder}: this model keeps nothing of its users, so there is nothing to refresh")
    if knowledge is not None:
        check_origin(config, knowledge, served)
    inputs = {"prepare": prepared.manifest.fingerprint, "export": output.folder.name}
    inputs |= {} if knowledge is None else {"extract": knowledge.manifest.fingerprint}
    forget = ids_to_forget(config)
    vectors = "" if knowledge is None else knowledge.content  # rows that had failed may have been asked once more
    name = storage.digest_json([inputs, vectors, strings(forget)])[:12]

    def build(at: UPath) -> StageResult:
        rows = {}
        if knowledge is not None:
            coder = files.read_coder(output.folder, description, output.checksum(files.CODER))
            codes = (leave_out(table, forget) for table in user_codes.encode_all(knowledge, coder))
            rows[files.CODES] = id_table.write(at / files.CODES, codes, files.code_schema(output.folder))
        if reads_events:
            rows |= _write_events(config, prepared, served, at)
        if description.user_features:
            rows[files.USERS] = _write_users(prepared, served, at, forget)
        return StageResult(files=rows, rows=max(rows.values()))

    made = storage.publish(codes_root(output.folder) / name, "refresh", config.seed, {}, inputs, build)
    storage.write_bytes(codes_root(output.folder) / LATEST, json.dumps({"codes": name}).encode())
    return made


def check_origin(config: Config, knowledge: StageOutput, served: Served) -> None:
    """Refuse vectors that a bundle was not trained on.

    Raises:
        ConfigError: names what differs.
    """
    there, here = served.description.llm, llm_identity(config, knowledge)
    if here != there:
        differ = ", ".join(f"{k}: {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v)
        raise ConfigError(
            f"{served.output.folder}: trained on vectors of another origin ({differ}); train and export again"
        )


def _write_events(config: Config, prepared: StageOutput, served: Served, at: UPath) -> dict[str, int]:
    """The files of users' events, and of codes that are pooled from them; gives back the rows of each."""
    local, description = open_local(str(served.output.folder)), served.description  # held as long as it is mapped
    items, forget = files.read_items(local.folder), ids_to_forget(config)
    numbers, bundle = _numbers(prepared, items, description), storage.path(local.folder)
    source = Source(prepared, description.model.past_events, numbers, forget)
    total, rows = partitions.count(prepared), {}
    events = partial(user_pasts.events_of, source=source)
    rows[files.PASTS] = partition_tables.write(at / files.PASTS, events, total, files.past_schema(bundle))
    if description.pools_items and description.model.reads_codes:
        coder, vectors = files.read_coder(bundle, description), items.numbers["vector"]
        codes = partial(user_pasts.codes_of, source=source, vector_ID=vectors, coder=coder)
        rows[files.CODES] = partition_tables.write(at / files.CODES, codes, total, files.code_schema(bundle))
    return rows


def _write_users(prepared: StageOutput, served: Served, at: UPath, forget: Column) -> int:
    """The file of users' features; gives back its rows."""
    local = open_local(str(served.output.folder))
    features = UserFeatures(served.description.fields, served.description.user_features)
    users = user_features.read_all(prepared, features, IdTable(local.folder / files.USERS), forget)
    return id_table.write(at / files.USERS, users, files.user_schema(served.output.folder))


def _numbers(prepared: StageOutput, items: Partition, description: BundleDescription) -> Numbers:
    """What the numbers of prepared data are in the bundle, found by their raw ids."""
    item_ids = strings(prepared.table("items.parquet", ["item_id"])["item_id"])[1:]
    names = strings(prepared.table("scenarios.parquet", ["scenario_id"])["scenario_id"])
    known = {name: number for number, name in enumerate(description.scenarios)}
    return Numbers(np.r_[-1, items.find_all(item_ids)], np.array([known.get(name, 0) for name in names]))
