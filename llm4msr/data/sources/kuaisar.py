"""KuaiSAR and KuaiSAR-small: recommendation and search on one platform, from the four CSV files of its authors.

A click is the label. Captions are anonymised, so a video's title is its English category path. Interactions with
videos that `item_features.csv` does not describe are kept.

Memory holds a few blocks of a file, and the distinct ids of items.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from llm4msr import storage
from llm4msr.arrays import Column
from llm4msr.config import KuaiSAROptions, SourceConfig
from llm4msr.data.reading import pieces, stream
from llm4msr.data.reading.columns import Rows, join_texts, split_texts
from llm4msr.data.reading.csv_blocks import csv_rows
from llm4msr.data.reading.files import SourceFile, file_fingerprint, find_files
from llm4msr.data.reading.pieces import Piece
from llm4msr.data.reading.raw_data import RawData, RawTable, require_unique
from llm4msr.data.reading.raw_tables import UNNUMBERED, PieceTable, number_rows
from llm4msr.errors import DataError

RECOMMENDATION, SEARCH = "recommendation", "search"

_FILES = ("rec_inter.csv", "src_inter.csv", "user_features.csv", "item_features.csv")
_USER_FEATURES = ("search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2")
_LEVELS = tuple(f"{level}_level_category_name_en" for level in ("first", "second", "third", "fourth"))
_NO_NAME = pa.array(["", "empty", "unknown"])
_NO_AUTHOR, _EMPTY, _VIDEO = pa.scalar("0"), pa.scalar(""), pa.scalar("VIDEO")
_STEP = " > "


def fingerprint(config: SourceConfig) -> str:
    """Hash that changes when a file or an option changes."""
    return storage.digest(config.kuaisar.model_dump_json(), *map(file_fingerprint, _files(config)))


def read(config: SourceConfig) -> RawData:
    """As `Source.read`; the table of items is mapped from a temporary file."""
    recommended, searched, user_file, item_file = (find_files(file.parent, file.name)[0] for file in _files(config))
    interactions = _table([recommended, searched], functools.partial(_interactions, config.kuaisar))
    users = _table([user_file], _users)
    items = _spool(_items(item_file.path, config.kuaisar.author))
    require_unique(items["item_id"], str(item_file.path), "item_id")
    return RawData(interactions, users, items, implicit=False, users_file=str(user_file.path))


def _files(config: SourceConfig) -> list[UPath]:
    return [stream.find(storage.path(config.path), name, f"{name}.gz") for name in _FILES]


def _table(files: list[SourceFile], read: Callable[[Piece], Iterator[pa.Table]]) -> RawTable:
    """The rows of the files one after the other."""
    firsts = [next(read(Piece(file, place, file.size))) for place, file in enumerate(files)]
    plan = pieces.plan(files, Rows(firsts[0], files[0].path))
    return PieceTable(firsts[0].schema, plan.rows, plan.pieces, read, sum(file.size for file in files))


def _interactions(options: KuaiSAROptions, piece: Piece) -> Iterator[pa.Table]:
    """Those of the first file are recommendations, those of the second are searches."""
    if piece.place == 0:
        for rows in pieces.read_rows(piece, ("user_id", "item_id", "timestamp", "click"), ","):
            yield _raw_rows(piece, rows, rows.ids("item_id"), RECOMMENDATION, rows.labels("click"), "timestamp")
    else:
        yield from _searches(options, piece)


def _searches(options: KuaiSAROptions, piece: Piece) -> Iterator[pa.Table]:
    time, kept = "search_session_timestamp", 0
    for rows in pieces.read_rows(piece, ("user_id", "item_id", time, "click_cnt", "item_type"), ","):
        kinds, ids = rows.texts("item_type"), rows.ids("item_id")
        ids = pc.if_else(pc.equal(kinds, _VIDEO), ids, join_texts([kinds, ids], ":"))
        label = pc.greater(rows.numbers("click_cnt"), pa.scalar(0)).cast(pa.int8()).cast(pa.float32())
        table = _raw_rows(piece, rows, ids, SEARCH, label, time)
        if options.search_item_types:
            table = table.filter(pc.is_in(kinds, pa.array(options.search_item_types, pa.string())))
        kept += table.num_rows
        yield table
    if not kept:
        kinds_kept = " or ".join(options.search_item_types)
        raise DataError(
            f"{piece.file.path}: no row has item_type {kinds_kept}; change source.kuaisar.search_item_types"
        )


def _raw_rows(piece: Piece, rows: Rows, ids: Column, scenario: str, label: Column, time: str) -> pa.Table:
    columns = [rows.ids("user_id"), ids, pa.repeat(scenario, len(ids)), label, rows.whole_numbers(time)]
    return number_rows(pa.Table.from_arrays(columns, schema=UNNUMBERED), pieces.first_number(piece, rows))


def _users(piece: Piece) -> Iterator[pa.Table]:
    for rows in pieces.read_rows(piece, ("user_id", *_USER_FEATURES), ","):
        columns = {"user_id": rows.ids("user_id")} | {f"f:{name}": rows.texts(name) for name in _USER_FEATURES}
        yield pa.Table.from_pydict(columns)


def _items(file: UPath, with_author: bool) -> Iterator[pa.Table]:
    author = ("author_id",) if with_author else ()
    for rows in csv_rows(file, ("item_id", "item_type", "upload_type", *author, *_LEVELS), ","):
        path = join_texts([_step(rows, level) for level in _LEVELS])
        path = pc.utf8_slice_codeunits(path, len(_STEP))
        steps = pc.if_else(pc.equal(path, _EMPTY), pa.scalar([], pa.list_(pa.string())), split_texts(path, _STEP))
        columns = {"item_id": rows.ids("item_id"), "title": path, "f:category": steps}
        columns |= {f"f:{name}": rows.texts(name) for name in ("upload_type", "item_type")}
        if with_author:
            ids = rows.texts("author_id")
            columns["f:author_id"] = pc.if_else(pc.equal(ids, _NO_AUTHOR), "", ids)
        yield pa.Table.from_pydict(columns)


def _step(rows: Rows, level: str) -> Column:
    """ " > " and the English name of a level; empty where there is none."""
    # and no null, since binary_join_element_wise can skip nulls but then loses rows of nothing else
    names = pc.utf8_trim_whitespace(rows.texts(level))
    absent = pc.is_in(pc.utf8_lower(names), _NO_NAME)
    return pc.if_else(absent, "", join_texts([_STEP, names]))


def _spool(tables: Iterator[pa.Table]) -> pa.Table:
    first = next(tables)
    return stream.spool(first.schema, (batch for t in itertools.chain([first], tables) for batch in t.to_batches()))
