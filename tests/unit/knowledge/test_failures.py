"""Each kind's failures against what is allowed of that kind."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import TooManyFailedError
from llm4msr.knowledge.engines import Task
from llm4msr.knowledge.failures import refuse_failures
from llm4msr.knowledge.shards import SHARD_FOLDERS, Counts
from llm4msr.knowledge.work import Work
from tests.support.data import config_of

USERS, SCENARIOS = "users-000000000.parquet", "scenarios-0.parquet"
WORK = Work(readers={}, bases=[])


def write(folder: Path, task: Task, name: str = USERS) -> None:
    """A shard of five rows, of which one was empty and one too long."""
    errors = ["", "nothing liked before the cut", "", "PromptTooLongError: prompt of 99 tokens", ""]
    table = pa.table({"raw_id": ["u1", "u2", "u3", "u4", "u5"], "error": errors})
    storage.write_table(storage.path(folder / SHARD_FOLDERS[task] / name), table)


def allowing(folder: Path, share: float) -> Config:
    return config_of(folder, extract={"max_failed_fraction": share})


@pytest.mark.parametrize(("allowed", "refused"), [(0.0, True), (0.19, True), (0.2, False), (1.0, False)])
def test_too_many_failures_end_the_stage_and_name_the_first(tmp_path: Path, allowed: float, refused: bool):
    write(tmp_path, "vectors")
    counts: Any = {"vectors": {USERS: Counts(5, 2, 1), SCENARIOS: Counts(0, 0, 0)}}
    arguments = (allowing(tmp_path, allowed), storage.path(tmp_path), counts, WORK)
    if not refused:
        refuse_failures(*arguments)
        return
    message = rf"1 of 5 users failed; first: 'u4' in {USERS}: PromptTooLong"
    with pytest.raises(TooManyFailedError, match=message) as caught:
        refuse_failures(*arguments)
    assert caught.value.exit_code == 3


def test_each_kind_is_compared_with_what_is_allowed_by_itself(tmp_path: Path):
    """A few scenarios that all fail are a small part of all rows."""
    for name in (SCENARIOS, USERS):
        write(tmp_path, "vectors", name)
    counts: Any = {"vectors": {SCENARIOS: Counts(5, 5, 0), USERS: Counts(5, 2, 1)}}
    work = WORK.model_copy(update={"kept": {"users": 9995, "scenarios": 0}})
    folder = storage.path(tmp_path)
    message = r"5 of 5 scenarios failed; first: 'u4'.* allows 0\.01 of each"
    with pytest.raises(TooManyFailedError, match=message) as caught:
        refuse_failures(allowing(tmp_path, 0.01), folder, counts, work)
    assert "users failed" not in str(caught.value)
    with pytest.raises(TooManyFailedError, match=r"5 of 5 scenarios failed; .*1 of 10000 users failed; first: 'u4'"):
        refuse_failures(allowing(tmp_path, 0), folder, counts, work)
    refuse_failures(allowing(tmp_path, 1), folder, counts, work)


def test_failures_of_answers_count_too(tmp_path: Path):
    write(tmp_path, "answers")
    counts: Any = {"answers": {USERS: Counts(5, 2, 1)}, "vectors": {USERS: Counts(5, 1, 1)}}
    with pytest.raises(TooManyFailedError, match=r"1 of 5 users failed; first: 'u4' .*prompt of 99 tokens"):
        refuse_failures(allowing(tmp_path, 0.1), storage.path(tmp_path), counts, WORK)
