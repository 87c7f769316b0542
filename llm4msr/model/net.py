"""The ranker: embeddings, user meta layers at the bottom, a backbone, scenario meta layers beside it. Plain torch.

    slots, match -> x
    x -> x' = x + user_meta(x, c_user) -> backbone(x', scenario) + scenario_meta(x', c_scenario) -> logit

Each knowledge level can be absent (`model.knowledge`), and so can the match of a user's past with the candidate
(`model.match`), which joins the features. The backbone and the embeddings are made first, with the same draws from the
seed, and both meta stacks start at zero: at initialisation a model with either level scores exactly like its plain
backbone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.config.model import ModelConfig
from llm4msr.model import backbones
from llm4msr.model.backbones.base import Logit
from llm4msr.model.backbones.row_groups import PaddedGroups, RowGroups
from llm4msr.model.embedding import FeatureEmbedding, Field
from llm4msr.model.inputs import WHOLE, Batch, KnowledgeStatistics, Strengths
from llm4msr.model.matching import Match, match_width
from llm4msr.model.meta import GeneratedLayers, KnowledgeCode, MetaStack, through_generated


class RankerNet(nn.Module):
    """The net that is trained: a backbone, and the levels of knowledge that the config asks for.

    Args:
        fields: the features, in the order of the slots.
        scenarios: how many, the unknown one included.
        knowledge: needed if `config.uses_knowledge`.
    """

    scenarios_SZ: Tensor

    def __init__(self, fields: list[Field], scenarios: int, config: ModelConfig, knowledge: KnowledgeStatistics | None):
        super().__init__()
        self.kind = config.knowledge
        self.scenarios = scenarios
        self.knowledge_dropout = config.knowledge_dropout
        self.embedding = FeatureEmbedding(fields, config.embedding_dim)
        self.width = width = input_width(self.embedding, config)
        self.backbone = backbones.build(width, scenarios, config)
        self.match = Match(config, knowledge.items_ID if knowledge else None) if config.match else None
        shape = meta_shape(config)
        if self.uses_users:
            assert knowledge is not None
            self.user_code = KnowledgeCode(knowledge.mean_Z, knowledge.scale_Z, config.code_dim)
        if self.kind in ("user", "both"):
            self.residual = config.meta_residual
            self.user_meta = MetaStack(width, width, zero=self.residual, **shape)
        if self.kind in ("scenario", "both"):
            assert knowledge is not None
            vectors_SZ = knowledge.scenarios_SZ
            self.register_buffer("scenarios_SZ", vectors_SZ)
            mean_Z, scale_Z = vectors_SZ[1:].mean(0), vectors_SZ[1:].std(0, correction=0) + 1e-6
            self.scenario_code = KnowledgeCode(mean_Z, scale_Z, config.code_dim)
            self.scenario_meta = ScenarioLevel(width, config)

    @property
    def uses_users(self) -> bool:
        """Whether users' vectors enter the model."""
        return self.kind in ("user", "both", "feature")

    def forward(self, batch: Batch, strengths: Strengths = WHOLE) -> Tensor:
        """Logits, float32 [B]; `strengths` says how much of each level of knowledge counts.

        Rows go through the net scenario by scenario: to order the few numbers of their slots once costs far less than
        to bring their features, and the gradients of those, into that order wherever scenarios part.

        Under autocast, which training may turn on, the features are cast once, for all layers that read them.
        """
        device = batch.slots_BS.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        groups = PaddedGroups if device == "cpu" and dtype == torch.bfloat16 else RowGroups
        rows = groups(batch.scenario_B, self.scenarios)
        match_BM = rows.ordered(self._match(batch)) if self.match is not None else None
        slots_BS, scenario_B, owner_B = (rows.ordered(column_B) for column_B in batch[:3])
        batch = batch._replace(slots_BS=slots_BS, scenario_B=scenario_B, owner_B=owner_B)
        code_BK = self._codes(batch, strengths.user)[batch.owner_B] if self.uses_users else None
        x_BD = self._features(batch.slots_BS, code_BK, match_BM, dtype)
        if self.kind in ("user", "both") and (strengths.user or not self.residual):
            x_BD = self._at_bottom(x_BD, self.user_meta(x_BD, code_BK), strengths.user)
        return rows.join([self._logits(x_BD, batch.scenario_B, strengths.scenario).float()])

    @property
    def has_scenario_level(self) -> bool:
        """Whether scenarios' vectors enter the model."""
        return self.kind in ("scenario", "both")

    @property
    def user_level_is_added(self) -> bool:
        """Whether the user level adds to the features, so that the backbone can do without it."""
        return self.kind in ("user", "both") and self.residual

    def user_codes(self, z_NZ: Tensor, known_N: Tensor) -> Tensor:
        """Codes [N, K]; in training some users are treated as unknown, so that the default code is trained.

        In evaluation they are rounded to float16, which is what a bundle keeps: what serves is what was measured.
        """
        if not self.training:
            return self.user_code(z_NZ, known_N).half().float()
        kept_N = torch.rand(len(known_N), device=known_N.device) >= self.knowledge_dropout
        return self.user_code(z_NZ, known_N & kept_N)

    def _codes(self, batch: Batch, level: float) -> Tensor:
        """[N, K]; where the level is no addition, less of it is less of the way from the default code to the user's."""
        code_NK = self.user_codes(batch.z_NZ, batch.known_N)
        if level == 1.0 or self.user_level_is_added:
            return code_NK
        return torch.lerp(self.user_codes(batch.z_NZ, torch.zeros_like(batch.known_N)), code_NK, level)

    def _at_bottom(self, x_BD: Tensor, generated_BD: Tensor, level: float) -> Tensor:
        if not self.residual:
            return F.silu(generated_BD)
        return x_BD + (generated_BD if level == 1.0 else level * generated_BD)

    def _match(self, batch: Batch) -> Tensor:
        assert self.match is not None
        assert batch.past is not None
        places_B = self.embedding.item_ids(batch.slots_BS)
        features_BM: Tensor = self.match(batch.past, batch.scenario_B, self.embedding.table, places_B)
        return features_BM

    def _features(
        self, slots_BS: Tensor, code_BK: Tensor | None, match_BM: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        parts = [code_BK if self.kind == "feature" else None, match_BM]
        x_BD = self.embedding(slots_BS, dtype)
        return torch.cat([x_BD, *(part.to(dtype) for part in parts if part is not None)], dim=1)

    def _logits(self, x_BD: Tensor, scenario_B: Tensor, level: float) -> Tensor:
        logits_B = self.backbone(x_BD, scenario_B)
        if self.has_scenario_level and level:
            known_S = torch.arange(len(self.scenarios_SZ), device=x_BD.device) > 0
            generated = self.scenario_meta.generate(self.scenario_code(self.scenarios_SZ, known_S))
            whole_B = self.scenario_meta(logits_B, x_BD, generated, scenario_B)
            logits_B = whole_B if level == 1.0 else torch.lerp(logits_B, whole_B, level)
        return logits_B


class ScenarioLevel(nn.Module):
    """Meta layers of the scenarios' codes beside the backbone, and how their output meets its logit.

    However they meet, at initialisation the logit is the backbone's own.
    """

    def __init__(self, width: int, config: ModelConfig):
        super().__init__()
        out = config.tower if config.fusion == "concat" else 1
        self.meta = MetaStack(width, out, zero=config.fusion != "concat", **meta_shape(config))
        self.fusion = Fusion(width, out, config)

    def generate(self, code_SK: Tensor) -> GeneratedLayers:
        """The scenarios' layers."""
        return self.meta.generate(code_SK)

    def forward(self, logits_B: Tensor, x_BD: Tensor, generated: GeneratedLayers, scenario_B: Tensor) -> Tensor:
        """Logits [B] from the backbone's, the features that it read, and the scenarios' layers."""
        return self.fusion(logits_B, x_BD, through_generated(generated, x_BD, scenario_B))


class Fusion(nn.Module):
    """How the output of the scenario level meets the backbone's logit: `add`, `gate` or `concat`."""

    def __init__(self, width: int, out: int, config: ModelConfig):
        super().__init__()
        self.kind = config.fusion
        if self.kind == "gate":
            self.gate = Logit(width)
        if self.kind == "concat":
            self.merge = Logit(1 + out)
            nn.init.zeros_(self.merge.bias)
            with torch.no_grad():
                self.merge.weight.copy_(torch.eye(1, 1 + out))

    def forward(self, logits_B: Tensor, x_BD: Tensor, out_BO: Tensor) -> Tensor:
        """Logits [B]."""
        if self.kind == "concat":
            return self.merge(torch.cat([logits_B[:, None], F.silu(out_BO)], dim=1))[:, 0]
        share_B = torch.sigmoid(self.gate(x_BD))[:, 0] if self.kind == "gate" else 1.0
        return logits_B + share_B * out_BO[:, 0]


def input_width(embedding: FeatureEmbedding, config: ModelConfig) -> int:
    """How many numbers of a row the backbone reads."""
    return embedding.width + (config.code_dim if config.knowledge == "feature" else 0) + match_width(config)


def meta_shape(config: ModelConfig) -> dict[str, int]:
    """What the meta layers of both levels have in common."""
    return {"code_dim": config.code_dim, "rank": config.meta_rank, "layers": config.meta_layers}
