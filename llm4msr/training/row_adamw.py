"""AdamW of a large embedding table in steps that touch only the rows of a batch, with the weights of plain AdamW.

Plain AdamW moves every row in every step: a row without a gradient goes on by its averages, which shrink. Here such a
row rests, and all the steps that it missed are made up for at once, before it is read or gets a gradient again. Its
averages have shrunk by powers of their betas; what it would have moved by is a sum that all rows share that rest since
the same step, times its own average by its own deviation. So the weights are those of plain AdamW but for rounding, and
for `eps`, which is taken at its mean over the rest: that shows where gradients are as small as `eps` itself.

Several workers each do this for the rows that they own (`owners`), and tell the others a row's weights when those are
about to read it. All have the whole table, but of the averages their own.

Shape suffixes: W workers, V own rows of the table (where there is one worker, all), E embedding width, N rows at once,
M rows that others ask for, T steps since all rows were up to date.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from llm4msr.training import owners

BETAS, EPS = (0.9, 0.999), 1e-8
"""Those of `torch.optim.AdamW`."""
PERIOD = 1024
"""Steps after which all rows are brought up to date, at the latest."""

AVERAGES = ("exp_avg", "exp_avg_sq")
State = dict[str, Tensor]
"""Of one parameter: its `step`, and the averages `exp_avg` and `exp_avg_sq`."""


class RowAdamW:
    """AdamW of one table, whose gradients are sparse.

    Args:
        table: [rows, E].
        rate: the step size.
        decay: of weights, decoupled.
    """

    def __init__(self, table: Tensor, rate: float, decay: float):
        self._table, self._rate, self._decay = table, rate, decay
        self._own_VE = owners.own(table.detach())
        _, self._workers = owners.place()
        self.state = first_state(self._own_VE)
        """Of the own rows; that of `torch.optim.AdamW` after `catch_up`."""
        self._steps = 0
        """Since all rows were up to date."""
        self._step_V = torch.zeros(len(self._own_VE), dtype=torch.int16, device=table.device)
        """After which of these steps each row was up to date."""
        self._moves_2T = torch.zeros(2, PERIOD + 1, dtype=torch.float64)
        """Of rows that rest since each of these steps: the sum of the series, and that sum weighted by what `eps` is
        then beside the root of the row's average square."""
        self._is_shared = True
        """Whether all workers have the weights of all rows."""

    @torch.no_grad()
    def read(self, places_N: Tensor) -> None:
        """Bring rows up to date that are about to be read, on every worker; some may stand there several times."""
        if self._workers == 1:
            self._bring_up_to_date(places_N)
            return
        row_N = places_N.unique()
        order_N, count_W = owners.by_owner(row_N)
        asked_W = torch.empty_like(count_W)
        dist.all_to_all_single(asked_W, count_W)
        row_N, sent, asked = row_N.index_select(0, order_N), count_W.tolist(), asked_W.tolist()
        asked_M = owners.exchange(row_N, sent, asked) // self._workers
        self._bring_up_to_date(asked_M)
        self._table.index_copy_(0, row_N, owners.exchange(self._own_VE.index_select(0, asked_M), asked, sent))

    def _bring_up_to_date(self, row_N: Tensor) -> None:
        stale_N = row_N[self._step_V.index_select(0, row_N) < self._steps].unique()
        self._write(stale_N, self._current(stale_N))

    @torch.no_grad()
    def catch_up(self) -> None:
        """Bring all rows up to date, on every worker."""
        self._catch_up()
        if not self._is_shared and self._workers > 1:
            owners.gather(self._own_VE, self._table, len(self._table))
        self._is_shared = True

    def _catch_up(self) -> None:
        if self._steps:
            for row_N in torch.arange(len(self._own_VE), device=self._table.device).split(owners.CHUNK):
                self._write(row_N, self._current(row_N))
            self._steps = 0
            self._step_V.zero_()
            self._moves_2T.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows that the gradient touches, which are own ones."""
        gradient = self._table.grad
        assert gradient is not None
        if self._steps == PERIOD:
            self._catch_up()
        row_N, gradient_NE = owners.add_repeated(gradient._indices()[0] // self._workers, gradient._values())
        step = self.state["step"]
        weight_NE, mean_NE, square_NE = rows = self._current(row_N)
        state = {"step": step, "exp_avg": mean_NE, "exp_avg_sq": square_NE}
        move([weight_NE], [gradient_NE], [state], self._rate, self._decay)
        self._steps += 1
        self._is_shared = False
        self._rest(int(step))
        self._write(row_N, rows)

    def whole_state(self) -> State:
        """Of all rows on the first worker, of the own ones on the others; every worker has to ask."""
        if self._workers == 1:
            return self.state
        rank, _ = owners.place()
        state = dict(self.state)
        for name in AVERAGES:
            table = None if rank else torch.empty_like(self._table)
            owners.gather(self.state[name], table, len(self._table))
            state[name] = self.state[name] if table is None else table
        return state

    def load(self, name: str, value: Tensor) -> None:
        """Take over a part of what `whole_state` gave the first worker."""
        self.state[name] = owners.own(value).clone() if name in AVERAGES else value

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
        if bool((step_N == self._steps).all()):
            return rows
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
        return self._own_VE, self.state["exp_avg"], self.state["exp_avg_sq"]


def first_state(parameter: Tensor) -> State:
    """The state before the first step."""
    averages = {name: torch.zeros_like(parameter, requires_grad=False) for name in AVERAGES}
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
