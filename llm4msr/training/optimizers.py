"""Adam with decoupled weight decay (AdamW: Loshchilov and Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101),
and the optimizers' states as flat tensors, which a checkpoint can hold without pickle.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from llm4msr.config import Config
from llm4msr.model.net import RankerNet


def new_optimizers(net: RankerNet, config: Config) -> list[Optimizer]:
    """AdamW, all parameters in one pass; with `train.sparse` the embedding table has an Adam of its own, which touches
    only the rows of the batch (and knows no weight decay)."""
    rate, decay = config.train.learning_rate, config.train.weight_decay
    if not config.train.sparse:
        return [torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay, fused=True)]
    table = net.embedding.table.weight
    dense = [parameter for parameter in net.parameters() if parameter is not table]
    return [
        torch.optim.AdamW(dense, lr=rate, weight_decay=decay, fused=True),
        torch.optim.SparseAdam([table], lr=rate),
    ]


def optimizer_states(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Copies on the CPU by `OPTIMIZER.PARAMETER.NAME`, both as numbers: `0.3.exp_avg`."""
    return {
        f"{number}.{index}.{name}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for number, optimizer in enumerate(optimizers)
        for index, parameter in optimizer.state_dict()["state"].items()
        for name, value in parameter.items()
    }


def load_states(optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Take over what `optimizer_states` gave."""
    by_optimizer: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, tensor in tensors.items():
        number, index, name = key.split(".", 2)
        value = tensor.item() if tensor.dtype == torch.int64 else tensor  # SparseAdam counts its steps in a plain int
        by_optimizer[int(number)].setdefault(int(index), {})[name] = value
    for optimizer, state in zip(optimizers, by_optimizer, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
