"""The training loop: one process, or one of several under torch.distributed. Knows nothing of Ray.

Learning rate, loss and metrics are defined by the global batch: each worker's loss is its rows' sum over the
global batch's size, so the gradients' sum over the workers is the gradient of one worker with the whole batch.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.training import gradients, precision, warm_start
from llm4msr.training.checkpoint import Checkpoint, Progress, Start, Tensors
from llm4msr.training.dataset import Dataset
from llm4msr.training.metrics import Report, Sums
from llm4msr.training.optimizers import AdamW
from llm4msr.training.precision import Precision
from llm4msr.training.row_files import Rows
from llm4msr.training.scoring import device_of, predict


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
    trainer = Trainer(config, data, resume, on_checkpoint)
    progress = trainer.state.progress
    while progress.epoch < config.train.epochs and progress.epoch - progress.best_epoch < config.train.patience:
        trainer.train_epoch()
        trainer.validate()
        trainer.save()
    return trainer.state


class Trainer:
    """One worker's part of a training: the net and its optimizers, the rows, and the state that checkpoints hold."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        resume: Checkpoint | None,
        on_checkpoint: Callable[[Checkpoint], None] | None,
    ):
        self.config, self.data, self.on_checkpoint = config, data, on_checkpoint
        self.world, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.net = data.new_net(config).to("cuda" if config.train.device == "gpu" else "cpu")
        self.device = device_of(self.net)
        self.optimizer = AdamW(self.net, config.train)
        self.state = Checkpoint(Progress(), {}, {}, {})
        if resume is None and config.train.warm_start:
            warm_start.load_weights(self.net, config, data)
        if resume is not None:
            self.state = replace(resume, progress=copy.deepcopy(resume.progress))
            self.net.load_state_dict(resume.net)
            self.optimizer.load(resume.optimizer)
        self.precision = self.state.progress.precision = self._agree_on_precision()
        self.train_rows, self.valid_rows = data.rows("train"), data.rows("valid")
        progress = self.state.progress
        self.start: Start = {"epoch": progress.epoch, "batch": progress.batch, "workers": self.world}

    def _agree_on_precision(self) -> Precision:
        """That of the run that goes on, wherever it does; at the beginning what suits the first worker's machine."""
        chosen = [self.state.progress.precision or precision.choose(self.config, self.device)]
        if self.world > 1:
            dist.broadcast_object_list(chosen, src=0)
        return chosen[0]

    def train_epoch(self) -> None:
        """The global batches of an epoch, from `progress.batch` on."""
        t, progress = self.config.train, self.state.progress
        epoch, seed = progress.epoch + 1, self.config.seed
        order, draws = _seed(seed, epoch), _seed(seed, epoch, self.rank)
        loss_sum = torch.zeros((), device=self.device)
        self.net.train()
        for rows, global_rows in self.train_rows.batches(
            t.batch_size, order, self.rank, self.world, skip=progress.batch
        ):
            _seed_draws(self.device, draws + progress.batch)  # so that dropout does not depend on where a run began
            loss_sum += self._step(rows, global_rows)
            progress.batch += 1
            if t.checkpoint_batches and progress.batch % t.checkpoint_batches == 0:
                progress.loss_sum += self._take_sum(loss_sum)
                self.save()
        progress.loss_sum += self._take_sum(loss_sum)

    def _step(self, rows: Rows, global_rows: int) -> Tensor:
        """Move the weights by this worker's rows of a global batch; gives back the sum of the rows' losses."""
        batch = self.data.batch(rows, self.net).to(self.device)
        if self.config.train.id_dropout:
            slots_BS = self.net.embedding.hide(batch.slots_BS, self.config.train.id_dropout)
            batch = batch._replace(slots_BS=slots_BS, scenario_B=self.net.embedding.scenarios(slots_BS))
        self.optimizer.read(batch)
        label_B = rows.label_B.to(self.device, non_blocking=True)
        with precision.products(self.precision, self.device):
            logit_B = self.net(batch)
        loss = F.binary_cross_entropy_with_logits(logit_B, label_B, reduction="sum")
        self.net.zero_grad(set_to_none=True)
        (loss / global_rows).backward()
        if self.world > 1:
            gradients.add_up([*self.net.parameters()])
        self.optimizer.step()
        return loss.detach()

    def _take_sum(self, loss_sum: Tensor) -> float:
        """The sum over all workers; `loss_sum` starts again at zero."""
        if self.world > 1:
            dist.all_reduce(loss_sum)
        total = float(loss_sum)
        loss_sum.zero_()
        return total

    def validate(self) -> None:
        """End the epoch: score the validation rows, add to the history, and keep the weights if they are the best."""
        progress = self.state.progress
        loss = progress.loss_sum / max(self.train_rows.rows, 1)
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        self._check(math.isfinite(loss), "the loss")
        self.optimizer.catch_up()
        sums = self._sum_valid_rows()
        self._check(not sums.infinite_P.any(), "the validation loss")
        report = sums.report(self.data.scenario_names)
        valid = report["overall"]
        progress.history.append(
            {
                "epoch": progress.epoch,
                "loss": loss,
                "valid_auc": valid["auc"],
                "valid_gauc": valid["gauc"],
                "valid_logloss": valid["logloss"],
                "valid_rows": valid["rows"],
            }
        )
        if not progress.best_report or _is_better(report, progress.best_report):
            progress.best_epoch, progress.best_report = progress.epoch, report
            self.state.best = {} if self.rank else _copy(self.net)  # which the first worker saves

    def _sum_valid_rows(self) -> Sums:
        """What the metrics of all validation rows need; each worker scores partitions of its own, or users of one."""
        total, size = partitions.count(self.data.prepared), self.config.train.batch_size
        shares = -(-self.world // total)  # of each partition
        parts = []
        for number in range(self.rank, total * shares, self.world):
            partition, share = divmod(number, shares)
            scored = predict(self.net, self.data, self.valid_rows, size, partition, share, shares)
            parts.append(Sums.of(scored, len(self.data.scenario_names)))
        sums = Sums.add(parts)
        if self.world == 1:
            return sums
        gathered = [sums] * self.world
        dist.all_gather_object(gathered, sums)
        return Sums.add(gathered)

    def save(self) -> None:
        """Hand the state on as a checkpoint if all of it is finite."""
        state, progress = self.state, self.state.progress
        if self.start not in progress.starts[-1:]:
            progress.starts.append(self.start)
        self.optimizer.catch_up()
        state.net, state.optimizer = _on_cpu(self.net), self.optimizer.state()
        self._check(math.isfinite(progress.loss_sum), "the loss")
        self._check(_finite(state.net) and _finite(state.optimizer), "a weight or its average")
        if self.on_checkpoint is not None:
            self.on_checkpoint(state)

    def _check(self, finite: bool, what: str) -> None:
        if self.world > 1:  # the first worker alone has the averages of all rows
            everywhere = torch.tensor(float(finite), device=self.device)
            dist.all_reduce(everywhere, dist.ReduceOp.MIN)
            finite = bool(everywhere)
        if finite:
            return
        epoch = self.state.progress.epoch + (self.state.progress.batch > 0)
        backbone, t = self.config.model.backbone, self.config.train
        mend = f", or mend {backbone}" if ":" in backbone else ""
        # then a step of the decay turns a weight's sign and makes it larger
        grows = t.learning_rate * t.weight_decay > 2 and t.weight_decay > t.learning_rate
        key = f"weight_decay (it is {t.weight_decay:g})" if grows else f"learning_rate (it is {t.learning_rate:g})"
        raise ConfigError(f"{what} is not finite in epoch {epoch}; lower train.{key}{mend}")


def _is_better(report: Report, best: Report) -> bool:
    """By AUC, or by logloss where the rows are of one class."""
    one, other = report["overall"], best["overall"]
    if one["auc"] is None or other["auc"] is None:
        assert one["logloss"] is not None  # scores are finite and there are rows
        assert other["logloss"] is not None
        return one["logloss"] < other["logloss"]
    return one["auc"] > other["auc"]


def _finite(tensors: Tensors) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def _seed_draws(device: torch.device, seed: int) -> None:
    """As `torch.manual_seed`, which for each absent kind of device keeps a stack trace for later, at 0.3 ms a call."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _on_cpu(net: nn.Module) -> Tensors:
    """The weights, where every machine can read them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}


def _copy(net: nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in _on_cpu(net).items()}
