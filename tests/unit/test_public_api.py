import importlib.metadata
import importlib.resources
import subprocess
import sys

import pytest

import llm4msr
from llm4msr import errors, pipeline


def test_all_public_names_resolve_and_are_sorted():
    assert all(getattr(llm4msr, name) is not None for name in llm4msr.__all__)
    assert sorted(llm4msr.__all__) == llm4msr.__all__
    assert len(set(llm4msr.__all__)) == len(llm4msr.__all__)


@pytest.mark.parametrize(
    "name", ["prepare", "extract", "train", "evaluate", "export", "explain", "refresh", "score", "run"]
)
def test_stages_are_documented_functions(name: str):
    assert callable(getattr(pipeline, name))
    assert getattr(pipeline, name).__doc__


def test_the_package_loads_without_ray_and_vllm():
    """They are imported where they are needed: a notebook that only ranks should not start them."""
    program = "import sys, llm4msr; print([m for m in ('ray', 'vllm', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("LLM4MSRError", 1),
        ("InputError", 2),
        ("ConfigError", 2),
        ("DataError", 2),
        ("StorageError", 2),
        ("MissingExtraError", 2),
        ("TooManyFailedError", 3),
    ],
)
def test_errors_have_their_exit_codes(name: str, code: int):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.LLM4MSRError)
    assert kind.exit_code == code


def test_the_package_is_installed_with_its_types():
    files = {str(file) for file in importlib.metadata.files("llm4msr") or []}
    assert files
    assert importlib.resources.files("llm4msr").joinpath("py.typed").is_file()
    assert importlib.resources.files("llm4msr").joinpath("knowledge/prompts/user.txt").is_file()
