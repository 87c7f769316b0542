import pytest

from llm4msr import errors
from llm4msr.session import own_errors


@pytest.mark.parametrize("kind", [errors.DataError, errors.StorageError, errors.TooManyFailedError])
def test_our_own_error_passes(kind: type[Exception]):
    with pytest.raises(kind, match=r"^mine$"), own_errors():
        raise kind("mine")


@pytest.mark.parametrize("kind", [errors.StorageError, errors.MissingExtraError])
def test_our_error_inside_the_text_of_rays_is_raised_as_itself(kind: type[errors.LLM4MSRError]):
    text = f"ray::Worker() (pid=1)\n  File x\n{kind.__module__}.{kind.__name__}: file a: damaged\nmore of Ray's"
    with pytest.raises(kind, match=r"^file a: damaged$"), own_errors():
        raise RuntimeError(text)


def test_an_unknown_error_of_ours_becomes_the_base():
    with pytest.raises(errors.LLM4MSRError, match=r"^later$"), own_errors():
        raise RuntimeError("llm4msr.errors.NewError: later")


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError, match="plain"), own_errors():
        raise KeyError("plain")
