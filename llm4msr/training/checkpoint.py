"""TODO."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor
from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.progress import say

Tensors = dict[str, Tensor]


@dataclass
class Progress:
    """Where the loop stands; saved with every checkpoint."""

    epoch: int = 0
    """Epochs that are done."""
    batch: int = 0
    """Global batches of the next epoch that are done."""
    loss_sum: float = 0.0
    """Over the rows of those batches, of all workers."""
    best_epoch: int = 0
    best_report: dict[str, Any] = field(default_factory=dict)
    """Validation metrics of the best epoch, as `metrics.report` gives them."""
    history: list[dict[str, float | None]] = field(default_factory=list)
    starts: list[dict[str, int]] = field(default_factory=list)
    """`epoch`, `batch` and `workers` of every start that left a checkpoint: the first, and each after a crash or with
    another number of workers."""

    @property
    def best_auc(self) -> float | None:
        """Of the validation rows, after the best epoch; None where they are of one class."""
        return self.best_report["overall"]["auc"] if self.best_report else None


@dataclass
class Checkpoint:
    """All that another process needs to go on: no pickle, only tensors and JSON."""

    progress: Progress
    net: Tensors
    best: Tensors
    optimizer: Tensors

    def save(self, folder: Path) -> None:
        """Write the checkpoint's files, last the digests of the others.

        Raises:
            StorageError: no space is left.
        """
        with storage.full_disk_errors(folder):
            for name in ("net", "best", "optimizer"):
                safetensors.torch.save_file(getattr(self, name), folder / f"{name}.safetensors")
            (folder / "progress.json").write_text(json.dumps(asdict(self.progress), allow_nan=False))
            digests = {name: storage.digest_file(folder / name) for name in _CHECKPOINT}
            (folder / "digests.json").write_text(json.dumps(digests))

    @classmethod
    def load(cls, folder: UPath) -> "Checkpoint":
        """Read what `save` wrote.

        Raises:
            StorageError: a file is missing or damaged.
        """
        try:
            digests = json.loads(storage.read_bytes(folder / "digests.json"))
            files = {name: storage.read_bytes(folder / name) for name in _CHECKPOINT}
            whole = digests == {name: storage.digest(data) for name, data in files.items()}
            progress = Progress(**json.loads(files["progress.json"])) if whole else None
        except (ValueError, TypeError):
            progress = None
        if progress is None:
            raise StorageError(f"{folder}: a damaged checkpoint")
        return cls(progress, *(safetensors.torch.load(files[name]) for name in _CHECKPOINT[:3]))


_CHECKPOINT = ("net.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json")


def weights_as_bytes(tensors: Tensors) -> bytes:
    """In safetensors' format."""
    return safetensors.torch.save(tensors)


FOLDER = "checkpoints"


_STATE = "checkpoint_manager_snapshot.json"


def forget_unreadable(folder: UPath) -> None:
    """Delete what no training can go on from, which Ray would fail at: after a full disk, a lost file, or a crash.

    If the latest checkpoint is whole, it stays, and only what is left of unfinished ones goes.
    """
    kept = folder / FOLDER
    there = storage.files_below(kept)
    if not there:
        return
    try:
        state = json.loads(storage.read_bytes(kept / _STATE))
        named = {str(one["checkpoint_dir_name"]) for one in state["checkpoint_results"]}
        latest = str(state["latest_checkpoint_result"]["checkpoint_dir_name"])
        Checkpoint.load(kept / latest)
    except (StorageError, ValueError, KeyError, TypeError):
        say(f"  {folder.name}: no checkpoint that can be read; training begins anew")
        storage.remove(kept)
        return
    there_too = {name.partition("/")[0] for name in there if "/" in name}
    for name in there_too - named:
        storage.remove(kept / name)
