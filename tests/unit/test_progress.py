import pytest

from llm4msr import progress
from llm4msr.progress import Level, say, track, warn


def test_lines_on_standard_error_end_with_the_whole(capsys: pytest.CaptureFixture[str]):
    with track("extract", 10, done=4) as tracked:
        tracked.advance(2)
        tracked.advance(4, "(1 failed)")
        assert tracked.done == 10
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("  extract: 10 of 10, ")
    assert lines[-1].endswith("s (1 failed)")


def test_a_line_now_and_then_tells_what_is_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with track("train", 3) as tracked:
        tracked.advance(1)
        tracked.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("  train: 1 of 3, ")
    assert lines[1].startswith("  train: 2 of 3, about ")
    assert "left" in lines[1]


def test_a_terminal_gets_a_bar_that_is_closed_whatever_happens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")

    def work() -> None:
        with track("extract", 2) as progress:
            progress.advance(1, "note")
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        work()
    shown = capsys.readouterr().err
    assert "extract note" in shown
    assert shown.endswith("\x1b[?25h"), "the cursor is there again"


def test_quiet_leaves_warnings_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "_level", Level.QUIET)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    say("going on")
    with track("extract", 2) as tracked:
        tracked.advance(2)
    warn("something is odd")
    assert capsys.readouterr().err == "warning: something is odd\n"


def test_two_bars_share_one_display(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Of two displays each would move the cursor over the lines of the other."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with track("train one", 2) as one:
        with track("train two", 2) as two:
            one.advance(1)
            two.advance(2, "done")
            assert two._bars is not None
            two._bars.refresh()
        one.advance(1, "last")
    shown = capsys.readouterr().err
    assert "train two done" in shown
    assert "train one last" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is hidden once, and there again"
