"""Where the raw data lies, how it is read, and how its rows are split."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llm4msr.config.section import Section


class TableColumns(Section):
    """`kind = "table"`: files below `source.path` and the names of their columns."""

    interactions: str = "interactions.csv.gz"
    items: str = ""
    users: str = ""
    user: str = "user_id"
    item: str = "item_id"
    scenario: str = "scenario"
    label: str = ""
    order: str = ""
    title: str = ""
    category: str = ""
    category_separator: str = Field(" > ", min_length=1)
    delimiter: str = Field("", pattern=r"^[^\w\s\"]?$|^\t$")
    """The character between the cells of CSV files; empty = comma, tab, semicolon or `|`, as each file's header
    shows."""
    context: tuple[str, ...] = ()
    """Columns of the interactions that are known when a list is ranked, such as the device."""
    user_features: tuple[str, ...] = ()
    item_features: tuple[str, ...] = ()

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


class SourceConfig(Section):
    """Where the raw data lies and how to read it."""

    kind: Literal["movielens", "amazon", "kuaisar", "table"]
    path: str
    scenario: Literal["genre", "era", "age"] = "genre"
    table: TableColumns = TableColumns()
    amazon: AmazonOptions = AmazonOptions()
    kuaisar: KuaiSAROptions = KuaiSAROptions()


class SplitConfig(Section):
    """How rows are divided into train, valid and test."""

    kind: Literal["time", "leave_last_out", "random"] = "time"
    by: Literal["global", "user"] = "global"
    """`time` only: one cut for all, or one for each user's own rows. With `global`, users who come after the cut have
    no history and so no knowledge; with `user` everybody has one."""
    valid: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    latest: int = Field(0, ge=0)
    """How many of the latest interactions are used at all; 0 = all."""
    negatives: int = Field(0, ge=0, le=100)
    history_share: float = Field(1.0, gt=0, le=1)
    """The earliest share of the training period that feeds prompts. 1 is the paper's: a user's vector then contains the
    labels of the very rows that it trains with, and where users have few rows a model can read them off. Below 1,
    those rows train as rows of a user without knowledge."""

    @model_validator(mode="after")
    def _check_shares_leave_room(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test = {self.valid + self.test:g} leaves no training rows")
        return self
