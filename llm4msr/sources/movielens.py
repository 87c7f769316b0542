"""MovieLens: the official zip of ML-1M (also unpacked), or ML-100K as the `recbole` wheel carries it.

A rating above 3 is a like. Scenarios are genre shelves, release eras, or the age groups of Scenario-Wise-Rec
(which never share a user, so they suit comparisons only).
"""

import io
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
from upath import UPath

from llm4msr import storage, wheels
from llm4msr.config import SourceConfig
from llm4msr.errors import DataError
from llm4msr.sources.base import RawData, file_fingerprint, refuse_duplicates

SHELVES: dict[str, tuple[str, ...]] = {
    "Family & Animation": ("Children's", "Animation"),
    "Sci-Fi & Fantasy": ("Sci-Fi", "Fantasy"),
    "Thriller & Crime": ("Thriller", "Crime", "Mystery", "Film-Noir", "Horror"),
    "Action & Adventure": ("Action", "Adventure", "War", "Western"),
    "Comedy": ("Comedy", "Musical"),
}
"""A film stands on the first shelf that has one of its genres, so the narrow shelves come first."""

LAST_SHELF = "Drama & More"

_ML1M_AGES = {1: "under 25", 18: "under 25", 25: "25 to 34"}
_ARTICLE = r"^(.*), (The|A|An|La|Le|Les|Il|Das|Der|Die|El)$"


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes when the data changes."""
    if config.path == "ml-100k":
        return storage.digest(wheels.ML_100K.sha256, config.scenario)
    place = storage.path(config.path)
    files = [place] if place.suffix == ".zip" else [place / name for name in _DAT_FILES]
    return storage.digest(config.scenario, *(file_fingerprint(file) for file in files))


def read(config: SourceConfig) -> RawData:
    """Read ratings, films and users.

    Raises:
        DataError: a file is missing or a rating is not a number; named in the message.
        StorageError: the path cannot be read.
    """
    where = config.path
    ratings, films, users = _read_100k() if where == "ml-100k" else _read_dat(storage.path(where))
    ratings["rating"] = _numbers(ratings, "rating", f"{where}: ratings")
    ratings["order"] = _numbers(ratings, "order", f"{where}: ratings")
    users["age_group"] = _numbers(users, "age", f"{where}: users").map(_ML1M_AGES).fillna("35 and over")
    for table, key in ((films, "item_id"), (users, "user_id")):
        refuse_duplicates(pa.chunked_array([pa.array(table[key], pa.string())]), where, key)
    films["title"] = films["title"].str.strip().str.replace(_ARTICLE, r"\2 \1", regex=True)
    ratings["scenario_id"] = _scenarios(config.scenario, ratings, films, users)
    interactions = pa.table(
        {
            "user_id": pa.array(ratings["user_id"], pa.string()),
            "item_id": pa.array(ratings["item_id"], pa.string()),
            "scenario_id": pa.array(ratings["scenario_id"], pa.string()),
            "label": pa.array(ratings["rating"] > 3).cast(pa.int8()).cast(pa.float32()),
            "order": pa.array(ratings["order"].astype("float64")),
        }
    )
    user_columns = {"user_id": "user_id"} | {f"f:{name}": name for name in ("age", "gender", "occupation")}
    user_table = pa.table({column: pa.array(users[name], pa.string()) for column, name in user_columns.items()})
    genres = pa.array(films["genres"].tolist(), pa.list_(pa.string()))
    item_table = pa.table(
        {c: pa.array(films[c], pa.string()) for c in ("item_id", "title")}
        | {"f:genres": genres, "f:year": pa.array(films["year"], pa.string())}
    )
    raw = RawData(interactions, user_table, item_table, implicit=False)
    return raw.checked(where)


def _numbers(table: pd.DataFrame, name: str, where: str) -> pd.Series:
    numbers = pd.to_numeric(table[name], errors="coerce")
    if numbers.isna().any():
        row = int(numbers.isna().to_numpy().argmax())
        raise DataError(f"{where}: column '{name}': '{table[name].iloc[row]}' in row {row + 1}; expected a number")
    return numbers


def _scenarios(kind: str, ratings: pd.DataFrame, films: pd.DataFrame, users: pd.DataFrame) -> pd.Series:
    if kind == "age":
        return ratings["user_id"].map(users.set_index("user_id")["age_group"])
    column = films["genres"].map(_shelf) if kind == "genre" else films["year"].map(_era)
    known = ratings["item_id"].map(column.set_axis(films["item_id"]))
    return known.fillna(LAST_SHELF if kind == "genre" else _era(""))


def _shelf(genres: list[str]) -> str:
    return next((name for name, members in SHELVES.items() if set(genres) & set(members)), LAST_SHELF)


def _era(year: str) -> str:
    if not year:
        return "Unknown year"
    return next(
        (name for end, name in ((1970, "Before 1970"), (1980, "1970s"), (1990, "1980s")) if int(year) < end),
        "1990s on",
    )


def _read_100k() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    folder = wheels.fetch(wheels.ML_100K, "recbole/dataset_example/ml-100k/")
    tables = [
        pd.read_csv(folder / f"ml-100k.{kind}", sep="\t", dtype=str, keep_default_na=False, quoting=3)
        for kind in ("inter", "item", "user")
    ]
    ratings, films, users = (table.rename(columns=lambda name: name.split(":")[0]) for table in tables)
    ratings = ratings.rename(columns={"timestamp": "order"})
    films = films.rename(columns={"movie_title": "title", "release_year": "year"})
    films["genres"] = films["class"].str.split()
    films["year"] = films["year"].where(films["year"].str.fullmatch(r"\d{4}"), "")
    age = users["age"].astype(int)
    users["age"] = pd.cut(
        age, [0, 17, 24, 34, 44, 49, 55, 200], labels=["1", "18", "25", "35", "45", "50", "56"]
    ).astype(str)
    return ratings, films, users


_DAT_FILES = {
    "ratings.dat": ["user_id", "item_id", "rating", "order"],
    "movies.dat": ["item_id", "title", "genres"],
    "users.dat": ["user_id", "gender", "age", "occupation", "zip_code"],
}


def _read_dat(place: UPath) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    ratings, films, users = (_read_dat_file(place, name, columns) for name, columns in _DAT_FILES.items())
    parts = films["title"].str.extract(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*$")
    films["title"] = parts["title"].fillna(films["title"])
    films["year"] = parts["year"].fillna("")
    films["genres"] = films["genres"].str.split("|")
    return ratings, films, users


def _read_dat_file(place: UPath, name: str, columns: list[str]) -> pd.DataFrame:
    if place.suffix == ".zip":
        try:
            with zipfile.ZipFile(io.BytesIO(storage.read_bytes(place))) as archive:
                member = next((m for m in archive.namelist() if Path(m).name == name), None)
                if member is None:
                    raise DataError(f"{place}: no {name} inside; this is not the MovieLens 1M zip")
                data = archive.read(member)
        except zipfile.BadZipFile:
            raise DataError(f"{place}: not a zip file") from None
    else:
        data = storage.read_bytes(place / name)
    # pandas' fast parser takes one-character separators only; a tab occurs in no field
    text = io.StringIO(data.decode("latin-1").replace("::", "\t"))
    expected = f"expected {len(columns)} fields separated by '::'"
    try:
        # one column more than there should be, since pandas would take the first of too many for an index
        table = pd.read_csv(text, sep="\t", names=[*columns, "_"], dtype=str, keep_default_na=False, quoting=3)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{place}: {name}: {error}; {expected}") from None
    if table.empty:
        raise DataError(f"{place}: {name}: no rows; {expected}")
    more = table.pop("_").fillna("") != ""
    if more.any():
        raise DataError(f"{place}: {name}: too many fields in row {int(more.to_numpy().argmax()) + 1}; {expected}")
    return table
