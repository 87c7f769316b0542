"""The driver's side of training: start the workers, show how far they are, and bring back the last checkpoint."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError, LLM4MSRError
from llm4msr.progress import say, track
from llm4msr.storage import StageOutput
from llm4msr.text import first_line, number
from llm4msr.training import checkpoint, tracker
from llm4msr.training.checkpoint import Epoch, Progress
from llm4msr.training.streams import check_workers
from llm4msr.training.worker import Job, worker_loop

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

MAX_FAILURES = 3
"""Times that dead workers are replaced, going on from the last checkpoint."""
PATIENCE_SECONDS = 4 * 3600
"""How long workers wait for one that writes a checkpoint; of one that died Ray Train knows sooner."""
RESIZE_SECONDS = 20.0
"""How often an elastic run looks for room for more workers: as often as Ray itself counts the nodes."""


def require_machines(config: Config) -> None:
    """Refuse a config whose workers can never all run on this cluster, or have no rows, before any work.

    Raises:
        ConfigError: names the keys, what is there, and what to do.
    """
    least, device = _least_workers(config), config.train.device
    workers = config.train.workers
    check_workers(workers if isinstance(workers, int) else workers[1], config.train.batch_size)
    asks = f"train.device = '{device}' with train.workers = {least}"
    ray_session.require_resources(asks, {"CPU": least, "GPU": least if device == "gpu" else 0})


def run_workers(
    config: Config, data: StageOutput, knowledge: StageOutput | None, folder: UPath
) -> tuple[Progress, bytes]:
    """Train on workers that keep checkpoints below `folder`, from the last of these on.

    Gives back where they came to, and the best epoch's weights in safetensors' format.

    Raises:
        ConfigError: the cluster can never hold the workers, or a loss is no finite number.
    """
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray_session.connect()
    checkpoint.forget_unreadable(folder)
    require_machines(config)
    ray_session.say_if_busy(_least_workers(config), "GPU" if config.train.device == "gpu" else "CPU")
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    epochs = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": this_node})  # other nodes may go
    job = Job(
        config=config,
        data=str(data.folder),
        knowledge=str(knowledge.folder) if knowledge else "",
        output=str(folder),
        epochs=epochs,
    )
    label = f"train {config.model.backbone} {config.model.variant} seed {config.seed}"
    with (
        tracker.open_run(config, folder) as track_epoch,
        _show_progress(epochs, label, config.train.epochs, track_epoch),
    ):
        if error := _train_alone(job, label) if config.train.workers == 1 else _train_together(job, MAX_FAILURES):
            raise error
    last = checkpoint.newest(folder)
    if last is None:
        raise ConfigError(f"{folder}: training ended without a checkpoint; run again")
    return checkpoint.read_progress(last), checkpoint.read_best(last)


def _least_workers(config: Config) -> int:
    workers = config.train.workers
    return workers if isinstance(workers, int) else workers[0]


def _train_alone(job: Job, label: str) -> LLM4MSRError | None:
    """One worker is a Ray task, which spares the processes that Ray Train starts to look after several.

    If it dies, Ray Train takes over from its last checkpoint.
    """
    import ray

    config = job["config"]
    task = ray.remote(
        num_cpus=1,
        num_gpus=int(config.train.device == "gpu"),
        max_retries=0,
        max_calls=int(":" in config.model.backbone),  # in a process that has run before, its old code would do so again
    )(worker_loop)
    outcome = task.remote(job)
    try:
        error: LLM4MSRError | None = ray.get(outcome)
    except ray.exceptions.RayError as died:
        why = died.cause if isinstance(died, ray.exceptions.RayTaskError) else died
        reason = f"{type(why).__name__}: {first_line(why)}"
        say(f"  {label}: the worker died ({reason}); another goes on from the last checkpoint")
        return _train_together(job, MAX_FAILURES - 1)
    except BaseException:
        ray.cancel(outcome, force=True)
        raise
    return error


def _train_together(job: Job, max_failures: int) -> LLM4MSRError | None:
    """Ray Train starts the workers, joins them under torch.distributed, and replaces those that die."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    train = job["config"].train
    gpu = train.device == "gpu"
    filesystem, path = storage.arrow_filesystem(storage.path(job["output"]) / checkpoint.FOLDER)
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config=job,
        torch_config=TorchConfig(timeout_s=PATIENCE_SECONDS),
        # one thread each: the layers are small, and threads that wait for each other suffer most on a busy machine
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1},
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name="ray-train",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    result = _fit(trainer)
    if result.error:
        raise result.error
    error: LLM4MSRError | None = result.return_value
    return error


def _fit(trainer: "TorchTrainer") -> "Result":
    """`trainer.fit()` in a thread: in the main one Ray Train takes Ctrl-C for itself, and the process would not end."""
    outcome: Future[Result] = Future()

    def work() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()


@contextlib.contextmanager
def _show_progress(queue: "Queue", label: str, epochs: int, write: Callable[[Epoch], None]) -> Iterator[None]:
    """Show and track every epoch that the first worker puts into the queue, while the block runs."""
    from ray.util.queue import Empty

    over = threading.Event()

    def listen() -> None:
        with track(label, epochs) as progress:
            while True:
                try:
                    epoch: Epoch = queue.get(timeout=0.5)
                except Empty:
                    if over.is_set():
                        return
                    continue
                except Exception as error:
                    if not over.is_set():  # the queue went with its node: training goes on unseen
                        say(f"  {label}: no more progress shown ({type(error).__name__})")
                    return
                note = f"valid AUC {number(epoch['valid_auc'])}, logloss {number(epoch['valid_logloss'])}"
                progress.advance(epoch["epoch"] - progress.done, note)
                write(epoch)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join(timeout=10)
        with contextlib.suppress(Exception):  # it may be gone already
            queue.shutdown(force=True)
