"""The bundle that serving reads."""

from typing import Literal

from llm4msr.config.section import Section


class ExportConfig(Section):
    """The bundle that serving reads."""

    calibration: Literal["none", "platt"] = "none"
    """What a bundle's scores are: the model's own, which the report, the explorer and `evaluate` show too (`none`), or
    in each scenario those of a line through its logits, fitted to the validation rows, so that of the items with a
    score near 0.2 about a fifth is liked (`platt`, Platt's scaling). It needs 100 likes and 100 other rows of a
    scenario; the others keep their scores. The order of items in a scenario stays. Where `split.negatives` draws what
    was not liked, no score is a rate of likes in service, calibrated or not: its share of likes is that of the draw."""
