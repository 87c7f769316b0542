"""What training says before it begins; the loop is in test_loop.py, Ray Train in tests/ray."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm4msr import schema, storage
from llm4msr.training.train import known_labels, warn_of_one_class
from tests.support.data import config_of, published


@pytest.mark.parametrize(
    ("train", "valid", "told"),
    [
        ([0, 1], [1, 0], []),
        ([1, 1], [1, 0], ["  train: all 2 rows are positives: a model learns no order from one class"]),
        ([0, 0.5], [0, 0], ["  train: all 2 rows are negatives", "  valid: all 2 rows are negatives: they"]),
        ([0.2, 0.9], [0.6, 1], ["  valid: all 2 rows are positives: they have no AUC"]),
    ],
)
def test_rows_of_one_class_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: list[float], valid: list[float], told: list[str]
):
    for name, labels in (("train", train), ("valid", valid)):
        columns = {f.name: pa.array([1, 2] if f.name != "label" else labels, f.type) for f in schema.INTERACTIONS}
        storage.write_table(storage.path(tmp_path / f"{name}/p=00000.parquet"), pa.table(columns), 1)
    for name in ("users", "seen"):
        storage.write_table(storage.path(tmp_path / f"{name}/p=00000.parquet"), pa.table({"user": [1, 2]}))
    tables = ("train", "valid", "users", "seen")
    warn_of_one_class(published(tmp_path, {f"{name}/p=00000.parquet": 2 for name in tables}))
    lines = capsys.readouterr().err.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told


ITEMS = {"reads": "items", "pooling": "mean"}


@pytest.mark.parametrize(
    ("sections", "advice"),
    [
        ({}, "set extract.reads = 'items'"),
        ({"extract": ITEMS}, "set extract.point_in_time = true"),
        ({"extract": ITEMS | {"point_in_time": True}}, ""),
        ({"extract": {"snapshots": 4}}, ""),
        ({"split": {"history_share": 0.5}}, ""),
        ({"model": {"knowledge": "scenario"}}, ""),
        ({"model": {"control": "shuffled"}}, ""),
    ],
)
def test_vectors_that_know_the_labels_of_training_rows_are_told(tmp_path: Path, sections: dict[str, Any], advice: str):
    told = known_labels(config_of(tmp_path, **{"model": {"knowledge": "both"}, **sections}))
    assert len(told) == bool(advice)
    assert all(advice in line for line in told)
