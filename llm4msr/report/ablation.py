"""What each level of knowledge does to a logit: the same net with a level left out, and an exact split of the rest.

A net with both levels is scored four times, with each level in or out. The two levels meet in the net (the scenario
level reads what the user level wrote), so the difference between all and nothing is no plain sum of two effects. It is
split as Shapley (1953) does: a level's part is the mean of its effect when it comes first and when it comes second.
The parts of the two levels add up to the difference exactly, whatever the net computes.

Left out means: the scenario level's output is not there, so that the backbone's logit stands alone; the user level's
residual layer is not there, so that the backbone reads the plain features. Where the user level takes the place of the
features (`meta_residual = false`) or is an input (`feature`), the backbone cannot do without, and out means that the
user is treated as one without knowledge: the learned default code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from llm4msr.config import Knowledge
from llm4msr.ranker import Batch, RankerNet

Floats = npt.NDArray[np.float64]


class Levels(NamedTuple):
    """Logits [B] of the same rows: without knowledge, with one level alone, and with all that the model has."""

    none: Floats
    user: Floats
    scenario: Floats
    both: Floats

    @property
    def user_part(self) -> Floats:
        """What the user level adds to the logit."""
        return ((self.user - self.none) + (self.both - self.scenario)) / 2

    @property
    def scenario_part(self) -> Floats:
        """What the scenario level adds to the logit; with `user_part` and `none` it makes `both`."""
        return ((self.scenario - self.none) + (self.both - self.user)) / 2

    @classmethod
    def merged(cls, parts: list["Levels"]) -> "Levels":
        """The rows of several batches as one."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def by_level(net: RankerNet, batch: Batch) -> Levels:
    """Score the rows with each level in and out; a level that the model has not changes nothing."""
    net.eval()
    with torch.inference_mode():
        logits = {
            (user, scenario): _logits(net, batch, user, scenario)
            for user in {False, has_user_level(net)}
            for scenario in {False, has_scenario_level(net)}
        }
    user, scenario = has_user_level(net), has_scenario_level(net)
    return Levels(logits[False, False], logits[user, False], logits[False, scenario], logits[user, scenario])


def has_user_level(net: RankerNet) -> bool:
    """Whether users' knowledge enters the logit."""
    return net.uses_users


def has_scenario_level(net: RankerNet) -> bool:
    """Whether scenarios' knowledge does."""
    return net.kind in ("scenario", "both")


def is_layer(net: RankerNet) -> bool:
    """Whether the user level can be taken out as a layer; see the module."""
    return net.kind in ("user", "both") and net.residual


def _logits(net: RankerNet, batch: Batch, user: bool, scenario: bool) -> Floats:
    bottom = net.uses_users and (user or not is_layer(net))  # what cannot be taken out gets the default code
    if not user:
        batch = batch._replace(known_N=torch.zeros_like(batch.known_N))
    kinds: dict[tuple[bool, bool], Knowledge] = {
        (True, True): "both",
        (True, False): "user",
        (False, True): "scenario",
        (False, False): "none",
    }
    kind = net.kind if net.kind == "feature" else kinds[bottom, scenario]
    with _acting_as(net, kind):
        return net(batch).double().numpy()


@contextmanager
def _acting_as(net: RankerNet, kind: Knowledge) -> Iterator[None]:
    """The net computes what a model of this kind would, with its own weights."""
    own, net.kind = net.kind, kind
    try:
        yield
    finally:
        net.kind = own
