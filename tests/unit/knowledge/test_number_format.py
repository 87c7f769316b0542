"""Which number format an LLM gets by the GPUs of a cluster; CPUs are in tests/ray/test_number_format.py."""

import pytest

from llm4msr.config import ExtractConfig
from llm4msr.knowledge.number_format import fastest

PLAIN = {"CPU": 8.0}


def gpu(name: str) -> dict[str, float]:
    return {"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{name}": 1.0}


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        ([gpu("H100")], "bfloat16"),
        ([PLAIN, gpu("A100")], "bfloat16"),
        ([gpu("T4")], "float32"),
        ([gpu("A100"), gpu("V100")], "float32"),
        ([{"CPU": 8.0, "GPU": 1.0}], "bfloat16"),
    ],
)
def test_gpus_get_bfloat16_unless_one_of_them_is_too_old(machines: list[dict[str, float]], expected: str) -> None:
    assert fastest(ExtractConfig(), machines) == expected


def test_gpus_that_are_still_to_come_get_bfloat16() -> None:
    assert fastest(ExtractConfig(device="gpu", actors=2), [PLAIN]) == "bfloat16"
