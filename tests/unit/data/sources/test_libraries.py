"""Delta and Iceberg tables, saved datasets and databases, each made by its own library and read in this process."""

import datetime as dt
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llm4msr.config import Config, SourceConfig
from llm4msr.data import sources
from llm4msr.data.reading.raw_data import whole
from llm4msr.data.sources import huggingface
from llm4msr.errors import ConfigError, DataError, InputError, MissingExtraError, StorageError
from llm4msr.pipeline import prepare
from tests.support.lakes import KINDS, append, as_table, config_of_kind, rows, write
from tests.support.raw import read_raw


def refusal(config: SourceConfig, kind: type[InputError]) -> str:
    with pytest.raises(kind) as caught:
        read_raw(config)
    return str(caught.value)


def as_set(table: pa.Table) -> set[tuple[Any, ...]]:
    return set(zip(*table.to_pydict().values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_users_and_items_are_read(tmp_path: Path, kind: str):
    write(kind, tmp_path, rows(200))
    raw = sources.read(config_of_kind(kind, tmp_path))
    table = whole(raw.interactions)
    assert as_set(table.drop_columns("row")) == {(*row[:-1], row[-1] or "") for row in rows(200)}
    assert table.schema == raw.interactions.layout
    assert len(set(table["row"].to_pylist())) == 200
    assert raw.interactions.rows == 200
    assert whole(raw.users).sort_by("user_id")["f:age"].to_pylist() == [str(20 + at) for at in range(7)]
    assert raw.items.sort_by("item_id")["title"].to_pylist()[:3] == ["Title 0", "Title 1", "Title 10"]
    assert (raw.context, raw.user_features, raw.item_features) == (("device",), ("age",), ())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_added_change_the_fingerprint_and_reading_again_does_not(tmp_path: Path, kind: str):
    write(kind, tmp_path, rows(20))
    config = config_of_kind(kind, tmp_path)
    first = sources.fingerprint(config)
    read_raw(config)
    assert sources.fingerprint(config) == first
    assert sources.fingerprint(config_of_kind(kind, tmp_path, label="")) != first
    append(kind, tmp_path, rows(1, start=77))
    assert sources.fingerprint(config) != first
    assert read_raw(config).interactions.num_rows == 21


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_an_opened_source_stays_at_its_version(tmp_path: Path, kind: str):
    write(kind, tmp_path, rows(20))
    raw = sources.read(config_of_kind(kind, tmp_path))
    append(kind, tmp_path, rows(5, start=50))
    assert whole(raw.interactions).num_rows == 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_a_row_follows_from_its_content_or_its_place(tmp_path: Path, kind: str):
    write(kind, tmp_path / "one", rows(30))
    write(kind, tmp_path / "two", rows(10))
    append(kind, tmp_path / "two", rows(20, start=10))
    one, two = (whole(sources.read(config_of_kind(kind, tmp_path / at)).interactions) for at in ("one", "two"))
    assert as_set(one) == as_set(two)


@pytest.mark.parametrize("kind", ["delta", "iceberg", "sql"])
def test_rows_without_an_order_of_their_own_need_a_column(tmp_path: Path, kind: str):
    write(kind, tmp_path, rows(5))
    message = refusal(config_of_kind(kind, tmp_path, order=""), ConfigError)
    assert message.startswith("source.table.order: the rows of ")
    assert message.endswith(" have no order of their own; name its column")


def test_a_dataset_has_an_order_of_its_own(tmp_path: Path):
    write("huggingface", tmp_path, rows(5))
    raw = read_raw(config_of_kind("huggingface", tmp_path, order=""))
    assert raw.interactions["order"].to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_is_named_with_the_table(tmp_path: Path, kind: str):
    write(kind, tmp_path, rows(5))
    message = refusal(config_of_kind(kind, tmp_path, scenario="page"), DataError)
    assert "clicks" in message
    assert "column 'page' is missing; it has user_id, item_id, scenario, label, ts, device" in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_cell_is_named_with_the_table_and_column(tmp_path: Path, kind: str):
    write(kind, tmp_path, [*rows(3), ["u", "i", "a", 7, 9, "tv"]])
    message = refusal(config_of_kind(kind, tmp_path), DataError)
    where = "row 4" if kind == "huggingface" else "one of the rows"
    assert "clicks" in message
    assert f"column 'label': 7.0 in {where}; a label lies between 0 and 1" in message


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_table_is_named(tmp_path: Path, kind: str):
    write(kind, tmp_path, rows(3))
    name = config_of_kind(kind, tmp_path).table.interactions
    for ask in (sources.read, sources.fingerprint):
        with pytest.raises(InputError) as caught:
            ask(config_of_kind(kind, tmp_path, interactions=name.replace("clicks", "visits")))
        assert "visits" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_rows_is_refused(tmp_path: Path, kind: str):
    write(kind, tmp_path, [])
    message = refusal(config_of_kind(kind, tmp_path), InputError)
    assert "no rows" in message or "cannot be read as a dataset" in message  # of which its own library reads none


@pytest.mark.parametrize(
    ("kind", "package"), [("delta", "deltalake"), ("iceberg", "pyiceberg"), ("huggingface", "datasets")]
)
def test_a_missing_library_names_its_extra(tmp_path: Path, kind: str, package: str, monkeypatch: pytest.MonkeyPatch):
    write(kind, tmp_path, rows(3))
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(config_of_kind(kind, tmp_path), MissingExtraError)
    assert message.startswith(f"source.kind = '{kind}': ")
    assert message.endswith(f"pip install 'llm4msr[{kind}]'")


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_runs_to_its_end(tmp_path: Path, kind: str):
    write(kind, tmp_path, rows(200))
    source = config_of_kind(kind, tmp_path)
    output = prepare(Config.model_validate({"name": "t", "storage": str(tmp_path / "out"), "source": source}))
    assert output.manifest.rows == 200


# --- Delta ----------------------------------------------------------------------------------------------------------


def test_rows_that_a_delta_table_has_deleted_are_gone(tmp_path: Path):
    from deltalake import DeltaTable

    write("delta", tmp_path, rows(20))
    DeltaTable(str(tmp_path / "clicks")).delete("user_id = 'u1'")
    users = read_raw(config_of_kind("delta", tmp_path)).interactions["user_id"].to_pylist()
    assert "u1" not in users
    assert len(users) == 17


def test_partitions_of_a_delta_table_are_columns(tmp_path: Path):
    from deltalake import write_deltalake

    write("delta", tmp_path, rows(3))
    write_deltalake(
        str(tmp_path / "clicks"), as_table(rows(20)), mode="overwrite", partition_by=["device"], schema_mode="overwrite"
    )
    devices = read_raw(config_of_kind("delta", tmp_path)).interactions["c:device"].to_pylist()
    assert sorted(devices) == [""] * 7 + ["tv"] * 13


# --- Hugging Face ---------------------------------------------------------------------------------------------------


def test_a_dictionary_of_datasets_names_its_parts(tmp_path: Path):
    import datasets

    write("huggingface", tmp_path, rows(4))
    clicks = datasets.load_from_disk(str(tmp_path / "clicks"))
    datasets.DatasetDict({"train": clicks, "test": clicks}).save_to_disk(str(tmp_path / "both"))
    message = refusal(config_of_kind("huggingface", tmp_path, interactions="both"), DataError)
    assert message.endswith("both: a dictionary of datasets; name one of them as a folder below it: train, test")
    assert read_raw(config_of_kind("huggingface", tmp_path, interactions="both/train")).interactions.num_rows == 4


def test_a_large_dataset_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write("huggingface", tmp_path, rows(100))
    in_one = whole(sources.read(config_of_kind("huggingface", tmp_path)).interactions)
    monkeypatch.setattr(huggingface, "PIECE_ROWS", 7)
    assert whole(sources.read(config_of_kind("huggingface", tmp_path)).interactions).equals(in_one)


def test_a_dataset_in_a_store_is_refused(tmp_path: Path):
    config = config_of_kind("huggingface", tmp_path).model_copy(update={"path": "memory://data"})
    assert "from a folder that all machines share" in refusal(config, StorageError)


# --- databases ------------------------------------------------------------------------------------------------------


def test_a_query_may_stand_for_a_table(tmp_path: Path):
    write("sql", tmp_path, rows(50))
    query = "SELECT user_id, item_id, 'all' AS scenario, label, ts, device FROM clicks WHERE ts < 1010;"
    read = read_raw(config_of_kind("sql", tmp_path, interactions=query)).interactions
    assert read.num_rows == 10
    assert set(read["scenario_id"].to_pylist()) == {"all"}


def test_duckdb_is_read_with_its_own_types(tmp_path: Path):
    import duckdb

    with duckdb.connect(str(tmp_path / "shop.db")) as connection:
        connection.execute(
            "CREATE TABLE clicks AS SELECT i::INT AS user_id, i % 3 AS item_id, 'a' AS scenario, i % 2 = 0 AS label, "
            "TIMESTAMP '2024-01-01' + INTERVAL (i) SECOND AS ts, 1.50::DECIMAL(9, 2) AS device FROM range(10) AS t(i)"
        )
    config = config_of_kind("sql", tmp_path, users="", items="", user_features=[], title="")
    config = config.model_copy(update={"sql": config.sql.model_copy(update={"module": "duckdb"})})
    read = read_raw(config).interactions.sort_by("order")
    assert read["user_id"].to_pylist() == [str(at) for at in range(10)]
    assert read["label"].to_pylist() == [1, 0] * 5
    assert read["order"][0].as_py() == dt.datetime(2024, 1, 1, tzinfo=dt.UTC).timestamp() * 1e6
    assert set(read["c:device"].to_pylist()) == {"1.50"}


def test_values_of_several_types_are_named_by_their_column(tmp_path: Path):
    write("sql", tmp_path, rows(3))
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("INSERT INTO clicks VALUES (17, 'i', 'a', 1, 5, 'tv')")
    message = refusal(config_of_kind("sql", tmp_path), DataError)
    assert message.startswith(f"{tmp_path}/shop.db: clicks: column 'user_id': its values have no common type (")
    assert message.endswith("; CAST it in a query")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path):
    assert "unable to open database file" in refusal(config_of_kind("sql", tmp_path), StorageError)
    assert not list(tmp_path.iterdir())


def test_a_database_is_only_read(tmp_path: Path):
    write("sql", tmp_path, rows(3))
    message = refusal(config_of_kind("sql", tmp_path, interactions="DELETE FROM clicks"), StorageError)
    assert "readonly database" in message


def test_a_missing_module_of_a_database_is_named(tmp_path: Path):
    config = config_of_kind("sql", tmp_path)
    config = config.model_copy(update={"sql": config.sql.model_copy(update={"module": "no_such_database.api"})})
    assert refusal(config, MissingExtraError).endswith("pip install no_such_database")


@pytest.mark.parametrize("path", ["host=a password=secret", "postgresql://me:secret@host/db", "host=a; PWD = secret"])
@pytest.mark.parametrize("ask", [sources.read, sources.fingerprint])
def test_a_password_in_the_path_is_refused_and_not_shown(path: str, ask: Callable[[SourceConfig], Any]):
    config = SourceConfig.model_validate({"kind": "sql", "path": path, "sql": {"module": "psycopg", "version": "1"}})
    with pytest.raises(ConfigError, match=r"source\.path: holds a password") as caught:
        ask(config)
    assert "secret" not in str(caught.value)


def test_a_version_that_the_user_keeps_stands_for_the_rows(tmp_path: Path):
    write("sql", tmp_path, rows(3))
    config = config_of_kind("sql", tmp_path)
    kept, new = (config.model_copy(update={"sql": config.sql.model_copy(update={"version": v})}) for v in ("1", "2"))
    first = sources.fingerprint(kept)
    append("sql", tmp_path, rows(1))
    assert sources.fingerprint(kept) == first != sources.fingerprint(new)


def test_the_order_of_a_databases_rows_does_not_change_its_fingerprint(tmp_path: Path):
    write("sql", tmp_path / "a", rows(30))
    write("sql", tmp_path / "b", rows(30)[::-1])
    prints = []
    for place in ("a", "b"):
        (tmp_path / place / "shop.db").rename(tmp_path / "shop.db")
        prints.append(sources.fingerprint(config_of_kind("sql", tmp_path)))
    assert prints[0] == prints[1]


# --- Iceberg --------------------------------------------------------------------------------------------------------


def test_a_secret_among_the_properties_of_a_catalog_is_refused():
    with pytest.raises(ValueError, match=r"'s3\.secret-access-key' is a secret; set PYICEBERG_CATALOG__"):
        SourceConfig.model_validate(
            {"kind": "iceberg", "path": "", "iceberg": {"properties": {"s3.secret-access-key": "x"}}}
        )
