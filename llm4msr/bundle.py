"""What serving loads: weights, config, vocabularies and user codes in one folder, with no LLM in the path.

A bundle keeps the files of `prepare` that describe users, items, scenarios and fields, the net's weights, and the
K numbers that the knowledge of each user became.
"""

import json
import uuid
from typing import Self

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from upath import UPath

from llm4msr import storage
from llm4msr.api import ModelInfo, RankedItem, RankRequest, RankResponse, Unknown
from llm4msr.config import Config, ModelConfig
from llm4msr.errors import ConfigError, StorageError
from llm4msr.features import FeatureTables
from llm4msr.fit import Data
from llm4msr.ranker import KnowledgeStatistics, RankerNet
from llm4msr.storage import Built, StageOutput

VERSION = 2
WEIGHTS = "net.safetensors"
_COPIED = ("fields.json", "users.parquet", "items.parquet", "scenarios.parquet")


class BundleConfig(BaseModel):
    """What is needed to build the net again."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: int
    name: str
    model: ModelConfig
    knowledge_width: int
    scenario_width: int


def write(
    config: Config,
    weights: UPath,
    prepared: StageOutput,
    extracted: StageOutput | None,
    card: str,
    folder: UPath,
) -> Built:
    """Write a bundle's files."""
    data = Data.open(config, prepared, extracted)
    net = data.new_net(config)
    net.load_state_dict(safetensors.torch.load(storage.read_bytes(weights)))
    files = dict.fromkeys((*_COPIED, WEIGHTS, "codes.parquet", "bundle.json", "README.md"), 1)
    for name in _COPIED:
        storage.write_bytes(folder / name, storage.read_bytes(prepared.folder / name))
    storage.write_bytes(folder / WEIGHTS, storage.read_bytes(weights))
    storage.write_table(folder / "codes.parquet", _codes(net, data))
    store = data.knowledge
    widths = [store.users_NZ.shape[1], store.scenarios_SZ.shape[1]] if store else [0, 0]
    described = BundleConfig(
        version=VERSION, name=config.name, model=config.model, knowledge_width=widths[0], scenario_width=widths[1]
    )
    storage.write_bytes(folder / "bundle.json", described.model_dump_json(indent=1).encode())
    storage.write_bytes(folder / "README.md", card.encode())
    return Built(files=files, rows=len(data.tables.users_US) - 1, info={"users_with_knowledge": _known(data)})


def _known(data: Data) -> int:
    return int(data.knowledge.known_N.sum()) if data.knowledge else 0


def _codes(net: RankerNet, data: Data, chunk: int = 1 << 16) -> pa.Table:
    """user int64, code fixed_size_list<float16>[K]: one row per user with knowledge, sorted by user."""
    if not net.uses_users or data.knowledge is None:
        return pa.table({"user": pa.array([], pa.int64()), "code": pa.array([], pa.list_(pa.float16(), 1))})
    net.eval()
    ids = np.flatnonzero(data.knowledge.known_N)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(ids), chunk):
            vectors, known = data.knowledge.lookup(torch.from_numpy(ids[start : start + chunk]))
            parts.append(net.user_codes(vectors, known).half().numpy())
    codes = np.concatenate(parts)
    column = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1), pa.float16()), codes.shape[1])
    return pa.table({"user": pa.array(ids, pa.int64()), "code": column})


class Ranker:
    """A loaded bundle: `Ranker.load(uri).rank(request)`, the same code in a notebook and behind Ray Serve."""

    def __init__(self, folder: UPath, version: str):
        self.model_version = version
        self.config = _read_config(folder)
        self.tables = FeatureTables.open(folder)
        self._users = _numbers(folder / "users.parquet", "user_id")
        self._items = _numbers(folder / "items.parquet", "item_id")
        self._scenarios = _numbers(folder / "scenarios.parquet", "scenario_id")
        titles = storage.read_table(folder / "items.parquet", ["item_id", "title"])
        self.titles: dict[str, str] = dict(zip(*(titles[c].to_pylist() for c in ("item_id", "title")), strict=True))
        context = json.loads(storage.read_bytes(folder / "fields.json"))["context"]
        self._context = {name: {v: i for i, v in enumerate(values, start=1)} for name, values in context.items()}
        self.net = self._open_net(folder)
        self._codes_NK, self._known_N = self._open_codes(folder)

    @classmethod
    def load(cls, uri: str) -> Self:
        """From any URI.

        Raises:
            StorageError: not a finished bundle, damaged, or of another version; the message names the file.
        """
        folder = storage.path(uri)
        output = storage.open_output(folder)
        if output is None or output.manifest.stage != "export":
            raise StorageError(f"{folder}: not a finished bundle; give the uri that `llm4msr export` printed")
        return cls(folder, output.manifest.fingerprint)

    @torch.inference_mode()
    def rank(self, request: RankRequest, request_id: str = "") -> RankResponse:
        """Score the items and sort them.

        Raises:
            ConfigError: a context field that this model does not know.
        """
        user, scenario = self._users.get(request.user_id, 0), self._scenarios.get(request.scenario, 0)
        item_B = torch.tensor([self._items.get(item, 0) for item in request.items])
        slots_BS, scenario_B = self._slots(user, item_B, scenario, request.context)
        scores_B = torch.sigmoid(self.net.score_one(slots_BS, scenario_B, self._code(user)))
        best = torch.argsort(scores_B, descending=True, stable=True)[: request.top_k].tolist()
        scores = scores_B.tolist()
        return RankResponse(
            model_version=self.model_version,
            request_id=request_id or str(uuid.uuid4()),
            scenario=request.scenario,
            ranked=[RankedItem(item_id=request.items[i], score=scores[i]) for i in best],
            unknown=Unknown(
                user=not user,
                scenario=not scenario,
                items=[item for item, number in zip(request.items, item_B.tolist(), strict=True) if not number],
            ),
            knowledge="used" if bool(self._known_N[user]) else "none",
        )

    def info(self) -> ModelInfo:
        """What is loaded."""
        return ModelInfo(
            model_version=self.model_version,
            name=self.config.name,
            backbone=self.config.model.backbone,
            knowledge=self.config.model.variant,
            scenarios=list(self._scenarios),
            context=list(self._context),
            users=len(self._users),
            users_with_knowledge=int(self._known_N.sum()),
            items=len(self._items),
        )

    def _slots(self, user: int, item_B: Tensor, scenario: int, context: dict[str, str]) -> tuple[Tensor, Tensor]:
        for name in context:
            if name not in self._context:
                known = ", ".join(self._context) or "none"
                raise ConfigError(f"context: unknown field '{name}'; this model knows: {known}")
        values = [numbers.get(context.get(name, ""), 0) for name, numbers in self._context.items()]
        user_B, scenario_B = torch.full_like(item_B, user), torch.full_like(item_B, scenario)
        context_BC = torch.tensor(values, dtype=torch.int64).expand(len(item_B), -1)
        return self.tables.slots(user_B, item_B, scenario_B, context_BC), scenario_B

    def _code(self, user: int) -> Tensor | None:
        return self._codes_NK[user].float() if self.net.uses_users else None

    def _open_net(self, folder: UPath) -> RankerNet:
        width, scenarios = self.config.knowledge_width, torch.zeros(self.tables.scenarios, self.config.scenario_width)
        blank = KnowledgeStatistics(torch.zeros(width), torch.ones(width), scenarios)
        net = RankerNet(self.tables.fields, self.tables.scenarios, self.config.model, blank)
        try:
            net.load_state_dict(safetensors.torch.load(storage.read_bytes(folder / WEIGHTS)))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise StorageError(
                f"{folder / WEIGHTS}: does not fit bundle.json ({str(error)[:200]}); export again"
            ) from None
        return net.eval()

    def _open_codes(self, folder: UPath) -> tuple[Tensor, Tensor]:
        """float16 [N, K] with the learned default where a user has no code, and bool [N]."""
        table = storage.read_table(folder / "codes.parquet")
        users = len(self.tables.users_US)
        known_N = torch.zeros(users, dtype=torch.bool)
        if not self.net.uses_users:
            return torch.zeros((users, 0), dtype=torch.float16), known_N
        with torch.inference_mode():
            nobody = torch.zeros((1, self.config.knowledge_width), dtype=torch.float16)
            default_1K = self.net.user_codes(nobody, torch.zeros(1, dtype=torch.bool)).half()
        codes_NK = default_1K.repeat(users, 1)
        ids = torch.from_numpy(np.array(table["user"].to_numpy()))
        flat = table["code"].combine_chunks().flatten().to_numpy()
        codes_NK[ids] = torch.from_numpy(flat.reshape(len(ids), -1).copy())
        known_N[ids] = True
        return codes_NK, known_N


def _read_config(folder: UPath) -> BundleConfig:
    file = folder / "bundle.json"
    try:
        found = json.loads(storage.read_bytes(file))
        version = found.get("version") if isinstance(found, dict) else None
        if version != VERSION:
            raise StorageError(f"{file}: bundle version {version}, this package reads {VERSION}; export again")
        return BundleConfig.model_validate(found)
    except (ValidationError, ValueError) as error:
        raise StorageError(f"{file}: damaged ({str(error)[:200]}); export again") from None


def _numbers(file: UPath, column: str) -> dict[str, int]:
    """Raw id -> number, the unknown one (0) left out."""
    ids = storage.read_table(file, [column])[column].to_pylist()
    return {raw: number for number, raw in enumerate(ids) if number}
