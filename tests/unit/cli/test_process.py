"""What a command prints where."""

import signal
import sys
import threading

import pytest

from llm4msr.cli.process import run_command, stdout_for_results
from llm4msr.errors import ConfigError
from llm4msr.progress import track


def test_what_a_library_prints_during_a_stage_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with stdout_for_results() as results:
        print("a library's line")
        print("the table", file=results)
    print("the last line")
    out, err = capsys.readouterr()
    assert out == "the table\nthe last line\n"
    assert err == "a library's line\n"


def test_after_an_error_libraries_still_print_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    usual = sys.stdout
    try:
        with pytest.raises(KeyboardInterrupt), stdout_for_results():
            raise KeyboardInterrupt
        print("Ray ends an actor")
    finally:
        sys.stdout = usual
    out, err = capsys.readouterr()
    assert not out
    assert err == "Ray ends an actor\n"


def test_a_thread_that_goes_on_leaves_the_cursor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    begun, go_on = threading.Event(), threading.Event()

    def go_on_training() -> None:
        with track("train", 2) as progress:
            begun.set()
            assert go_on.wait(10)
            progress.advance(1)

    thread = threading.Thread(target=go_on_training, daemon=True)

    def command() -> None:
        thread.start()
        assert begun.wait(10)
        raise ConfigError("the loss of another one is not finite")

    usual = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            run_command(command)
    finally:
        signal.signal(signal.SIGTERM, usual)
    shown = capsys.readouterr().err
    go_on.set()
    thread.join(10)
    assert shown.index("\x1b[?25l") < shown.index("\x1b[?25h") < shown.index("error: the loss of another one")
    assert "\x1b[?25l" not in capsys.readouterr().err
