"""What `prepare` makes of `_skewed_rows` (rows with labels, a cut in time), as polars or duckdb programs of one thread.

    python -m benchmarks._peer_prepare polars|duckdb SOURCE OUTPUT

Both write users, items, scenarios, histories, seen, train, valid and test with the columns and values of `prepare`;
neither checks its input, reports on the data or can be interrupted.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["POLARS_MAX_THREADS"] = "1"  # before polars is imported

SPLITS = ("train", "valid", "test")
MAX_TITLES, MAX_SCENARIO_TITLES = 50, 10


def with_polars(source: Path, output: Path) -> None:
    """Everything in memory, as long as one machine holds it."""
    import polars as pl

    rows = pl.read_parquet(source / "interactions").with_row_index("row")
    described = pl.read_parquet(source / "items.parquet")
    times = rows["time"].sort()
    first_valid, first_test = (int(times[-(-len(rows) * tenth // 10)]) for tenth in (8, 9))
    is_valid, is_test = pl.col("time") >= first_valid, pl.col("time") >= first_test
    train = rows.filter(~is_valid)

    def vocabulary(ids: pl.Series, others: pl.Series, name: str) -> pl.DataFrame:
        trained = ids.unique().sort()
        rest = others.filter(~others.is_in(trained.implode())).sort()
        known = pl.concat([trained, rest]).alias(f"{name}_id").to_frame().with_row_index(name, offset=1)
        own = pl.when(pl.col(name) <= len(trained)).then(name).otherwise(0).cast(pl.Int64).alias(f"f:{name}_id")
        return known.with_columns(pl.col(name).cast(pl.Int64)).with_columns(own)

    users = vocabulary(train["user"], train["user"].head(0), "user")
    items = vocabulary(train["item"], described["item"], "item")
    items = items.join(described.select("item", "title"), left_on="item_id", right_on="item", maintain_order="left")
    scenarios = vocabulary(train["scenario"], train["scenario"].head(0), "scenario").drop("f:scenario_id")
    encoded = (
        rows.join(users.select("user_id", number="user"), left_on="user", right_on="user_id", how="left")
        .join(items.select("item_id", place="item"), left_on="item", right_on="item_id", how="left")
        .join(scenarios.select("scenario_id", at="scenario"), left_on="scenario", right_on="scenario_id", how="left")
        .select(
            "row",
            "time",
            user=pl.col("number").fill_null(0),
            item=pl.col("place").fill_null(0),
            scenario=pl.col("at").fill_null(0),
            label=pl.col("like").cast(pl.Float32),
        )
    )
    del rows, train
    past = encoded.filter(~is_valid)
    activity = past["user"].value_counts().sort("count", "user", descending=[True, False]).with_row_index("line")
    past = past.join(activity.select("user", "line"), on="user").sort("line", "time", "row").with_row_index("seen", 1)
    past = past.with_columns(before=pl.col("time").rank("min").over("user").cast(pl.Int64) - 1)
    liked = past.filter(pl.col("label") > 0.5)
    shelves = (
        liked.join(items.select("item", "title"), on="item", maintain_order="left")
        .group_by("line", "scenario", maintain_order=True)
        .agg(titles=pl.col("title").tail(MAX_TITLES))
        .join(scenarios, on="scenario")
        .sort("line", "scenario")
        .select("line", shelf=pl.struct("scenario_id", "titles"))
        .group_by("line", maintain_order=True)
        .agg(history="shelf")
    )
    histories = activity.join(shelves, on="line", how="left", maintain_order="left").join(users, on="user")
    histories = histories.sort("line").select("user", "user_id", interactions="count", history="history")
    numbers = past.group_by("scenario").agg(
        interactions=pl.len(),
        users=pl.col("user").n_unique(),
        items=pl.col("item").n_unique(),
        rate=pl.col("label").mean(),
    )
    top = liked.group_by("scenario", "item").agg(likes=pl.len()).sort("likes", "item", descending=[True, False])
    titles = top.join(items.select("item", "title"), on="item", maintain_order="left").group_by("scenario")
    met = past.select("user", "scenario").unique()
    shared = met.join(met.rename({"scenario": "other"}), on="user").group_by("scenario", "other").agg(both=pl.len())
    statistics = scenarios.join(numbers, on="scenario").join(
        titles.agg(pl.col("title").head(MAX_SCENARIO_TITLES)), on="scenario"
    )
    encoded = encoded.join(past.select("row", "seen"), on="row", how="left", maintain_order="left")
    encoded = encoded.with_columns(pl.col("seen").fill_null(0))
    columns = ["user", "item", "scenario", "label", "seen"]
    tables = {
        "users": users,
        "items": items,
        "scenarios": statistics.join(shared.group_by("scenario").agg("other", "both"), on="scenario"),
        "histories": histories,
        "seen": past.select("user", "item", "label", "before"),
        "train": encoded.filter(~is_valid).select(columns).sample(fraction=1, shuffle=True, seed=0),
        "valid": encoded.filter(is_valid & ~is_test).select(columns),
        "test": encoded.filter(is_test).select(columns),
    }
    for name, table in tables.items():
        table.write_parquet(output / f"{name}.parquet", compression="zstd")


DUCKDB = """
SET threads = 1;
CREATE TABLE rows AS SELECT *, row_number() OVER () AS row FROM '{source}/interactions/*.parquet';
CREATE TABLE cuts AS SELECT
    (SELECT time FROM rows ORDER BY time LIMIT 1 OFFSET (SELECT ceil(count(*) * 0.8)::BIGINT FROM rows)) AS first_valid,
    (SELECT time FROM rows ORDER BY time LIMIT 1 OFFSET (SELECT ceil(count(*) * 0.9)::BIGINT FROM rows)) AS first_test;
CREATE VIEW train_rows AS SELECT * FROM rows WHERE time < (SELECT first_valid FROM cuts);
CREATE TABLE users AS SELECT row_number() OVER (ORDER BY user) AS user, user AS user_id
    FROM (SELECT DISTINCT user FROM train_rows);
CREATE TABLE items AS SELECT row_number() OVER (ORDER BY trained DESC, item) AS item, item AS item_id, title,
    CASE WHEN trained THEN row_number() OVER (ORDER BY trained DESC, item) ELSE 0 END AS "f:item_id"
    FROM (SELECT item, title, item IN (SELECT DISTINCT item FROM train_rows) AS trained FROM '{source}/items.parquet');
CREATE TABLE scenarios AS SELECT row_number() OVER (ORDER BY scenario) AS scenario, scenario AS scenario_id
    FROM (SELECT DISTINCT scenario FROM train_rows);
CREATE TABLE encoded AS SELECT row, time, coalesce(u.user, 0) AS user, coalesce(i.item, 0) AS item,
    coalesce(s.scenario, 0) AS scenario, "like"::FLOAT AS label
    FROM rows r LEFT JOIN users u ON r.user = u.user_id LEFT JOIN items i ON r.item = i.item_id
    LEFT JOIN scenarios s ON r.scenario = s.scenario_id;
CREATE TABLE activity AS SELECT user, count(*) AS interactions,
    row_number() OVER (ORDER BY count(*) DESC, user) AS line
    FROM encoded WHERE time < (SELECT first_valid FROM cuts) GROUP BY user;
CREATE TABLE past AS SELECT e.*, a.line, row_number() OVER (ORDER BY a.line, e.time, e.row) AS seen,
    rank() OVER (PARTITION BY e.user ORDER BY e.time) - 1 AS before
    FROM encoded e JOIN activity a USING (user) WHERE time < (SELECT first_valid FROM cuts);
COPY (SELECT user, item, label, before FROM past ORDER BY seen) TO '{output}/seen.parquet' (COMPRESSION zstd);
CREATE TABLE shelves AS SELECT line, scenario, list(title ORDER BY seen)[-{titles}:] AS titles
    FROM past JOIN items USING (item) WHERE label > 0.5 GROUP BY line, scenario;
COPY (SELECT a.user, user_id, interactions, history FROM activity a JOIN users USING (user) LEFT JOIN (
        SELECT line, list({{'scenario_id': scenario_id, 'titles': titles}} ORDER BY scenario) AS history
        FROM shelves JOIN scenarios USING (scenario) GROUP BY line
    ) h ON a.line = h.line ORDER BY a.line) TO '{output}/histories.parquet' (COMPRESSION zstd);
CREATE TABLE top AS SELECT scenario, list(title ORDER BY place) AS titles FROM (
        SELECT scenario, item, row_number() OVER (PARTITION BY scenario ORDER BY count(*) DESC, item) AS place
        FROM past WHERE label > 0.5 GROUP BY scenario, item
    ) JOIN items USING (item) WHERE place <= {scenario_titles} GROUP BY scenario;
CREATE TABLE met AS SELECT DISTINCT user, scenario FROM past;
CREATE TABLE shared AS SELECT scenario, list(other) AS other, list(users) AS both FROM (
        SELECT a.scenario, b.scenario AS other, count(*) AS users FROM met a JOIN met b USING (user) GROUP BY ALL
    ) GROUP BY scenario;
COPY (SELECT * FROM scenarios JOIN (
        SELECT scenario, count(*) AS interactions, count(DISTINCT user) AS users, count(DISTINCT item) AS items,
        avg(label) AS rate FROM past GROUP BY scenario
    ) USING (scenario) LEFT JOIN top USING (scenario) JOIN shared USING (scenario) ORDER BY scenario)
    TO '{output}/scenarios.parquet' (COMPRESSION zstd);
COPY (SELECT * FROM users ORDER BY user) TO '{output}/users.parquet' (COMPRESSION zstd);
COPY (SELECT * FROM items ORDER BY item) TO '{output}/items.parquet' (COMPRESSION zstd);
CREATE VIEW whole AS SELECT e.user, e.item, e.scenario, e.label, coalesce(p.seen, 0) AS seen, e.time, e.row
    FROM encoded e LEFT JOIN past p USING (row);
COPY (SELECT user, item, scenario, label, seen FROM whole WHERE time < (SELECT first_valid FROM cuts)
    ORDER BY hash(row)) TO '{output}/train.parquet' (COMPRESSION zstd);
COPY (SELECT user, item, scenario, label, seen FROM whole WHERE time >= (SELECT first_valid FROM cuts)
    AND time < (SELECT first_test FROM cuts)) TO '{output}/valid.parquet' (COMPRESSION zstd);
COPY (SELECT user, item, scenario, label, seen FROM whole WHERE time >= (SELECT first_test FROM cuts))
    TO '{output}/test.parquet' (COMPRESSION zstd);
"""


def with_duckdb(source: Path, output: Path) -> None:
    """In a database without a file."""
    import duckdb

    names = {"titles": MAX_TITLES, "scenario_titles": MAX_SCENARIO_TITLES}
    duckdb.sql(DUCKDB.format(source=source, output=output, **names))


PROGRAMS: dict[str, Any] = {"polars": with_polars, "duckdb": with_duckdb}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
