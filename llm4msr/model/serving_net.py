"""The ranker's net as it serves: the scenarios' layers are plain ones, and a user is given by a code, not a vector.

    slots, match -> x -> x' = x + user_meta(x, code) -> backbone(x', scenario) + scenario layer(x') -> logit
    -> the scenario's slope times it, plus its bias, where scores are calibrated

Rows of several requests are scored together: a request's code counts once, and every product is over all rows.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm4msr.arrays import Singles
from llm4msr.config.model import ModelConfig
from llm4msr.model import backbones
from llm4msr.model.embedding import FeatureEmbedding, Field
from llm4msr.model.matching import Match
from llm4msr.model.meta import GeneratedLayers, MetaStack, through_generated
from llm4msr.model.net import Fusion, RankerNet, input_width, meta_shape
from llm4msr.model.serving_match import MatchInput, request_features


class Lines(NamedTuple):
    """By scenario number, what calibrates a logit: slope times it, plus bias."""

    slope_S: Singles
    """Above zero."""
    bias_S: Singles

    @classmethod
    def that_change_nothing(cls, scenarios: int) -> Self:
        """Of so many scenarios."""
        return cls(np.ones(scenarios, np.float32), np.zeros(scenarios, np.float32))


class ServingNet(nn.Module):
    """The net that serves: `from_trained` folds a trained net, the constructor makes one to load saved weights into.

    Args:
        fields: the features, in the order of the slots.
        scenarios: how many, the unknown one included.
        config: of the trained net.
        item_dim: numbers of an item's vector; 0 where the model matches none.
    """

    default_K: Tensor
    slope_S: Tensor
    bias_S: Tensor

    def __init__(self, fields: list[Field], scenarios: int, config: ModelConfig, item_dim: int = 0):
        super().__init__()
        self.config, self.fields = config, fields
        self.embedding = FeatureEmbedding(fields, config.embedding_dim)
        width = input_width(self.embedding, config)
        self.match = Match(config, torch.zeros(0, item_dim)) if config.match else None
        self.backbone = backbones.build(width, scenarios, config)
        self.register_buffer("slope_S", torch.ones(scenarios))
        self.register_buffer("bias_S", torch.zeros(scenarios))
        if self.uses_users:
            self.register_buffer("default_K", torch.zeros(config.code_dim))
        if self.has_user_level:
            self.user_meta = MetaStack(width, width, zero=config.meta_residual, **meta_shape(config))
        if self.has_scenario_level:
            out = config.tower if config.fusion == "concat" else 1
            widths = [width] * config.meta_layers + [out]
            for i in range(config.meta_layers):
                self.register_buffer(f"scenario_weight_{i}", torch.zeros(scenarios, widths[i + 1], widths[i]))
                self.register_buffer(f"scenario_bias_{i}", torch.zeros(scenarios, widths[i + 1]))
            self.fusion = Fusion(width, out, config)

    @property
    def uses_users(self) -> bool:
        """Whether users' codes enter the scores."""
        return self.config.knowledge in ("user", "both", "feature")

    @property
    def has_user_level(self) -> bool:
        """Whether users' codes generate layers below the backbone."""
        return self.config.knowledge in ("user", "both")

    @property
    def has_scenario_level(self) -> bool:
        """Whether scenarios have layers beside it."""
        return self.config.knowledge in ("scenario", "both")

    @classmethod
    @torch.no_grad()
    def from_trained(
        cls, net: RankerNet, fields: list[Field], scenarios: int, config: ModelConfig, lines: Lines | None = None
    ) -> Self:
        """The trained net with its scenario level folded; scores are equal, unless lines calibrate them."""
        vectors = net.match.vectors if net.match is not None else None
        serving = cls(fields, scenarios, config, 0 if vectors is None else vectors.unit_ID.shape[1])
        slope_S, bias_S = map(torch.from_numpy, lines or Lines.that_change_nothing(scenarios))
        weights = net.state_dict() | {"slope_S": slope_S, "bias_S": bias_S}
        if net.uses_users:
            weights["default_K"] = torch.tanh(net.user_code.default_K).half().float()
        if net.has_scenario_level:
            known_S = torch.arange(scenarios) > 0
            generated = net.scenario_meta.generate(net.scenario_code(net.scenarios_SZ, known_S))
            for i, (weight_SOD, bias_SO) in enumerate(generated):
                weights[f"scenario_weight_{i}"], weights[f"scenario_bias_{i}"] = weight_SOD, bias_SO
            weights |= {k.removeprefix("scenario_meta."): v for k, v in weights.items() if ".fusion." in k}
        serving.load_state_dict({name: weights[name].contiguous() for name in serving.state_dict()}, assign=True)
        return serving.eval()

    def forward(
        self,
        slots_BS: Tensor,
        scenario_B: Tensor,
        code_NK: Tensor,
        owner_B: Tensor,
        given: MatchInput | None = None,
    ) -> Tensor:
        """Logits [B] of candidates of N requests, row i for the user whose code is `code_NK[owner_B[i]]`.

        `given` is what a match reads of them, needed if `config.match`.
        """
        parts = [self.embedding(slots_BS)]
        if self.config.knowledge == "feature":
            parts.append(code_NK.index_select(0, owner_B))
        if self.match is not None:
            assert given is not None
            places_B = self.embedding.item_ids(slots_BS)
            parts.append(request_features(self.match, given, self.embedding.table.weight, places_B))
        x_BD = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if self.has_user_level:
            x_BD = self._at_bottom(x_BD, code_NK, owner_B)
        logits_B = self.backbone(x_BD, scenario_B)
        if self.has_scenario_level:
            logits_B = self.fusion(logits_B, x_BD, self._beside_backbone(x_BD, scenario_B))
        return logits_B * self.slope_S[scenario_B] + self.bias_S[scenario_B]

    def _at_bottom(self, x_BD: Tensor, code_NK: Tensor, owner_B: Tensor) -> Tensor:
        """One request's layer is generated; those of several share their products where the rank is low."""
        alone = len(code_NK) == 1 or not self.config.meta_rank
        layer = self.user_meta.grouped if alone else self.user_meta.shared
        generated_BD = layer(x_BD, code_NK, owner_B)
        return x_BD + generated_BD if self.config.meta_residual else F.silu(generated_BD)

    def _beside_backbone(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        layers = self.scenario_layers()
        if len(layers) == 1 and layers[0][0].shape[1] == 1:  # one logit a scenario: take each row's from all of them
            weight_SOD, bias_SO = layers[0]
            return F.linear(x_BD, weight_SOD[:, 0], bias_SO[:, 0]).gather(1, scenario_B[:, None])
        return through_generated(layers, x_BD, scenario_B)

    def scenario_layers(self) -> GeneratedLayers:
        """The scenarios' layers."""
        return [
            (self.get_buffer(f"scenario_weight_{i}"), self.get_buffer(f"scenario_bias_{i}"))
            for i in range(self.config.meta_layers)
        ]
