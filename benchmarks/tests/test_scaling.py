"""The model behind scaling.md."""

import pytest

from benchmarks.scaling import Growth, bottleneck, growths


def record(rows: int, cpu_seconds: float, driver: float) -> dict[str, object]:
    return {"stage": "export", "rows": rows, "cpu_seconds": cpu_seconds, "first_peak": driver, "largest_other": 5.0}


def test_growth_is_what_a_row_more_takes_between_the_two_largest_sizes() -> None:
    records = [record(1000, 3.0, 500.0), record(10, 0.0, 0.0), record(2000, 5.0, 900.0)]
    (growth, few, many) = growths(records)["export"]
    assert (few, many) == (1000, 2000)
    assert growth == pytest.approx(Growth(cpu_seconds=0.002, driver=0.4, other=0.0, fixed=1.0))


def test_a_stage_of_one_size_says_nothing_about_growth() -> None:
    assert growths([record(1000, 3.0, 500.0)]) == {}


def test_memory_that_no_machine_has_comes_before_hours() -> None:
    hours = {"train": 3.0, "export": 1.0}
    assert bottleneck(hours, {"export": 1e9}) == "train"
    assert bottleneck(hours, {"export": 1e13}) == "the driver's memory in export"
