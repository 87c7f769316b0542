"""The training loop, and what its model is compared with."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from llm4msr.config.section import Key, Section

Variant = Literal["none", "feature", "user", "scenario", "both", "match", "din", "shuffled", "random"]

MAX_SEED = 2**63 - 1
"""The largest that every generator of random numbers takes."""


def check_workers(workers: int | tuple[int, int]) -> int | tuple[int, int]:
    """The same workers, if they are a number, or the least and the most.

    Raises:
        ValueError: they are neither.
    """
    least, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= least <= most:
        raise ValueError("write a number from 1 on, or the least and the most, such as [2, 4]")
    return workers


def check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The same seeds, if none is repeated.

    Raises:
        ValueError: one is; its model would be counted twice, and the deviation would be too small.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed stands there twice; write each once")
    return seeds


class TrainConfig(Section):
    """The training loop."""

    workers: Annotated[Annotated[int | tuple[int, int], AfterValidator(check_workers)], Key.HOW] = 1
    """Data-parallel. `[2, 4]` is elastic: it starts with as many as the cluster has room for, continues with fewer when
    machines go, and takes more when they come. The result stays the same but for noise. The models of a run are trained
    one after the other, but up to four side by side where there are at most four million rows, a fixed number of
    workers and the CPUs or GPUs for it."""
    device: Annotated[Literal["cpu", "gpu"], Key.HOW] = "cpu"
    """What each worker trains on: one core, or one GPU, which pays for large batches and models."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the matrix products in training: `bfloat16` is up to twice as fast where the CPU (avx512_bf16,
    AMX) or the GPU has instructions for it, and slower elsewhere. `auto` looks at the first worker's machine, and keeps
    its choice when the run goes on on another; for a backbone of your own, or hidden layers narrower than 32, it takes
    `float32`. Weights, averages and all scoring are float32 either way, and results differ by less than those of two
    seeds do."""
    checkpoint_batches: Annotated[int, Key.HOW] = Field(1000, ge=0)
    """Global batches after which a checkpoint is written within an epoch; 0 = only after every epoch. A crash, or
    another number of workers, costs the batches since then."""
    sparse: Annotated[Literal["auto"] | bool, Key.HOW] = "auto"
    """Whether a step touches only those rows of the embedding table that its batch has, or all. The weights are the
    same but for rounding. `auto`: where the table has more than 16 rows for each row of a global batch."""
    tracker: Annotated[Literal["none", "mlflow", "wandb"], Key.HOW] = "none"
    """Where settings and epochs go besides TensorBoard: to MLflow (extra `mlflow`) or Weights & Biases (extra `wandb`),
    a run for each training in a project of this experiment's `name`. Both find server and credentials in their own
    environment variables, such as `MLFLOW_TRACKING_URI` and `WANDB_API_KEY`, where `llm4msr` is started."""
    epochs: int = Field(20, ge=1)
    """Most passes over the training rows; `patience` usually ends training earlier."""
    batch_size: int = Field(4096, ge=1)
    """Rows of a global batch, which the workers share; scoring takes as many at a time."""
    learning_rate: float = Field(1e-3, gt=0)
    """Step size of Adam, the same throughout. Lower it if the loss jumps or is not finite."""
    weight_decay: float = Field(1e-5, ge=0)
    """Decoupled decay of all weights (AdamW): a step shrinks them by `learning_rate` times this. Raise it against
    overfitting."""
    patience: int = Field(3, ge=1)
    """Epochs without a better validation AUC (a lower logloss, where the validation rows are of one class) after which
    training ends."""
    warm_start: Annotated[str, Key.URI] = ""
    """Folder or URI of an earlier training, as `train` printed it: its weights are what training begins with. The data
    can have more users, items, scenarios and values by now; `model` must have the same keys. Empty = begin anew."""
    id_dropout: float = Field(0.02, ge=0, lt=1)
    """Share of ids trained as unknown, so that an unknown user, item or scenario has a trained meaning."""


class EvaluateConfig(Section):
    """What the table of results compares the configured model with."""

    variants: tuple[Variant, ...] = ("none",)
    """`none` is the plain backbone, `din` the same with target attention over item ids, `match` with the configured
    `model.match` or else all parts of it that need vectors. The others are the configured model with another way of
    using knowledge, or with wrong vectors (`shuffled`, `random`)."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...], AfterValidator(check_seeds)] = ()
    """Each model is trained once with each of these, and the table shows mean and deviation. Empty = the config's own
    `seed` alone."""
