"""Train one model on Ray Train: data-parallel workers, as many as there are, and a run that goes on after a crash."""

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError, FullDiskError, LLM4MSRError
from llm4msr.model import backbones
from llm4msr.progress import say, track
from llm4msr.storage import StageOutput, StageResult, cache
from llm4msr.text import number
from llm4msr.training import checkpoint, popularity
from llm4msr.training.batches import RowReader
from llm4msr.training.checkpoint import Checkpoint, weights_as_bytes
from llm4msr.training.dataset import Dataset
from llm4msr.training.loop import fit

VERSION = 5
WEIGHTS = "net.safetensors"
MAX_FAILURES = 3
"""Times that dead workers are replaced, going on from the last checkpoint."""
RESIZE_SECONDS = 20.0
"""How often an elastic run looks for room for more workers: as often as Ray itself counts the nodes."""


@ray_session.unwrap_errors
def train(config: Config, data: StageOutput, knowledge: StageOutput | None) -> StageOutput:
    """Publish the best weights and the history of one model.

    Raises:
        ConfigError: there is no such backbone, or a loss is no
            finite number.
        StorageError: the storage or this machine's cache cannot be written.
    """
    backbones.find(config.model.backbone)  # a wrong import path is told here, before any worker starts
    fingerprints = {"prepare": data.manifest.fingerprint}
    if knowledge is not None:
        cache.root()  # the workers will need it: told here where it cannot be written
        fingerprints["extract"] = knowledge.manifest.fingerprint
    settings = config.model_dump(include={"model", "train"})
    output = storage.publish(
        folder(config, data, knowledge),
        "train",
        config.seed,
        settings,
        fingerprints,
        lambda f: _build(config, data, knowledge, f),
        resumable=True,
    )
    for line in output.manifest.info["warnings"]:
        say(f"warning: {line}")
    return output


def folder(config: Config, data: StageOutput, knowledge: StageOutput | None) -> UPath:
    """Where this config's weights lie, or will."""
    content = {name: part.digest for name, part in data.manifest.files.items()}
    vectors = {name: part.digest for name, part in knowledge.manifest.files.items()} if knowledge else {}
    model, settings = config.model.identity(), config.train.identity()
    name = storage.digest_json([VERSION, config.seed, model, settings, content, vectors])[:12]
    label = f"{config.model.backbone.replace(':', '.')}-{config.model.variant}-s{config.seed}"
    return storage.path(config.root) / "train" / f"{label}-{name}"


def _build(config: Config, data: StageOutput, knowledge: StageOutput | None, folder: UPath) -> StageResult:
    _tell_of_one_class(data.folder)
    best = _run(config, data, knowledge, folder)
    at = best.progress
    info = quality(config, data, at.best_report)
    beside = "; ".join(f"{name}: {popularity.phrase(one)}" for name, one in info["baselines"].items())
    own = popularity.phrase(at.best_report["overall"])
    say(f"  {folder.name}: {at.epoch} epochs, best epoch {at.best_epoch}; validation rows: {own} ({beside})")
    storage.write_bytes(folder / WEIGHTS, weights_as_bytes(best.best))
    storage.write_bytes(folder / "history.json", json.dumps(at.history, indent=1, allow_nan=False).encode())
    storage.remove(folder / checkpoint.FOLDER)
    info |= {
        "best_epoch": at.best_epoch,
        "best_by": "logloss" if at.best_auc is None else "auc",
        "epochs": at.epoch,
        "starts": at.starts,
        "parameters": sum(tensor.numel() for tensor in best.best.values()),
    }
    rows = data.manifest.files["train.parquet"].rows
    return StageResult(files={WEIGHTS: 1, "history.json": at.epoch}, rows=rows, info=info)


def quality(config: Config, data: StageOutput, report: dict[str, Any]) -> dict[str, Any]:
    """The best epoch's metrics on validation rows, those of the baselines, and what to warn of."""
    names = data.table("scenarios.parquet", ["scenario_id"])["scenario_id"].to_pylist()
    baselines = {n: one["overall"] for n, one in popularity.reports(data, "valid", names).items()}
    warnings = popularity.warnings(config.model.variant, report["overall"], baselines, "validation")
    return {"metrics": {"on": "valid", **report}, "baselines": baselines, "warnings": warnings}


def _tell_of_one_class(folder: UPath) -> None:
    """Say what rows of one class mean for training."""
    meant = {
        "train": "a model learns no order from one class; without labels, let split.negatives draw the other one",
        "valid": "they have no AUC, so the best epoch is that of the lowest logloss",
    }
    for part, meaning in meant.items():
        rows = RowReader(folder / f"{part}.parquet", [])
        positive = {label > 0.5 for label in rows.labels or (0, 1)}
        if len(positive) == 1:
            say(f"  {part}: all {rows.rows} rows are {'positives' if positive.pop() else 'negatives'}: {meaning}")


def _run(config: Config, data: StageOutput, knowledge: StageOutput | None, folder: UPath) -> Checkpoint:
    """Run the loop on Ray Train workers; gives back the last checkpoint."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray_session.connect()
    checkpoint.forget_unreadable(folder)
    workers, gpu = config.train.workers, config.train.device == "gpu"
    require_machines(config)
    ray_session.say_if_busy(_least_workers(config), "GPU" if gpu else "CPU")
    filesystem, path = storage.arrow_filesystem(folder)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # other nodes may go
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config={
            "config": config,
            "data": str(data.folder),
            "knowledge": str(knowledge.folder) if knowledge else "",
            "output": str(folder),
            "reports": reports,
        },
        # one thread each: the layers are small, and threads that wait for each other suffer most on a busy machine
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1},
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=checkpoint.FOLDER,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    label = f"train {config.model.backbone} {config.model.variant} seed {config.seed}"
    with _told(reports, label, config.train.epochs):
        result = _fit(trainer)
    if result.error is not None:
        raise result.error
    if result.return_value is not None:
        raise result.return_value
    if result.checkpoint is None:
        raise ConfigError(f"{folder}: training ended without a checkpoint; delete that folder and run again")
    with result.checkpoint.as_directory() as saved:
        return Checkpoint.load(storage.path(saved))


def require_machines(config: Config) -> None:
    """Refuse a config whose workers can never all run here, before any work.

    Raises:
        ConfigError: names the keys, what is there, and what to do.
    """
    least, device = _least_workers(config), config.train.device
    asks = f"train.device = '{device}' with train.workers = {least}"
    ray_session.require_resources(asks, {"CPU": least, "GPU": least if device == "gpu" else 0})


def _least_workers(config: Config) -> int:
    workers = config.train.workers
    return workers if isinstance(workers, int) else workers[0]


def _fit(trainer: Any) -> Any:
    """`trainer.fit()` in a thread: in the main one Ray Train takes Ctrl-C for itself, and the process would not end."""
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()


def worker_loop(job: dict[str, Any]) -> LLM4MSRError | None:
    """What each Ray Train worker runs: open the data, go on from the last checkpoint, report every new one.

    Gives back the error that the user has to mend, else None: what is raised would be tried again.
    """
    from ray import train as ray_train

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    config: Config = job["config"]
    prepared_data = storage.open_output(storage.path(job["data"]))
    knowledge = storage.open_output(storage.path(job["knowledge"])) if job["knowledge"] else None
    assert prepared_data is not None
    data = Dataset.open(config, prepared_data, knowledge)
    first = ray_train.get_context().get_world_rank() == 0
    resume = None
    if (saved := ray_train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            resume = Checkpoint.load(storage.path(folder))
    try:
        with storage.full_disk_errors(job["output"]), _tensorboard(storage.path(job["output"]), first) as board:

            def on_checkpoint(state: Checkpoint) -> None:
                at = state.progress
                latest = {"batch": at.batch, **(at.history[-1] if at.history else {})}
                with tempfile.TemporaryDirectory() as folder:
                    if first:
                        state.save(Path(folder))
                        if at.batch == 0:
                            _tell(board, job["reports"], at.history[-1])
                    mine = ray_train.Checkpoint.from_directory(folder) if first else None
                    ray_train.report(latest, checkpoint=mine)

            state = fit(config, data, resume, on_checkpoint)
    except ConfigError as error:  # all workers raise it after the same batch
        return error
    except FullDiskError as error:
        if ray_train.get_context().get_world_size() > 1:
            raise  # the others wait for this one
        return error
    if resume is not None and state.progress == resume.progress:
        ray_train.report({}, checkpoint=saved if first else None)  # it had finished but for the publishing
    return None


def _tell(board: Any, reports: Any, epoch: dict[str, float | None]) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    for name, value in epoch.items():
        if value is not None:  # a metric that the rows do not define, such as GAUC of single rows
            at = int(epoch["epoch"] or 0)
            board.write_event(Event(wall_time=time.time(), step=at, summary=scalar(name, value)))
    board.flush()
    reports.put(epoch)


@contextlib.contextmanager
def _tensorboard(output: UPath, first: bool) -> Iterator[Any]:
    """A file of events below the output; an object store gets it at the end, since it grows while it is open.

    `SummaryWriter` would write it in a thread, which a full disk ends without a word; all that is shown later waits.
    """
    if not first:
        yield None
        return
    from tensorboardX.event_file_writer import EventsWriter

    local = isinstance(output, Path)
    with tempfile.TemporaryDirectory() as aside:
        folder = output / "tensorboard" if local else Path(aside)
        folder.mkdir(exist_ok=True)
        board = EventsWriter(str(folder / "events"))
        try:
            yield board
        finally:
            with contextlib.suppress(OSError):  # every epoch is on the disk already, or the disk was full and that told
                board.close()
        for file in [] if local else folder.iterdir():
            storage.write_bytes(output / "tensorboard" / file.name, file.read_bytes())


@contextlib.contextmanager
def _told(reports: Any, label: str, epochs: int) -> Iterator[None]:
    """Show what the workers report while the block runs."""
    from ray.util.queue import Empty

    over = threading.Event()

    def listen() -> None:
        with track(label, epochs) as progress:
            while not over.is_set():
                try:
                    latest = reports.get(timeout=0.5)
                except Empty:
                    continue
                except Exception as error:  # the queue went with its node: training goes on untold
                    say(f"  {label}: no more progress shown ({type(error).__name__})")
                    return
                shown = f"valid AUC {number(latest['valid_auc'])}, logloss {number(latest['valid_logloss'])}"
                progress.advance(int(latest["epoch"]) - progress.done, shown)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join(timeout=10)
        with contextlib.suppress(Exception):  # it may be gone already
            reports.shutdown(force=True)
