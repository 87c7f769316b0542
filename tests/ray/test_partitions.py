"""All stages on data in several partitions, beside the same run on one."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import Ranker, RankRequest, pipeline
from llm4msr.data import partitions
from llm4msr.explain.stage import REPORT
from llm4msr.knowledge.rows import find_texts, read_vectors, row_groups
from llm4msr.ray_session import run_each
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_matrix
from tests.support.experiments import ITEMS, SCENARIOS, USERS, MakeExperiment
from tests.support.fixtures import Spine

PARTITIONS = 4


@pytest.fixture(scope="module")
def parted(experiment: MakeExperiment, ray_session: None) -> Spine:
    return Spine(experiment({"split.partitions": PARTITIONS}))


def vectors(output: StageOutput) -> dict[str, np.ndarray]:
    """By raw id of the user."""
    table = pa.concat_tables(read_vectors(group) for group in row_groups(output))
    return dict(zip(table["raw_id"].to_pylist(), to_matrix(table["vector"]), strict=True))


def with_rows(item: pa.Table) -> pa.Table:
    return item.append_column("rows", pa.array([len(item)]))


def test_where_tasks_are_fewer_than_items_each_item_is_still_worked_on_alone(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm4msr.ray_session.MOST_TASKS", 2)
    done = run_each(with_rows, [{"n": number} for number in range(5)])
    assert sorted(row["n"] for row in done if row["rows"] == 1) == [*range(5)]


def test_every_table_that_grows_has_a_file_for_each_partition(spine: Spine, parted: Spine) -> None:
    prepared = parted.one("prepare")
    assert partitions.count(prepared) == PARTITIONS
    for table in partitions.PARTITIONED:
        assert partitions.rows(prepared, table) == partitions.rows(spine.one("prepare"), table)
    assert np.diff(partitions.offsets(prepared, "users")).min() > 0


def test_the_llm_reads_the_same_of_every_user(spine: Spine, parted: Spine) -> None:
    one, several = vectors(spine.one("extract")), vectors(parted.one("extract"))
    assert one.keys() == several.keys()
    cosines = [
        float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))
        for a, b in ((one[raw_id].astype(float), several[raw_id].astype(float)) for raw_id in one if one[raw_id].any())
    ]
    assert min(cosines) > 0.999
    texts = {row["raw_id"]: row["prompt"] for row in find_texts(spine.one("extract"), list(one))}
    assert texts == {row["raw_id"]: row["prompt"] for row in find_texts(parted.one("extract"), list(one))}


def test_models_are_as_good_on_the_same_test_rows(spine: Spine, parted: Spine) -> None:
    assert parted.one("evaluate").manifest.rows == spine.one("evaluate").manifest.rows
    for name, auc in parted.one("evaluate").manifest.info["compared_auc"].items():
        assert auc == pytest.approx(spine.one("evaluate").manifest.info["compared_auc"][name], abs=0.05)
    popular = [run.one("evaluate").manifest.info["baselines"]["popularity"]["auc"] for run in (spine, parted)]
    assert popular[0] == pytest.approx(popular[1], abs=1e-9)


def test_the_bundle_knows_every_user_and_ranks_by_taste(parted: Spine) -> None:
    ranker = Ranker.load(str(parted.folder("export")))
    items = [f"item-{item}" for item in range(ITEMS)]
    gaps = []
    for user in range(USERS):
        answer = ranker.rank(RankRequest(user_id=f"user-{user}", scenario=SCENARIOS[0], items=items))
        assert not answer.unknown.user
        assert answer.knowledge == "stored"
        scores = {ranked.item_id: ranked.score for ranked in answer.ranked}
        liked = [score for item, score in scores.items() if int(item.removeprefix("item-")) % 2 == user % 2]
        others = [score for item, score in scores.items() if int(item.removeprefix("item-")) % 2 != user % 2]
        gaps.append(np.mean(liked) - np.mean(others))
    assert np.mean(np.array(gaps) > 0) > 0.9


def test_the_report_is_about_all_users(parted: Spine, table: Path) -> None:
    output = pipeline.explain(parted.experiment.config)
    page = (Path(str(output.folder)) / REPORT).read_text()
    with (table / "users.csv").open() as stream:
        users = {row["user_id"] for row in csv.DictReader(stream)}
    assert any(user in page for user in users)
