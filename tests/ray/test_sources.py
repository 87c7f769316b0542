"""Sources as Ray's tasks read them: the same rows with the same numbers as in this process, and the same errors."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4msr import schema
from llm4msr.config import SourceConfig
from llm4msr.data import sources
from llm4msr.data.reading import pieces
from llm4msr.data.reading.raw_data import RawTable, whole
from llm4msr.errors import DataError
from llm4msr.ray_session import unwrap_errors
from tests.support.lakes import KINDS, append, as_table, config_of_kind, rows, write

pytestmark = pytest.mark.usefixtures("ray_session")


def on_ray(raw: RawTable, by: str) -> pa.Table:
    blocks = raw.dataset().iter_batches(batch_size=None, batch_format="pyarrow")
    return pa.concat_tables([raw.layout.empty_table(), *blocks]).sort_by(by)


def lake(folder: Path) -> SourceConfig:
    """Five days of four files of many row groups, one of them empty; users in two files."""
    for at in range(20):
        file = folder / "events" / f"day={at // 4}" / f"{at % 4}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(as_table(rows(0 if at == 7 else 50 + at, start=100 * at)), file, row_group_size=8)
    for at in range(2):
        (folder / "users").mkdir(exist_ok=True)
        (folder / "users" / f"{at}.csv").write_text(f"user_id,age\nu{at},{at}\n")
    table = {"interactions": "events", "users": "users", "label": "label", "order": "ts"}
    table |= {"context": ["device", "day"], "user_features": ["age"]}
    return SourceConfig.model_validate({"kind": "table", "path": str(folder), "table": table})


def test_a_lake_gives_the_same_rows_in_tasks_and_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lake(tmp_path)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2000)
    raw = sources.read(config)
    assert on_ray(raw.interactions, "row").equals(whole(raw.interactions).combine_chunks())
    assert on_ray(raw.users, "user_id").equals(whole(raw.users).combine_chunks())


def test_a_lake_on_s3_gives_what_a_folder_gives(s3: str, tmp_path: Path) -> None:
    here = lake(tmp_path)
    fsspec.filesystem("s3").put(str(tmp_path), f"{s3}/lake", recursive=True)
    there = here.model_copy(update={"path": f"{s3}/lake"})
    raw = sources.read(there)
    expected = whole(sources.read(here).interactions).combine_chunks()
    assert whole(raw.interactions).combine_chunks().equals(expected)
    assert on_ray(raw.interactions, "row").equals(expected)
    assert sources.fingerprint(there) == sources.fingerprint(there) != sources.fingerprint(here)
    pattern = there.table.model_copy(update={"interactions": "events/day=[13]/*.parquet"})
    days = whole(sources.read(there.model_copy(update={"table": pattern})).interactions)["c:day"]
    assert set(days.to_pylist()) == {"1", "3"}


@pytest.mark.parametrize("kind", KINDS)
def test_rays_reader_gives_the_same_rows_as_the_library_itself(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path, rows(300))
    append(kind, tmp_path, rows(200, start=300))
    raw = sources.read(config_of_kind(kind, tmp_path))
    assert on_ray(raw.interactions, "row").equals(whole(raw.interactions).combine_chunks().sort_by("row"))
    assert on_ray(raw.users, "user_id").equals(whole(raw.users).combine_chunks().sort_by("user_id"))


def test_a_delta_table_on_s3_is_read(s3: str, tmp_path: Path) -> None:
    write("delta", tmp_path, rows(30))
    fsspec.filesystem("s3").put(str(tmp_path), f"{s3}/delta", recursive=True)
    here = config_of_kind("delta", tmp_path)
    there = here.model_copy(update={"path": f"{s3}/delta"})
    expected = on_ray(sources.read(here).interactions, "row")
    assert on_ray(sources.read(there).interactions, "row").equals(expected)
    assert sources.fingerprint(there) == sources.fingerprint(here)


def test_a_table_that_this_process_holds_goes_to_ray(tmp_path: Path) -> None:
    line = '{{"reviewerID": "A{0}", "asin": "B{0}", "overall": 5, "unixReviewTime": {0}}}\n'
    (tmp_path / "Books.json").write_text("".join(map(line.format, range(99))))
    config = {"kind": "amazon", "path": str(tmp_path), "amazon": {"meta": False}}
    raw = sources.read(SourceConfig.model_validate(config))
    assert on_ray(raw.interactions, "row").equals(whole(raw.interactions).combine_chunks())
    assert on_ray(raw.users, "user_id").equals(schema.RAW_USERS.empty_table())


@pytest.mark.parametrize("kind", ["table", "delta", "iceberg", "huggingface", "sql"])
def test_a_bad_cell_that_a_task_finds_is_named(tmp_path: Path, kind: str) -> None:
    if kind == "table":
        config = lake(tmp_path)
        file = tmp_path / "events" / "day=3" / "1.parquet"
        table = pq.read_table(file, partitioning=None)
        pq.write_table(table.set_column(3, "label", pa.array([0] * 20 + [7] * (len(table) - 20))), file)
        expected = f"{file}: column 'label': 7.0 in row 21; a label lies between 0 and 1"
    else:
        write(kind, tmp_path, [*rows(30), ["u", "i", "a", 7, 9, "tv"]])
        config = config_of_kind(kind, tmp_path)
        expected = "clicks: column 'label': 7.0 in "
    raw = sources.read(config)
    with pytest.raises(DataError) as caught:
        unwrap_errors(lambda: raw.interactions.dataset().materialize())()
    assert expected in str(caught.value)
