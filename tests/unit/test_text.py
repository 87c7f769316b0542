"""Texts and numbers as they are shown."""

import json

import pytest

from llm4msr import text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("Plain", "Plain"),
        ("  two\n lines\t", "two lines"),
        ("x" * 10_000, "x" * 59 + "…"),
        ("a" + " " * 9000 + "b", "…"),
        ("abc\u202edef\u2066", "abc\ufffddef\ufffd"),
        ("nul\x00 bell\x07", "nul\ufffd bell\ufffd"),
        ("مرحبا", "مرحبا"),
        ("", ""),
    ],
)
def test_a_text_is_one_bounded_line(given: str, shown: str):
    found = text.shorten(given)
    assert len(found) <= 60
    assert found == shown or (shown == "…" and found.endswith("…"))


def test_a_signed_number_has_a_true_minus_and_zero_none():
    assert [text.signed(value, 2) for value in (0.5, -0.5, 0.001, -0.001)] == ["+0.50", "−0.50", "0.00", "0.00"]


@pytest.mark.parametrize(
    ("given", "limit", "shown"),
    [
        ("They like films. They like son", 100, "They like films."),
        ("They like films. They like songs.", 100, "They like films. They like songs."),
        ("They like films. They like songs.", 20, "They like films."),
        ('He said "Stop!" And th', 100, 'He said "Stop!"'),
        ("What costs 3.50 each. Then 4.2", 100, "What costs 3.50 each."),
        ("1) films\n2) son", 100, "1) films"),
        ("no end in sight", 100, "no end in…"),
        ("endless", 3, "end…"),
        ("他们喜欢电影。他们", 100, "他们喜欢电影。"),
        ("", 10, ""),
    ],
)
def test_a_text_ends_where_a_sentence_does(given: str, limit: int, shown: str):
    assert text.whole_sentences(given, limit) == shown


def test_a_block_keeps_its_lines():
    assert text.block("a\r\nb\u202e\n") == "a\nb\ufffd"
    assert text.block("y" * 5000, 100) == "y" * 100 + "…"


@pytest.mark.parametrize("given", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", "  =1", "\uff1dSUM(A1)", "\uff20x"])
def test_a_cell_is_no_formula(given: str):
    assert text.cell(given) == f"'{given}"
    assert text.cell(f"a{given}") == f"a{given}"


def test_a_cell_has_no_character_that_a_terminal_obeys():
    assert text.cell("a\x1b[2Jb\x00\x9b\u202e") == "a\ufffd[2Jb\ufffd\ufffd\ufffd"
    assert text.cell("two\nlines") == "two\nlines"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("Home & Garden, 50% off (new)!", "Home & Garden, 50% off (new)!"),
        ("home_feed", "home_feed"),
        ("_it_ *b* `c` ~d~ $e$", r"\_it\_ \*b\* \`c\` \~d\~ \$e\$"),
        ("a|b", r"a\|b"),
        ("a\\|b\\", r"a\\\|b\\"),
        ("one\n\n# two\r\n| three", r"one # two\ufffd \| three".replace("\\ufffd", "\ufffd")),
        ("<img src=x onerror=y> &lt; &#60; & Co", r"\<img src=x onerror=y\> \&lt; \&#60; & Co"),
        ("[x](javascript:y) ![z](http://a.example)", r"\[x\](javascript:y) !\[z\](http:\//a.example)"),
        ("\x1b[31mred\u202e", "\ufffd\\[31mred\ufffd"),
        ("x" * 100, "x" * 59 + "…"),
    ],
)
def test_markdown_shows_a_text_as_it_is(given: str, shown: str):
    assert text.markdown(given) == shown


def test_a_line_of_json_is_one_line_without_control():
    value = {"a|b\n\u2028": "\x1b\x9b\u202eمرحبا\ud800", "none": None, "number": 0.5}
    line = text.as_json(value)
    assert json.loads(line) == value
    assert "\n" not in line
    assert not {*"\x1b\x9b\u2028\u202e\ud800"} & {*line}
    assert "مرحبا" in line
    with pytest.raises(ValueError, match="not JSON compliant"):
        text.as_json({"auc": float("nan")})


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 30_431, "0%"),
        (1, 30_431, "< 0.1%"),
        (150, 30_431, "0.5%"),
        (15_216, 30_431, "50.0%"),
        (30_430, 30_431, "> 99.9%"),
        (30_431, 30_431, "100%"),
        (0, 0, "n/a"),
        (None, 1.0, "n/a"),
        (float("nan"), 1.0, "n/a"),
    ],
)
def test_a_share_is_none_or_all_only_if_it_is(part: float | None, whole: float, shown: str):
    assert text.percent(part, whole) == shown


def test_a_count_stands_beside_its_share():
    assert text.count_of(150, 30_431) == "150 of 30,431 (0.5%)"


def test_a_number_that_is_none_is_not_applicable():
    assert [text.number(value) for value in (0.5, None, float("nan"), float("inf"))] == ["0.5000", "n/a", "n/a", "n/a"]


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.1", "127.3.2.1", "::1"])
def test_a_host_that_is_this_machine_alone(host: str):
    assert text.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "shop", "127.0.0.1.nip.io", "10.0.0.1", "localhost.shop", ""])
def test_a_host_that_others_reach_or_are(host: str):
    assert not text.is_loopback(host)
