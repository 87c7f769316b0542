"""The multi-scenario rankers that knowledge is added to: one short file each, or a class of your own.

`model.backbone` is a name of `config.BACKBONES` or the import path of a class, `package.module:Class`. The class is a
`torch.nn.Module` made as `Class(width, scenarios, config)`, and `forward(x_BD, scenario_B)` gives logits, float32 [B],
from features, float32 [B, width], and scenario numbers, int64 [B], 0 = unknown. Use every parameter in every step,
whatever scenarios a batch has: training on several workers needs it.

To add one: a file in this folder, made of the pieces in `base`, and a line in `_CLASSES` of `config/model.py`.
"""

import difflib
import importlib

from torch import nn

from llm4msr.config.model import BACKBONES, ModelConfig, check_backbone
from llm4msr.errors import ConfigError


def build(width: int, scenarios: int, config: ModelConfig) -> nn.Module:
    """The configured backbone for rows of `width` numbers; `scenarios` counts the unknown one too."""
    return find(config.backbone)(width, scenarios, config)


def find(backbone: str) -> type[nn.Module]:
    """The class that `model.backbone` names.

    Raises:
        ConfigError: no such backbone, or no such class at an import path.
    """
    where = f"model.backbone = {backbone!r}"
    try:
        path = BACKBONES.get(backbone) or check_backbone(backbone)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        hint = "install its package, or put the folder that holds it on PYTHONPATH"
        raise ConfigError(f"{where}: cannot import '{module_name}' ({error}); {hint}") from error
    backbone_class = getattr(module, name, None)
    if backbone_class is None:
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "name a class that the module defines"
        raise ConfigError(f"{where}: '{module_name}' has no '{name}'; {hint}")
    if not (isinstance(backbone_class, type) and issubclass(backbone_class, nn.Module)):
        raise ConfigError(f"{where}: '{name}' is no torch.nn.Module; derive your class from it")
    return backbone_class
