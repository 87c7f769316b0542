"""Texts of data and of the LLM, made fit to be shown: bounded, and without characters that disturb the text around."""

import ipaddress
import json
import math
import re

MAX_ID = 8192
"""Characters of a raw id (user, item, scenario) or of a context value, for `prepare` and for serving."""
MAX_TEXT = 100_000
"""Characters of any other cell of a source: a title, a category path, a feature's value."""

NONE = "n/a"
"""Shown where there is no number."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, and those that change the direction of the text that follows."""
_END = re.compile(r"""[.!?…。！？]["'”’)\]]*(?=\s|$)|[。！？]|\n""")
"""The end of a sentence, or of a line."""
_FORMULA = re.compile(r"^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\n]")
"""How a cell begins that a spreadsheet would run; some take the wide forms of the signs too."""
_MARKUP = re.compile(r"[\\`*\[\]<>|~$]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|(?<=:)/(?=/)")
"""What Markdown would take for markup; an underscore within a word is none."""

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
    """The text as a terminal may show it: disturbing characters become �, secrets in URIs ***; line breaks stay."""
    return _CONTROLS.sub("\ufffd", mask(text))


def shorten(text: str, limit: int = 60) -> str:
    """The text in one line of at most `limit` characters; disturbing characters become �, so that one sees them."""
    line = " ".join(_CONTROLS.sub("\ufffd", text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 1].rstrip() + "…"


def quote(text: str, limit: int = 40) -> str:
    """The text as a Python literal, which shows blanks at its ends and invisible characters; a long one loses its
    middle, since ids often differ at their end."""
    whole = repr(text)
    return whole if len(whole) <= limit else f"{repr(text[:limit])[: limit // 2]}…{repr(text[-limit:])[-limit // 3 :]}"


def block(text: str, limit: int = 4000) -> str:
    """The text with its line breaks, of at most `limit` characters; a disturbing character becomes �."""
    clean = _CONTROLS.sub("\ufffd", text[:limit].replace("\r\n", "\n"))
    return clean.strip() + ("…" if len(text) > limit else "")


def whole_sentences(text: str, limit: int = 4000) -> str:
    """The text as `block` has it, up to the end of its last whole sentence or line within the limit.

    A text without one ends with its last whole word and "…".
    """
    clean = block(text, limit).removesuffix("…")
    ends = [match.end() for match in _END.finditer(clean)]
    if ends or not clean:
        return clean[: ends[-1] if ends else 0].rstrip()
    return (clean.rpartition(" ")[0] or clean) + "…"


def first_line(error: Exception, limit: int = 300) -> str:
    """The first line of the error's message, cut where it is longer."""
    return (str(error).strip().splitlines() or [""])[0][:limit]


def signed(value: float, digits: int = 4) -> str:
    """The number with its sign, a true minus; zero has none."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if float(text[1:]) else text[1:]


def cell(text: str) -> str:
    """The text as a cell of a CSV file that a spreadsheet shows and does not run."""
    clean = _CONTROLS.sub("\ufffd", text)
    return f"'{clean}" if _FORMULA.match(clean) else clean


def markdown(text: str, limit: int = 60) -> str:
    """The text for use within a line of Markdown, such as a cell of a table: one line, with its markup escaped."""
    return _MARKUP.sub(r"\\\g<0>", shorten(text, limit))


def as_json(value: object, indent: int | None = None) -> str:
    """JSON that a terminal can show, in one line without `indent`: disturbing characters are escaped.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address stands for the machine that reads it, and no other."""
    try:
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def number(value: float | None, digits: int = 4) -> str:
    """The number with so many digits; `n/a` if there is none, or it is not finite."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(part: float | None, whole: float = 1.0) -> str:
    """The share of `whole` that `part` is; never "0%" for something, nor "100%" for less than all."""
    if part is None or not whole or not math.isfinite(part):
        return NONE
    share = 100 * part / whole
    if part == 0 or part == whole:
        return f"{share:.0f}%"
    return "< 0.1%" if 0 < share < 0.1 else "> 99.9%" if 99.9 < share < 100 else f"{share:.1f}%"


def count_of(part: int, whole: int) -> str:
    """`150 of 30,431 (0.5%)`."""
    return f"{part:,} of {whole:,} ({percent(part, whole)})"
