"""What a command prints where."""

import sys

import pytest

from llm4msr.cli.process import stdout_for_results


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
