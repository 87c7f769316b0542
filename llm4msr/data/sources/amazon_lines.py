"""One line of Amazon's files: a review, or the description of an item."""

import ast
import contextlib
import html
import itertools
import json
import re

from llm4msr.text import MAX_ID, MAX_TEXT

MAX_LITERAL = 1 << 20
"""Bytes of a line that is read as a Python literal, which takes some hundred times its size."""

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_FIRST_ASIN = re.compile(rb"\{'asin': '(\w+)'")


def review(line: bytes) -> tuple[str, str, float, int]:
    """User, item, rating and time.

    Raises:
        ValueError: what is wrong.
    """
    record = _record(line)
    return (
        _id(record, "reviewerID"),
        _id(record, "asin"),
        _number(record, "overall"),
        _whole(record, "unixReviewTime"),
    )


def item(line: bytes, wanted: set[str]) -> tuple[str, str, list[str], str] | None:
    """Item, title, category path and brand, if the item is wanted; takes it from `wanted`.

    Raises:
        ValueError: what is wrong.
    """
    # reading a literal takes long, so lines of other items are passed over without
    first = _FIRST_ASIN.match(line)
    if first and first[1].decode() not in wanted:
        return None
    record = _record(line, or_literal=True)
    asin = _id(record, "asin")
    if asin not in wanted:
        return None
    wanted.remove(asin)
    title = _text(record.get("title"))
    # the files of 2018 hold a script of the page in place of some titles
    return asin, "" if "getTime" in title else title, _steps(record), _text(record.get("brand"))


def _record(line: bytes, or_literal: bool = False) -> dict[str, object]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        if not or_literal:
            raise ValueError(f"not JSON ({error.msg}, character {error.pos + 1})") from None
        record = _literal(line)
    except ValueError:
        raise ValueError("a number of too many digits") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object")
    return record


def _literal(line: bytes) -> object:
    if len(line) > MAX_LITERAL:
        raise ValueError(f"not JSON, and too long for a Python literal (over {MAX_LITERAL} bytes)")
    try:
        return ast.literal_eval(line.decode())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor a Python literal") from None


def _value(record: dict[str, object], key: str) -> object:
    if key not in record:
        raise ValueError(f"'{key}' is missing")
    return record[key]


def _id(record: dict[str, object], key: str) -> str:
    value = _value(record, key)
    if not (isinstance(value, str) and value and value.isprintable()):
        raise ValueError(f"'{key}' is {value!r:.60}, not an id")
    if len(value) > MAX_ID:
        raise ValueError(f"'{key}' is {value!r:.60}; an id has at most {MAX_ID} characters")
    return value


def _number(record: dict[str, object], key: str) -> float:
    value = _value(record, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e15 < value < 1e15:
        raise ValueError(f"'{key}' is {value!r:.60}, not a number")
    return float(value)


def _whole(record: dict[str, object], key: str) -> int:
    value = _number(record, key)
    if not value.is_integer():
        raise ValueError(f"'{key}' is {value!r}, not a whole number")
    return int(value)


def _text(value: object) -> str:
    """Without HTML and with single blanks; what is no text counts as none."""
    if not isinstance(value, str):
        return ""
    if len(value) > MAX_TEXT:
        raise ValueError(f"{value!r:.60}; a title, category or brand has at most {MAX_TEXT} characters")
    with contextlib.suppress(ValueError):  # an entity of thousands of digits is no character
        value = html.unescape(value)
    plain = " ".join(_TAG.sub(" ", value).split())
    return plain.encode(errors="replace").decode()


def _steps(record: dict[str, object]) -> list[str]:
    """The steps of the item's category paths, each once."""
    paths = record["categories"] if "categories" in record else [record.get("category")]
    lists = [path for path in paths if isinstance(path, list)] if isinstance(paths, list) else []
    # in the files of 2018 a step of HTML ends the path; the page's bullet points follow
    steps = (step for path in lists for step in itertools.takewhile(lambda step: "</" not in str(step), path))
    return [step for step in dict.fromkeys(map(_text, steps)) if step]
