"""The training loop: one process, or one of several under torch.distributed. Knows nothing of Ray.

Learning rate, loss and metrics are defined by the global batch: each worker's loss is its rows' sum over the
global batch's size, so the averaged gradient is that of one worker with the whole batch.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from upath import UPath

from llm4msr import metrics, storage
from llm4msr.batches import RowReader, to_batch
from llm4msr.config import Config
from llm4msr.features import FeatureTables
from llm4msr.knowledge import KnowledgeStore
from llm4msr.metrics import Predictions
from llm4msr.ranker import RankerNet
from llm4msr.storage import StageOutput

Tensors = dict[str, Tensor]


@dataclass
class Data:
    """Everything the loop reads: feature tables, rows, and knowledge where the model uses any."""

    folder: UPath
    tables: FeatureTables
    scenario_names: list[str]
    knowledge: KnowledgeStore | None

    @classmethod
    def open(cls, config: Config, prepared: StageOutput, extracted: StageOutput | None) -> "Data":
        """`extracted` is needed unless `model.knowledge` is `none`; the control is applied here."""
        tables = FeatureTables.open(prepared.folder)
        names = storage.read_table(prepared.folder / "scenarios.parquet", ["scenario_id"])["scenario_id"].to_pylist()
        knowledge = None
        if config.model.knowledge != "none":
            assert extracted is not None
            store = KnowledgeStore.open(extracted, len(tables.users_US), tables.scenarios)
            knowledge = store.controlled(config.model.control, config.seed)
        return cls(prepared.folder, tables, names, knowledge)

    def rows(self, part: str) -> RowReader:
        """Rows of `train`, `valid` or `test`."""
        return RowReader(self.folder / f"{part}.parquet", [f.name for f in self.tables.fields if f.side == "context"])

    def new_net(self, config: Config) -> RankerNet:
        """An untrained net; the same seed gives the same embeddings and backbone whatever knowledge is added."""
        torch.manual_seed(config.seed)
        statistics = self.knowledge.statistics() if self.knowledge else None
        return RankerNet(self.tables.fields, self.tables.scenarios, config.model, statistics)


@dataclass
class Progress:
    """Where the loop stands after an epoch; saved with every checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_auc: float = -1.0
    best_report: dict[str, Any] = field(default_factory=dict)
    """Validation metrics of the best epoch, as `metrics.report` gives them."""
    history: list[dict[str, float | None]] = field(default_factory=list)
    resumed_after: list[int] = field(default_factory=list)
    """Epochs after which a loop that was interrupted went on; the epoch after each was begun twice."""


@dataclass
class Checkpoint:
    """All that another process needs to go on: no pickle, only tensors and JSON."""

    progress: Progress
    net: Tensors
    best: Tensors
    optimizer: Tensors

    def save(self, folder: Path) -> None:
        """Write the checkpoint's four files."""
        for name in ("net", "best", "optimizer"):
            safetensors.torch.save_file(getattr(self, name), folder / f"{name}.safetensors")
        (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read what `save` wrote."""
        tensors = (safetensors.torch.load_file(folder / f"{n}.safetensors") for n in ("net", "best", "optimizer"))
        return cls(Progress(**json.loads((folder / "progress.json").read_text())), *tensors)


def fit(
    config: Config,
    data: Data,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Train until validation AUC has not risen for `train.patience` epochs; `best` holds the best epoch's weights.

    Calls `on_epoch` after every epoch, on every worker.
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    net = data.new_net(config)
    wrapped = _distributed(net) if world > 1 else net
    t = config.train
    optimizer = new_optimizer(net, config)
    state = Checkpoint(Progress(), {}, {}, {}) if resume is None else resume
    if resume is not None:
        net.load_state_dict(resume.net)
        _load_optimizer(optimizer, resume.optimizer)
    train, valid, progress = data.rows("train"), data.rows("valid"), state.progress
    while progress.epoch < t.epochs and progress.epoch - progress.best_epoch < t.patience:
        progress.epoch += 1
        loss = _train_epoch(wrapped, net, optimizer, data, train, config, progress.epoch, rank, world)
        scored = predict(net, data, valid, t.batch_size, rank, world)
        report = metrics.report(scored, data.scenario_names)
        found = report["overall"]
        progress.history.append({"epoch": progress.epoch, "loss": loss, **{f"valid_{k}": v for k, v in found.items()}})
        if (found["auc"] or 0.0) > progress.best_auc:
            progress.best_auc, progress.best_epoch, progress.best_report = (
                found["auc"] or 0.0,
                progress.epoch,
                report,
            )
            state.best = _copy(net)
        state.net, state.optimizer = _copy(net), _optimizer_tensors(optimizer)
        if on_epoch is not None:
            on_epoch(state)
    return state


def new_optimizer(net: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW, all parameters in one pass."""
    rate, decay = config.train.learning_rate, config.train.weight_decay
    return torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay, fused=True)


def predict(net: RankerNet, data: Data, rows: RowReader, batch_size: int, rank: int = 0, world: int = 1) -> Predictions:
    """Score all rows in evaluation mode; with several workers each scores its part and all get the whole."""
    net.eval()
    parts = []
    with torch.inference_mode():
        for part, _ in rows.batches(batch_size, None, rank, world):
            logits = net(to_batch(part, data.tables, data.knowledge if net.uses_users else None))
            columns = (part.user_B, part.scenario_B, part.label_B, logits)
            parts.append(Predictions(*(column.numpy() for column in columns)))
    mine = Predictions.merged(parts)
    if world == 1:
        return mine
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, mine)
    return Predictions.merged(gathered)


def weights_as_bytes(tensors: Tensors) -> bytes:
    """In safetensors' format."""
    return safetensors.torch.save(tensors)


def _train_epoch(
    wrapped: nn.Module,
    net: RankerNet,
    optimizer: torch.optim.Optimizer,
    data: Data,
    train: RowReader,
    config: Config,
    epoch: int,
    rank: int,
    world: int,
) -> float:
    """One pass over the training rows; gives back this worker's mean loss."""
    wrapped.train()
    seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
    torch.manual_seed(seed + rank)  # dropout after a resumed run is that of an undisturbed one
    total, count = torch.zeros(()), 0
    for part, global_rows in train.batches(config.train.batch_size, seed, rank, world):
        batch = to_batch(part, data.tables, data.knowledge if net.uses_users else None)
        if config.train.id_dropout:
            slots = net.embedding.hide(batch.slots_BS, config.train.id_dropout)
            batch = batch._replace(slots_BS=slots, scenario_B=net.embedding.scenarios(slots))
        loss = F.binary_cross_entropy_with_logits(wrapped(batch), part.label_B, reduction="sum")
        optimizer.zero_grad(set_to_none=True)
        (loss * (world / global_rows)).backward()
        optimizer.step()
        total, count = total + loss.detach(), count + len(part.label_B)
    return float(total) / max(count, 1)


def _distributed(net: RankerNet) -> nn.Module:
    """Gradients are averaged in place; the buffers are constants and need no sending."""
    return nn.parallel.DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)


def _copy(net: nn.Module) -> Tensors:
    return {name: tensor.detach().clone().contiguous() for name, tensor in net.state_dict().items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value.detach().clone() for index, one in state.items() for name, value in one.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    state: dict[int, Tensors] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
