"""Pairs of ids that a reader takes for one: `'7'` and `'7.0'`, `'007'` and `'7'`, `'a '` and `'A'`."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.arrays import Column

_NUMBER = r"^-?\d{1,30}(\.\d{0,30})?(e[+-]?\d{1,2})?$"
_AT_ENDS = " \t\r\n\0\u00a0\ufeff"


class Pairs(NamedTuple):
    """Ids of two tables, one beside the other."""

    ours: Column
    theirs: Column


def find_pairs(ours: Column, theirs: Column) -> Pairs:
    """Those of `ours` that are among `theirs` but for their spelling.

    Spelling is blanks at the ends, upper and lower case, the form of Unicode, and how a number is written, its digits
    beyond float64's precision included.
    """
    places = pc.index_in(_plain(ours), value_set=_plain(theirs))
    return Pairs(ours.filter(pc.is_valid(places)), theirs.take(places.drop_null()))


def _plain(ids: Column) -> Column:
    texts = pc.utf8_lower(
        pc.utf8_trim(pc.call_function("utf8_normalize", [ids], pc.Utf8NormalizeOptions("NFKC")), _AT_ENDS)
    )
    numbers = pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None).cast(pa.float64())
    return pc.coalesce(numbers.cast(pa.large_string()), texts)
