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
from llm4msr.bundle.id_table import IdTable
from llm4msr.bundle.messages import RankRequest
from llm4msr.config import BACKBONES, ModelConfig
from llm4msr.errors import ConfigError, StorageError
from llm4msr.model.embedding import Field
from llm4msr.model.meta import KnowledgeCode
from llm4msr.model.serving_net import ServingNet
from llm4msr.text import shorten

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


def code_schema(bundle: UPath) -> pa.Schema:
    """Of codes that this bundle's coder makes: id and code float16 [K]; they are of use to its net alone."""
    coder = storage.digest_file(bundle / CODER)
    return id_table.schema({"code": pa.list_(pa.float16(), _code_dim(bundle))}, {"coder": coder})


def _code_dim(bundle: UPath) -> int:
    return read_description(bundle).model.code_dim


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
            f"{bundle}: its backbone '{shorten(backbone, 200)}' is code from outside of this package, which loading "
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


TOLERANCE = 1e-5
"""Between probabilities of this net in training's layout and in serving's, or on another machine."""


class Case(BaseModel):
    """One request and its items' scores, in the request's order."""

    request: RankRequest
    scores: list[float]


class SelfTest(BaseModel):
    """All cases."""

    cases: list[Case]


LATEST = "latest.json"


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


def codes_root(served: UPath) -> UPath:
    """Where newer codes of a bundle lie, beside the bundles."""
    return served.parent.parent / "codes" / served.name
