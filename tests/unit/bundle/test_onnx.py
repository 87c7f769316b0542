"""The plain ranker as ONNX, in a runtime that knows nothing of torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm4msr import Ranker
from llm4msr.bundle.onnx import write_onnx
from llm4msr.config import BACKBONES
from llm4msr.errors import ConfigError
from llm4msr.export.calibration import Calibrated
from llm4msr.model.embedding import slot_starts
from llm4msr.model.serving_net import Lines
from tests.support.bundles import publish_bundle, rank_request
from tests.support.matching import publish_matching
from tests.unit.conftest import World

REQUESTS: list[dict[str, Any]] = [
    {},
    {"user_id": "u9", "scenario": "search", "items": [f"i{i}" for i in range(15)], "context": {}},
    {"user_id": "u3", "scenario": "nowhere", "items": ["i7"], "context": {"device": "fax"}},
]


@pytest.fixture
def needs_onnx() -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")


def inputs(ranker: Ranker, changes: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the guide says to give: the columns `slots` of the bundle's tables, then scenario and context."""
    request, about = rank_request(**changes), ranker.description
    scenario = about.scenarios.index(request.scenario) if request.scenario in about.scenarios else 0
    context = [
        (["", *known]).index(request.context.get(n, "")) if request.context.get(n, "") in known else 0
        for n, known in about.context.items()
    ]
    starts = np.r_[slot_starts(about.fields, "scenario"), slot_starts(about.fields, "context")]
    place = ranker.users.find(request.user_id)
    assert place is not None
    user_S = ranker.users.numbers("slots", place)
    item_BS = ranker.items.numbers["slots"][ranker.items.find_all(request.items)]
    rows = len(request.items)
    slots_BS = np.concatenate(
        [np.tile(user_S, (rows, 1)), item_BS, np.tile(starts + np.array([scenario, *context]), (rows, 1))], 1
    )
    return {"slots": slots_BS.astype(np.int64), "scenario": np.full(rows, scenario)}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_scores_in_onnxruntime_as_in_torch(
    world: World, tmp_path: Path, backbone: str, needs_onnx: None
):
    import onnxruntime
    import onnxscript

    assert onnxscript.__version__
    lines = Lines(np.array([1.0, 0.5, 2.0], np.float32), np.array([0.0, 0.3, -0.2], np.float32))
    published = publish_bundle(world, tmp_path, Calibrated(lines, None), backbone=backbone, knowledge="none")
    ranker = Ranker.load(str(published.output.folder))
    write_onnx(ranker, tmp_path / "plain.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "plain.onnx"))
    scores = []
    for changes in REQUESTS:
        (score_B,) = session.run(None, inputs(ranker, changes))
        answer = {item.item_id: item.score for item in ranker.rank(rank_request(**changes)).ranked}
        wanted = [answer[item] for item in rank_request(**changes).items]
        assert score_B == pytest.approx(wanted, abs=1e-5)
        scores += score_B.tolist()
    assert np.ptp(scores) > 1e-3, "nothing is compared where all scores are the same"


def test_what_reads_knowledge_or_a_past_does_not_export(world: World, tmp_path: Path):
    reading = Ranker.load(str(publish_bundle(world, tmp_path, knowledge="both").output.folder))
    with pytest.raises(ConfigError, match="model 'both': the plain ranker alone exports to ONNX"):
        write_onnx(reading, tmp_path / "x.onnx")
    matching = Ranker.load(str(publish_matching(tmp_path / "match", knowledge="none", match=("ids",)).output.folder))
    with pytest.raises(ConfigError, match="model 'din': the plain ranker alone"):
        write_onnx(matching, tmp_path / "x.onnx")


def test_a_backbone_that_depends_on_the_rows_is_refused_and_nothing_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_onnx: None
):
    source = """
from llm4msr.model import backbones

class Rows(backbones.find("single")):
    def forward(self, x_BD, scenario_B):
        return super().forward(x_BD, scenario_B) if scenario_B.max().item() < 99 else x_BD[:, 0]
"""
    (tmp_path / "rows_of_a_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    name = "rows_of_a_test:Rows"
    published = publish_bundle(world, tmp_path, backbone=name, knowledge="none")
    ranker = Ranker.load(str(published.output.folder), allow_backbones=[name])
    with pytest.raises(ConfigError, match=f"model.backbone '{name}' does not export to ONNX: "):
        write_onnx(ranker, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
