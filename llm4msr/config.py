"""The configuration of every stage: frozen, typed, read from one TOML file and `--set section.key=value`."""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm4msr import storage
from llm4msr.errors import ConfigError

Knowledge = Literal["none", "user", "scenario", "both", "feature"]
Control = Literal["none", "shuffled", "random"]
Variant = Literal["none", "feature", "user", "scenario", "both", "shuffled", "random"]

MAX_SEED = 2**63 - 1
"""What every generator of random numbers takes."""

BACKBONES = (
    *("single", "shared_bottom", "omoe", "mmoe", "ple", "aitm", "star"),
    *("epnet", "ppnet", "m3oe", "hamur", "sarnet", "adasparse"),
)


def check_backbone(name: str) -> str:
    """The name again, if it is a known backbone's or an import path; whether the path leads anywhere is not looked up.

    Raises:
        ValueError: with the nearest known name.
    """
    module, colon, attribute = name.partition(":")
    if name in BACKBONES or (colon and all(part.isidentifier() for part in (*module.split("."), attribute))):
        return name
    near = difflib.get_close_matches(name, BACKBONES, n=1)
    known = ", ".join(f"'{backbone}'" for backbone in BACKBONES)
    meant = f" (did you mean '{near[0]}'?)" if near else ""
    raise ValueError(f"no such backbone{meant}; known are {known}, or your own as 'package.module:Class'")


def check_workers(given: int | tuple[int, int]) -> int | tuple[int, int]:
    """The same again: a number, or the least and the most.

    Raises:
        ValueError: it is neither.
    """
    least, most = (given, given) if isinstance(given, int) else given
    if not 1 <= least <= most:
        raise ValueError("write a number from 1 on, or the least and the most, such as [2, 4]")
    return given


def check_seeds(given: tuple[int, ...]) -> tuple[int, ...]:
    """The same again, if each stands there once.

    Raises:
        ValueError: one stands there twice; its model would be counted twice, and the deviation be too small.
    """
    if len(set(given)) < len(given):
        raise ValueError("a seed stands there twice; write each once")
    return given


class Key(Enum):
    """What a key's value is to a fingerprint; a key without such a mark enters it as it is."""

    HOW = "says how to run, not what comes out: it enters no fingerprint"
    URI = "names a file whose content enters the fingerprint instead of its name"


class Section(BaseModel):
    """A frozen section that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The keys that decide the result of the stage that reads this section, for its fingerprint."""
        unmarked = {
            n for n, key in type(self).model_fields.items() if not any(isinstance(m, Key) for m in key.metadata)
        }
        return self.model_dump(include=unmarked)


class TableColumns(Section):
    """`kind = "table"`: files below `source.path` and the names of their columns."""

    interactions: str = "interactions.csv.gz"
    items: str = ""
    users: str = ""
    user: str = "user_id"
    item: str = "item_id"
    scenario: str = "scenario"
    label: str = ""
    order: str = ""
    title: str = ""
    category: str = ""
    category_separator: str = Field(" > ", min_length=1)
    delimiter: str = Field("", pattern=r"^[^\w\s\"]?$|^\t$")
    """What stands between the cells of CSV files, one character; empty = comma, tab, semicolon or `|`, as each file's
    header shows."""
    context: tuple[str, ...] = ()
    """Columns of the interactions that are known when a list is ranked, such as the device."""
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _each_field_has_a_name_of_its_own(self) -> Self:
        taken = {"user_features": {"user_id": "the id itself"}, "item_features": {"item_id": "the id itself"}}
        if self.category:
            taken["item_features"]["category"] = "the path that the key `category` names"
        for key in ("context", "user_features", "item_features"):
            names: tuple[str, ...] = getattr(self, key)
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{key}: '{name}' stands there twice")
                if owner := taken.get(key, {}).get(name):
                    raise ValueError(
                        f"{key}: the name '{name}' is taken: {owner} is a feature of that name; "
                        "leave it out, or rename the column"
                    )
        return self


class AmazonOptions(Section):
    """`kind = "amazon"`: which of the files below `source.path`, and what of them."""

    categories: tuple[str, ...] = ()
    """Names as the files have them, such as `Movies_and_TV`; empty = all whose reviews are there."""
    k_core: int = Field(0, ge=0)
    """Users and items with fewer interactions over all categories go, again and again; 0 = all stay."""
    liked_above: float = 3.0
    """A rating above it is a like."""
    implicit: bool = False
    """Whether likes alone are kept, so that `split.negatives` draws what was not liked."""
    meta: bool = True
    """Whether the files of titles, categories and brands are read; without them an item shows its id."""


class KuaiSAROptions(Section):
    """`kind = "kuaisar"`: what of the files below `source.path`."""

    search_item_types: tuple[str, ...] = ("VIDEO",)
    """Search results that are kept, empty = all. Only videos are described and are recommended too, so the ids of
    others get their type in front: `USER:17` is no video."""
    author: bool = False
    """Whether the author is an item feature; there are millions."""


class SourceConfig(Section):
    """Where the raw data lies and how to read it."""

    kind: Literal["movielens", "amazon", "kuaisar", "table"]
    path: str
    scenario: Literal["genre", "era", "age"] = "genre"
    table: TableColumns = TableColumns()
    amazon: AmazonOptions = AmazonOptions()
    kuaisar: KuaiSAROptions = KuaiSAROptions()


class SplitConfig(Section):
    """How rows are divided into train, valid and test."""

    kind: Literal["time", "leave_last_out", "random"] = "time"
    by: Literal["global", "user"] = "global"
    """`time` only: one cut for all, or each user's own time line is cut. With `global`, users who come after
    the cut have no history, so no knowledge; with `user` everybody has one."""
    valid: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    latest: int = Field(0, ge=0)
    """Only the latest so many interactions are used at all; 0 = all."""
    negatives: int = Field(0, ge=0, le=100)
    history_share: float = Field(1.0, gt=0, le=1)
    """The earliest share of the training period that feeds prompts. 1 is the paper's: a user's vector then has the
    labels of the very rows in it that it trains beside, and where users have few rows a model reads them off. Below
    1, those rows train as rows of a user without knowledge."""

    @model_validator(mode="after")
    def _shares_leave_room(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test = {self.valid + self.test:g} leaves no training rows")
        return self


class ExtractConfig(Section):
    """The frozen LLM and how it is asked."""

    reads: Literal["users", "items"] = "users"
    """Each user's history in one prompt, as the paper has it; or each item alone, once, and a user's vector is pooled
    from those of the items in the history. That costs LLM time by items, and new rows of old items cost none."""
    item_vectors: Literal["llm", "random"] = "llm"
    """`random` is a control for `reads = "items"`: what the histories bring without the LLM."""
    pool_dim: int = Field(64, ge=1)
    """Principal components of the items' vectors that are pooled."""
    point_in_time: bool = False
    """For `reads = "items"`: a training row sees its user's vector as it was before that row, so no label is in the
    vector that it trains beside. Later rows, and serving, see the whole history."""
    engine: Annotated[Literal["auto", "vllm", "transformers"], Key.HOW] = "auto"
    model: str = "smollm2-135m"
    """`smollm2-135m`, a local folder, a URI, or an id of the Hugging Face hub (`owner/name`, `owner/name@revision`)."""
    pooling: Literal["last", "mean", "answer"] = "last"
    answers: Literal["scenarios", "none", "all"] = "scenarios"
    answer_tokens: int = Field(96, ge=1, le=4096)
    actors: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Key.HOW] = "auto"
    """Engines side by side; `auto` is one for each GPU (or `tensor_parallel` of them), else one for each machine, since
    engines that share a machine's cores gain nothing and need the memory of one more model each."""
    device: Annotated[Literal["auto", "gpu"], Key.HOW] = "auto"
    """What an engine runs on: GPUs where any machine has some, else CPUs. `gpu` waits for machines with GPUs that come
    when they are asked for; `actors` must then be a number."""
    tensor_parallel: Annotated[int, Key.HOW] = Field(1, ge=1)
    """vLLM: GPUs that one engine's weights are spread over."""
    quantization: str = ""
    """vLLM: how the weights are quantised, such as `fp8`; it decides vectors too."""
    tokens_per_second: Annotated[float, Key.HOW] = Field(0, ge=0)
    """Of one actor, without tokens from the prefix cache: for `--dry-run` alone. 0 = as an earlier version measured, or
    estimated from this machine."""
    actor_cost_per_hour: Annotated[float, Key.HOW] = Field(0, ge=0)
    """In whatever currency: for `--dry-run` alone."""
    rows_per_shard: Annotated[int, Key.HOW] = Field(256, ge=1)
    max_users: int = Field(0, ge=0)
    titles_per_scenario: int = Field(4, ge=1, le=50)
    max_prompt_tokens: int = Field(1024, ge=16)
    scenario_tolerance: float = Field(0.1, ge=0, le=1)
    """How far a scenario's statistics may move before the LLM is asked about it again: counts by this part of what was
    asked, shares by so much, and half of the titles and categories. 0 = asked whenever they move at all."""
    max_failed_fraction: Annotated[float, Key.HOW] = Field(0.01, ge=0, le=1)
    """Of the users, of the items and of the scenarios, each by itself."""
    forget: Annotated[str, Key.URI] = ""
    """URI of a file with one raw user id a line, exactly as the source has it: they get no knowledge, and `knowledge
    prune` deletes what older versions hold of them."""
    user_template: Annotated[str, Key.URI] = ""
    scenario_template: Annotated[str, Key.URI] = ""
    item_template: Annotated[str, Key.URI] = ""
    """URIs of your own templates; empty = the ones in llm4msr/prompts."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _points_in_time_are_pools(self) -> Self:
        if self.point_in_time and self.reads != "items":
            raise ValueError("point_in_time is for reads = 'items'; a prompt for each training row would be asked")
        return self


class ModelConfig(Section):
    """The ranker: a backbone and how knowledge enters it."""

    backbone: Annotated[str, AfterValidator(check_backbone)] = "mmoe"
    """A name of `BACKBONES`, or the import path of your own, `package.module:Class`."""
    knowledge: Knowledge = "both"
    control: Control = "none"
    embedding_dim: int = Field(16, ge=1)
    code_dim: int = Field(32, ge=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((128, 64), min_length=1)
    tower: int = Field(32, ge=1)
    experts: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    meta_rank: int = Field(8, ge=0)
    """Rank of the generated weights; 0 = full."""
    meta_layers: int = Field(1, ge=1)
    meta_residual: bool = True
    """Whether the user level adds to the features, starting at zero, or takes their place."""
    fusion: Literal["add", "gate", "concat"] = "add"
    """How the scenario level meets the backbone: logits added, added through a gate, or a vector beside the logit."""
    knowledge_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of users per batch whose code is replaced by the learned default."""

    @property
    def variant(self) -> str:
        """`none`, `feature`, `user`, `scenario` or `both`, and the control where there is one."""
        return self.knowledge if self.control == "none" else f"{self.knowledge}-{self.control}"


class TrainConfig(Section):
    """The training loop."""

    workers: Annotated[Annotated[int | tuple[int, int], AfterValidator(check_workers)], Key.HOW] = 1
    """Data-parallel. `[2, 4]` is elastic: starts with as many as the cluster has room for, goes on with fewer when
    machines go, and takes more when they come. The result stays the same but for noise."""
    device: Annotated[Literal["cpu", "gpu"], Key.HOW] = "cpu"
    """What each worker trains on: one core, or one GPU, which pays for large batches and models."""
    checkpoint_batches: Annotated[int, Key.HOW] = Field(1000, ge=0)
    """Global batches after which a checkpoint is written within an epoch; 0 = only after every epoch. A crash, or
    another number of workers, costs the batches since then."""
    sparse: bool = False
    """For embedding tables of a million rows and more: a step then touches only the rows of its batch, through an Adam
    that moves a row's averages only when the row comes, and without weight decay for the table."""
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(4096, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    patience: int = Field(3, ge=1)
    """Epochs without a better validation AUC (a lower logloss, where the validation rows are of one class) after which
    training ends."""
    id_dropout: float = Field(0.02, ge=0, lt=1)
    """Share of ids trained as unknown, so that an unknown user, item or scenario has a trained meaning."""

    @model_validator(mode="after")
    def _sparse_gradients_can_be_joined(self) -> Self:
        if self.sparse and self.device == "gpu" and self.workers != 1:
            raise ValueError("sparse gradients of several GPUs cannot be joined (NCCL); use one worker, or CPUs")
        return self


class EvaluateConfig(Section):
    """What stands beside the configured model in the table of results."""

    variants: tuple[Variant, ...] = ("none",)
    """`shuffled` and `random` are the configured knowledge with wrong vectors."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...], AfterValidator(check_seeds)] = ()
    """Empty = the config's own seed."""


class ExplainConfig(Section):
    """The report."""

    users: tuple[str, ...] = ()
    """Raw ids of users that it explains besides those it chooses."""


class ServeConfig(Section):
    """The HTTP endpoint. Limits are for one replica unless it is said otherwise."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    allowed_hosts: tuple[str, ...] = ()
    """Without an API token, only requests whose Host is local, `host`, or one of these are answered: the name of a
    service, say, and `*` stands for any letters. With a token every Host is."""
    bundle: str = ""
    """URI of the bundle; empty = the one that this config exported."""
    allow_backbones: tuple[str, ...] = ()
    """Import paths of backbones that a bundle may name: to load it runs their code. `model.backbone` of a config that
    is served is one of them."""
    replicas: int = Field(1, ge=1)
    max_replicas: int = Field(0, ge=0)
    """More than `replicas`: as many as the load asks for, up to so many; 0 = always `replicas`."""
    max_candidates: int = Field(1000, ge=1, le=100_000)
    """Of one HTTP request; more are refused with 413."""
    batch_candidates: int = Field(4000, ge=1)
    """Candidates of waiting requests that are scored together."""
    max_body_bytes: int = Field(1 << 20, ge=1024)
    max_ongoing_requests: int = Field(64, ge=1)
    max_queued_requests: int = Field(256, ge=1)
    """That wait for a replica, at each proxy; more are refused with 429."""
    timeout_s: float = Field(10.0, gt=0)
    """For the body to arrive (else 408), and from then to the answer (else 504)."""
    follow_s: float = Field(60.0, ge=0)
    """How often a replica looks whether `llm4msr refresh` has published newer codes; 0 = never."""
    explore: bool = False
    """Whether `llm4msr serve` shows the explorer, a page below /explore. It opens this config's run and its LLM."""
    access_log: bool = False
    """A line with the request id for each request in Ray Serve's log files."""


class Config(Section):
    """One experiment; every stage is a function of it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(1, ge=0, le=MAX_SEED)
    storage: str = ""
    source: SourceConfig
    split: SplitConfig = SplitConfig()
    extract: ExtractConfig = ExtractConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    explain: ExplainConfig = ExplainConfig()
    serve: ServeConfig = ServeConfig()

    @property
    def root(self) -> str:
        """URI below which the stages publish."""
        return self.storage or f"runs/{self.name}"

    def using(self, variant: str, seed: int) -> "Config":
        """This experiment with another way of using knowledge and another seed for training."""
        controls = {"shuffled", "random"}
        change = {"control": variant} if variant in controls else {"knowledge": variant, "control": "none"}
        if variant in controls and self.model.knowledge == "none":
            change["knowledge"] = "both"
        return self.model_copy(update={"seed": seed, "model": self.model.model_copy(update=change)})


def load(uri: str, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file from any URI and apply `section.key=value` overrides.

    Raises:
        ConfigError: not TOML, an unknown key (the nearest known one is named), or a bad value.
        StorageError: the file cannot be read.
    """
    try:
        document = tomllib.loads(storage.read_text(storage.path(uri)))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{uri}: not valid TOML: {error}") from None
    for override in overrides:
        _apply(document, override)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(uri, document, dict(e)) for e in error.errors())) from None


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as section.key=value, for example train.epochs=5")
    *sections, last = key.strip().split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {override}: '{section}' is a value, not a section")
    try:
        document[last] = _value(text)
    except RecursionError:
        raise ConfigError(f"--set {key}=...: the value is nested too deeply") from None


def _value(text: str) -> Any:
    """A TOML value; a bare word is a string, in a list too, so that quotes need no escaping in a shell."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        found = {}
    if list(found) == ["value"]:  # not what a line break brought in besides
        return found["value"]
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]"):
        return [_value(word.strip()) for word in bare[1:-1].split(",") if word.strip()]
    return text


def _explain(uri: str, document: dict[str, Any], error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(_keys_at(error["loc"][:-1]))
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"{uri}: unknown key '{where}'; {hint}"
    if error["type"] == "missing":
        return f"{uri}: '{where}' is missing; add it to the file or with --set {where}=..."
    given = "" if isinstance(error["input"], dict) else f" (given: {error['input']!r})"
    if error["type"] == "tuple_type" and given:
        given += f"; write [{error['input']}]"
    return f"{uri}: '{where}': {error['msg'].removeprefix('Value error, ')}{given}"


def _keys_at(location: Iterable[Any]) -> Iterable[str]:
    model: type[BaseModel] = Config
    for part in location:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return model.model_fields
