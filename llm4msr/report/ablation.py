"""What each level of knowledge does to a logit: the same net with a level left out, and an exact split of the rest.

A net with both levels is scored four times, with each level in or out. The two levels meet in the net (the scenario
level reads what the user level wrote), so the difference between all and nothing is no plain sum of two effects. It is
split as Shapley (1953) does: a level's part is the mean of its effect when it comes first and when it comes second.
The parts of the two levels add up to the difference exactly, whatever the net computes.

Left out means: the scenario level's output is not there, so that the backbone's logit stands alone; the user level's
residual layer is not there, so that the backbone reads the plain features. Where the user level takes the place of the
features (`meta_residual = false`) or is an input (`feature`), the backbone cannot do without, and out means that the
user is treated as one without knowledge: the learned default code.

A level that is left out takes along what it learned for everybody, which is capacity, not knowledge. So the user
level's part is split once more, in the same way: what it would do for a user without knowledge, and the user's own.
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
    """Logits [B] of the same rows: without knowledge, with one level alone, and with all that the model has.

    In `default` and `default_both` the user level, alone and with the other, has the default code for every user.
    """

    none: Floats
    user: Floats
    scenario: Floats
    both: Floats
    default: Floats
    default_both: Floats

    @property
    def user_part(self) -> Floats:
        """What the user level adds to the logit."""
        return ((self.user - self.none) + (self.both - self.scenario)) / 2

    @property
    def own_part(self) -> Floats:
        """What of `user_part` is the user's own: it is not there with the default code."""
        return ((self.user - self.default) + (self.both - self.default_both)) / 2

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
    nobody = batch._replace(known_N=torch.zeros_like(batch.known_N))
    user, scenario, layer = has_user_level(net), has_scenario_level(net), is_layer(net)
    with torch.inference_mode():
        none = _logits(net, nobody, not layer and user, False)
        of_scenario = _logits(net, nobody, not layer and user, True) if scenario else none
        default = _logits(net, nobody, True, False) if layer else none
        default_both = default if not scenario else _logits(net, nobody, True, True) if layer else of_scenario
        of_user = _logits(net, batch, True, False) if user else none
        both = of_scenario if not user else _logits(net, batch, True, True) if scenario else of_user
    return Levels(none, of_user, of_scenario, both, default, default_both)


def has_user_level(net: RankerNet) -> bool:
    """Whether users' knowledge enters the logit."""
    return net.uses_users


def has_scenario_level(net: RankerNet) -> bool:
    """Whether scenarios' knowledge does."""
    return net.kind in ("scenario", "both")


def is_layer(net: RankerNet) -> bool:
    """Whether the user level can be taken out as a layer; see the module."""
    return net.kind in ("user", "both") and net.residual


def _logits(net: RankerNet, batch: Batch, bottom: bool, scenario: bool) -> Floats:
    """With the user level at the bottom or without, and with the scenario level beside the backbone or without."""
    kinds: dict[tuple[bool, bool], Knowledge] = {
        (True, True): "both",
        (True, False): "user",
        (False, True): "scenario",
        (False, False): "none",
    }
    with _acting_as(net, net.kind if net.kind == "feature" else kinds[bottom, scenario]):
        return net(batch).double().numpy()


@contextmanager
def _acting_as(net: RankerNet, kind: Knowledge) -> Iterator[None]:
    """The net computes what a model of this kind would, with its own weights."""
    own, net.kind = net.kind, kind
    try:
        yield
    finally:
        net.kind = own
