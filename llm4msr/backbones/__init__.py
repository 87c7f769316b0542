"""The multi-scenario rankers that knowledge is added to: one short file each."""

from torch import nn

from llm4msr.backbones.mmoe import MMoE
from llm4msr.backbones.shared_bottom import SharedBottom
from llm4msr.backbones.star import Star
from llm4msr.config import ModelConfig

BACKBONES: dict[str, type[nn.Module]] = {"mmoe": MMoE, "shared_bottom": SharedBottom, "star": Star}


def build(width: int, scenarios: int, config: ModelConfig) -> nn.Module:
    """The configured backbone for rows of `width` numbers; `scenarios` counts the unknown one too."""
    return BACKBONES[config.backbone](width, scenarios, config)


__all__ = ["BACKBONES", "build"]
