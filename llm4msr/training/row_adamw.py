"""AdamW of a large embedding table in steps that touch only the rows of a batch, with the weights of plain AdamW.

Plain AdamW moves every row in every step: a row without a gradient goes on by its averages, which shrink. Here such a
row rests, and all the steps that it missed are made up for at once, before it is read or gets a gradient again. Its
averages have shrunk by powers of their betas; what it would have moved by is a sum that all rows share that rest since
the same step, times its own average by its own deviation. So the weights are those of plain AdamW but for rounding, and
for `eps`, which is taken at its mean over the rest: that shows where gradients are as small as `eps` itself.

Shape suffixes: V rows of the table, E embedding width, N rows at once, T steps since all rows were up to date.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BETAS, EPS = (0.9, 0.999), 1e-8
"""Those of `torch.optim.AdamW`."""
PERIOD = 1024
"""Steps after which all rows are brought up to date, at the latest."""
CHUNK = 1 << 18
"""Rows that are brought up to date at once."""


State = dict[str, Tensor]
"""Of one parameter: its `step`, and the averages `exp_avg` and `exp_avg_sq`."""


class RowAdamW:
    """AdamW of one table, whose gradients are sparse; the state is that of `torch.optim.AdamW` after `catch_up`.

    Args:
        table: [V, E].
        rate: the step size.
        decay: of weights, decoupled.
    """

    def __init__(self, table: Tensor, rate: float, decay: float):
        self._table, self._rate, self._decay = table, rate, decay
        self.state = first_state(table)
        self._steps = 0
        """Since all rows were up to date."""
        self._step_V = torch.zeros(len(table), dtype=torch.int16, device=table.device)
        """After which of these steps each row was up to date."""
        self._moves_2T = torch.zeros(2, PERIOD + 1, dtype=torch.float64)
        """Of rows that rest since each of these steps: the sum of the series, and that sum weighted by what `eps` is
        then beside the root of the row's average square."""

    @torch.no_grad()
    def read(self, places_N: Tensor) -> None:
        """Bring rows up to date that are about to be read; some may stand there several times."""
        stale_N = places_N[self._step_V.index_select(0, places_N) < self._steps]
        self._write(stale_N, self._current(stale_N))

    @torch.no_grad()
    def catch_up(self) -> None:
        """Bring all rows up to date."""
        if self._steps:
            for row_N in torch.arange(len(self._table), device=self._table.device).split(CHUNK):
                self._write(row_N, self._current(row_N))
            self._steps = 0
            self._step_V.zero_()
            self._moves_2T.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows that the gradient touches."""
        assert self._table.grad is not None
        if self._steps == PERIOD:
            self.catch_up()
        gradient = self._table.grad.coalesce()
        row_N, step = gradient.indices()[0], self.state["step"]
        weight_NE, mean_NE, square_NE = rows = self._current(row_N)
        state = {"step": step, "exp_avg": mean_NE, "exp_avg_sq": square_NE}
        move([weight_NE], [gradient.values()], [state], self._rate, self._decay)
        self._steps += 1
        self._rest(int(step))
        self._write(row_N, rows)

    def _rest(self, step: int) -> None:
        """Count the latest step, the run's step of that number from 1 on, for the rows that rest in it."""
        rested_T = self._steps - torch.arange(self._steps, dtype=torch.float64)
        root = (1 - BETAS[1] ** step) ** 0.5
        move_T = (BETAS[0] / BETAS[1] ** 0.5) ** rested_T * (root / (1 - BETAS[0] ** step))
        self._moves_2T.mul_(1 - self._rate * self._decay)
        self._moves_2T[0, : self._steps] += move_T
        self._moves_2T[1, : self._steps] += move_T * root / BETAS[1] ** (rested_T / 2)

    def _current(self, row_N: Tensor) -> list[Tensor]:
        """The rows' weights and two averages [N, E] as plain AdamW would have them by now."""
        tables, step_N = self._tables(), self._step_V.index_select(0, row_N).long()
        weight_NE, mean_NE, square_NE = rows = [table.index_select(0, row_N) for table in tables]
        factors_5N1 = self._factors(row_N.device).index_select(1, step_N)[..., None]
        decay_N1, move_N1, eps_N1, shrink_N1, shrink_2_N1 = factors_5N1
        weight_NE.mul_(decay_N1).addcdiv_(mean_NE * move_N1, square_NE.sqrt().add_(eps_N1))
        mean_NE.mul_(shrink_N1)
        square_NE.mul_(shrink_2_N1)
        return rows

    def _factors(self, device: torch.device) -> Tensor:
        """For rows that rest since each step: the weights' decay, the move, `eps`, and how both averages shrank."""
        move_T, weighted_T = self._moves_2T[:, : self._steps + 1]
        rested_T = self._steps - torch.arange(self._steps + 1, dtype=torch.float64)
        decay_T, shrink_T, shrink_2_T = (b**rested_T for b in (1 - self._rate * self._decay, *BETAS))
        eps_T = torch.where(move_T > 0, weighted_T / move_T, 1.0) * EPS
        return torch.stack([decay_T, -self._rate * move_T, eps_T, shrink_T, shrink_2_T]).float().to(device)

    def _write(self, row_N: Tensor, rows: list[Tensor]) -> None:
        for table, row_NE in zip(self._tables(), rows, strict=True):
            table.index_copy_(0, row_N, row_NE)
        self._step_V.index_fill_(0, row_N, self._steps)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._table, self.state["exp_avg"], self.state["exp_avg_sq"]


def first_state(parameter: Tensor) -> State:
    """The state before the first step."""
    averages = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device), **averages}


@torch.no_grad()
def move(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], rate: float, decay: float
) -> None:
    """One step of AdamW, as `torch.optim.AdamW(fused=True)` makes it.

    That class is not used because making one loads torch's compiler, which takes over a second.
    """
    adamw(
        [*parameters],
        [*gradients],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=rate,
        weight_decay=decay,
        eps=EPS,
        maximize=False,
    )
