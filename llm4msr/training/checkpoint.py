"""What training goes on from after a crash: saved without pickle, and used only where every file is whole."""

import contextlib
import json
import math
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar

import pyarrow.fs as pafs
import safetensors.torch
from torch import Tensor
from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.progress import say
from llm4msr.training.metrics import Report
from llm4msr.training.precision import Precision

WEIGHTS = "net.safetensors"
"""The best epoch's weights, as a training publishes them."""
FOLDER = "checkpoints"
"""Below a training's output; gone when the training is published."""
_PREFIX = "epoch-"
_FILES = ("net.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json")

Tensors = dict[str, Tensor]
T = TypeVar("T")


class Epoch(TypedDict):
    """One line of `history.json`: the mean loss of the training rows, and the metrics of the validation rows."""

    epoch: int
    loss: float
    valid_auc: float | None
    valid_gauc: float | None
    valid_logloss: float | None
    valid_rows: int


class Start(TypedDict):
    """Where a run of the loop began, and with how many workers."""

    epoch: int
    batch: int
    workers: int


@dataclass
class Progress:
    """Where the loop stands; saved with every checkpoint."""

    epoch: int = 0
    """Epochs that are done."""
    batch: int = 0
    """Global batches of the next epoch that are done."""
    loss_sum: float = 0.0
    """Over the rows of those batches, of all workers."""
    precision: Precision | None = None
    """Of the products, as the first worker of the first start chose it; it stays through all starts."""
    best_epoch: int = 0
    best_report: Report | None = None
    """Validation metrics of the best epoch; None before the first has ended."""
    history: list[Epoch] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    """Every start that left a checkpoint: the first, and each after a crash or with another number of workers."""

    @property
    def best_auc(self) -> float | None:
        """Of the validation rows, after the best epoch; None where they are of one class."""
        return self.best_report["overall"]["auc"] if self.best_report else None


@dataclass
class Checkpoint:
    """All that another process needs to go on: tensors by name, on the CPU, and the progress as JSON.

    While training goes on, `net` and `optimizer` are the very tensors that it moves: save them, or copy them.
    """

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
            digests = {name: storage.digest_file(folder / name) for name in _FILES}
            (folder / "digests.json").write_text(json.dumps(digests))

    @classmethod
    def load(cls, folder: UPath) -> "Checkpoint":
        """Read what `save` wrote.

        Raises:
            StorageError: a file is missing or damaged.
        """
        progress = read_progress(folder)
        return cls(progress, *(safetensors.torch.load(_read(folder, name)) for name in _FILES[:3]))


def read_progress(folder: UPath) -> Progress:
    """The progress of a checkpoint.

    Raises:
        StorageError: a file is missing or damaged.
    """
    try:
        return Progress(**json.loads(_read(folder, "progress.json")))
    except (ValueError, TypeError):
        raise StorageError(f"{folder}: a damaged checkpoint") from None


def read_best(folder: UPath) -> bytes:
    """The best epoch's weights, in safetensors' format.

    Raises:
        StorageError: a file is missing or damaged.
    """
    return _read(folder, "best.safetensors")


def count_numbers(weights: bytes) -> int:
    """In all tensors together, as the header of safetensors' format tells."""
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _read(folder: UPath, name: str) -> bytes:
    data = storage.read_bytes(folder / name)
    if _digests(folder).get(name) != storage.digest(data):
        raise StorageError(f"{folder}: a damaged checkpoint")
    return data


def _digests(folder: UPath) -> dict[str, str]:
    try:
        digests: dict[str, str] = dict(json.loads(storage.read_bytes(folder / "digests.json")))
    except (ValueError, TypeError):
        raise StorageError(f"{folder}: a damaged checkpoint") from None
    return digests


def keep(state: Checkpoint, training: UPath) -> None:
    """Store a checkpoint below the training's folder, and then remove those before it.

    Raises:
        OSError: it cannot be written, for lack of space or another reason.
    """
    # in the order of their names; another worker that is about to be replaced must not write into the same folder
    name = f"{_PREFIX}{state.progress.epoch:06}-batch-{state.progress.batch:09}-{uuid.uuid4().hex[:8]}"
    filesystem, path = storage.arrow_filesystem(training / FOLDER / name)
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        filesystem.create_dir(path)
        pafs.copy_files(folder, path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)
    for other in _names(training):
        if other < name:
            storage.remove(training / FOLDER / other)


def newest(training: UPath, read: Callable[[UPath], T]) -> T | None:
    """What `read` makes of the newest checkpoint that is whole: a worker may have died while it wrote the last one."""
    for name in reversed(_names(training)):
        with contextlib.suppress(StorageError):
            return read(training / FOLDER / name)
    return None


def forget_unreadable(training: UPath) -> None:
    """Delete what no training can go on from: after a full disk, a lost file, or a crash."""
    names = _names(training)
    damaged = [name for name in names if not _is_whole(training / FOLDER / name)]
    for name in damaged:
        storage.remove(training / FOLDER / name)
    if names and damaged == names:
        say(f"  {training.name}: no checkpoint that can be read; training begins anew")


def _names(training: UPath) -> list[str]:
    folders = {name.partition("/")[0] for name in storage.files_below(training / FOLDER)}
    return sorted(name for name in folders if name.startswith(_PREFIX))


def _is_whole(folder: UPath) -> bool:
    try:
        read_progress(folder)
        return _digests(folder) == {name: storage.digest_file(folder / name) for name in _FILES}
    except StorageError:
        return False
