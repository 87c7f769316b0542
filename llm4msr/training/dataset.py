"""What a net is trained and measured on: rows of prepared data, features to look up, and knowledge."""

from dataclasses import dataclass

import torch

from llm4msr.config import Config
from llm4msr.knowledge.store import KnowledgeStore
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.storage import StageOutput
from llm4msr.training.batches import RowReader, to_batch
from llm4msr.training.feature_tables import FeatureTables
from llm4msr.training.pasts import Pasts
from llm4msr.training.row_files import Rows


def scenario_names(prepared: StageOutput) -> list[str]:
    """The scenarios' ids by number; that of number 0, the unknown one, is empty."""
    return [str(name) for name in prepared.table("scenarios.parquet", ["scenario_id"])["scenario_id"].to_pylist()]


@dataclass
class Dataset:
    """Rows with their features, and knowledge where the model uses any."""

    prepared: StageOutput
    tables: FeatureTables
    scenario_names: list[str]
    knowledge: KnowledgeStore | None
    pasts: Pasts | None = None
    """For models that match them with candidates."""

    @classmethod
    def open(cls, config: Config, prepared: StageOutput, extracted: StageOutput | None) -> "Dataset":
        """`extracted` is needed if the model uses knowledge; the control is applied here."""
        tables = FeatureTables.open(prepared, config.model)
        knowledge = None
        if config.model.uses_knowledge:
            assert extracted is not None
            store = KnowledgeStore.open(extracted, prepared)
            store.hides_seen = config.split.history_share < 1
            store.is_stale = config.model.past == "stale"
            knowledge = store.with_control(config.model.control, config.seed)
        pasts = None
        if config.model.match:
            pasts = Pasts(prepared, config.model.past_events, config.model.past == "fresh")
        return cls(prepared, tables, scenario_names(prepared), knowledge, pasts)

    def rows(self, part: str) -> RowReader:
        """Rows of `train`, `valid` or `test`."""
        context = [f.name for f in self.tables.fields if f.side == "context"]
        in_time = self.pasts is not None or (self.knowledge is not None and self.knowledge.past is not None)
        return RowReader(self.prepared, part, context, events=in_time or part != "train")  # which metrics need

    def batch(self, rows: Rows, net: RankerNet) -> Batch:
        """What `net` reads of these rows."""
        return to_batch(rows, self.tables, self.knowledge if net.uses_users else None, self.pasts)

    def new_net(self, config: Config) -> RankerNet:
        """An untrained net; the same seed gives the same embeddings and backbone whatever knowledge is added."""
        torch.manual_seed(config.seed)
        statistics = self.knowledge.statistics() if self.knowledge else None
        return RankerNet(self.tables.fields, self.tables.scenarios, config.model, statistics)
