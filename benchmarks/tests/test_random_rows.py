"""Training can read the rows that its benchmarks make."""

from pathlib import Path

from benchmarks import train_throughput
from benchmarks._random_rows import write_rows


def test_made_up_rows_train(tmp_path: Path) -> None:
    splits = {"train": 20_000, "valid": 1_000}
    write_rows(tmp_path / "rows", splits, train_throughput.USERS, train_throughput.ITEMS)
    before, after = train_throughput.peak_of_epoch(tmp_path / "rows")
    assert 0 < before <= after
