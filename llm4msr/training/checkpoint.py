"""What training goes on from after a crash: saved without pickle, and used only where every file is whole."""

import contextlib
import json
import math
import tempfile
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

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
_DIGESTS = "digests.json"
_FILES = ("net.safetensors", "best.safetensors", "optimizer.safetensors", "progress.json")

Tensors = dict[str, Tensor]


class DamagedCheckpointError(StorageError):
    """A checkpoint's files are not those that were written."""


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
            (folder / _DIGESTS).write_text(json.dumps(digests))

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
        raise DamagedCheckpointError(f"{folder}: a damaged checkpoint") from None


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
        raise DamagedCheckpointError(f"{folder}: a damaged checkpoint")
    return data


def _digests(folder: UPath) -> dict[str, str]:
    try:
        digests: dict[str, str] = dict(json.loads(storage.read_bytes(folder / _DIGESTS)))
    except (ValueError, TypeError):
        raise DamagedCheckpointError(f"{folder}: a damaged checkpoint") from None
    return digests


def keep(state: Checkpoint, training: UPath) -> None:
    """Store a checkpoint below the training's folder, and then remove those before it.

    Raises:
        OSError: it cannot be written, for lack of space or another reason; nothing of it is left.
    """
    # in the order of their names; another worker that is about to be replaced must not write into the same folder
    place = f"{_PREFIX}{state.progress.epoch:06}-batch-{state.progress.batch:09}"
    name = f"{place}-{uuid.uuid4().hex[:8]}"
    filesystem, path = storage.arrow_filesystem(training / FOLDER / name)
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        try:
            filesystem.create_dir(path)
            pafs.copy_files(folder, path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)
        except OSError:
            with contextlib.suppress(StorageError):
                storage.remove(training / FOLDER / name)
            raise
    storage.flush(training / FOLDER / name, [*_FILES, _DIGESTS])
    for other in _folders(training):
        if other != name and other.rpartition("-")[0] <= place:
            storage.remove(training / FOLDER / other)


def newest(training: UPath) -> UPath | None:
    """The newest checkpoint that is whole: its worker may have died while it wrote the very last one.

    Raises:
        StorageError: storage cannot be read just now.
    """
    folders = sorted(_folders(training).items(), reverse=True)
    return next(
        (training / FOLDER / name for name, files in folders if _is_whole(training / FOLDER / name, files)), None
    )


def forget_unreadable(training: UPath) -> None:
    """Delete what no training can go on from: after a full disk, a lost file, or a crash.

    Raises:
        StorageError: storage cannot be read just now; nothing is deleted for that.
    """
    folders = _folders(training)
    damaged = [name for name, files in folders.items() if not _is_whole(training / FOLDER / name, files)]
    for name in damaged:
        storage.remove(training / FOLDER / name)
    if damaged and len(damaged) == len(folders):
        say(f"  {training.name}: no checkpoint that can be read; training begins anew")


def _folders(training: UPath) -> dict[str, set[str]]:
    """Checkpoints, whole or not, with the names of their files."""
    folders: dict[str, set[str]] = {}
    for path in storage.files_below(training / FOLDER):
        folder, _, file = path.partition("/")
        if folder.startswith(_PREFIX):
            folders.setdefault(folder, set()).add(file)
    return folders


def _is_whole(folder: UPath, files: set[str]) -> bool:
    if not files >= {*_FILES, _DIGESTS}:
        return False
    try:
        read_progress(folder)
        return _digests(folder) == {name: storage.digest_file(folder / name) for name in _FILES}
    except DamagedCheckpointError:
        return False
