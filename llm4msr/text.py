"""Texts of data and LLM, made fit to be shown: bounded, and without characters that disturb what stands around them."""

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, and those that turn the direction of the text that follows, their own element or not."""
FORMULA = re.compile(r"^[=+\-@\t\r]")
"""How a cell begins that a spreadsheet would run."""

_USER = re.compile(
    r"""(?<=://)[^\s"'/@:]{0,200}:(?!\d+/)[^\s"']{0,1000}@"""  # user:password@, where the password may hold a slash
    r"""|(?<=http://|edis://)[^\s"'/@]{1,1000}@|(?<=https://|ediss://)[^\s"'/@]{1,1000}@"""
)
_TOKEN = re.compile(
    r"""([?&][^=&\s"']{0,100}?(?:token|sig|secret|passw|pwd|key|credential|auth)[^=&\s"']{0,100}=)[^&#\s"']+""", re.I
)


def masked(text: str) -> str:
    """The text with `***` for users and passwords in its URIs, and for tokens and signatures in their queries."""
    if "://" not in text:
        return text
    return _TOKEN.sub(r"\1***", _USER.sub("***@", text))


def shortened(text: str, limit: int = 60) -> str:
    """The text in one line, cut where it is longer; a disturbing character becomes �, so that one sees it was there."""
    line = " ".join(_CONTROLS.sub("\ufffd", text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 1].rstrip() + "…"


def block(text: str, limit: int = 4000) -> str:
    """The same with its line breaks."""
    clean = _CONTROLS.sub("\ufffd", text[:limit].replace("\r\n", "\n"))
    return clean.strip() + ("…" if len(text) > limit else "")


def signed(value: float, digits: int = 4) -> str:
    """The number with its sign, a true minus; zero has none."""
    told = f"{value:+.{digits}f}".replace("-", "−")
    return told if float(told[1:]) else told[1:]


def cell(text: str) -> str:
    """The text as a cell of a CSV file, which a spreadsheet shows and does not run."""
    return f"'{text}" if FORMULA.match(text) else text
