"""A model that was trained: its config, what it was trained on, and what `train` published."""

from dataclasses import dataclass

import safetensors.torch

from llm4msr.config import Config
from llm4msr.model.net import RankerNet
from llm4msr.storage import StageOutput
from llm4msr.training.checkpoint import WEIGHTS
from llm4msr.training.dataset import Dataset
from llm4msr.training.results import WORDS


@dataclass(frozen=True)
class TrainedModel:
    """One trained model with all that it needs to score rows."""

    config: Config
    prepared: StageOutput
    extracted: StageOutput | None
    """None for a model without knowledge."""
    output: StageOutput
    of_words: bool = False
    """Whether it stands beside the same model with a language model's vectors, while its own are counts of words."""

    @property
    def variant(self) -> str:
        """Its name, `ModelConfig.variant`; that of counts of words is told apart."""
        return self.config.model.variant + WORDS * self.of_words

    @property
    def weights_digest(self) -> str:
        """Checksum of the weights."""
        return self.output.checksum(WEIGHTS)

    def load(self) -> tuple[RankerNet, Dataset]:
        """The net, ready to score, and the data it was trained on.

        Raises:
            StorageError: a file is missing or damaged.
        """
        data = Dataset.open(self.config, self.prepared, self.extracted)
        net = data.new_net(self.config)
        net.load_state_dict(safetensors.torch.load(self.output.read(WEIGHTS)), assign=True)
        return net.eval(), data
