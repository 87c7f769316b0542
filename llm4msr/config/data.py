"""Where the raw data lies, how it is read, and how its rows are split."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llm4msr.config.section import Section

MAX_PARTITIONS = 1 << 16


class TableColumns(Section):
    """Your own data: tables below `source.path` and the names of their columns."""

    interactions: str = "interactions.csv.gz"
    """The table with a row for each interaction. For `kind = "table"` a file, CSV (plain or `.gz`) or Parquet, a folder
    of such files or a pattern such as `day=*/*.parquet`, where folders named `key=value` are columns; empty = `path`
    itself. For `delta` and `huggingface` a folder, for `iceberg` a name such as `shop.clicks`, for `sql` a name or a
    query."""
    items: str = ""
    """The table with a row for each item, needed for `title`, `category` and `item_features`; empty = there is none,
    and prompts show ids."""
    users: str = ""
    """The table with a row for each user, needed for `user_features`; empty = there is none."""
    user: str = "user_id"
    """The column of user ids, in `interactions` and in `users`."""
    item: str = "item_id"
    """The column of item ids, in `interactions` and in `items`."""
    user_in_users: str = ""
    """The column of user ids in `users`, if it has another name there."""
    item_in_items: str = ""
    """The column of item ids in `items`, if it has another name there."""
    scenario: str = "scenario"
    """The column of `interactions` that names the scenario, such as a page, a shelf or a channel. Empty = all rows are
    of one scenario, `all`, and no scenario can learn from another."""
    label: str = ""
    """The column of `interactions` to be predicted: a number from 0 to 1, `true` or `false`; above 0.5 the item counts
    as liked. Empty = every row is a like, and `split.negatives` must draw the others."""
    liked_above: float | Literal[""] = ""
    """Where `label` holds other numbers, such as stars or seconds: above this one an item is liked, else not. Empty =
    labels are from 0 to 1 already."""
    order: str = ""
    """The column of `interactions` that says what came first: numbers, dates or time stamps (ISO 8601 in a CSV), or,
    with `split.by = "user"`, a position within the user. Empty = the order of the rows in the files and of the files'
    names; tables of `delta`, `iceberg` and `sql` have no such order and need it."""
    title: str = ""
    """The column of `items` that holds the text by which prompts name an item; empty = its id."""
    category: str = ""
    """The column of `items` that holds an item's category path, as one text or as a list (Parquet); prompts show it,
    and it is an item feature. Empty = none; prompts then show the first item feature that holds lists, if any."""
    category_separator: str = Field(" > ", min_length=1)
    """What stands between the steps of a category path that is one text: "Beauty > Makeup > Face"."""
    repeated_items: Literal["refuse", "first"] = "refuse"
    """What becomes of a table `items` in which an id stands again: it is refused, or the `first` row of each counts."""
    delimiter: str = Field("", pattern=r"^[^\w\s\"]?$|^\t$")
    """The character between the cells of CSV files; empty = comma, tab, semicolon or `|`, as each file's header
    shows."""
    context: tuple[str, ...] = ()
    """Columns of the interactions that are known when a list is ranked, such as the device."""
    user_features: tuple[str, ...] = ()
    """Columns of `users` that the ranker gets as features; Parquet lists are many-valued."""
    item_features: tuple[str, ...] = ()
    """Columns of `items` that the ranker gets as features besides `category`; Parquet lists are many-valued."""

    @model_validator(mode="after")
    def _check_limit_has_a_label(self) -> Self:
        if self.liked_above != "" and not self.label:
            raise ValueError("liked_above: of which column? name it as label, or leave liked_above out")
        return self

    @model_validator(mode="after")
    def _check_names_are_unique(self) -> Self:
        taken = {"user_features": {"user_id": "the id itself"}, "item_features": {"item_id": "the id itself"}}
        if self.category:
            taken["item_features"]["category"] = "the path that the key `category` names"
        for key in ("context", "user_features", "item_features"):
            names: tuple[str, ...] = getattr(self, key)
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{key}: '{name}' stands there twice")
                if owner := taken.get(key, {}).get(name):
                    raise ValueError(
                        f"{key}: the name '{name}' is taken: {owner} is a feature of that name; "
                        "leave it out, or rename the column"
                    )
        return self


class AmazonOptions(Section):
    """`kind = "amazon"`: which of the files below `source.path`, and what of them."""

    categories: tuple[str, ...] = ()
    """Names as in the files, such as `Movies_and_TV`; empty = all that have reviews there."""
    k_core: int = Field(0, ge=0)
    """Users and items with fewer interactions over all categories are removed, repeatedly; 0 = all stay."""
    liked_above: float = 3.0
    """A rating above it is a like."""
    implicit: bool = False
    """Whether only likes are kept, so that `split.negatives` draws what was not liked."""
    meta: bool = True
    """Whether the files of titles, categories and brands are read; without them an item shows its id."""


class KuaiSAROptions(Section):
    """`kind = "kuaisar"`: what of the files below `source.path`."""

    search_item_types: tuple[str, ...] = ("VIDEO",)
    """Search results that are kept, empty = all. Only videos are described and are recommended too, so the ids of
    others get their type in front: `USER:17` is no video."""
    author: bool = False
    """Whether the author is an item feature; there are millions."""


class IcebergOptions(Section):
    """`kind = "iceberg"`: the catalog that knows the tables."""

    catalog: str = Field("default", min_length=1)
    """Its name, under which pyiceberg looks for settings in `~/.pyiceberg.yaml` and in variables such as
    `PYICEBERG_CATALOG__DEFAULT__TOKEN`, the place for secrets."""
    properties: dict[str, str] = Field({})
    """Other settings as pyiceberg names them, such as `warehouse`; no secrets."""

    @model_validator(mode="after")
    def _check_no_secret(self) -> Self:
        secret = re.compile(r"secret|password|token|credential|access-key|private-key")
        if names := [name for name in self.properties if secret.search(name)]:
            raise ValueError(f"properties: '{names[0]}' is a secret; set PYICEBERG_CATALOG__<CATALOG>__<NAME> instead")
        return self


class SQLOptions(Section):
    """`kind = "sql"`: how the database is asked."""

    module: str = Field("sqlite3", pattern=r"^[A-Za-z_]\w*(\.\w+)*$")
    """The Python module of the database (DB-API), such as `sqlite3`, `duckdb` or `psycopg`, whose `connect` gets
    `source.path`. It must be installed on every machine."""
    version: str = ""
    """Any text that you change when the rows have changed, such as a date. Empty = each stage reads all rows to see
    whether they have."""


class SourceConfig(Section):
    """Where the raw data lies and how to read it."""

    kind: Literal["movielens", "amazon", "kuaisar", "table", "delta", "iceberg", "huggingface", "sql"]
    """The format: MovieLens-1M or -100K, McAuley's Amazon reviews (`amazon`), KuaiSAR, or your own data: files
    (`table`), Delta or Iceberg tables, datasets saved by Hugging Face's library, or a database (`sql`)."""
    path: str
    """The folder or URI of the files. For `kind = "movielens"` it can also be the zip of ML-1M, or `ml-100k`, which is
    downloaded; for `iceberg` it is the catalog's URI (empty = what pyiceberg's own settings say), for `sql` what the
    database's module takes: the file, or a connection string without a password."""
    scenario: Literal["genre", "era", "age"] = "genre"
    """For `kind = "movielens"`, what makes a scenario: a shelf of the film's genres, the era of its release, or the
    user's age group. Age groups never share a user, so `age` is for comparisons with published results only."""
    table: TableColumns = TableColumns()
    """For your own data: the names of tables and columns."""
    amazon: AmazonOptions = AmazonOptions()
    """For `kind = "amazon"`: categories and filters."""
    kuaisar: KuaiSAROptions = KuaiSAROptions()
    """For `kind = "kuaisar"`: filters and features."""
    iceberg: IcebergOptions = IcebergOptions()
    """For `kind = "iceberg"`: the catalog."""
    sql: SQLOptions = SQLOptions()
    """For `kind = "sql"`: how the database is asked."""

    @property
    def is_own(self) -> bool:
        """Whether these are the user's own data, whose tables and columns `table` names."""
        return self.kind not in ("movielens", "amazon", "kuaisar")


class SplitConfig(Section):
    """How rows are divided into train, valid and test."""

    kind: Literal["time", "leave_last_out", "random"] = "time"
    """`time`: the earliest rows train, the latest test, as in service. `leave_last_out`: each user's last row tests and
    the one before validates; users with fewer than three rows only train. `random`: rows are drawn by `seed`, for
    data without times."""
    by: Literal["global", "user"] = "global"
    """`time` only: one cut for all, or one for each user's own rows. With `global`, users who come after the cut have
    no history and so no knowledge; with `user` everybody has one."""
    valid: float = Field(0.1, gt=0, lt=1)
    """For `kind = "time"` or `"random"`: share of the rows (with `by = "user"`, of each user's) that validate: they
    decide which epoch's model is kept."""
    test: float = Field(0.1, gt=0, lt=1)
    """For `kind = "time"` or `"random"`: share of the rows (with `by = "user"`, of each user's) that test: training
    never sees them."""
    latest: int = Field(0, ge=0)
    """How many of the latest interactions are used at all; 0 = all."""
    first_events: int = Field(0, ge=0)
    """How many of each user's first interactions are used at all, as in a young shop, where nobody has been for long;
    0 = all. `latest` then counts these alone."""
    implicit: bool = False
    """Whether every row is a like, whatever label the source gives it: what is predicted is then what a user takes
    next, not how they rate what they took. `negatives` must draw the others. In a source without labels every
    row is a like anyway."""
    negatives: int = Field(0, ge=0, le=100)
    """Where every row is a like: how many items are drawn for each, with label 0, from those of the same scenario that
    the user had not taken. It needs some, such as 4; where labels count it is 0."""
    negatives_by: Literal["uniform", "popularity"] = "uniform"
    """How negatives are drawn from the items of the scenario's training rows: each alike, or as often as it has rows
    there."""
    min_item_rows: int = Field(1, ge=1)
    """Training rows that an item needs for an id embedding of its own. With fewer, an item that is described is known
    by its features alone, and one that is not described is an unknown item."""
    min_value_count: int = Field(1, ge=1)
    """How often a value of a feature must occur among the users (or items) of training rows, and a context value among
    the training rows, to have an embedding of its own; rarer ones are unknown."""
    history_share: float = Field(1.0, gt=0, le=1)
    """The earliest share of the training period that feeds prompts. 1 is the paper's: a user's vector then contains the
    labels of the very rows that it trains with, and where users have few rows a model can read them off. Below 1,
    those rows train as rows of a user without knowledge."""
    partitions: Literal["auto"] | int = "auto"
    """Into how many partitions of users the tables are divided: a power of two. One partition is prepared in this
    process, several by Ray. `auto`: one of up to 5 million interactions, or as many as hold at most 2 million each."""

    @field_validator("partitions")
    @classmethod
    def _check_power_of_two(cls, partitions: Literal["auto"] | int) -> Literal["auto"] | int:
        if partitions != "auto" and (not 1 <= partitions <= MAX_PARTITIONS or partitions & (partitions - 1)):
            raise ValueError(f"{partitions} is no power of two from 1 to {MAX_PARTITIONS}")
        return partitions

    @model_validator(mode="after")
    def _check_shares_leave_room(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test = {self.valid + self.test:g} leaves no training rows")
        return self
