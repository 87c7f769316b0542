"""What serving loads: weights, vocabularies and user codes in one folder, with no LLM in the path.

    bundle.json            how to build the net, scenarios, context values, which LLM was read
    net.safetensors        the net as it serves, its scenario level folded
    coder.safetensors      what turns an LLM vector into a user's code: for codes of newer knowledge
    users.arrow            id -> places of a user's features in the embedding table      (id_table.py)
    codes.arrow            id -> code, float16 [K], of each user with knowledge          (id_table.py)
    items.parquet          id, title, places of an item's features; row i is item i, row 0 the unknown one
    selftest.json          requests and the scores that the trained net gave; every load repeats them
    README.md              the model card

The files of users are memory-mapped, so a machine's replicas share one copy.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from llm4msr import id_table, selftest, storage
from llm4msr.config import BACKBONES, Config, ModelConfig
from llm4msr.errors import ConfigError, StorageError
from llm4msr.features import FeatureTables, Field
from llm4msr.fit import Data
from llm4msr.id_table import IdTable
from llm4msr.meta import KnowledgeCode
from llm4msr.ranker import RankerNet
from llm4msr.serving_net import ServingNet
from llm4msr.storage import Built
from llm4msr.text import shortened

VERSION = 4
NET, CODER, USERS, CODES = "net.safetensors", "coder.safetensors", "users.arrow", "codes.arrow"
ITEMS, DESCRIPTION, SELF_TEST = "items.parquet", "bundle.json", "selftest.json"


class BundleConfig(BaseModel):
    """What is needed to build the net again, and to understand a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: int
    name: str
    model: ModelConfig
    fields: list[Field]
    scenarios: list[str]
    """Their names by number; the first, the unknown one's, is empty."""
    context: dict[str, list[str]]
    """Values of each context field; number 0 is unknown, the first value is 1."""
    llm: dict[str, str] = {}
    """What made the vectors: newer knowledge must come from the same."""


def write(
    config: Config,
    net: RankerNet,
    data: Data,
    codes: Iterable[pa.Table],
    llm: dict[str, str],
    card: str,
    folder: UPath,
) -> Built:
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
    serving = ServingNet.of(net, tables.fields, tables.scenarios, model)
    storage.write_bytes(folder / DESCRIPTION, described.model_dump_json(indent=1).encode())
    storage.write_bytes(folder / NET, safetensors.torch.save(serving.state_dict()))
    coder = net.user_code.state_dict() if serving.uses_users else {}
    storage.write_bytes(folder / CODER, safetensors.torch.save(coder))
    files = dict.fromkeys((DESCRIPTION, NET, CODER, "README.md"), 1)
    files[USERS] = id_table.write(folder / USERS, [_users(data)], _users_schema(tables))
    files[CODES] = id_table.write(folder / CODES, codes, code_schema(folder))
    files[ITEMS] = _write_items(folder / ITEMS, data)
    expected = selftest.made(net, data, fields["context"])
    storage.write_bytes(folder / SELF_TEST, expected.model_dump_json(indent=1).encode())
    files[SELF_TEST] = len(expected.cases)
    storage.write_bytes(folder / "README.md", card.encode())
    return Built(files=files, rows=files[USERS], info={"users_with_knowledge": files[CODES]})


def code_schema(bundle: UPath) -> pa.Schema:
    """Of codes that this bundle's coder makes: id and code float16 [K]; they are of use to its net alone."""
    coder = storage.digest_file(bundle / CODER)
    return id_table.schema({"code": pa.list_(pa.float16(), _code_dim(bundle))}, {"coder": coder})


def _code_dim(bundle: UPath) -> int:
    return read_description(bundle).model.code_dim


def _users_schema(tables: FeatureTables) -> pa.Schema:
    return id_table.schema({"slots": pa.list_(pa.int32(), tables.users_US.shape[1])}, {})


def _users(data: Data) -> pa.Table:
    """The users of the training rows, sorted by id; whoever is not there has the features of the unknown one."""
    raw = data.prepared.table("users.parquet", ["user_id"])["user_id"].combine_chunks()
    order = np.asarray(pc.sort_indices(raw))
    order = order[order != 0]
    slots_US = data.tables.users_US.numpy()[order].astype(np.int32)
    return pa.table({"id": raw.take(pa.array(order)).cast(pa.large_string()), "slots": _lists(slots_US)})


def _write_items(file: UPath, data: Data) -> int:
    table = data.prepared.table("items.parquet", ["item_id", "title"])
    slots_IS = data.tables.items_IS.numpy().astype(np.int32)
    storage.write_table(file, table.append_column("slots", _lists(slots_IS)))
    return table.num_rows


def _lists(rows_NW: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows_NW.reshape(-1)), rows_NW.shape[1])


# --- reading ------------------------------------------------------------------------------------------------------


def read_description(bundle: UPath | Path, checksum: str = "") -> BundleConfig:
    """What `bundle.json` says.

    Raises:
        StorageError: it is damaged, or of another version.
    """
    file = bundle / DESCRIPTION
    try:
        found = json.loads(storage.read_bytes(file, checksum, "export again"))
        version = found.get("version") if isinstance(found, dict) else None
        if version != VERSION:
            raise StorageError(f"{file}: bundle version {version}, this package reads {VERSION}; export again")
        return BundleConfig.model_validate(found)
    except (ValidationError, ValueError, RecursionError) as error:
        raise StorageError(f"{file}: damaged ({str(error)[:200]}); export again") from None


def check_backbone(bundle: UPath | Path, described: BundleConfig, allowed: Sequence[str]) -> None:
    """Refuse a backbone that is neither one of this package nor allowed, before anything of it is imported.

    Raises:
        ConfigError: the message names it, and says how to allow it.
    """
    backbone = described.model.backbone
    if backbone not in (*BACKBONES, *allowed):
        raise ConfigError(
            f"{bundle}: its backbone '{shortened(backbone, 200)}' is code from outside of this package, which loading "
            "it would run; if you trust it, name it in serve.allow_backbones, or in Python in allow_backbones of "
            "Ranker.load"
        )


def read_net(bundle: Path, described: BundleConfig) -> ServingNet:
    """The net in evaluation.

    Raises:
        StorageError: the weights do not fit the description.
    """
    net = ServingNet(described.fields, len(described.scenarios), described.model)
    _load(net, bundle / NET)
    return net.eval()


def read_coder(bundle: UPath, described: BundleConfig, checksum: str = "") -> KnowledgeCode:
    """What makes codes of LLM vectors, in evaluation.

    Raises:
        StorageError: the weights do not fit the description, or the model has no user level.
    """
    file = bundle / CODER
    try:
        weights = safetensors.torch.load(storage.read_bytes(file, checksum, "export again"))
    except safetensors.SafetensorError as error:
        raise StorageError(f"{file}: damaged ({error}); export again") from None
    if not weights:
        raise StorageError(f"{file}: this model has no user level, so there are no codes to make")
    width = len(weights["mean_Z"])
    coder = KnowledgeCode(torch.zeros(width), torch.ones(width), described.model.code_dim)
    _load(coder, file)
    return coder.eval()


def _load(module: torch.nn.Module, file: UPath | Path) -> None:
    try:
        if isinstance(file, Path):
            weights = safetensors.torch.load_file(file)
        else:
            weights = safetensors.torch.load(storage.read_bytes(file))
        module.load_state_dict(weights, assign=True)
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"{file}: does not fit {DESCRIPTION} ({str(error)[:200]}); export again") from None


def read_codes(folder: Path, bundle: Path) -> IdTable:
    """Codes by user id.

    Raises:
        StorageError: damaged, or made for another bundle.
    """
    codes = IdTable(folder / CODES)
    if codes.metadata.get("coder") != storage.digest_file(storage.path(bundle / CODER)):
        raise StorageError(
            f"{folder / CODES}: codes of another model, {bundle} cannot use them; `llm4msr refresh` makes its own"
        )
    return codes
