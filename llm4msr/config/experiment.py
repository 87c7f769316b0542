"""One experiment: all sections together."""

from pydantic import Field

from llm4msr.config.data import SourceConfig, SplitConfig
from llm4msr.config.knowledge import ExtractConfig
from llm4msr.config.model import ModelConfig
from llm4msr.config.section import Section
from llm4msr.config.serving import ServeConfig
from llm4msr.config.training import MAX_SEED, EvaluateConfig, TrainConfig


class ExplainConfig(Section):
    """The report."""

    users: tuple[str, ...] = ()
    """Raw ids of users that it explains besides those it chooses."""


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
