"""Public data and formats that have a kind of source of their own, told by the names of their files."""

from collections.abc import Sequence
from pathlib import PurePath

from upath import UPath

from llm4msr import storage
from llm4msr.draft.guess import Draft, Guess, Note
from llm4msr.errors import DataError

_FORMATS = {
    "save its sheet as CSV": (".xlsx", ".xls"),
    "write it as CSV or Parquet": (".json", ".jsonl"),
    "write it as Parquet": (".feather", ".arrow", ".avro", ".orc", ".pkl"),
    "unpack it": (".zip", ".tar", ".tgz", ".zst", ".bz2"),
    'set source.kind = "sql" by hand, see docs/data.md': (".db", ".sqlite", ".sqlite3", ".duckdb"),
}
"""What is said of files that are neither CSV nor Parquet."""
_MARKS = {
    "delta": "_delta_log",
    "iceberg": "metadata",
    "huggingface": "dataset_info.json",
}
"""What a folder of a table of another kind holds."""


def recognise(places: Sequence[str]) -> Draft | None:
    """The draft for public data that llm4msr reads as it is; none if the places hold something else.

    Raises:
        DataError: a format that is not read; the message says what to do.
    """
    if len(places) == 1:
        place = storage.path(places[0])
        held = _names(place)
        if held == {"ml-1m.zip"}:
            return _draft("movielens", f"{places[0].rstrip('/')}/ml-1m.zip")
        if kind := _kind(place, held):
            return _draft(kind, places[0])
        for other, mark in _MARKS.items():
            if mark in held and (other != "iceberg" or "data" in held):
                raise DataError(
                    f'{place}: a table of source.kind = "{other}"; write that config by hand, see docs/data.md'
                )
    for text in places:
        place = storage.path(text)
        end = PurePath(place.name.lower().removesuffix(".gz")).suffix
        for remedy, ends in _FORMATS.items():
            if end in ends:
                raise DataError(f"{place}: {end} files are not read; {remedy}")
    return None


def _names(place: UPath) -> set[str]:
    return {entry.name for entry in place.iterdir()} if place.is_dir() else set()


def _kind(place: UPath, held: set[str]) -> str:
    if place.name.lower() == "ml-1m.zip" or {"ratings.dat", "movies.dat", "users.dat"} <= held:
        return "movielens"
    plain = {name.removesuffix(".gz") for name in held}
    if {"rec_inter.csv", "src_inter.csv", "user_features.csv", "item_features.csv"} <= plain:
        return "kuaisar"
    if any(name.startswith("reviews_") and name.endswith(".json") for name in plain):
        return "amazon"
    return ""


def _draft(kind: str, place: str) -> Draft:
    table: list[Guess | Note] = []
    if kind == "movielens":
        table.append(Guess("scenario", "genre", "a shelf of the film's genres; or era, or age"))
    return Draft(place, "the names of the files", table, [], [], kind=kind)
