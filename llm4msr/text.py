"""Texts of data and LLM, made fit to be shown: bounded, and without characters that disturb what stands around them."""

import json
import math
import re
from typing import Any

MAX_ID = 8192
"""Characters of a raw id (user, item, scenario) or of a context value: what `prepare` takes, serving takes."""
MAX_TEXT = 100_000
"""Characters of any other cell of a source: a title, a category path, a feature's value."""

NONE = "n/a"
"""Stands wherever a number would, and there is none."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, and those that turn the direction of the text that follows, their own element or not."""
_FORMULA = re.compile(r"^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\n]")
"""How a cell begins that a spreadsheet would run, with the wide forms of the signs that some take for them."""
_MARKUP = re.compile(r"[\\`*\[\]<>|~$]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|(?<=:)/(?=/)")
"""What Markdown would read as more than a character; an underscore within a word is one."""

_USER = re.compile(
    r"""(?<=://)[^\s"'/@:]{0,200}:(?!\d+/)[^\s"']{0,1000}@"""  # user:password@, where the password may hold a slash
    r"""|(?<=http://|edis://)[^\s"'/@]{1,1000}@|(?<=https://|ediss://)[^\s"'/@]{1,1000}@"""
)
_TOKEN = re.compile(
    r"""([?&][^=&\s"']{0,100}?(?:token|sig|secret|passw|pwd|key|credential|auth)[^=&\s"']{0,100}=)[^&#\s"']+""", re.I
)


def mask(text: str) -> str:
    """The text with `***` for users and passwords in its URIs, and for tokens and signatures in their queries."""
    if "://" not in text:
        return text
    return _TOKEN.sub(r"\1***", _USER.sub("***@", text))


def sanitize(text: str) -> str:
    """The text as a terminal may get it: a disturbing character becomes �, line breaks stay, secrets of URIs do not."""
    return _CONTROLS.sub("\ufffd", mask(text))


def shorten(text: str, limit: int = 60) -> str:
    """The text in one line, cut where it is longer; a disturbing character becomes �, so that one sees it was there."""
    line = " ".join(_CONTROLS.sub("\ufffd", text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 1].rstrip() + "…"


def quote(text: str, limit: int = 40) -> str:
    """The text as Python writes it, so that blanks at its ends and what cannot be seen show; a long one loses its
    middle, since ids often differ at their end."""
    whole = repr(text)
    return whole if len(whole) <= limit else f"{repr(text[:limit])[: limit // 2]}…{repr(text[-limit:])[-limit // 3 :]}"


def block(text: str, limit: int = 4000) -> str:
    """The same with its line breaks."""
    clean = _CONTROLS.sub("\ufffd", text[:limit].replace("\r\n", "\n"))
    return clean.strip() + ("…" if len(text) > limit else "")


def first_line(error: Exception, limit: int = 300) -> str:
    """The first line of the error's message, cut where it is longer."""
    return (str(error).strip().splitlines() or [""])[0][:limit]


def signed(value: float, digits: int = 4) -> str:
    """The number with its sign, a true minus; zero has none."""
    told = f"{value:+.{digits}f}".replace("-", "−")
    return told if float(told[1:]) else told[1:]


def cell(text: str) -> str:
    """The text as a cell of a CSV file, which a spreadsheet shows and does not run."""
    clean = _CONTROLS.sub("\ufffd", text)
    return f"'{clean}" if _FORMULA.match(clean) else clean


def markdown(text: str, limit: int = 60) -> str:
    """The text within a line of Markdown, such as a cell of a table: one line, and nothing in it is markup."""
    return _MARKUP.sub(r"\\\g<0>", shorten(text, limit))


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON that a terminal shows as it is, one line without `indent`: a disturbing character is escaped.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def number(value: float | None, digits: int = 4) -> str:
    """The number with so many digits; `n/a` where there is none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(part: float | None, whole: float = 1.0) -> str:
    """The share that `part` is of `whole`; never "0%" of something, nor "100%" of less than all."""
    if part is None or not whole or not math.isfinite(part):
        return NONE
    share = 100 * part / whole
    if part == 0 or part == whole:
        return f"{share:.0f}%"
    return "< 0.1%" if 0 < share < 0.1 else "> 99.9%" if 99.9 < share < 100 else f"{share:.1f}%"


def count_of(part: int, whole: int) -> str:
    """`150 of 30,431 (0.5%)`."""
    return f"{part:,} of {whole:,} ({percent(part, whole)})"
