"""The training loop: one process, or one of several under torch.distributed. Knows nothing of Ray.

Learning rate, loss and metrics are defined by the global batch: each worker's loss is its rows' sum over the
global batch's size, so the averaged gradient is that of one worker with the whole batch.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.model.net import RankerNet
from llm4msr.training import metrics
from llm4msr.training.batches import RowReader
from llm4msr.training.checkpoint import Checkpoint, Progress, Tensors
from llm4msr.training.dataset import Dataset
from llm4msr.training.metrics import Predictions


def fit(
    config: Config,
    data: Dataset,
    resume: Checkpoint | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Train until validation AUC has not risen for `train.patience` epochs; `best` holds the best epoch's weights.

    Validation rows of one class have no AUC: the best epoch is then that of the lowest logloss.
    Calls `on_checkpoint` on every worker after every `train.checkpoint_batches` global batches, and after every epoch
    (then `progress.batch` is 0). From any of them another run goes on with the very next batch, with as many workers
    as it has.

    Raises:
        ConfigError: a loss or a weight is no finite number any more, on every worker after the same batch; what
            `on_checkpoint` was given before is sound.
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    net = data.new_net(config).to("cuda" if config.train.device == "gpu" else "cpu")
    wrapped = _distributed(net) if world > 1 else net
    t = config.train
    optimizers = new_optimizers(net, config)
    state = Checkpoint(Progress(), {}, {}, {})
    if resume is not None:
        state = replace(resume, progress=copy.deepcopy(resume.progress))
        net.load_state_dict(resume.net)
        _load_optimizers(optimizers, resume.optimizer)
    train, valid, progress = data.rows("train"), data.rows("valid"), state.progress
    start = {"epoch": progress.epoch, "batch": progress.batch, "workers": world}

    def save() -> None:
        if start not in progress.starts[-1:]:
            progress.starts.append(start)
        state.net, state.optimizer = _copy(net), _optimizer_tensors(optimizers)
        epoch = progress.epoch + (progress.batch > 0)
        _check(math.isfinite(progress.loss_sum), "the loss", epoch, config)
        _check(_finite(state.net) and _finite(state.optimizer), "a weight or its average", epoch, config)
        if on_checkpoint is not None:
            on_checkpoint(state)

    while progress.epoch < t.epochs and progress.epoch - progress.best_epoch < t.patience:
        _train_epoch(wrapped, net, optimizers, data, train, config, progress, save, rank, world)
        loss = progress.loss_sum / max(train.rows, 1)
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        _check(math.isfinite(loss), "the loss", progress.epoch, config)
        scored = predict(net, data, valid, t.batch_size, rank, world)
        _check(bool(np.isfinite(scored.logit).all()), "the validation loss", progress.epoch, config)
        report = metrics.report(scored, data.scenario_names)
        values = {f"valid_{name}": value for name, value in report["overall"].items()}
        progress.history.append({"epoch": progress.epoch, "loss": loss, **values})
        if not progress.best_report or _is_better(report, progress.best_report):
            progress.best_epoch, progress.best_report, state.best = progress.epoch, report, _copy(net)
        save()
    return state


def new_optimizers(net: RankerNet, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW, all parameters in one pass; with `train.sparse` the embedding table has an Adam of its own, which touches
    only the rows of the batch (and knows no weight decay)."""
    rate, decay = config.train.learning_rate, config.train.weight_decay
    if not config.train.sparse:
        return [torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay, fused=True)]
    table = net.embedding.table.weight
    dense = [parameter for parameter in net.parameters() if parameter is not table]
    return [
        torch.optim.AdamW(dense, lr=rate, weight_decay=decay, fused=True),
        torch.optim.SparseAdam([table], lr=rate),
    ]


def predict(
    net: RankerNet, data: Dataset, rows: RowReader, batch_size: int, rank: int = 0, world: int = 1
) -> Predictions:
    """Score all rows in evaluation mode; with several workers each scores its part and all get the whole."""
    net.eval()
    device, parts = _device(net), []
    with torch.inference_mode():
        for part, _ in rows.batches(batch_size, None, rank, world):
            logits = net(data.batch(part, net).to(device))
            columns = (part.user_B, part.scenario_B, part.label_B, logits.cpu())
            parts.append(Predictions(*(column.numpy() for column in columns)))
    mine = Predictions.concatenate(parts)
    if world == 1:
        return mine
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, mine)
    return Predictions.concatenate(gathered)


def _train_epoch(
    wrapped: nn.Module,
    net: RankerNet,
    optimizers: list[torch.optim.Optimizer],
    data: Dataset,
    train: RowReader,
    config: Config,
    progress: Progress,
    save: Callable[[], None],
    rank: int,
    world: int,
) -> None:
    """The global batches of an epoch from `progress.batch` on, which it moves along, as it does `progress.loss_sum`."""
    t, epoch = config.train, progress.epoch + 1
    seed, draws, device = _seed(config.seed, epoch), _seed(config.seed, epoch, rank), _device(net)
    loss_sum = torch.zeros((), device=device)
    wrapped.train()
    for part, global_rows in train.batches(t.batch_size, seed, rank, world, skip=progress.batch):
        _seed_draws(device, draws + progress.batch)  # dropout does not ask where a run began
        batch = data.batch(part, net).to(device)
        if t.id_dropout:
            slots = net.embedding.hide(batch.slots_BS, t.id_dropout)
            batch = batch._replace(slots_BS=slots, scenario_B=net.embedding.scenarios(slots))
        label_B = part.label_B.to(device, non_blocking=True)
        loss = F.binary_cross_entropy_with_logits(wrapped(batch), label_B, reduction="sum")
        net.zero_grad(set_to_none=True)
        (loss * (world / global_rows)).backward()
        for optimizer in optimizers:
            optimizer.step()
        loss_sum += loss.detach()
        progress.batch += 1
        if t.checkpoint_batches and progress.batch % t.checkpoint_batches == 0:
            progress.loss_sum += _over_workers(loss_sum, world)
            save()
    progress.loss_sum += _over_workers(loss_sum, world)


def _check(finite: bool, what: str, epoch: int, config: Config) -> None:
    if not finite:
        own = f", or mend {config.model.backbone}" if ":" in config.model.backbone else ""
        rate, decay = config.train.learning_rate, config.train.weight_decay
        grows = rate * decay > 2 and decay > rate  # a step then turns a weight's sign and makes it larger
        key = f"weight_decay (it is {decay:g})" if grows else f"learning_rate (it is {rate:g})"
        raise ConfigError(f"{what} is not finite in epoch {epoch}; lower train.{key}{own}")


def _finite(tensors: Tensors) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def _is_better(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """By AUC, or by logloss where the rows are of one class."""
    a, b = one["overall"], other["overall"]
    return bool(a["logloss"] < b["logloss"] if a["auc"] is None else a["auc"] > b["auc"])


def _over_workers(sum_: Tensor, world: int) -> float:
    """The sum over all workers; `sum_` starts anew."""
    if world > 1:
        dist.all_reduce(sum_)
    total = float(sum_)
    sum_.zero_()
    return total


def _seed_draws(device: torch.device, seed: int) -> None:
    """As `torch.manual_seed`, which for each absent kind of device keeps a stack trace for later, at 0.3 ms a call."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _distributed(net: RankerNet) -> nn.Module:
    """Gradients are averaged in place; the buffers are constants and need no sending."""
    return nn.parallel.DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _copy(net: nn.Module) -> Tensors:
    """The weights, where they do not change and every machine can read them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in net.state_dict().items()}


def _optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> Tensors:
    return {
        f"{number}.{index}.{name}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for number, optimizer in enumerate(optimizers)
        for index, one in optimizer.state_dict()["state"].items()
        for name, value in one.items()
    }


def _load_optimizers(optimizers: list[torch.optim.Optimizer], tensors: Tensors) -> None:
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            of, index, name = key.split(".", 2)
            if int(of) == number:  # SparseAdam counts its steps in a plain int
                state.setdefault(int(index), {})[name] = tensor.item() if tensor.dtype == torch.int64 else tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
