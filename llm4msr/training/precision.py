"""The number format of training's matrix products: bfloat16 where the machine multiplies it fast, else float32.

Weights, their sums and averages, norms, the embedding, the loss and the last product before it are float32 either way,
and so is all scoring. Shorter numbers are what a CPU gains by: they take half the memory, and a core with avx512_bf16
multiplies four times as many in a second (Zen 5, one core: 91-110 GFLOP/s of float32, 505 of bfloat16).
"""

from typing import Literal

import torch

from llm4msr.config import Config
from llm4msr.hardware import multiplies_bfloat16

Precision = Literal["float32", "bfloat16"]

NARROW = 32
"""Width of the widest hidden layer below which bfloat16 gains nothing."""


def choose(config: Config, device: torch.device) -> Precision:
    """What `train.precision` says, or for `auto` what suits this machine and the backbone.

    A backbone of your own is trained in float32 unless the config says otherwise: it may join results of products with
    float32 tensors in ways that need one type. So is a net of narrow layers, which to cast costs as much as it saves.
    """
    wanted, model = config.train.precision, config.model
    if wanted != "auto":
        return wanted
    suits = ":" not in model.backbone and max(model.hidden) >= NARROW
    return "bfloat16" if suits and multiplies_bfloat16(device.type) else "float32"


def products(precision: Precision, device: torch.device) -> torch.autocast:
    """A context whose matrix products are in that format."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
