"""Nets as products of numpy score as torch does; what does not fold says so; a wrong fold is never served."""

import copy
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit
from torch import Tensor, nn

from llm4msr import Ranker, storage
from llm4msr.bundle import files, scorer
from llm4msr.bundle.messages import Calibration
from llm4msr.bundle.self_test import SelfTest
from llm4msr.bundle.torch_scorer import TorchScorer
from llm4msr.config import BACKBONES
from llm4msr.errors import StorageError
from llm4msr.export.calibration import Calibrated
from llm4msr.model.fold import Fold, linear
from llm4msr.model.serving_net import Lines
from llm4msr.storage.vectors import to_column, to_matrix
from tests.support.bundles import publish_bundle, scores
from tests.support.matching import PARTS, publish_matching
from tests.unit.conftest import World

HISTORY = [
    {"item_id": "i4", "scenario": "search"},
    {"item_id": "i5", "scenario": "home", "liked": False},
    {"item_id": "i7", "scenario": "home"},
    {"item_id": "odd", "scenario": "home"},
]
REQUESTS: list[dict[str, Any]] = [
    {},
    {"user_id": "u9", "scenario": "search", "items": ["i5", "odd", "i2"], "context": {}},
    {"user_id": "stranger", "scenario": "nowhere", "context": {"device": "fax"}},
    {"user_id": "u3", "items": [f"i{i}" for i in range(15)], "history": HISTORY},
    {"user_id": "stranger", "scenario": "search", "history": HISTORY, "history_mode": "replace"},
    {"user_id": "u5", "history": HISTORY[:1], "history_mode": "replace"},
]


def torch_ranker(ranker: Ranker) -> Ranker:
    """The same ranker, scoring with the net itself."""
    other = copy.copy(ranker)
    other.scorer = TorchScorer(ranker.net, ranker.items)
    return other


def check_equal(ranker: Ranker) -> None:
    assert ranker.info().scorer == "folded"
    assert isinstance(ranker.scorer, scorer.FoldedScorer)
    other = torch_ranker(ranker)
    for changes in REQUESTS:
        assert scores(ranker, **changes) == pytest.approx(scores(other, **changes), abs=2e-6)


@pytest.mark.parametrize("knowledge", ["none", "both", "feature"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_folded_net_scores_as_torch_does(world: World, tmp_path: Path, backbone: str, knowledge: str):
    published = publish_bundle(world, tmp_path, backbone=backbone, knowledge=knowledge)
    check_equal(Ranker.load(str(published.output.folder)))
    assert published.output.manifest.info["scorer"] == "folded"


@pytest.mark.parametrize(
    "model",
    [
        {"knowledge": "user"},
        {"knowledge": "scenario", "meta_layers": 2},
        {"meta_rank": 0},
        {"fusion": "gate"},
        {"fusion": "concat"},
        {"hidden": (8,)},
        {"hidden": (8, 8, 8)},
        {"experts": 1},
    ],
)
def test_every_switch_of_the_model_folds(world: World, tmp_path: Path, model: dict[str, Any]):
    for backbone in ("mmoe", "ple", "star", "m3oe", "hamur"):
        published = publish_bundle(world, tmp_path / backbone, **{"backbone": backbone, "knowledge": "both"} | model)
        check_equal(Ranker.load(str(published.output.folder)))


@pytest.mark.parametrize("match", [PARTS, ("ids",), ("candidate",), ("cosines",), ("attention",)])
def test_a_match_scores_as_torch_does(tmp_path: Path, match: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scorer, "CHUNK", 7)  # rows of items are made in parts
    made = publish_matching(tmp_path, match=match, knowledge="both", pooled=True)
    check_equal(Ranker.load(str(made.output.folder)))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_folds_with_a_match(tmp_path: Path, backbone: str):
    made = publish_matching(tmp_path, backbone=backbone, knowledge="both")
    check_equal(Ranker.load(str(made.output.folder)))


def test_many_candidates_are_scored_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ranker = Ranker.load(str(publish_matching(tmp_path, knowledge="both").output.folder))
    whole = scores(ranker, **REQUESTS[3])
    monkeypatch.setattr(scorer, "BLOCK", 4)
    assert scores(ranker, **REQUESTS[3]) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize(
    "model", [{"knowledge": "both", "meta_layers": 2}, {"knowledge": "user", "meta_residual": False}]
)
def test_a_net_that_does_not_fold_says_so(world: World, tmp_path: Path, model: dict[str, Any]):
    published = publish_bundle(world, tmp_path, **model)
    ranker = Ranker.load(str(published.output.folder))
    assert ranker.info().scorer == published.output.manifest.info["scorer"] == "torch"
    assert isinstance(ranker.scorer, TorchScorer)
    assert "row" not in ranker.items.numbers
    assert len(scores(ranker, **REQUESTS[3])) == 15


LINES = Lines(np.array([1, 0.3, 4], np.float32), np.array([0, -2, 1], np.float32))
"""Of the unknown scenario, home and search."""


@pytest.mark.parametrize("model", [{"knowledge": "both"}, {"knowledge": "both", "meta_layers": 2}])
def test_calibrated_scores_lie_on_the_scenarios_line_in_both_scorers(
    world: World, tmp_path: Path, model: dict[str, Any]
):
    report = Calibration(method="platt", rows=9, error_before=0.2, error_after=0.1, unchanged=["search"])
    plain = Ranker.load(str(publish_bundle(world, tmp_path / "plain", **model).output.folder))
    output = publish_bundle(world, tmp_path / "calibrated", Calibrated(LINES, report), **model).output
    ranker = Ranker.load(str(output.folder))
    assert plain.info().calibration is None
    assert ranker.info().calibration == report
    assert output.manifest.info["calibration"] == report.model_dump()
    for one in (ranker, torch_ranker(ranker)):
        for changes, scenario in zip(REQUESTS, (1, 2, 0, 1, 2, 1), strict=True):
            own = scores(plain, **changes)
            expected = {
                item: expit(LINES.slope_S[scenario] * logit(p) + LINES.bias_S[scenario]) for item, p in own.items()
            }
            found = scores(one, **changes)
            assert found == pytest.approx(expected, abs=1e-5)
            assert list(found) == list(own), "the best stays first"


class Plain(nn.Module):
    """A backbone from outside, with no fold."""

    def __init__(self, width: int, scenarios: int, config: Any):
        super().__init__()
        self.last = nn.Linear(width, 1)

    def forward(self, x_BD: Tensor, scenario_B: Tensor) -> Tensor:
        return self.last(x_BD)[:, 0]


class Folding(Plain):
    """One that brings its own."""

    def fold(self, scenario: int) -> Fold:
        return Fold([linear(self.last)], lambda logits_OB: logits_OB[0])


class Misfolding(Plain):
    """One that brings a wrong one."""

    def fold(self, scenario: int) -> Fold:
        return Fold([linear(self.last)], lambda logits_OB: logits_OB[0] + (0.01 if scenario == 2 else 0))


@pytest.mark.parametrize(("backbone", "expected"), [(Plain, "torch"), (Folding, "folded")])
def test_a_backbone_of_your_own_may_bring_its_fold(
    world: World, tmp_path: Path, backbone: type[nn.Module], expected: str
):
    name = f"{__name__}:{backbone.__name__}"
    published = publish_bundle(world, tmp_path, backbone=name, knowledge="both")
    ranker = Ranker.load(str(published.output.folder), allow_backbones=[name])
    assert ranker.info().scorer == expected
    if expected == "folded":
        check_equal(ranker)


def test_a_wrong_fold_is_refused_when_it_is_loaded(world: World, tmp_path: Path):
    name = f"{__name__}:Misfolding"
    published = publish_bundle(world, tmp_path, backbone=name, knowledge="both")
    with pytest.raises(StorageError, match=r"the self-test of user '.*' in 'search' is off by 0.00"):
        Ranker.load(str(published.output.folder), allow_backbones=[name])


def test_a_wrong_row_of_an_item_is_refused_when_it_is_loaded(world: World, tmp_path: Path):
    published = publish_bundle(world, tmp_path, knowledge="both")
    bundle = Path(shutil.copytree(str(published.output.folder), tmp_path / "copy"))
    case = SelfTest.model_validate_json((bundle / files.SELF_TEST).read_bytes()).cases[0]
    with pa.ipc.open_file(str(bundle / files.ITEMS)) as reader:
        table = reader.read_all()
    row_IR = to_matrix(table["row"]).copy()
    row_IR[table["id"].to_pylist().index(case.request.items[0]), 0] += 0.1
    at = table.schema.get_field_index("row")
    table = table.set_column(at, table.schema.field(at), to_column(row_IR))
    with pa.ipc.new_file(str(bundle / files.ITEMS), table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][files.ITEMS] |= {
        "bytes": (bundle / files.ITEMS).stat().st_size,
        "digest": storage.digest_file(storage.path(bundle / files.ITEMS)),
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match=r"the self-test of user '.*' is off by"):
        Ranker.load(str(bundle))


def test_scenarios_beyond_those_kept_are_folded_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scorer, "SCENARIOS", 1)
    ranker = Ranker.load(str(publish_bundle(world, tmp_path, knowledge="both").output.folder))
    check_equal(ranker)


@pytest.mark.parametrize("backbone", ["star", "mmoe"])
def test_a_ranker_that_is_let_go_is_in_no_cycle(world: World, tmp_path: Path, backbone: str):
    """A replica freezes what it has loaded: what the garbage collector would have to find stays for ever."""
    ranker = Ranker.load(str(publish_bundle(world, tmp_path, knowledge="both", backbone=backbone).output.folder))
    parts = [weakref.ref(part) for part in (ranker, ranker.scorer, ranker.net, ranker.knowledge)]
    gc.collect()
    gc.disable()
    try:
        del ranker
        assert [part() for part in parts] == [None] * 4
    finally:
        gc.enable()


def test_scores_are_probabilities_however_large_the_logits_are(world: World, tmp_path: Path):
    ranker = Ranker.load(str(publish_bundle(world, tmp_path, knowledge="none", backbone="single").output.folder))
    row_R = np.full_like(ranker.items.numbers["row"][0], 1e4)
    for sign in (1, -1):
        ranker.scorer._row_IR = np.tile(sign * row_R, (len(ranker.items), 1))  # type: ignore[attr-defined]
        assert all(0 <= score <= 1 for score in scores(ranker).values())
