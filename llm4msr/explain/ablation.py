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

from typing import NamedTuple

import numpy as np
import torch

from llm4msr.arrays import Floats
from llm4msr.model.inputs import Batch, Strengths
from llm4msr.model.net import RankerNet


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
    user, scenario, added = net.uses_users, net.has_scenario_level, net.user_level_is_added
    with torch.inference_mode():
        none = _logits(net, batch, 0, 0)
        of_scenario = _logits(net, batch, 0, 1) if scenario else none
        default = _logits(net, nobody, 1, 0) if added else none
        default_both = default if not scenario else _logits(net, nobody, 1, 1) if added else of_scenario
        of_user = _logits(net, batch, 1, 0) if user else none
        both = of_scenario if not user else _logits(net, batch, 1, 1) if scenario else of_user
    return Levels(none, of_user, of_scenario, both, default, default_both)


def _logits(net: RankerNet, batch: Batch, user: float, scenario: float) -> Floats:
    return net(batch, Strengths(user, scenario)).double().numpy()
