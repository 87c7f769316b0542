"""Ids that a reader takes for one while they are two: `'7'` and `'7.0'`, `'007'` and `'7'`, `'a '` and `'A'`."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

_NUMBER = r"^-?\d{1,30}(\.\d{0,30})?(e[+-]?\d{1,2})?$"
_AT_ENDS = " \t\r\n\0\u00a0\ufeff"


class Pairs(NamedTuple):
    """Ids of two tables, one beside the other."""

    ours: pa.Array
    theirs: pa.ChunkedArray


def pairs(ours: pa.Array, theirs: pa.ChunkedArray) -> Pairs:
    """Those of `ours` that are among `theirs` but for their spelling, which is: blanks at the ends, upper and lower
    case, the form of Unicode, and how a number is written, its digits beyond float64's precision included."""
    places = pc.index_in(_plain(ours), value_set=_plain(theirs.combine_chunks()))
    return Pairs(ours.filter(pc.is_valid(places)), theirs.take(places.drop_null()))


def _plain(ids: pa.Array) -> pa.Array:
    texts = pc.utf8_lower(pc.utf8_trim(pc.utf8_normalize(ids, "NFKC"), _AT_ENDS))
    numbers = pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None).cast(pa.float64())
    return pc.coalesce(numbers.cast(pa.large_string()), texts)
