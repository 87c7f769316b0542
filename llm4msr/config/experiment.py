"""One experiment: all sections together."""

from typing import Self

from pydantic import Field, model_validator

from llm4msr.config.data import SourceConfig, SplitConfig
from llm4msr.config.export import ExportConfig
from llm4msr.config.knowledge import ExtractConfig
from llm4msr.config.model import MatchPart, ModelConfig
from llm4msr.config.score import ScoreConfig
from llm4msr.config.section import Section
from llm4msr.config.serving import ServeConfig
from llm4msr.config.training import MAX_SEED, EvaluateConfig, TrainConfig
from llm4msr.config.tuning import TuneConfig

_MATCHES: dict[str, tuple[MatchPart, ...]] = {
    "none": (),
    "din": ("ids",),
    "match": ("candidate", "cosines", "attention"),
}
"""What is matched by models without levels of knowledge."""


class ExplainConfig(Section):
    """The report."""

    users: tuple[str, ...] = ()
    """Raw ids of users that it explains besides those it chooses."""


class Config(Section):
    """One experiment; every stage is a function of it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The experiment's name: letters, digits, `.`, `_` and `-`. It stands in reports and bundles and, unless `storage`
    is given, names the folder of results."""
    seed: int = Field(1, ge=0, le=MAX_SEED)
    """Decides the initial weights, the order of training rows, dropout, wrong vectors (`model.control`), a random split
    and drawn negatives. Change it to see how much a result owes to chance, or list several in `evaluate.seeds`."""
    storage: str = ""
    """Folder or URI below which all stages publish; empty = `runs/NAME` in the current folder. Several machines need
    one that all of them reach, such as `s3://bucket/shop`."""
    source: SourceConfig
    """Where the raw data lies and how to read it."""
    split: SplitConfig = SplitConfig()
    """How rows are divided into train, valid and test."""
    extract: ExtractConfig = ExtractConfig()
    """The frozen LLM and how it is asked."""
    model: ModelConfig = ModelConfig()
    """The ranker."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What the configured model is compared with."""
    explain: ExplainConfig = ExplainConfig()
    """The report."""
    export: ExportConfig = ExportConfig()
    """The bundle that serving reads."""
    serve: ServeConfig = ServeConfig()
    """The HTTP endpoint."""
    score: ScoreConfig = ScoreConfig()
    """Lists for all users."""
    tune: TuneConfig = TuneConfig()
    """The search for better values of the ranker's keys."""

    @property
    def root(self) -> str:
        """URI below which the stages publish."""
        return self.storage or f"runs/{self.name}"

    def using(self, variant: str, seed: int) -> "Config":
        """This experiment with another way of using knowledge and another seed for training."""
        model = self.model
        change: dict[str, object] = {"knowledge": variant, "control": "none"}
        if variant in ("shuffled", "random"):
            change = {"knowledge": model.knowledge if model.uses_knowledge else "both", "control": variant}
        elif variant in _MATCHES:
            parts = model.match if variant == "match" and model.matches_vectors else _MATCHES[variant]
            change |= {"knowledge": "none", "match": parts}
        return self.model_copy(update={"seed": seed, "model": model.model_copy(update=change)})

    @model_validator(mode="after")
    def _check_there_are_vectors_to_match(self) -> Self:
        models = [self.model, *(self.using(variant, self.seed).model for variant in self.evaluate.variants)]
        if self.extract.reads != "items" and any(model.matches_vectors for model in models):
            raise ValueError("model.match: candidate, cosines and attention need extract.reads = 'items'")
        return self

    @model_validator(mode="after")
    def _check_snapshots_are_of_all_training_rows(self) -> Self:
        if self.extract.snapshots > 1 and self.split.history_share < 1:
            raise ValueError("extract.snapshots needs split.history_share = 1: each keeps labels and vectors apart")
        return self
