"""Raw data -> split rows, vocabularies, statistics and histories. Everything is fitted on training rows only.

The users and items that the source describes in files of their own are all kept, so that a new item with known
features can be ranked; but only those of training rows get an id embedding of their own.
"""

import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from upath import UPath

from llm4msr import catalogue, data_report, data_warnings, schema, sources, split, storage
from llm4msr.config import Config
from llm4msr.data_report import DataReport
from llm4msr.errors import ConfigError, DataError
from llm4msr.progress import say
from llm4msr.storage import Built, StageOutput
from llm4msr.survey import Survey, check_template

VERSION = 7
SEEN = "seen"
"""A column of ours among those of the source, whose own names have a prefix."""
MAX_TITLES = 50
"""Latest liked titles kept for each user and scenario."""


def prepare(config: Config) -> StageOutput:
    """Publish `train`, `valid`, `test`, `users`, `items`, `scenarios`, `histories`, `seen` and `fields.json`.

    The data report goes to standard error and into the manifest; of an output that is found, its warnings are told.

    Raises:
        DataError: the source is wrong; the message names file, column and row.
        ConfigError: implicit data without `split.negatives`.
    """
    output = storage.publish(
        _folder(config),
        "prepare",
        config.seed,
        config.model_dump(include={"source", "split"}),
        {"source": sources.fingerprint(config.source)},
        lambda folder: _build(config, folder),
    )
    _tell(output)
    return output


def _tell(output: StageOutput) -> None:
    info = output.manifest.info
    for line in [] if output.reused else data_report.lines(DataReport.model_validate(info["report"])):
        say(line)
    for warning in info.get("warnings", []):
        say(f"warning: {warning}")


def prepared(config: Config) -> StageOutput:
    """The finished output of `prepare` for this config.

    Raises:
        ConfigError: there is none yet.
    """
    found = storage.open_output(_folder(config))
    if found is None:
        raise ConfigError(f"{_folder(config)}: nothing prepared for this config; run `llm4msr prepare` first")
    return found


def _folder(config: Config) -> UPath:
    # the seed decides the split of `random` and the negatives; other splits are the same for every seed
    seed = config.seed if config.split.kind == "random" or config.split.negatives else 0
    wanted = [VERSION, sources.fingerprint(config.source), config.split.identity(), seed]
    return storage.path(config.root) / "prepare" / storage.digest_of(wanted)[:12]


def to_ask(config: Config) -> tuple[dict[str, pa.Table], dict[str, list[str]]]:
    """What prompts are made of: `histories`, `scenarios`, `items`, and the items' fields; writes nothing.

    Found where it was published, else computed in memory.
    """
    found = storage.open_output(_folder(config))
    if found is None:
        made = _made(config)
        return made.tables, made.fields["item"]
    names = ("histories", "scenarios", "items")
    tables = {name: found.table(f"{name}.parquet") for name in names}
    return tables, catalogue.item_fields(found)


def _build(config: Config, folder: UPath) -> Built:
    check_template(config)
    made = _made(config)
    for name, table in made.tables.items():
        storage.write_table(folder / f"{name}.parquet", table, schema.CHUNK if name == "train" else storage.GROUP)
    storage.write_bytes(folder / "fields.json", json.dumps(made.fields, ensure_ascii=False).encode())
    counts = {name: table.num_rows for name, table in made.tables.items()}
    info = {"report": made.report.model_dump(), "warnings": data_warnings.warnings(made.report, config)}
    files = {f"{name}.parquet": count for name, count in counts.items()} | {"fields.json": 1}
    return Built(files=files, rows=sum(counts[name] for name in split.PARTS), info=counts | info)


class Made(NamedTuple):
    """The tables to publish, the vocabulary of each field of each side, and what there is to say about the data."""

    tables: dict[str, pa.Table]
    fields: dict[str, dict[str, list[str]]]
    report: DataReport


def _made(config: Config) -> Made:
    raw = sources.read(config.source)
    if raw.implicit and not config.split.negatives:
        raise ConfigError("all rows of this source are positives; set split.negatives, such as 4")
    if not raw.implicit and config.split.negatives:
        raise ConfigError("split.negatives is for data without labels; this source gives labels")
    rows = raw.interactions.to_pandas()
    if config.split.latest:
        rows = rows.loc[rows["order"].sort_values(kind="stable").index[-config.split.latest :].sort_values()]
        rows = rows.reset_index(drop=True)
    survey = Survey(config, raw, rows)
    part = split.assign(rows, config.split, config.seed)
    history = split.history_rows(rows, part, config.split)
    train = rows[part == split.TRAIN]
    users, user_fields = catalogue.numbered(raw.users, "user", raw.user_features, train["user_id"])
    items, item_fields = catalogue.numbered(catalogue.titled(raw, train), "item", raw.item_features, train["item_id"])
    context_fields = {name: catalogue.vocabulary(train[f"c:{name}"]) for name in raw.context}
    scenarios = _scenarios(rows[history], train, items, item_fields)
    lists = _histories(rows[history], users, items)
    seen, place = _seen(rows[history], lists, users, items)
    tables = {
        "users": schema.check(users, schema.USERS, "users"),
        "items": schema.check(items, schema.ITEMS, "items"),
        "scenarios": schema.check(scenarios, schema.SCENARIOS, "scenarios"),
        "histories": schema.check(lists, schema.HISTORIES, "histories"),
        "seen": schema.check(seen, schema.SEEN, "seen"),
    }
    rows[SEEN] = 0
    rows.loc[history, SEEN] = place + 1
    if config.split.history_share < 1 and history[part == split.TRAIN].all():
        raise DataError(f"split.history_share = {config.split.history_share}: prompts hold all training rows; lower it")
    drawn = split.negatives(rows, part, config.split.negatives, config.seed)
    report = survey.report(part, history, drawn.part, tables, item_fields)
    rows, part = pd.concat([rows, drawn.rows], ignore_index=True), np.concatenate([part, drawn.part])
    for name, code in split.PARTS.items():
        encoded = _encode(rows[part == code], users, items, scenarios, context_fields)
        tables[name] = schema.check(encoded, schema.INTERACTIONS, name)
    tables["train"] = tables["train"].take(np.random.default_rng(0).permutation(tables["train"].num_rows))
    return Made(tables, {"user": user_fields, "item": item_fields, "context": context_fields}, report)


def _encode(
    rows: pd.DataFrame, users: pa.Table, items: pa.Table, scenarios: pa.Table, context: dict[str, list[str]]
) -> pa.Table:
    columns = {
        "user": _numbers(rows["user_id"], users["user_id"]),
        "item": _numbers(rows["item_id"], items["item_id"]),
        "scenario": _numbers(rows["scenario_id"], scenarios["scenario_id"]),
        "label": pa.array(rows["label"], pa.float32()),
        "seen": pa.array(rows[SEEN], pa.int64()),
    }
    return pa.table(
        columns | {f"c:{n}": _numbers(rows[f"c:{n}"], pa.array(["", *values])) for n, values in context.items()}
    )


def _numbers(values: "pd.Series[str]", ids: pa.Array) -> pa.Array:
    """Place of each value among ids[1:], counted from 1; 0 = not there."""
    return pa.array(pd.Index(ids.to_pylist()[1:]).get_indexer(values) + 1, pa.int64())


def _scenarios(history: pd.DataFrame, train: pd.DataFrame, items: pa.Table, fields: dict[str, list[str]]) -> pa.Table:
    """Statistics of each scenario of the training rows, taken from the rows that may reach a prompt."""
    names = sorted(set(train["scenario_id"]))
    members = {name: set(history["user_id"][history["scenario_id"] == name]) for name in names}
    described = items.to_pandas().set_index("item_id")
    words = next((f for f in fields if isinstance(described[f"f:{f}"].iloc[0], np.ndarray)), None)
    rows: list[dict[str, Any]] = [_unknown_scenario()]
    for number, name in enumerate(names, start=1):
        here = history[history["scenario_id"] == name]
        liked = here["item_id"][here["label"] > 0.5].value_counts()
        liked = liked.sort_index().sort_values(ascending=False, kind="stable")
        shared = {o: len(members[name] & members[o]) / max(len(members[name]), 1) for o in names if o != name}
        rows.append(
            {
                "scenario": number,
                "scenario_id": name,
                "interactions": len(here),
                "users": len(members[name]),
                "items": here["item_id"].nunique(),
                "positive_rate": float(here["label"].mean()) if len(here) else 0.0,
                "shared_users": [{"scenario_id": o, "fraction": share} for o, share in shared.items()],
                "categories": _top_values(described[f"f:{words}"].reindex(here["item_id"]), fields[words])
                if words
                else [],
                "titles": [described["title"][item] for item in liked.index[:10]],
            }
        )
    return pa.Table.from_pylist(rows, schema.SCENARIOS)


def _unknown_scenario() -> dict[str, Any]:
    numbers = dict.fromkeys(("scenario", "interactions", "users", "items"), 0)
    lists: dict[str, list[Any]] = {"shared_users": [], "categories": [], "titles": []}
    return {**numbers, "scenario_id": "", "positive_rate": 0.0, **lists}


def _top_values(lists: "pd.Series[Any]", vocabulary: list[str]) -> list[str]:
    """The five most frequent values in these rows."""
    counts = Counter(number for row in lists for number in row)
    return [vocabulary[number - 1] for number, _ in sorted(counts.items(), key=lambda p: (-p[1], p[0]))[:5]]


def _histories(rows: pd.DataFrame, users: pa.Table, items: pa.Table) -> pa.Table:
    """Liked titles of each user in each scenario, oldest first; most active users first."""
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    rows = rows.assign(title=rows["item_id"].map(titles), user=_numbers(rows["user_id"], users["user_id"]).to_numpy())
    activity = rows.groupby("user").size()
    liked = rows[rows["label"] > 0.5].sort_values("order", kind="stable")
    lists = liked.groupby(["user", "scenario_id"])["title"].agg(lambda t: list(t)[-MAX_TITLES:])
    per_user: dict[int, list[dict[str, Any]]] = {user: [] for user in activity.index}
    for (user, scenario), kept in lists.items():
        per_user[user].append({"scenario_id": scenario, "titles": kept})
    ordered = activity.sort_index().sort_values(ascending=False, kind="stable")
    raw_ids = users["user_id"].to_pylist()
    records = [
        {"user": user, "user_id": raw_ids[user], "interactions": count, "history": per_user[user]}
        for user, count in ordered.items()
    ]
    return pa.Table.from_pylist(records, schema.HISTORIES)


def _seen(
    rows: pd.DataFrame, histories: pa.Table, users: pa.Table, items: pa.Table
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows behind the histories, in their order; and the place there of each of `rows`."""
    user = _numbers(rows["user_id"], users["user_id"]).to_numpy()
    line = np.zeros(users.num_rows, np.int64)
    line[histories["user"].to_numpy()] = np.arange(histories.num_rows)
    in_order = np.lexsort((rows["order"].to_numpy(), line[user]))
    place = np.empty(len(rows), np.int64)
    place[in_order] = np.arange(len(rows))
    item = _numbers(rows["item_id"], items["item_id"]).to_numpy()
    columns = {"user": user, "item": item, "label": rows["label"].to_numpy(np.float32)}
    columns["before"] = rows.groupby("user_id")["order"].rank("min").to_numpy(np.int64) - 1
    return pa.table({name: column[in_order] for name, column in columns.items()}), place
