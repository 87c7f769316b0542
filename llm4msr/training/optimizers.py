"""Adam with decoupled weight decay (AdamW: Loshchilov and Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101),
and its state as flat tensors, which a checkpoint can hold without pickle.
"""

import torch
from torch import Tensor

from llm4msr.config.training import TrainConfig
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.training.row_adamw import RowAdamW

LARGE = 16
"""Rows of the embedding table for each row of a global batch, above which a step touches only the rows of its batch."""


class AdamW:
    """Moves all parameters of a net: the embedding table whole, or where it is large by the rows of each batch."""

    def __init__(self, net: RankerNet, config: TrainConfig):
        table, rate, decay = net.embedding.table, config.learning_rate, config.weight_decay
        by_rows = len(table.weight) > LARGE * config.batch_size if config.sparse == "auto" else config.sparse
        table.sparse = by_rows
        self._rows = RowAdamW(table.weight, rate, decay) if by_rows else None
        whole = [parameter for parameter in net.parameters() if not (by_rows and parameter is table.weight)]
        self._whole = torch.optim.AdamW(whole, lr=rate, weight_decay=decay, fused=True)
        self._parameters = dict(net.named_parameters())

    def read(self, batch: Batch) -> None:
        """Bring what a net reads for this batch up to date."""
        if self._rows is not None:
            self._rows.read(batch.places())

    def step(self) -> None:
        """Move the parameters by their gradients."""
        self._whole.step()
        if self._rows is not None:
            self._rows.step()

    def catch_up(self) -> None:
        """Bring all parameters up to date."""
        if self._rows is not None:
            self._rows.catch_up()

    def state(self) -> dict[str, Tensor]:
        """On the CPU by parameter and name, such as `embedding.table.weight.exp_avg`; after `catch_up`."""
        return {
            f"{parameter}.{name}": value.detach().cpu()
            for parameter, tensor in self._parameters.items()
            for name, value in self._owner(tensor).state[tensor].items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, be it of a table whole or by rows."""
        for key, value in state.items():
            parameter, _, name = key.rpartition(".")
            tensor = self._parameters[parameter]
            self._owner(tensor).state[tensor][name] = value.to(tensor.device)

    def _owner(self, parameter: Tensor) -> torch.optim.Optimizer:
        return self._rows if self._rows is not None and parameter in self._rows.state else self._whole
