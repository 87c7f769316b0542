"""Calibrated scores say how often items are liked, and keep their order."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from llm4msr import Ranker, RankRequest, storage
from llm4msr.arrays import Floats, strings
from llm4msr.config import Config
from llm4msr.export import calibration
from llm4msr.export.calibration import MIN_ROWS, SLOPES, fit
from llm4msr.pipeline import export, prepare, trained
from llm4msr.training import predictions, score_counts
from llm4msr.training.score_counts import ScoreCounts
from tests.support.data import SCENARIOS, config_of, interactions, publish_trained, write_data

NAMES = ["", "bold", "shy", "rare"]


def rows(scenario: int, count: int, slope: float, bias: float, seed: int = 0) -> ScoreCounts:
    """Rows whose true logit is the slope times their score, plus the bias."""
    rng = np.random.default_rng(seed)
    score_B: Floats = rng.normal(0, 1.5, count)
    return ScoreCounts.of(np.full(count, scenario), rng.random(count) < expit(slope * score_B + bias), score_B)


def test_each_scenario_gets_the_line_by_which_its_rows_were_made():
    counts = ScoreCounts.add([rows(1, 40_000, 0.5, -2), rows(2, 40_000, 3, 0.5)])
    lines, report = fit(counts, NAMES[:3])
    assert lines.slope_S == pytest.approx([1, 0.5, 3], rel=0.05)
    assert lines.bias_S == pytest.approx([0, -2, 0.5], abs=0.05)
    assert (report.rows, report.unchanged) == (80_000, [])
    assert report.error_before is not None
    assert report.error_after is not None
    assert report.error_before > 0.1 > 0.01 > report.error_after
    other = ScoreCounts.add([rows(1, 40_000, 0.5, -2, seed=1), rows(2, 40_000, 3, 0.5, seed=2)])
    assert other.along(*lines).of_all().calibration_error() < 0.01, "on rows that were not fitted to as well"


@pytest.mark.parametrize(
    "few",
    [
        rows(3, 0, 1, 0),
        rows(3, MIN_ROWS, 1, 0),
        ScoreCounts.of(np.full(5000, 3), np.ones(5000, bool), np.linspace(-1, 1, 5000)),
        ScoreCounts.of(np.full(5000, 3), np.arange(5000) < MIN_ROWS - 1, np.linspace(-1, 1, 5000)),
    ],
)
def test_a_scenario_with_too_few_rows_of_a_class_stays_as_it_is_and_is_named(few: ScoreCounts):
    lines, report = fit(ScoreCounts.add([rows(1, 1000, 0.5, 0), rows(2, 1000, 0.5, 0), few]), NAMES)
    assert (lines.slope_S[3], lines.bias_S[3]) == (1, 0)
    assert 1 not in lines.slope_S[1:3]
    assert report.unchanged == ["rare"]
    assert calibration.phrase(report).endswith(f"unchanged, with fewer than {MIN_ROWS} likes or other rows there: rare")


def test_without_validation_rows_all_scores_stay():
    lines, report = fit(rows(1, 0, 1, 0), NAMES)
    assert (set(lines.slope_S), set(lines.bias_S)) == ({1}, {0})
    assert (report.rows, report.error_before, report.error_after, report.unchanged) == (0, None, None, NAMES[1:])
    assert "no validation rows" in calibration.phrase(report)


def test_scores_that_order_rows_backwards_keep_their_order():
    lines, _ = fit(rows(1, 10_000, -1, 0), NAMES[:2])
    assert lines.slope_S[1] == np.float32(SLOPES[0])


def test_binned_scores_give_nearly_the_same_line(monkeypatch: pytest.MonkeyPatch):
    exact = rows(1, 40_000, 0.5, -1)
    monkeypatch.setattr(score_counts, "MAX_COUNTS", 1 << 12)
    binned = ScoreCounts.add([exact])
    assert binned.shift
    assert calibration.fit_line(binned) == pytest.approx(calibration.fit_line(exact), abs=1e-3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A trained model with many validation rows of two scenarios, and hardly any of a third."""
    data = interactions(users=150, rows_per_user=40)
    data += [[f"u{user}", "i1", "rare", user % 2, 0, "tv"] for user in range(6)]
    folder = write_data(tmp_path_factory.mktemp("calibration"), data, users=150)
    config = config_of(folder, split={"by": "user"}, model={"knowledge": "none"}, export={"calibration": "platt"})
    prepare(config)
    publish_trained(config)
    return config


def test_a_bundle_gives_the_nets_scores_on_the_fitted_lines(config: Config):
    output, model = export(config), trained(config)
    ranker = Ranker.load(str(output.folder))
    net, data = model.load()
    lines, report = fit(predictions.count_scores(model, "valid"), data.scenario_names)
    known = [data.scenario_names.index(name) for name in SCENARIOS]
    assert (np.abs(lines.slope_S[known] - 1) > 1e-3).all()
    assert report.unchanged == ["rare"]
    assert ranker.info().calibration == report
    valid = next(data.rows("valid").in_file_order(200))
    with torch.inference_mode():
        logit_B = net(data.batch(valid, net)).numpy()
    expected_B = expit(logit_B * lines.slope_S[valid.scenario_B] + lines.bias_S[valid.scenario_B])
    users = strings(data.prepared.table("users/p=00000.parquet")["user_id"])
    items = strings(data.prepared.table("items.parquet")["item_id"])
    for at, expected in enumerate(expected_B.tolist()):
        device = data.prepared.json("fields.json")["context"]["device"][int(valid.context_BC[at, 0]) - 1]
        request = RankRequest(
            user_id=users[int(valid.user_B[at])],
            scenario=data.scenario_names[int(valid.scenario_B[at])],
            items=[items[int(valid.item_B[at])]],
            context={"device": device},
        )
        assert ranker.rank(request).ranked[0].score == pytest.approx(expected, abs=1e-5)


def test_the_card_tells_the_error_before_and_after(config: Config, capsys: pytest.CaptureFixture[str]):
    own = config.model_copy(update={"name": "again"})
    output = export(own)
    report = Ranker.load(str(output.folder)).info().calibration
    assert report is not None
    assert report.error_before == pytest.approx(trained(config).output.manifest.info["metrics"]["overall"]["ece"])
    assert report.error_after is not None
    card = storage.read_bytes(output.folder / "README.md").decode()
    assert f"expected calibration error {report.error_after:.4f} on the {report.rows:,} validation rows it was" in card
    assert f"{report.error_before:.4f} before; unchanged" in card
    assert f"calibration: {calibration.phrase(report)}" in capsys.readouterr().err


def test_scores_are_the_models_own_by_default(config: Config):
    plain = config.model_copy(update={"export": type(config.export)()})
    calibrated, output = export(config), export(plain)
    assert output.folder != calibrated.folder
    one, other = (Ranker.load(str(bundle.folder)) for bundle in (output, calibrated))
    assert one.info().calibration is None
    request = RankRequest(user_id="u1", scenario="home", items=[f"i{i}" for i in range(20)])
    own, made = one.rank(request).ranked, other.rank(request).ranked
    assert [item.item_id for item in own] == [item.item_id for item in made]
    assert [item.score for item in own] != [item.score for item in made]
    error = trained(config).output.manifest.info["metrics"]["overall"]["ece"]
    card = storage.read_bytes(output.folder / "README.md").decode()
    assert f"They are the model's own (expected calibration error {error:.4f} on validation rows)" in card
