"""What `llm4msr.run` gives back, as a notebook would use it."""

import pandas as pd
import pytest

from llm4msr.training import metrics
from tests.support.experiments import SCENARIOS
from tests.support.fixtures import Spine


def test_metrics_are_a_row_for_each_model_and_scenario(spine: Spine) -> None:
    frame = spine.outputs.metrics()
    told = spine.one("evaluate").manifest.info["metrics"]["overall"]
    assert frame.loc[("both", "(all)"), "auc"] == told["auc"]
    assert {"none", "both", "popularity", "constant"} <= set(frame.index.get_level_values("model"))
    assert set(SCENARIOS) <= set(frame.index.get_level_values("scenario"))


def test_predictions_give_the_metric_that_was_told(spine: Spine) -> None:
    rows = pd.concat(spine.outputs.predictions())
    (column,) = [name for name in rows.columns if name.startswith("both")]
    auc = metrics.auc(rows["label"], rows[column])
    assert auc == pytest.approx(spine.outputs.metrics().loc[("both", "(all)"), "auc"], abs=1e-6)


def test_the_exported_model_ranks_and_a_notebook_shows_table_and_places(spine: Spine) -> None:
    assert spine.outputs.ranker().info().model_version
    shown = spine.outputs._repr_markdown_()
    assert spine.outputs.table in shown
    assert all(str(output.folder) in shown for output in spine.outputs)
    with pytest.raises(KeyError, match="explain"):
        spine.outputs.one("explain")
