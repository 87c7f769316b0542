"""What serving loads: weights, vocabularies and user codes in one folder, with no LLM in the path.

    bundle.json            how to build the net, scenarios, context values, which LLM was read
    net.safetensors        the net as it serves, its scenario level folded, its scores calibrated
    coder.safetensors      what turns an LLM vector into a user's code: for codes of newer knowledge
    users.arrow            id -> places of a user's features in the embedding table      (id_table.py)
    codes.arrow            id -> code, float16 [K], of each user with knowledge          (id_table.py)
    pasts.arrow            id -> the user's latest events, where the model reads items   (id_table.py, pasts.py)
    items.arrow            id -> title, places of an item's features; `row` float32 [R], what a folded net reads of it
                           (scorer.py); its vector float16 [D]: `unit`, of unit length, where the model matches
                           vectors, `vector` where users are pooled from it; one partition
    selftest.json          requests and the scores that the trained net gave; every load repeats them
    README.md              the model card

The tables by id are memory-mapped, so a machine's replicas share one copy.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from llm4msr import storage
from llm4msr.bundle import id_table
from llm4msr.bundle.id_table import IdTable, Partition
from llm4msr.bundle.messages import Calibration, ScorerKind
from llm4msr.bundle.pasts import SCHEMA
from llm4msr.bundle.pooled_codes import PooledCodes
from llm4msr.config import BACKBONES, ModelConfig
from llm4msr.errors import ConfigError, StorageError
from llm4msr.model.embedding import Field, slot_starts
from llm4msr.model.meta import KnowledgeCode
from llm4msr.model.serving_net import ServingNet
from llm4msr.text import shorten

VERSION = 10
NET, CODER, DESCRIPTION, SELF_TEST = "net.safetensors", "coder.safetensors", "bundle.json", "selftest.json"
USERS, CODES, PASTS, ITEMS = "users.arrow", "codes.arrow", "pasts.arrow", "items.arrow"


class BundleDescription(BaseModel):
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
    user_features: dict[str, list[str]]
    """Likewise the values of each feature of users but the id."""
    scorer: ScorerKind
    """What scores: products of numpy (`folded`), for which `items.arrow` has a column `row`, or the net itself
    (`torch`), where the net does not fold."""
    item_dim: int = 0
    """Numbers of an item's vector; 0 where the model matches none."""
    pools_items: bool = False
    """Whether users' vectors were pooled from the items', which the bundle then has."""
    calibration: Calibration | None = None
    """What calibrates scores, by the net's slopes and biases; None where they are the trained net's own."""
    llm: dict[str, str] = {}
    """What made the vectors: newer knowledge must come from the same."""


def code_schema(bundle: UPath) -> pa.Schema:
    """The schema of codes that this bundle's coder makes, id and code float16 [K]; no other net can use them."""
    width = read_description(bundle).model.code_dim
    coder = storage.digest_file(bundle / CODER)
    return id_table.table_schema({"code": pa.list_(pa.float16(), width)}, {"coder": coder})


def past_schema(bundle: UPath) -> pa.Schema:
    """The schema of newer events for a bundle, which are rows of its items."""
    return SCHEMA.with_metadata({"items": storage.digest_file(bundle / ITEMS)})


def user_schema(bundle: UPath) -> pa.Schema:
    """The schema of newer features of users for a bundle, id and slots int32 [S]: places in its net's embedding."""
    slots = len(slot_starts(read_description(bundle).fields, "user"))
    digest = storage.digest_file(bundle / DESCRIPTION)
    return id_table.table_schema({"slots": pa.list_(pa.int32(), slots)}, {"bundle": digest})


def read_codes(folder: Path, bundle: Path) -> IdTable:
    """Codes by user id: float16 [K] each.

    Raises:
        StorageError: damaged, or made for another bundle; so do the two below.
    """
    return _read_made_for(folder / CODES, bundle / CODER, "codes of another model")


def read_pasts(folder: Path, bundle: Path) -> IdTable:
    """Newer events by user id."""
    return _read_made_for(folder / PASTS, bundle / ITEMS, "events of other items")


def read_users(folder: Path, bundle: Path) -> IdTable:
    """Newer features by user id."""
    return _read_made_for(folder / USERS, bundle / DESCRIPTION, "features of another model")


def _read_made_for(file: Path, part: Path, otherwise: str) -> IdTable:
    """A table whose metadata name the digest of the part of a bundle that it was made for."""
    table = IdTable(file)
    if table.metadata.get(part.stem) != storage.digest_file(storage.path(part)):
        raise StorageError(f"{file}: {otherwise}, {part.parent} cannot use them; `llm4msr refresh` makes its own")
    return table


def read_description(bundle: UPath | Path, checksum: str = "") -> BundleDescription:
    """What `bundle.json` says; `checksum` is the manifest's, empty where the file was checked already.

    Raises:
        StorageError: it is damaged, or of another version.
    """
    file = bundle / DESCRIPTION
    try:
        fields = json.loads(storage.read_bytes(file, checksum, "export again"))
        version = fields.get("version") if isinstance(fields, dict) else None
        if version != VERSION:
            raise StorageError(f"{file}: bundle version {version}, this package reads {VERSION}; export again")
        return BundleDescription.model_validate(fields)
    except (ValidationError, ValueError, RecursionError) as error:
        raise StorageError(f"{file}: damaged ({str(error)[:200]}); export again") from None


def check_backbone(bundle: UPath | Path, description: BundleDescription, allowed: Sequence[str]) -> None:
    """Refuse a backbone that is neither one of this package nor allowed, before anything of it is imported.

    Raises:
        ConfigError: the message names it, and says how to allow it.
    """
    backbone = description.model.backbone
    if backbone not in (*BACKBONES, *allowed):
        raise ConfigError(
            f"{bundle}: its backbone '{shorten(backbone, 200)}' is code from outside of this package, which loading "
            "it would run; if you trust it, name it in serve.allow_backbones, or in Python in allow_backbones of "
            "Ranker.load"
        )


def read_net(bundle: Path, description: BundleDescription) -> ServingNet:
    """The net, in evaluation mode.

    Raises:
        StorageError: the weights do not fit the description.
    """
    net = ServingNet(description.fields, len(description.scenarios), description.model, description.item_dim)
    _load(net, bundle / NET)
    return net.eval()


def read_coder(bundle: UPath, description: BundleDescription, checksum: str = "") -> KnowledgeCode:
    """What turns an LLM vector, float16 [N, Z], into a user's code [N, K]; in evaluation mode.

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
    coder = KnowledgeCode(torch.zeros(width), torch.ones(width), description.model.code_dim)
    _load(coder, file)
    return coder.eval()


def read_pooled_codes(bundle: Path, description: BundleDescription, items: Partition) -> PooledCodes | None:
    """What makes codes from events, for a model whose users were pooled from items.

    Raises:
        StorageError: the weights do not fit the description.
    """
    if not description.pools_items:
        return None
    return PooledCodes(items.numbers["vector"], read_coder(storage.path(bundle), description))


def _load(module: torch.nn.Module, file: UPath | Path) -> None:
    try:
        if isinstance(file, Path):
            weights = safetensors.torch.load_file(file)
        else:
            weights = safetensors.torch.load(storage.read_bytes(file))
        module.load_state_dict(weights, assign=True)
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"{file}: does not fit {DESCRIPTION} ({str(error)[:200]}); export again") from None


def read_items(folder: Path) -> Partition:
    """Titles, slots int32 [I, S] and, where they are read, `row`, `unit` and `vector`, by item id.

    Raises:
        StorageError: damaged.
    """
    partitions = IdTable(folder / ITEMS).partitions
    if len(partitions) != 1 or not len(partitions[0]):  # the candidates of a request are sought in one array
        raise StorageError(f"{folder / ITEMS}: no items, or more than one partition of them; export again")
    return partitions[0]


LATEST = "latest.json"
"""Beside the codes of a bundle: which of them endpoints shall use."""


def latest_codes(bundle_uri: str) -> str:
    """URI of the codes that endpoints of this bundle shall use; empty for the bundle's own.

    Raises:
        StorageError: the pointer cannot be read.
    """
    pointer = codes_root(storage.path(bundle_uri)) / LATEST
    if not pointer.exists():
        return ""
    try:
        name = json.loads(storage.read_bytes(pointer))["codes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):  # a folder beside it, nowhere else
        raise StorageError(f"{pointer}: damaged; run `llm4msr refresh` again")
    return str(pointer.parent / name)


def codes_root(bundle: UPath) -> UPath:
    """The folder of newer codes for a bundle, beside the folder of bundles."""
    return bundle.parent.parent / "codes" / bundle.name
