"""Adam with decoupled weight decay (AdamW: Loshchilov and Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101),
and its state as flat tensors, which a checkpoint can hold without pickle.
"""

from torch import Tensor

from llm4msr.config.training import TrainConfig
from llm4msr.model.inputs import Batch
from llm4msr.model.net import RankerNet
from llm4msr.training.row_adamw import RowAdamW, State, first_state, move

LARGE = 16
"""Rows of the embedding table for each row of a global batch, above which a step touches only the rows of its batch."""


class AdamW:
    """Moves all parameters of a net: the embedding table whole, or where it is large by the rows of each batch."""

    def __init__(self, net: RankerNet, config: TrainConfig):
        table, self._rate, self._decay = net.embedding.table, config.learning_rate, config.weight_decay
        self._table = table.weight
        by_rows = len(table.weight) > LARGE * config.batch_size if config.sparse == "auto" else config.sparse
        table.sparse = by_rows
        self._rows = RowAdamW(table.weight, self._rate, self._decay) if by_rows else None
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in net.named_parameters()}
        self._whole = [parameter for parameter in self._names if not (by_rows and parameter is table.weight)]
        self._states: dict[Tensor, State] = {}

    def read(self, batch: Batch) -> None:
        """Bring what a net reads for this batch up to date."""
        if self._rows is not None:
            self._rows.read(batch.places())

    def step(self) -> None:
        """Move the parameters by their gradients; one that has none stays, and has no state before its first."""
        moved, gradients, states = [], [], []
        for parameter in self._whole:
            if parameter.grad is not None:
                moved.append(parameter)
                gradients.append(parameter.grad)
                states.append(self._state(parameter))
        move(moved, gradients, states, self._rate, self._decay)
        if self._rows is not None:
            self._rows.step()

    def catch_up(self) -> None:
        """Bring all parameters up to date."""
        if self._rows is not None:
            self._rows.catch_up()

    def state(self) -> dict[str, Tensor]:
        """On the CPU by parameter and name, such as `embedding.table.weight.exp_avg`; after `catch_up`.

        Every worker has to ask; only the first one's is whole where the table is moved by rows.
        """
        whole = {self._table: self._rows.whole_state()} if self._rows else {}
        return {
            f"{self._names[parameter]}.{name}": value.detach().cpu()
            for parameter, state in (self._states | whole).items()
            for name, value in state.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, be it of a table whole or by rows."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        for key, value in state.items():
            name, _, part = key.rpartition(".")
            parameter = parameters[name]
            if self._rows is not None and parameter is self._table:
                self._rows.load(part, value.to(parameter.device))
            else:
                self._state(parameter)[part] = value.to(parameter.device)

    def _state(self, parameter: Tensor) -> State:
        if parameter not in self._states:
            self._states[parameter] = first_state(parameter)
        return self._states[parameter]
