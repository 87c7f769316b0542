"""What each level of knowledge does to a logit: the same net scored with levels left out, and an exact split.

A net with both levels is scored four times, with each level in or out. The two levels meet in the net (the scenario
level reads what the user level wrote), so the difference between all and nothing is not a plain sum of two effects. It
is split by the Shapley value (Shapley 1953, "A value for n-person games"): a level's part is the mean of its effect
when it comes first and when it comes second. The parts of the two levels add up to the difference exactly, whatever
the net computes.

A scenario level that is left out gives no output, so the backbone's logit stands alone. A user level that is left out
has no residual layer, so the backbone reads the plain features. Where the user level replaces the features
(`meta_residual = false`) or is an input (`feature`), the backbone cannot do without it; "out" then means that the user
is treated as one without knowledge, by the learned default code.

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
    """Logits, float64 [B], of the same rows: without knowledge, with one level alone, and with all that the model has.

    `default` and `default_both` are `user` and `both` with the default code for every user.
    """

    none: Floats
    user: Floats
    scenario: Floats
    both: Floats
    default: Floats
    default_both: Floats

    @property
    def user_part(self) -> Floats:
        """[B]: what the user level adds to the logit."""
        return ((self.user - self.none) + (self.both - self.scenario)) / 2

    @property
    def own_part(self) -> Floats:
        """[B]: what of `user_part` comes from the user's own knowledge; 0 with the default code."""
        return ((self.user - self.default) + (self.both - self.default_both)) / 2

    @property
    def scenario_part(self) -> Floats:
        """[B]: what the scenario level adds to the logit; `none + user_part + scenario_part` is `both`."""
        return ((self.scenario - self.none) + (self.both - self.user)) / 2

    @classmethod
    def concatenate(cls, batches: list["Levels"]) -> "Levels":
        """The rows of several batches as one."""
        return cls(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def score_levels(net: RankerNet, batch: Batch) -> Levels:
    """Score the batch with each level in and out; a level that the model lacks changes nothing."""
    net.eval()
    nobody = batch._replace(known_N=torch.zeros_like(batch.known_N))
    has_user, has_scenario, added = net.uses_users, net.has_scenario_level, net.user_level_is_added
    with torch.inference_mode():
        none = _logits(net, batch, 0, 0)
        scenario = _logits(net, batch, 0, 1) if has_scenario else none
        default = _logits(net, nobody, 1, 0) if added else none
        default_both = default if not has_scenario else _logits(net, nobody, 1, 1) if added else scenario
        user = _logits(net, batch, 1, 0) if has_user else none
        both = scenario if not has_user else _logits(net, batch, 1, 1) if has_scenario else user
    return Levels(none, user, scenario, both, default, default_both)


def _logits(net: RankerNet, batch: Batch, user: float, scenario: float) -> Floats:
    return net(batch, Strengths(user, scenario)).double().numpy()
