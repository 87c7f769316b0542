"""Data in several partitions, prepared by Ray, equals that of one partition once numbers are raw ids again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.data import prepare as prepare_stage
from llm4msr.data.report_figures import PromptSampler
from llm4msr.errors import DataError
from llm4msr.pipeline import prepare
from tests.support import by_raw_id
from tests.support.data import config_of, flip_a_bit, prepared_table
from tests.unit.data.test_reference import world, write

CONFIGS: dict[str, tuple[int, dict[str, Any]]] = {
    "time": (2, {}),
    "latest": (16, {"latest": 333, "history_share": 0.6}),
    "user": (8, {"by": "user", "history_share": 0.5, "latest": 700}),
    "last": (4, {"kind": "leave_last_out"}),
    "random": (32, {"kind": "random", "history_share": 0.7}),
    "first": (8, {"first_events": 9, "latest": 300}),
}


def config_with(folder: Path, total: int, split: dict[str, Any], **sections: Any) -> Config:
    return config_of(folder, f"{folder}/out-{total}", split=split | {"partitions": total}, **sections)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path, *world(5))
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_partitions_equal_one(source: Path, name: str):
    total, split = CONFIGS[name]
    one, several = (prepare(config_with(source, count, split)) for count in (1, total))
    assert (partitions.count(one), partitions.count(several)) == (1, total)
    expected, found = by_raw_id.read(one), by_raw_id.read(several)
    for field, value in expected._asdict().items():
        assert getattr(found, field) == value, field
    infos = [dict(output.manifest.info) for output in (one, several)]
    reports = [info.pop("report") for info in infos]
    for report in reports:
        report.pop("prompt"), report.pop("prompt_of")
    assert len(infos[1].pop("segments")) == 2  # rows and users
    assert infos[0] == infos[1]
    assert reports[0] == reports[1]
    own = [row["f:user_id"] for row in prepared_table(several, "users").to_pylist()]
    assert sorted(filter(None, own)) == list(range(1, several.json("fields.json")["user"]["user_id"] + 1))
    assert not (Path(several.folder) / "work").exists()


def test_users_lie_in_the_partition_of_their_hash_and_trained_ones_come_first(source: Path):
    output = prepare(config_with(source, 4, {}))
    for partition in range(4):
        users = output.table(partitions.file_name("users", partition))
        ids = users["user_id"].to_pylist()[int(partition == 0) :]
        assert set(partitions.numbers_of(partitions.hash_ids(ids), 4)) <= {partition}
        own = users["f:user_id"].to_numpy()[int(partition == 0) :]
        assert (np.diff((own > 0).astype(int)) <= 0).all()
        assert users["user"].to_pylist() == list(range(len(users)))


def test_a_run_that_died_goes_on_with_what_is_missing_or_damaged(source: Path):
    config = config_with(source, 8, {"min_item_rows": 2})

    def broken(_: Config) -> PromptSampler:
        def fail(*_: Any) -> tuple[str, str]:
            raise OSError("the machine is gone")

        return fail

    with pytest.raises(OSError, match="the machine is gone"):
        prepare_stage.prepare(config, broken)
    folder = Path(prepare_stage.folder(config))
    assert not (folder / "manifest.json").exists()
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    lost, damaged = (folder / partitions.file_name(*file) for file in (("train", 3), ("seen", 5)))
    lost.unlink()
    flip_a_bit(damaged)
    output = prepare(config)
    tables = [file for file in files if file.parent.name in partitions.PARTITIONED]
    again = {file.name for file in tables if file.stat().st_mtime_ns != files[file]}
    assert again - {damaged.name} <= {"p=00003.parquet"}
    assert by_raw_id.read(output) == by_raw_id.read(prepare(config_with(source, 1, {"min_item_rows": 2})))


def test_negatives_of_several_partitions_are_items_that_the_user_has_not_taken(source: Path):
    split = {"negatives": 2, "negatives_by": "popularity", "kind": "random"}
    one = by_raw_id.read(prepare(config_with(source, 4, split, table={"label": ""})))
    train = one.splits["train"]
    liked = {(user, item) for user, item, _, label, *_ in train if label}
    drawn = [(user, item) for user, item, _, label, *_ in train if not label]
    assert len(drawn) > len([row for row in train if row[3]])
    assert not liked & set(drawn)


def test_a_bad_cell_is_named_as_in_one_process_and_nothing_is_published(source: Path):
    rows, items, users = world(5)
    rows[700]["label"] = "maybe"
    write(source, rows, items, users)
    config = config_with(source, 4, {})
    with pytest.raises(DataError, match=r"interactions\.csv: column 'label': 'maybe' in row 701"):
        prepare(config)
    assert not list(Path(config.root).rglob("manifest.json"))
