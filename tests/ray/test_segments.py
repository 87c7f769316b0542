"""Raw rows are shuffled once, and what later runs make of them is what one run over everything makes."""

from pathlib import Path
from typing import Any

import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import prepare as prepare_stage
from llm4msr.data import segments
from llm4msr.errors import DataError, StorageError
from llm4msr.pipeline import prepare
from llm4msr.storage import StageOutput
from tests.support.data import HEADER, config_of, flip_a_bit, write_csv
from tests.unit.data.test_reference import Row, world, write

DAYS = {"2026-01-01": 600, "2026-01-02": 120, "2026-01-03": 80, "2025-12-31": 100}
"""Rows of each day, in the order in which the days come in."""


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    rows, items, users = world(7)
    write(tmp_path, rows, items, users)
    return rows


def add_day(folder: Path, rows: list[Row], day: str) -> None:
    start = sum([*DAYS.values()][: [*DAYS].index(day)])
    file = folder / "days" / f"day={day}" / "rows.csv"
    write_csv(file, HEADER, [list(row.values()) for row in rows[start : start + DAYS[day]]])


def daily(folder: Path, storage_at: str = "out", table: dict[str, Any] | None = None, **split: Any) -> Config:
    split = {"kind": "random", "history_share": 0.7, "partitions": 4} | split
    return config_of(folder, f"{folder}/{storage_at}", table={"interactions": "days"} | (table or {}), split=split)


def written(config: Config) -> dict[str, list[int]]:
    """Rows of each segment, and the times at which its files were written."""
    folders = sorted(segments.root(config).iterdir())
    outputs = [output for folder in folders if (output := storage.open_output(folder))]
    return {
        output.folder.name: [
            output.manifest.rows,
            *(file.stat().st_mtime_ns for file in Path(output.folder).glob("rows/*")),
        ]
        for output in outputs
        if output.manifest.info["table"] == "interactions"
    }


def digests(output: StageOutput) -> dict[str, str]:
    return {name: record.digest for name, record in output.manifest.files.items()}


def test_days_that_are_added_one_by_one_equal_one_run_and_only_the_new_one_is_shuffled(tmp_path: Path, rows: list[Row]):
    table = {"order": ""}  # so that the place of a row among all files orders it
    config, before = daily(tmp_path, table=table), dict[str, list[int]]()
    for day, count in DAYS.items():
        add_day(tmp_path, rows, day)
        output, now = prepare(config), written(config)
        assert now.items() >= before.items()
        assert [now[name][0] for name in now.keys() - before.keys()] == [count]
        before = now
    one = prepare(daily(tmp_path, "other", table))
    assert digests(output) == digests(one)
    assert output.manifest.info["report"] == one.manifest.info["report"]


def test_days_of_few_short_rows_and_of_none_are_read(tmp_path: Path, rows: list[Row]):
    """By their bytes they are estimated at less than one row of the days before."""
    config = daily(tmp_path)
    for day, count, comment in (("1", 300, "long " * 100), ("2", 2, ""), ("3", 0, "")):
        start = {"1": 0, "2": 300, "3": 302}[day]
        cells = [[*row.values(), comment] for row in rows[start : start + count]]
        write_csv(tmp_path / "days" / f"{day}.csv", [*HEADER, "comment"], cells)
        output = prepare(config)
    assert sum(count for count, *_ in written(config).values()) == 302
    assert digests(output) == digests(prepare(daily(tmp_path, "other")))


def test_a_file_that_has_changed_or_gone_is_not_read_from_the_segment_that_holds_it(tmp_path: Path, rows: list[Row]):
    config = daily(tmp_path)
    for day in ("2025-12-31", "2026-01-01", "2026-01-03"):
        add_day(tmp_path, rows, day)
        prepare(config)
    changed = [row | {"item": "i1"} for row in rows]
    add_day(tmp_path, changed, "2026-01-03")
    (tmp_path / "days" / "day=2025-12-31" / "rows.csv").unlink()
    before = written(config)
    output, now = prepare(config), written(config)
    assert [now[name][0] for name in now.keys() - before.keys()] == [80]
    assert digests(output) == digests(prepare(daily(tmp_path, "other")))


def test_other_columns_or_partitions_are_shuffled_anew(tmp_path: Path, rows: list[Row]):
    add_day(tmp_path, rows, "2026-01-01")
    prepare(daily(tmp_path))
    prepare(daily(tmp_path, valid=0.2))
    assert len(written(daily(tmp_path))) == 1
    prepare(daily(tmp_path, table={"context": []}))
    prepare(daily(tmp_path, partitions=8))
    assert len(written(daily(tmp_path))) == 3


def test_too_many_segments_become_fewer(tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segments, "MOST_SEGMENTS", 3)
    config = daily(tmp_path)
    for day in DAYS:
        add_day(tmp_path, rows, day)
        output = prepare(config)
    used = [written(config)[name][0] for name in output.manifest.info["segments"] if name in written(config)]
    assert sorted(used) == [120 + 80 + 100, 600]
    assert digests(output) == digests(prepare(daily(tmp_path, "other")))


def test_a_run_that_died_in_the_shuffle_keeps_the_segments_that_it_had_finished(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 150)
    for day in DAYS:
        add_day(tmp_path, rows, day)
    config, last = daily(tmp_path), tmp_path / "days" / "day=2026-01-03" / "rows.csv"
    good = last.read_text()
    last.write_text(good.replace(",home,", ",home,maybe", 1))
    with pytest.raises(DataError, match=r"day=2026-01-03/rows\.csv: column 'label'"):
        prepare(config)
    before = written(config)
    assert sum(rows for rows, *_ in before.values()) >= 600
    last.write_text(good)
    output, now = prepare(config), written(config)
    assert now.items() >= before.items()
    assert digests(output) == digests(prepare(daily(tmp_path, "other")))


def test_a_damaged_segment_is_named_and_prune_deletes_what_this_config_does_not_use(tmp_path: Path, rows: list[Row]):
    add_day(tmp_path, rows, "2026-01-01")
    config = daily(tmp_path)
    old = {*prepare(config).manifest.info["segments"]}
    add_day(tmp_path, rows[100:], "2026-01-01")
    used = prepare(config).manifest.info["segments"]
    assert segments.prune(config, used, dry_run=True) == sorted(old - {*used})
    assert len(written(config)) == 2
    segments.prune(config, used, dry_run=False)
    (name,) = written(config)
    assert name in used
    flip_a_bit(Path(segments.root(config)) / name / "rows" / "p=00002.parquet")
    storage.remove(prepare_stage.folder(config))
    with pytest.raises(StorageError, match=rf"{name}.*run stage 'prepare' again"):
        prepare(config)
